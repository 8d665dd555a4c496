"""Hydra launcher: every job of a sweep has a process of its own.

One process per job, because Lightning's DDP runs the command line again for its other ranks: inside
a sweep that would be the whole sweep. A job that fails does not stop the others; the sweep names
the failed ones at its end, and the exit code says so.

A sweep started again (same ``sweep`` or ``hydra.sweep.dir``) runs only what is missing: a job
returns to its directory (``recexp.cli.jobs``). If its config is the same (a YAML may have been
edited meanwhile), a job with a result is not run again, and one that was killed or interrupted goes
on from its last checkpoint.

A job holds the lock of its directory from its first moment: the launcher takes the lock and the
process inherits it. A job that outlived its sweep is waited for and not started twice.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from recexp.cli import slurm
from recexp.cli.job_processes import (
    JobProcess,
    WarmParent,
    has_warm_parent,
    may_be_forked,
    start_anew,
)
from recexp.cli.jobs import (
    Earlier,
    Job,
    KnownJobs,
    compose,
    job_return,
    line,
    place,
    read_result,
    with_group,
    write_job,
)
from recexp.cli.sweep_table import BestJobs, show
from recexp.config.overrides import as_word, override
from recexp.errors import RecexpError
from recexp.logs import duration
from recexp.runs.directory import DirectoryInUse, lock_directory
from recexp.training.interrupts import SIGNALS

POLL = 0.2  # seconds between two checks of the running jobs
GRACE = 60  # seconds that a running job has to save a checkpoint when the sweep is ended

log = logging.getLogger(__name__)


@dataclass
class _Running:
    job: Job
    folder: Path
    process: JobProcess


@dataclass
class _Progress:
    """returns: by job number. failures: by job number, the reasons."""

    n_jobs: int
    best: BestJobs = field(default_factory=BestJobs)
    returns: dict[int, JobReturn] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    n_ran: int = 0
    started: float = field(default_factory=time.time)

    def time_left(self) -> str:
        """In words, after a comma; "" where all jobs are done."""
        n_left = self.n_jobs - len(self.returns)
        seconds_per_job = (time.time() - self.started) / self.n_ran
        return f", about {duration(n_left * seconds_per_job)} left" if n_left else ""


class JobSource(Protocol):
    """Jobs that are decided on one by one, while others run."""

    def next(self) -> tuple[int, list[str], Path] | None:
        """Number, overrides and directory of a job to start now; None where there is none."""

    def is_over(self) -> bool:
        """Will no job come any more?"""

    def must_end(self, number: int) -> bool:
        """Is the running job to be ended now? Asked again and again, and true once."""

    def end(self, number: int, code: int, result: dict[str, Any] | None, reason: str) -> None:
        """A job ended. code: as of ``JobProcess``. reason: why it has no result."""


class ProcessLauncher(Launcher):
    """``hydra/launcher=processes``.

    jobs: how many run at once. warm: jobs that use one process and no accelerator are forks of a
    process that has imported torch and Lightning, where the system can do that.
    """

    def __init__(self, jobs: int = 1, warm: bool = True) -> None:
        if not isinstance(jobs, int) or isinstance(jobs, bool) or jobs < 1:
            raise RecexpError(f"hydra.launcher.jobs={jobs!r}: must be a whole number at least 1.")
        if not isinstance(warm, bool):
            raise RecexpError(f"hydra.launcher.warm={warm!r}: must be true or false.")
        self.jobs = jobs
        self.warm_parent = WarmParent() if warm and has_warm_parent() else None
        self.best = BestJobs()  # of all launches: a search launches its jobs in batches

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Hydra's call before ``launch``."""
        self.config = config
        self.context = hydra_context

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run the jobs.

        Returns one JobReturn each, its value the result's validation NDCG@10, which searching
        sweepers maximize. Exits with code 1 where a job failed.
        """
        _check_alone()
        sweep = Path(str(self.config.hydra.sweep.dir))
        jobs = [
            compose(self.context, self.config, initial_job_idx + i, overrides)
            for i, overrides in enumerate(job_overrides)
        ]
        log.info(line(f"jobs to run: {len(jobs)}, in {sweep}"))
        self.best.expect([job.overrides for job in jobs])
        progress = _Progress(len(jobs), self.best)
        with self._ending_together(sweep) as running:
            self._run(sweep, jobs, running, progress)
        for number, reason in sorted(progress.failures.items()):
            overrides = " ".join(progress.returns[number].overrides or ())
            log.error(line(f"FAILED job {number} ({overrides}): {reason}"))
        if progress.failures:
            log.error(
                line(
                    f"{len(progress.failures)} of {len(jobs)} jobs failed; the others' results are "
                    f"under {sweep}. To run only these again: the same command with "
                    f"{_again(sweep)}"
                )
            )
            sys.exit(1)
        report = shlex.join(["python", "-m", "recexp.report", str(sweep)])
        log.info(line(f"all jobs have results, in {sweep}; to compare them: {report}"))
        return [progress.returns[job.number] for job in jobs]

    def launch_each(self, source: JobSource) -> None:
        """Run jobs as the source hands them out, until it is over. Nothing is told of failures."""
        _check_alone()
        sweep = Path(str(self.config.hydra.sweep.dir))
        waiting: list[Job] = []
        told: set[int] = set()  # numbers of jobs that wait
        with self._ending_together(sweep) as running:
            while running or waiting or not source.is_over():
                while len(running) + len(waiting) < self.jobs and (given := source.next()):
                    number, overrides, folder = given
                    self.best.expect([overrides])
                    job = compose(self.context, self.config, number, overrides)
                    waiting.append(replace(job, wish=folder))
                for job in list(waiting):
                    try:
                        self._start_given(sweep, job, running, source)
                        waiting.remove(job)
                    except DirectoryInUse as error:  # by a job that an earlier start left
                        if job.number not in told:
                            log.info(line(f"job {job.number} waits: {error}"))
                        told.add(job.number)
                for active in list(running):
                    code = active.process.poll()
                    if code is not None:
                        running.remove(active)
                        self._hand_back(active, code, source)
                    elif source.must_end(active.job.number):
                        active.process.terminate()
                time.sleep(POLL)

    def _start_given(
        self, sweep: Path, job: Job, running: list[_Running], source: JobSource
    ) -> None:
        """Start a job of a source in its directory, or hand back the result that lies there."""
        earlier = KnownJobs.read(job.wish).find(job) or Earlier(job.wish, job.config)
        started = self._start(sweep, job, earlier, _Progress(1, self.best))
        if started is not None:
            running.append(started)
        else:
            source.end(job.number, 0, read_result(job.wish), "")

    def _hand_back(self, ended: _Running, code: int, source: JobSource) -> None:
        """Tell a source how its job ended."""
        result = read_result(ended.folder)
        reason = "" if result else _failure(code, ended.folder / "log.txt")
        source.end(ended.job.number, code, result, reason)
        if result and self.best.add(ended.job.number, ended.job.overrides, result):
            show(self.best)

    @contextmanager
    def _ending_together(self, sweep: Path) -> Iterator[list[_Running]]:
        """The running jobs, which end when the sweep does; SLURM is asked to start it again."""
        requeue = slurm.Requeue(sweep, is_kept=slurm.is_kept(self.config.hydra.sweep))
        try:
            with _ending_together(sweep) as running:
                yield running
        except _Signal as stop:
            requeue.end(stop.signum)

    def _run(
        self, sweep: Path, jobs: list[Job], running: list[_Running], progress: _Progress
    ) -> None:
        """Run the jobs to their ends."""
        known = KnownJobs.read(sweep)
        waiting = list(jobs)
        outliving: set[int] = set()  # numbers of jobs that processes of an earlier start still run
        while waiting or running:
            for job in list(waiting):
                n_busy = len(running) + (0 if job.number in outliving else len(outliving))
                if n_busy >= self.jobs:
                    continue
                earlier = known.find(job)
                try:
                    started = self._start(sweep, job, earlier, progress)
                except DirectoryInUse as error:
                    if job.number not in outliving:
                        log.info(line(f"job {job.number} waits: {error}"))
                    outliving.add(job.number)
                    continue
                outliving.discard(job.number)
                waiting.remove(job)
                if started is not None:
                    running.append(started)
            finished = [one for one in running if one.process.poll() is not None]
            for one in finished:
                running.remove(one)
                _collect(one, progress, len(running))
            time.sleep(POLL)

    def _start(
        self, sweep: Path, job: Job, earlier: Earlier | None, progress: _Progress
    ) -> _Running | None:
        """Start the job's process; None where the job has its result already."""
        found = place(sweep, job, earlier)
        if found.news:
            log.info(line(found.news))
        if found.result is not None:
            progress.returns[job.number] = job_return(job.overrides, found.folder, found.result)
            progress.best.add(job.number, job.overrides, found.result)
            return None
        lock = lock_directory(found.folder)
        try:
            write_job(found.folder, job)
            verb = "goes on" if found.goes_on else "started"
            log.info(line(f"job {job.number} {verb}: {' '.join(job.overrides) or '(defaults)'}"))
            words = with_group(job.overrides, sweep, job)
            words += [override("hydra.run.dir", found.folder), "hydra.mode=RUN"]
            words += _own_configs(self.config)
            start = start_anew
            if self.warm_parent is not None and may_be_forked(job.config):
                start = self.warm_parent.start
            process = start(words, found.folder / "log.txt", lock)
        finally:
            if lock is not None:
                os.close(lock)
        return _Running(job, found.folder, process)


