"""Which jobs of a sweep run again.

A process that only writes a result stands in for every job.
"""

import contextlib
import json
import os
import re
import signal
import sys
import time

import pytest
from omegaconf import OmegaConf

from recexp.cli import job_processes, launcher
from recexp.cli.launcher import ProcessLauncher
from recexp.errors import RecexpError
from recexp.logs import show_logs
from recexp.runs.directory import lock_directory
from tests.config.test_experiments import composed

JOB = """
import json, pathlib, sys
result = {"metrics": {"val/ndcg@10": 0.25}}
pathlib.Path(sys.argv[1], "result.json").write_text(json.dumps(result))
"""
KILLED = "import os; os.kill(os.getpid(), 9)"
SIGNALS_THE_SWEEP = """
import os, pathlib, signal, sys, time
def on_sigterm(*signal):
    pathlib.Path(sys.argv[1], "ended").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, on_sigterm)
os.kill(os.getppid(), getattr(signal, sys.argv[2]))
time.sleep(600)
"""


class Loader:
    """The part of Hydra's config loader that the launcher uses.

    common: settings of the YAML files, which are in no override.
    """

    def __init__(self, common):
        self.common = common

    def load_sweep_config(self, master, overrides):
        config = composed(*self.common, *overrides, return_hydra_config=True)
        OmegaConf.set_readonly(config.hydra, False)
        config.hydra.overrides.task = list(overrides)
        return config


class Context:
    def __init__(self, *common):
        self.config_loader = Loader(common)


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """sweep(jobs, *settings of the YAML files) returns the directories of the jobs that ran.

    ``sweep.fail`` makes all jobs fail; ``sweep.scripts`` holds another program per directory;
    ``sweep.command`` is the command line of the last job.
    """
    show_logs()
    popen, ran = job_processes.subprocess.Popen, []

    def play(command, **how):
        folder = next(
            word.split("=", 1)[1] for word in command if word.startswith("hydra.run.dir=")
        )
        ran.append(folder.rsplit("/", 1)[-1])
        go.command = command
        script = "raise SystemExit(1)" if go.fail else go.scripts.get(ran[-1], JOB)
        return popen([sys.executable, "-S", "-c", script, folder, *go.words], **how)

    def go(jobs, *settings):
        ran.clear()
        plugin = ProcessLauncher(warm=False)
        words = [f"hydra.sweep.dir={tmp_path}", *go.words_of_sweep]
        config = composed(*words, return_hydra_config=True)
        plugin.setup(hydra_context=Context(*settings), task_function=None, config=config)
        returns = plugin.launch([job.split() for job in jobs], 0)
        assert all(r.return_value == 0.25 for r in returns)
        return list(ran)

    go.fail, go.scripts, go.words, go.command = False, {}, [], []
    go.words_of_sweep = []
    monkeypatch.setattr(job_processes.subprocess, "Popen", play)
    return go


def test_results_are_kept_and_what_is_missing_is_run(sweep, tmp_path):
    assert sweep(["model=pop", "model=item_knn"]) == ["0", "1"]
    assert sweep(["model=pop", "model=item_knn"]) == []
    (tmp_path / "1" / "result.json").unlink()
    assert sweep(["model=pop", "model=item_knn"]) == ["1"]


def test_failed_jobs_run_again(sweep):
    sweep.fail = True
    with pytest.raises(SystemExit):
        sweep(["model=pop"])
    sweep.fail = False
    assert sweep(["model=pop"]) == ["0"]


def test_a_job_finds_the_configs_that_the_sweep_was_given(sweep, tmp_path):
    folder = tmp_path / "own, with a comma"
    (folder / "preset").mkdir(parents=True)
    (folder / "preset" / "mine.yaml").write_text("name: mine\n")
    sweep.words_of_sweep = [f"hydra.searchpath=['file://{folder}']"]
    sweep(["model=pop"])
    (word,) = [word for word in sweep.command if word.startswith("hydra.searchpath=")]
    assert composed(word, "preset=mine").preset == "mine"


def test_an_interrupted_job_resumes_from_its_checkpoint(sweep, tmp_path, capfd):
    sweep(["model=pop"])
    last = tmp_path / "0" / "checkpoints" / "last.ckpt"
    last.parent.mkdir()
    last.touch()
    assert sweep(["model=pop"]) == [], "it has a result"
    (tmp_path / "0" / "result.json").write_text('{"interrupted": "SIGTERM", "metrics": {}}')
    assert sweep(["model=pop"]) == ["0"]
    assert "job 0 goes on" in capfd.readouterr().err


def test_a_job_is_known_by_its_overrides_not_by_its_number(sweep, tmp_path):
    assert sweep(["model=pop", "model=item_knn"]) == ["0", "1"]
    assert sweep(["model=item_knn"]) == []
    assert sweep(["model=replay", "model=pop"]) == ["2"], "and nothing is overwritten"
    assert json.loads((tmp_path / "1" / "job.json").read_text())["overrides"] == ["model=item_knn"]


