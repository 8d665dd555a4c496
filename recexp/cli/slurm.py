"""Runs and sweeps inside a SLURM job: their processes, their directory, and the end of their time.

SLURM sends the signal of ``--signal`` before the time limit. The run saves a checkpoint as after
any signal; then the job is requeued, and its next start goes on in the same directory. Lightning's
own handler is not used: it saves from within the signal handler.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import OmegaConf

from recexp.training.interrupts import REQUEUE

JOB = "SLURM_JOB_ID"
STEP = "SLURM_STEP_ID"  # only set in processes that srun started
TASK = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS")  # one of several processes
PER_NODE = "SLURM_NTASKS_PER_NODE"
SUBMITIT = "SUBMITIT_EXECUTOR"  # set in jobs that submitit started
RUNS = Path("multirun_outputs", "slurm")
SECONDS = 60  # that scontrol may take

log = logging.getLogger(__name__)


def read_task(environment: MutableMapping[str, str]) -> None:
    """Complete what SLURM says about this process, or remove it where srun did not start it.

    Lightning would wait for the other tasks of a process that runs alone, and it refuses
    ``srun -n2``, which sets no SLURM_NTASKS_PER_NODE.
    """
    if JOB not in environment:
        return
    if STEP not in environment:
        n_tasks = environment.get("SLURM_NTASKS", "1")
        if n_tasks != "1":
            log.warning(
                "warning: SLURM has %s tasks for this job, but srun did not start this process: "
                "this is a run of one process",
                n_tasks,
            )
        leave_task(environment)
        return
    per_node = environment.get("SLURM_STEP_TASKS_PER_NODE", "")  # "2", "2(x3)" or "2,1"
    if match := re.fullmatch(r"(\d+)(\(x\d+\))?", per_node):
        environment[PER_NODE] = match[1]
    elif per_node:
        environment.pop(PER_NODE, None)


def leave_task(environment: MutableMapping[str, str]) -> None:
    """Make the process one that SLURM did not start as one of several."""
    for name in TASK:
        environment.pop(name, None)


def leave_job(environment: MutableMapping[str, str]) -> None:
    """Make the process, a job of a sweep, none of SLURM's: the sweep is requeued, not its jobs."""
    leave_task(environment)
    environment.pop(JOB, None)
    environment.pop(STEP, None)


def with_directory(words: Sequence[str], environment: MutableMapping[str, str]) -> list[str]:
    """The command line, with a run directory for ``trainer=slurm`` where it names none.

    Every start of the SLURM job has the same one.
    """
    keys = {word.partition("=")[0] for word in words}
    if "trainer=slurm" not in words or JOB not in environment:
        return list(words)
    if keys & {"hydra.run.dir", "-m", "--multirun"}:
        return list(words)
    step = environment.get(STEP)
    name = environment[JOB] if step is None else f"{environment[JOB]}.{step}"
    return [*words, f"hydra.run.dir={RUNS / name}"]


def was_requeued() -> bool:
    """Is this a later start of a SLURM job?"""
    return os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def is_kept(place: Any) -> bool:
    """Does every start of a command have the same directory?

    place: Hydra's node ``hydra.run`` or ``hydra.sweep``.
    """
    settings: Any = OmegaConf.to_container(place, resolve=False)
    return "${now" not in str(settings["dir"])


class Requeue:
    """Requeues this process's SLURM job after a signal that asks for it.

    folder: of the run or sweep. Created before it starts: a start that saved no checkpoint is not
    repeated, because the next one would come no farther. is_kept: does the next start find the
    folder?
    """

    def __init__(self, folder: Path, *, is_kept: bool) -> None:
        self.folder = folder
        self.is_kept = is_kept
        self._before = _checkpoints(folder)

    def end(self, signum: int, *, is_first: bool = True) -> NoReturn:
        """End the process that the signal came to, the job requeued where that makes sense.

        is_first: of the processes of the run. Only it requeues the job.
        """
        if signum not in REQUEUE or not {JOB, SUBMITIT} & os.environ.keys():
            sys.exit(128 + signum)
        if not is_first:
            # With srun --kill-on-bad-exit, another code would end the first process before the
            # job is requeued.
            sys.exit(0)
        if SUBMITIT in os.environ:
            _let_submitit_act(signum)
        else:
            log.info("%s", self._requeue())
        sys.exit(128 + signum)

    def _requeue(self) -> str:
        """Requeue the job; returns what to tell."""
        job = _job(os.environ)
        if not self.is_kept:
            return (
                f"SLURM job {job} is not requeued, because its next start would not find this "
                "directory: give it a name with hydra.run.dir= (a sweep: sweep=NAME)"
            )
        if _checkpoints(self.folder) == self._before:
            return (
                f"SLURM job {job} is not requeued, because it saved no checkpoint in its time: "
                "raise --time, or the seconds of --signal"
            )
        try:
            done = subprocess.run(
                ["scontrol", "requeue", job],
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"SLURM job {job} is not requeued: {error}"
        if done.returncode:
            return f"SLURM job {job} is not requeued: {done.stderr.strip()}"
        return f"SLURM job {job} is requeued; its next start goes on in {self.folder}"


def _let_submitit_act(signum: int) -> None:
    """Call submitit's handler, which requeues the job or says that it may not be.

    Its error must not pass through Hydra, which would note it as the value of a finished job.
    """
    handler = signal.getsignal(signum)
    if not callable(handler):
        return
    try:
        handler(signum, None)
    except RuntimeError as error:
        sys.exit(f"error: {error}")


def _job(environment: MutableMapping[str, str]) -> str:
    """The job as scontrol names it; of an array, this task only."""
    array = environment.get("SLURM_ARRAY_JOB_ID")
    if array is None:
        return environment[JOB]
    return f"{array}_{environment['SLURM_ARRAY_TASK_ID']}"


def _checkpoints(folder: Path) -> set[tuple[Path, int]]:
    """The last checkpoints of the folder's runs with the times at which they were written."""
    found = set()
    for path in folder.glob("**/checkpoints/last.ckpt"):
        try:
            found.add((path, path.stat().st_mtime_ns))
        except FileNotFoundError:  # removed meanwhile
            continue
    return found