def _check_alone() -> None:
    """Raise RecexpError where srun started the sweep several times."""
    if os.environ.get("SLURM_NTASKS", "1") != "1":
        raise RecexpError(
            f"srun started this sweep {os.environ['SLURM_NTASKS']} times: start it once, with "
            "srun -n1. hydra.launcher.jobs= says how many of its jobs run at once."
        )


def _own_configs(config: DictConfig) -> list[str]:
    """The word that lets a job find what ``--config-dir`` and ``hydra.searchpath`` named."""
    folders = [
        f"{source.schema}://{source.path}"
        for source in config.hydra.runtime.config_sources
        if source.provider not in ("hydra", "main", "schema")
    ]
    return [f"hydra.searchpath={as_word(folders)}"] if folders else []


def _collect(finished: _Running, progress: _Progress, n_running: int) -> None:
    """Record the end of a job."""
    number = finished.job.number
    code = finished.process.wait()
    result = read_result(finished.folder) if code == 0 else None
    progress.returns[number] = job_return(finished.job.overrides, finished.folder, result)
    progress.n_ran += 1
    if result is None:
        progress.failures[number] = _failure(code, finished.folder / "log.txt")
    log.info(
        line(
            f"{len(progress.returns)} of {progress.n_jobs} done, {n_running} running, "
            f"{len(progress.failures)} failed{progress.time_left()}"
        )
    )
    if result is not None and progress.best.add(number, finished.job.overrides, result):
        show(progress.best)