def test_a_job_is_known_by_its_config_where_its_words_differ(sweep):
    """As after a further setting was added to the grid, one value of which is the default."""
    assert sweep(["model=pop", "model=item_knn"]) == ["0", "1"]
    assert sweep(["seed=0 model=item_knn", "seed=1 model=item_knn"]) == ["2"]


def test_a_sweep_that_srun_started_twice_is_refused(sweep, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "2")
    with pytest.raises(RecexpError, match="srun started this sweep 2 times"):
        sweep(["model=pop"])


def test_a_setting_from_a_yaml_counts_like_one_from_the_command_line(sweep, capfd):
    """As after an edit of the experiment's file between two starts."""
    assert sweep(["model=pop", "model=item_knn"], "seed=0") == ["0", "1"]
    assert sweep(["model=pop", "model=item_knn"], "seed=1") == ["0", "1"]
    assert re.search(
        r"job 1 runs again, for its config has changed \(seed\)", capfd.readouterr().err
    )
    sweep.fail = True
    with pytest.raises(SystemExit):
        sweep(["model=pop"], "protocol.candidates.n=50")
    sweep.fail = False
    assert sweep(["model=pop"], "protocol.candidates.n=50") == ["0"], (
        "the old result went with the old config"
    )


def test_what_changes_no_number_does_not_count(sweep):
    assert sweep(["model=pop", "model=item_knn threads=1"], "cache_dir=a") == ["0", "1"]
    assert sweep(["model=pop threads=2 logger=none", "model=item_knn"], "cache_dir=b") == []


def test_a_killed_job_is_named_with_its_signal_and_the_others_finish(sweep, tmp_path, capfd):
    sweep.scripts = {"0": KILLED}
    with pytest.raises(SystemExit) as ended:
        sweep(["model=pop", "model=item_knn", "model=replay"])
    said = capfd.readouterr().err
    assert (
        ended.value.code == 1
        and "FAILED job 0 (model=pop): killed by SIGKILL" in said
        and "1 of 3 jobs failed" in said
    )
    assert [(tmp_path / name / "result.json").exists() for name in "012"] == [False, True, True]
    sweep.scripts = {}
    assert sweep(["model=pop", "model=item_knn", "model=replay"]) == ["0"]


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_sweep_ended_by_a_signal_ends_its_jobs_first(sweep, tmp_path, capfd, name, code):
    sweep.scripts, sweep.words = {"0": SIGNALS_THE_SWEEP}, [name]
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background process ignores SIGINT
    try:
        with pytest.raises(SystemExit) as ended:
            sweep(["model=pop", "model=item_knn"])
        assert (
            ended.value.code == code
            and (tmp_path / "0" / "ended").exists()
            and not (tmp_path / "1").exists()
        )
        assert f"{name} ends the sweep and its 1 running jobs" in capfd.readouterr().err
        assert signal.getsignal(signal.SIGTERM) is before[signal.SIGTERM]
    finally:
        signal.signal(signal.SIGINT, before[signal.SIGINT])


def test_a_job_that_outlived_its_sweep_is_waited_for_and_not_started_twice(
    sweep, tmp_path, capfd, monkeypatch
):
    sweep.scripts = {"0": KILLED}
    with pytest.raises(SystemExit):
        sweep(["model=pop"])
    lock = lock_directory(tmp_path / "0")  # the job of the killed sweep still runs
    sleep = time.sleep

    def finished(seconds):
        (tmp_path / "0" / "result.json").write_text('{"metrics": {"val/ndcg@10": 0.25}}')
        with contextlib.suppress(OSError):
            os.close(lock)
        sleep(0)

    monkeypatch.setattr(launcher.time, "sleep", finished)
    sweep.scripts = {}
    assert sweep(["model=pop"]) == []
    said = capfd.readouterr().err
    assert f"job 0 waits: {tmp_path}/0 is in use" in said and "has its result already" in said


def test_a_job_has_the_lock_of_its_directory_from_its_first_moment(sweep, tmp_path):
    """The process inherits the lock: there is no moment at which another sweep could take it."""
    locked = (
        "import fcntl, json, os, pathlib, sys; there = pathlib.Path(sys.argv[1]);"
        "file = (there / '.run.lock').open('r+');\n"
        "try: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "except BlockingIOError: (there / 'result.json').write_text("
        "json.dumps({'metrics': {'val/ndcg@10': 0.25}}))"
    )
    sweep.scripts = {"0": locked}
    assert sweep(["model=pop"]) == ["0"]
    os.close(lock_directory(tmp_path / "0"))  # it ended with the job
