"""Sweeps with submitit and Ray: finished jobs are skipped, interrupted ones go on."""

from __future__ import annotations

import subprocess

import pytest

from tests.cluster.support import (
    ENDLESS,
    environment,
    needs,
    needs_slurm,
    start_again,
    state,
    sweep_line,
    swept,
    wait_until,
)

pytestmark = pytest.mark.slow

LAUNCHERS = {
    "submitit": ("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10"),
    "ray": ("hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2"),
}
submitit = needs("hydra_plugins.hydra_submitit_launcher", "hydra-submitit-launcher")
ray = needs("hydra_plugins.hydra_ray_launcher", "hydra-ray-launcher")
BOTH = [pytest.param("submitit", marks=submitit), pytest.param("ray", marks=ray)]


@pytest.mark.parametrize("launcher", BOTH)
def test_a_sweep_started_again_runs_what_is_new(tmp_path, launcher):
    folder = tmp_path / "study"
    words = ("sweep=study", *LAUNCHERS[launcher])
    done = swept(folder, *words, "model=pop,bpr_mf", "trainer.max_epochs=1")
    assert done.returncode == 0, done.stderr
    jobs = folder / "multirun_outputs" / "study"
    times = {n: (jobs / n / "result.json").stat().st_mtime_ns for n in "01"}
    done = swept(folder, *words, "model=item_knn,bpr_mf,pop", "trainer.max_epochs=1")
    assert done.returncode == 0, done.stderr
    assert "job 1 has its result already" in done.stderr
    assert "job 2 has its result already" in done.stderr
    assert (jobs / "2" / "result.json").exists()
    assert times == {n: (jobs / n / "result.json").stat().st_mtime_ns for n in "01"}


@pytest.mark.parametrize("launcher", BOTH)
def test_a_job_that_fails_ends_the_sweep_as_an_error(tmp_path, launcher):
    words = ("sweep=study", *LAUNCHERS[launcher], "model=pop", "ckpt_path=nowhere.ckpt")
    done = swept(tmp_path / "study", *words)
    assert done.returncode == 1, done.stderr
    assert "There is no checkpoint nowhere.ckpt" in done.stderr


@needs_slurm
@submitit
def test_submitit_requeues_a_job_once_and_then_it_fails(tmp_path):
    folder = tmp_path / "study"
    folder.mkdir()
    launcher = ("hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=9")
    words = ("sweep=study", *launcher, "hydra.launcher.max_num_timeout=1", *ENDLESS)
    jobs = folder / "multirun_outputs" / "study"
    last = jobs / "0" / "checkpoints" / "last.ckpt"
    with (folder / "sweep.txt").open("w") as output:
        sweep = subprocess.Popen(
            sweep_line(folder, *words), cwd=folder, stdout=output, stderr=output, env=environment()
        )

    def log() -> str:
        parts = sorted(jobs.glob(".submitit/*/*_log.*"))
        return "".join(path.read_text() for path in parts) + (folder / "sweep.txt").read_text()

    try:
        wait_until(last.exists, log)
        (number,) = [path.name for path in jobs.glob(".submitit/[0-9]*")]
        subprocess.run(["scancel", "--signal=USR2", number], check=True)
        wait_until(lambda: f"Requeued job {number}" in log(), log)
        start_again(number)
        wait_until(lambda: "goes on from" in log(), log)
        saved = last.stat().st_mtime_ns
        wait_until(lambda: last.stat().st_mtime_ns > saved, log)
        subprocess.run(["scancel", "--signal=USR2", number], check=True)
        wait_until(lambda: state(number) not in ("RUNNING", "COMPLETING"), log)
        assert state(number) == "FAILED", log()
        assert "error: Job not requeued because: timed-out too many times" in log()
        assert "completed successfully" not in log()
    finally:
        sweep.kill()
        sweep.wait()
        for path in jobs.glob(".submitit/[0-9]*"):
            subprocess.run(["scancel", path.name], check=False)
