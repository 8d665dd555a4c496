"""What a run and a sweep do inside a SLURM job, with another program in the place of scontrol."""

import logging
import signal
import subprocess

import pytest
from omegaconf import OmegaConf

from recexp.cli import slurm
from recexp.cli.main import arguments_of_rank, drop_stray_ranks
from recexp.runs.directory import RUN_DIR

STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"}
DIRECTORY = "hydra.run.dir=multirun_outputs/slurm/7.0"


@pytest.mark.parametrize(
    ("layout", "per_node"), [("2", "2"), ("2(x3)", "2"), ("2,1", None), ("2(x2),1", None)]
)
def test_srun_without_tasks_per_node_is_completed(layout, per_node):
    environment = STEP | {"SLURM_STEP_TASKS_PER_NODE": layout, "SLURM_NTASKS_PER_NODE": "9"}
    slurm.read_task(environment)
    assert environment.get("SLURM_NTASKS_PER_NODE") == per_node


@pytest.mark.parametrize(("n_tasks", "warns"), [("4", True), ("1", False)])
def test_a_process_that_srun_did_not_start_is_one_process(n_tasks, warns, caplog):
    environment = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": n_tasks}
    with caplog.at_level(logging.WARNING, "recexp"):
        slurm.read_task(environment)
        drop_stray_ranks(environment)
    assert environment == {"SLURM_JOB_ID": "7"}
    assert ("srun did not start this process" in caplog.text) == warns


def test_all_processes_of_a_slurm_job_have_the_directory_of_its_first_start():
    words = slurm.with_directory(["trainer=slurm", "model=pop"], STEP)
    assert words[-1] == DIRECTORY
    environment = dict(STEP)
    assert DIRECTORY not in arguments_of_rank(words, environment)
    assert environment[RUN_DIR].endswith("multirun_outputs/slurm/7.0")


@pytest.mark.parametrize(
    ("words", "environment"),
    [
        (["trainer=slurm", "hydra.run.dir=there"], STEP),
        (["trainer=slurm", "-m"], STEP),
        (["trainer=gpu"], STEP),
        (["trainer=slurm"], {}),
    ],
)
def test_other_command_lines_stay_as_they_are(words, environment):
    assert slurm.with_directory(words, environment) == words


@pytest.fixture
def job(monkeypatch, tmp_path):
    """A run's directory in SLURM job 7; ``job.calls`` are those of scontrol, answered by 0."""

    class Job:
        folder = tmp_path
        calls: list = []

        def train(self):
            (tmp_path / "checkpoints").mkdir(exist_ok=True)
            (tmp_path / "checkpoints" / "last.ckpt").touch()

        def end(self, signum, *, trains=True, is_kept=True, is_first=True):
            requeue = slurm.Requeue(tmp_path, is_kept=is_kept)
            if trains:
                self.train()
            with pytest.raises(SystemExit) as ended:
                requeue.end(signum, is_first=is_first)
            return ended.value.code

    job = Job()
    job.calls = []

    def play(words, **how):
        job.calls.append(words)
        return subprocess.CompletedProcess(words, 0, "", "")

    for name in (slurm.SUBMITIT, "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(slurm.subprocess, "run", play)
    return job


@pytest.mark.parametrize("signum", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_job_whose_time_ends_is_requeued(job, signum, caplog):
    with caplog.at_level(logging.INFO, "recexp"):
        assert job.end(signum) == 128 + signum
    assert job.calls == [["scontrol", "requeue", "7"]]
    assert f"its next start goes on in {job.folder}" in caplog.text


def test_of_an_array_only_this_task_is_requeued(job, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "5")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    job.end(signal.SIGUSR1)
    assert job.calls == [["scontrol", "requeue", "5_2"]]


def test_a_job_that_is_canceled_is_not_requeued(job):
    assert job.end(signal.SIGTERM) == 128 + signal.SIGTERM
    assert not job.calls


@pytest.mark.parametrize(
    ("how", "said"), [({"trains": False}, "saved no checkpoint"), ({"is_kept": False}, "name")]
)
def test_a_job_that_would_come_no_farther_is_not_requeued(job, caplog, how, said):
    with caplog.at_level(logging.INFO, "recexp"):
        job.end(signal.SIGUSR1, **how)
    assert not job.calls and "is not requeued" in caplog.text and said in caplog.text


def test_a_later_start_that_saved_nothing_is_not_requeued(job):
    job.train()
    job.end(signal.SIGUSR1, trains=False)
    assert not job.calls


def test_only_the_first_process_requeues_and_the_others_do_not_end_it(job):
    assert job.end(signal.SIGUSR1, is_first=False) == 0
    assert not job.calls


def test_submitits_own_handler_acts_after_the_checkpoint(job, monkeypatch):
    monkeypatch.setenv(slurm.SUBMITIT, "slurm")
    acted = []
    before = signal.signal(signal.SIGUSR2, lambda *arguments: acted.append(arguments))
    try:
        job.end(signal.SIGUSR2)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert acted == [(signal.SIGUSR2, None)] and not job.calls


def test_a_job_that_submitit_gives_up_ends_as_an_error(job, monkeypatch):
    """Also inside Hydra, which takes exceptions, but no exit, for a job's value."""
    monkeypatch.setenv(slurm.SUBMITIT, "slurm")

    def give_up(signum, frame):
        raise RuntimeError("Job not requeued because: timed-out too many times.")

    before = signal.signal(signal.SIGUSR2, give_up)
    try:
        assert "timed-out too many times" in job.end(signal.SIGUSR2)
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_directory_with_the_time_in_its_name_is_not_found_again():
    assert not slurm.is_kept(OmegaConf.create({"dir": "runs/${now:%Y}"}))
    assert slurm.is_kept(OmegaConf.create({"dir": "multirun_outputs/${hydra.job.name}"}))
