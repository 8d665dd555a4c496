"""Which jobs of a sweep another package's launcher gets. One that only writes results plays it."""

import json
import os
import re

import pytest
from hydra.core.utils import JobReturn, JobStatus

from recexp.cli.skipping import SkippingLauncher
from recexp.logs import show_logs
from recexp.runs.directory import lock_directory
from tests.cli.test_launcher import Context
from tests.config.test_experiments import composed


class Other:
    """Plays submitit or Ray: every job gets a result, or the error of the one that fails."""

    def __init__(self, sweep):
        self.sweep = sweep
        self.fails = ()
        self.gives_up = False
        self.ran = []

    def launch(self, job_overrides, initial_job_idx):
        if self.gives_up:
            raise RuntimeError("no partition gpu")
        returns = []
        for words in job_overrides:
            (folder,) = [w.split("=")[1] for w in words if w.startswith("hydra.sweep.subdir=")]
            folder = folder.strip('"')
            self.ran.append(folder)
            returned = JobReturn(overrides=words)
            failed = folder in self.fails
            returned.status = JobStatus.FAILED if failed else JobStatus.COMPLETED
            returned.return_value = RuntimeError("error: no data") if failed else 0.25
            if not failed:
                result = {"metrics": {"val/ndcg@10": 0.25}}
                (self.sweep / folder / "result.json").write_text(json.dumps(result))
            returns.append(returned)
        return returns


@pytest.fixture
def sweep(tmp_path):
    """sweep(jobs) returns the directories of the jobs that ran."""
    show_logs()
    other = Other(tmp_path)

    def go(jobs, *settings):
        other.ran = []
        config = composed(f"hydra.sweep.dir={tmp_path}", return_hydra_config=True)
        launcher = SkippingLauncher(other, Context(*settings), config)
        returns = launcher.launch([job.split() for job in jobs], 0)
        assert [returned.return_value for returned in returns] == [0.25] * len(jobs)
        return other.ran

    go.other = other
    return go


def test_finished_jobs_are_not_started_again(sweep, capfd):
    assert sweep(["model=pop", "model=item_knn"]) == ["0", "1"]
    assert sweep(["model=pop", "model=item_knn"]) == []
    assert "job 1 has its result already" in capfd.readouterr().err
    assert sweep(["model=pop"], "seed=1") == ["0"], "a YAML has changed"
    assert "its config has changed (seed)" in capfd.readouterr().err


def test_a_grid_that_grows_moves_no_job(sweep, tmp_path):
    sweep(["model=item_knn"])
    assert sweep(["model=pop", "model=item_knn"]) == ["1"]
    assert json.loads((tmp_path / "0" / "job.json").read_text())["overrides"] == ["model=item_knn"]


def test_failed_jobs_are_named_and_run_again(sweep, capfd):
    sweep.other.fails = ("0",)
    with pytest.raises(SystemExit) as ended:
        sweep(["model=pop", "model=item_knn"])
    said = capfd.readouterr().err
    assert ended.value.code == 1
    assert "FAILED job 0 (model=pop): error: no data" in said and "FAILED job 1" not in said
    sweep.other.fails = ()
    assert sweep(["model=pop", "model=item_knn"]) == ["0"]


def test_a_launcher_that_gives_up_ends_the_sweep_with_its_words(sweep, capfd):
    sweep.other.gives_up = True
    with pytest.raises(SystemExit):
        sweep(["model=pop"])
    assert "no partition gpu" in capfd.readouterr().err


def test_a_job_that_still_runs_is_not_started_twice(sweep, tmp_path, capfd):
    sweep.other.fails = ("0",)
    with pytest.raises(SystemExit):
        sweep(["model=pop"])
    lock = lock_directory(tmp_path / "0")
    try:
        with pytest.raises(SystemExit):
            sweep(["model=pop"])
    finally:
        os.close(lock)
    assert sweep.other.ran == []
    assert re.search(r"FAILED job 0 .* is in use by another run", capfd.readouterr().err)