def _failure(code: int, output: Path) -> str:
    """Why a job failed: the signal that killed it, or the error it printed last."""
    if code < 0:
        name = signal.Signals(-code).name
        if code == -signal.SIGKILL:
            return f"killed by {name}, as the system does where memory runs out"
        return f"killed by {name}"
    lines = [line for line in output.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("error:", "Could not"))]
    return (errors or lines or ["no output"])[-1]


@contextmanager
def _ending_together(sweep: Path) -> Iterator[list[_Running]]:
    """The list of running jobs. They end with the sweep, each with a checkpoint to resume from."""

    def on_signal(signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C ends the sweep at once
        raise _Signal(signum)

    running: list[_Running] = []
    handlers_before = {
        signum: signal.signal(signum, on_signal)
        for signum in SIGNALS
        if signal.getsignal(signum) is not signal.SIG_IGN
    }
    try:
        yield running
    except _Signal as stop:
        log.warning(
            line(
                f"{stop.name} ends the sweep and its {len(running)} running jobs; to go on: the "
                f"same command with {_again(sweep)}"
            )
        )
        raise
    finally:
        for one in running:
            one.process.terminate()
        for one in running:
            try:
                one.process.wait(GRACE)
            except subprocess.TimeoutExpired:
                one.process.kill()
        for signum, handler in handlers_before.items():
            signal.signal(signum, handler)


class _Signal(BaseException):
    """A signal came."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum
        self.name = signal.Signals(signum).name


def _again(sweep: Path) -> str:
    """The word that makes the same command go on with this sweep, for a shell."""
    return shlex.quote(override("hydra.sweep.dir", sweep))
