"""Jobs of a real SLURM cluster, and sweeps of small runs with other launchers."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.support.running import arguments

SECONDS = 300  # that a cluster may take for anything
ROOT = Path(__file__).parents[2]
# Far more epochs than there is time for, each of them short.
ENDLESS = (
    "model=bpr_mf",
    "model.n_factors=4",
    "trainer.max_epochs=100000",
    "callbacks.early_stopping=null",
    "+trainer.enable_progress_bar=false",
)


def slurm_is_missing() -> str:
    """Why there is no SLURM to test with; empty where there is one."""
    if shutil.which("sbatch") is None:
        return "SLURM is not installed: there is no program sbatch"
    done = subprocess.run(
        ["sinfo", "--noheader", "--states=idle,mixed"], capture_output=True, text=True, check=False
    )
    if done.returncode or not done.stdout.strip():
        return f"SLURM has no machine that is free: {done.stderr.strip() or 'sinfo lists none'}"
    return ""


def is_missing(package: str) -> bool:
    return importlib.util.find_spec(package) is None


MISSING = slurm_is_missing()
needs_slurm = pytest.mark.skipif(bool(MISSING), reason=MISSING)


def needs(package: str, name: str) -> pytest.MarkDecorator:
    """Skip without this package of Python. name: in a package registry."""
    return pytest.mark.skipif(is_missing(package), reason=f"{name} is not installed")


def wait_until(there: Callable[[], object], about: Callable[[], str]) -> None:
    """Raises AssertionError with what ``about`` tells where it takes too long."""
    deadline = time.monotonic() + SECONDS
    while not there():
        assert time.monotonic() < deadline, about()
        time.sleep(0.2)


def environment() -> dict[str, str]:
    """For runs whose working directory is not the repository."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


def sweep_line(folder: Path, *words: str) -> list[str]:
    """The command line of a sweep of runs with the caches of the folder's parent."""
    return [sys.executable, "-m", "recexp", "-m", *arguments(folder, *words)]


def swept(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A sweep of small runs, started in the folder."""
    folder.mkdir(exist_ok=True)
    return subprocess.run(
        sweep_line(folder, *words),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=2 * SECONDS,
        check=False,
        env=environment(),
    )


class SlurmJob:
    """A batch job whose script starts ``srun ... python -m recexp`` with these words.

    tasks: srun's options. The job is canceled when the block ends.
    """

    def __init__(self, folder: Path, *words: str, tasks: Sequence[str], n_tasks: int = 1) -> None:
        folder.mkdir(exist_ok=True)
        self.output = folder / "slurm.txt"
        line = [sys.executable, "-m", "recexp", *arguments(folder, *words)]
        srun = subprocess.list2cmdline(["srun", *tasks, *map(str, line)])
        script = folder / "job.sh"
        script.write_text(f"#!/bin/bash\n{srun}\necho ended $?\n")
        submit = [
            "sbatch",
            "--parsable",
            "--requeue",
            "--open-mode=append",
            f"--output={self.output}",
            f"--ntasks={n_tasks}",
            str(script),
        ]
        done = subprocess.run(
            submit, cwd=folder, capture_output=True, text=True, check=True, env=environment()
        )
        self.id = done.stdout.strip()

    def __enter__(self) -> SlurmJob:
        return self

    def __exit__(self, *exception: object) -> None:
        subprocess.run(["scancel", self.id], check=False)

    def said(self) -> str:
        return self.output.read_text() if self.output.exists() else ""

    def wait_for(self, text: str, n: int = 1) -> None:
        """Until its output has the text n times."""
        wait_until(lambda: len(re.findall(text, self.said())) >= n, self.said)

    def signal(self, name: str) -> None:
        """Send a signal to its processes, as SLURM does before the time limit."""
        subprocess.run(["scancel", f"--signal={name}", self.id], check=True)

    def start_again(self) -> None:
        """Let it start now, once it is requeued: SLURM waits for two minutes."""
        start_again(self.id)


def start_again(job: str) -> None:
    """Let a job start now, once it is requeued: SLURM waits for two minutes."""
    wait_until(lambda: state(job) == "PENDING", lambda: f"state of the job: {state(job)}")
    subprocess.run(["scontrol", "update", f"job={job}", "starttime=now"], check=True)


def state(job: str) -> str:
    """SLURM's word for the state of a job."""
    done = subprocess.run(
        ["scontrol", "show", "job", job], capture_output=True, text=True, check=False
    )
    found = re.search(r"JobState=(\w+)", done.stdout)
    return found[1] if found else "UNKNOWN"
