"""Runs and sweeps as jobs of a real SLURM cluster; one machine with two cores is enough."""

from __future__ import annotations

import json
import re

import pytest

from tests.cluster.support import ENDLESS, SlurmJob, needs_slurm, state, wait_until
from tests.support.running import command

pytestmark = [pytest.mark.slow, needs_slurm]

ON_CPU = ("trainer=slurm", "trainer.accelerator=cpu")
# Factors stay as they were drawn, so that only evaluation can differ.
FIXED = ("model=bpr_mf", "model.n_factors=8", "optimizer.lr=1e-30", "eval_batch_size=7")


def epochs(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"^epoch (\d+)/", text, re.MULTILINE)]


def test_two_processes_of_srun_give_the_digits_of_our_own(tmp_path):
    folder = tmp_path / "srun"
    words = (*ON_CPU, *FIXED, f"hydra.run.dir={folder}")
    with SlurmJob(folder, *words, tasks=["-n2"], n_tasks=2) as job:
        job.wait_for(r"ended \d+")
        assert "ended 0" in job.said(), job.said()
        assert "device:    cpu, 2" in job.said()
    ours = tmp_path / "ours"
    done = command(ours, "trainer=ddp_cpu2", *FIXED, f"hydra.run.dir={ours}")
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((f / "result.json").read_text()) for f in (folder, ours))
    assert first["metrics"] == second["metrics"]


@pytest.mark.parametrize("n_tasks", [1, 2])
def test_a_job_whose_time_ends_goes_on_in_its_next_start(tmp_path, n_tasks):
    folder = tmp_path / "job"
    with SlurmJob(folder, *ON_CPU, *ENDLESS, tasks=[f"-n{n_tasks}"], n_tasks=n_tasks) as job:
        job.wait_for(r"epoch 3/")
        job.signal("USR1")
        job.wait_for("is requeued; its next start goes on in")
        job.start_again()
        before = job.said()
        last = folder / "multirun_outputs" / "slurm" / f"{job.id}.0" / "checkpoints" / "last.ckpt"
        job.wait_for(f"goes on from {last}")
        job.wait_for(r"(?m)^epoch ", len(epochs(before)) + 2)
        after = epochs(job.said()[len(before) :])
    assert after[0] == max(epochs(before)) + 1, job.said()


def test_a_canceled_job_saves_a_checkpoint_and_is_not_requeued(tmp_path):
    folder = tmp_path / "job"
    with SlurmJob(folder, *ON_CPU, *ENDLESS, tasks=["-n1"]) as job:
        job.wait_for(r"epoch 2/")
        job.signal("TERM")
        job.wait_for("SIGTERM ended the run")
        job.wait_for(r"ended \d+")
        assert "requeued" not in job.said()


def test_a_sweep_whose_time_ends_goes_on_in_its_next_start(tmp_path):
    folder = tmp_path / "sweep"
    lengths = "trainer.max_epochs=1,90000,100000"
    words = ("sweep=study", *ENDLESS, lengths, "hydra.launcher.jobs=2")
    jobs = folder / "multirun_outputs" / "study"
    with SlurmJob(folder, *words, tasks=["-n1"]) as job:
        job.wait_for("1 of 3 done")
        for number in "12":
            job.wait_for(f"job {number} started")
        trained = [jobs / number / "checkpoints" / "last.ckpt" for number in "12"]
        wait_until(lambda: all(path.exists() for path in trained), job.said)
        job.signal("USR1")
        job.wait_for("is requeued; its next start goes on in")
        job.start_again()
        job.wait_for("job 0 has its result already")
        for number in "12":
            job.wait_for(f"job {number} goes on")
            log = jobs / number / "log.txt"
            wait_until(lambda log=log: "goes on from" in log.read_text(), job.said)
    assert state(job.id) != "FAILED"
