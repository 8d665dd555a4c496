"""Hydra launcher: every job of a sweep has a process of its own.

One process per job, because Lightning's DDP runs the command line again for its other ranks: inside
a sweep that would be the whole sweep. A job that fails does not stop the others; the sweep names
the failed ones at its end, and the exit code says so.

A sweep started again (same ``hydra.sweep.dir``) runs only what is missing. ``job.json`` in a job's
directory holds its overrides and its composed config. A job with the same overrides returns to its
directory. If the config is the same too (a YAML may have been edited meanwhile), a job with a
result is not run again, and one that was killed or interrupted resumes from its last checkpoint. A
job with other overrides gets a directory of its own, so that a sweep over other values never
replaces results.

A job holds the lock of its directory from its first moment: the launcher takes the lock and the
process inherits it. A job that outlived its sweep is waited for and not started twice.
"""

from __future__ import annotations

import itertools
import json
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

from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from recexp.cli.job_processes import (
    JobProcess,
    WarmParent,
    has_warm_parent,
    may_be_forked,
    start_anew,
)
from recexp.cli.sweep_table import BestJobs, show
from recexp.config.overrides import as_word, override
from recexp.config.presets import apply_preset
from recexp.errors import RecexpError
from recexp.io import atomic_write
from recexp.logs import duration, printable
from recexp.renamed import with_new_keys, with_new_words
from recexp.runs.directory import DirectoryInUse, lock_directory
from recexp.runs.identity import differences, material_overrides
from recexp.training.interrupts import SIGNALS

POLL = 0.2  # seconds between two checks of the running jobs
GRACE = 60  # seconds that a running job has to save a checkpoint when the sweep is ended
SHOWN = 3  # changed settings that a message names

log = logging.getLogger(__name__)


@dataclass
class _Job:
    """number: in the sweep. wish: the directory it should get if it is free."""

    number: int
    wish: Path
    overrides: list[str]
    config: dict[str, Any]


@dataclass
class _Earlier:
    """What an earlier start of the sweep left of a job."""

    folder: Path
    config: dict[str, Any]


@dataclass
class _Running:
    job: _Job
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
        sweep = Path(str(self.config.hydra.sweep.dir))
        jobs = [
            self._compose(sweep, initial_job_idx + i, list(overrides))
            for i, overrides in enumerate(job_overrides)
        ]
        log.info(_line(f"jobs to run: {len(jobs)}, in {sweep}"))
        self.best.expect([job.overrides for job in jobs])
        progress = _Progress(len(jobs), self.best)
        with _ending_together(sweep) as running:
            self._run(sweep, jobs, running, progress)
        for number, reason in sorted(progress.failures.items()):
            overrides = " ".join(progress.returns[number].overrides or ())
            log.error(_line(f"FAILED job {number} ({overrides}): {reason}"))
        if progress.failures:
            log.error(
                _line(
                    f"{len(progress.failures)} of {len(jobs)} jobs failed; the others' results are "
                    f"under {sweep}. To run only these again: the same command with "
                    f"{_again(sweep)}"
                )
            )
            sys.exit(1)
        report = shlex.join(["python", "-m", "recexp.report", str(sweep)])
        log.info(_line(f"all jobs have results, in {sweep}; to compare them: {report}"))
        return [progress.returns[job.number] for job in jobs]

    def launch_each(self, source: JobSource) -> None:
        """Run jobs as the source hands them out, until it is over. Nothing is told of failures."""
        sweep = Path(str(self.config.hydra.sweep.dir))
        waiting: list[_Job] = []
        told: set[int] = set()  # numbers of jobs that wait
        with _ending_together(sweep) as running:
            while running or waiting or not source.is_over():
                while len(running) + len(waiting) < self.jobs and (given := source.next()):
                    number, overrides, folder = given
                    self.best.expect([overrides])
                    waiting.append(replace(self._compose(sweep, number, overrides), wish=folder))
                for job in list(waiting):
                    try:
                        self._start_given(sweep, job, running, source)
                        waiting.remove(job)
                    except DirectoryInUse as error:  # by a job that an earlier start left
                        if job.number not in told:
                            log.info(_line(f"job {job.number} waits: {error}"))
                        told.add(job.number)
                for active in list(running):
                    code = active.process.poll()
                    if code is not None:
                        running.remove(active)
                        result = _read_result(active.folder)
                        reason = "" if result else _failure(code, active.folder / "log.txt")
                        source.end(active.job.number, code, result, reason)
                        if result and self.best.add(
                            active.job.number, active.job.overrides, result
                        ):
                            show(self.best)
                    elif source.must_end(active.job.number):
                        active.process.terminate()
                time.sleep(POLL)

    def _start_given(
        self, sweep: Path, job: _Job, running: list[_Running], source: JobSource
    ) -> None:
        """Start a job of a source in its directory, or hand back the result that lies there."""
        earlier = _known_jobs(job.wish).get(material_overrides(job.overrides))
        earlier = earlier or _Earlier(job.wish, job.config)
        started = self._start(sweep, job, earlier, _Progress(1, self.best))
        if started is not None:
            running.append(started)
        else:
            source.end(job.number, 0, _read_result(job.wish), "")

    def _run(
        self, sweep: Path, jobs: list[_Job], running: list[_Running], progress: _Progress
    ) -> None:
        """Run the jobs to their ends."""
        known = _known_jobs(sweep)
        waiting = list(jobs)
        outliving: set[int] = set()  # numbers of jobs that processes of an earlier start still run
        while waiting or running:
            for job in list(waiting):
                n_busy = len(running) + (0 if job.number in outliving else len(outliving))
                if n_busy >= self.jobs:
                    continue
                earlier = known.get(material_overrides(job.overrides))
                try:
                    started = self._start(sweep, job, earlier, progress)
                except DirectoryInUse as error:
                    if job.number not in outliving:
                        log.info(_line(f"job {job.number} waits: {error}"))
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
        self, sweep: Path, job: _Job, earlier: _Earlier | None, progress: _Progress
    ) -> _Running | None:
        """Start the job's process; None where the job has its result already."""
        changed = differences(earlier.config, job.config) if earlier is not None else []
        if earlier is not None:
            result = _read_result(earlier.folder)
            if result is not None and not changed:
                progress.returns[job.number] = _job_return(job.overrides, earlier.folder, result)
                progress.best.add(job.number, job.overrides, result)
                log.info(_line(f"job {job.number} has its result already: {earlier.folder}"))
                return None
            if result is not None:
                log.info(
                    _line(
                        f"job {job.number} runs again, for its config has changed "
                        f"({', '.join(changed[:SHOWN])}): {earlier.folder}"
                    )
                )
        folder = earlier.folder if earlier is not None else _claim_folder(sweep, job.wish)
        lock = lock_directory(folder)
        try:
            last = folder / "checkpoints" / "last.ckpt"
            resumes = earlier is not None and not changed and last.is_file()
            (folder / "result.json").unlink(missing_ok=True)
            with atomic_write(folder / "job.json") as temporary:
                content = {"overrides": job.overrides, "config": job.config}
                temporary.write_text(json.dumps(content, indent=1) + "\n")
            verb = "goes on" if resumes else "started"
            log.info(_line(f"job {job.number} {verb}: {' '.join(job.overrides) or '(defaults)'}"))
            words = [
                *_words(sweep, job, folder, last if resumes else None),
                *_own_configs(self.config),
            ]
            start = start_anew
            if self.warm_parent is not None and may_be_forked(job.config):
                start = self.warm_parent.start
            process = start(words, folder / "log.txt", lock)
        finally:
            if lock is not None:
                os.close(lock)
        return _Running(job, folder, process)

    def _compose(self, sweep: Path, number: int, overrides: list[str]) -> _Job:
        """The job with the overrides for its command line and its config."""
        try:
            config = self.context.config_loader.load_sweep_config(self.config, overrides)
            apply_preset(config)
        except (HydraException, RecexpError):
            # The job's process will print the error; the other jobs run.
            return _Job(number, sweep / str(number), overrides, {})
        with open_dict(config):
            config.hydra.job.num = number
            config.hydra.job.id = str(number)
        settings = OmegaConf.to_container(config)
        task_overrides = OmegaConf.to_container(config.hydra.overrides.task)
        assert isinstance(settings, dict) and isinstance(task_overrides, list)
        settings.pop("hydra", None)
        # As job.json will give it back, for comparing.
        plain = json.loads(json.dumps(settings, default=str))
        wish = sweep / str(config.hydra.sweep.subdir)
        return _Job(number, wish, list(filter_overrides(task_overrides)), plain)


def _words(sweep: Path, job: _Job, folder: Path, checkpoint: Path | None) -> list[str]:
    """The words of a job's command line."""
    words = list(job.overrides)
    if checkpoint is not None:
        words.append(override("ckpt_path", checkpoint))
    words.append(override("hydra.run.dir", folder))
    if not job.config.get("group"):
        words.append(override("group", sweep.name))
    words.append("hydra.mode=RUN")
    return words


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
    result = _read_result(finished.folder) if code == 0 else None
    progress.returns[number] = _job_return(finished.job.overrides, finished.folder, result)
    progress.n_ran += 1
    if result is None:
        progress.failures[number] = _failure(code, finished.folder / "log.txt")
    log.info(
        _line(
            f"{len(progress.returns)} of {progress.n_jobs} done, {n_running} running, "
            f"{len(progress.failures)} failed{progress.time_left()}"
        )
    )
    if result is not None and progress.best.add(number, finished.job.overrides, result):
        show(progress.best)


def _known_jobs(sweep: Path) -> dict[tuple[str, ...], _Earlier]:
    """Jobs that earlier starts of this sweep ran, by their material overrides."""
    known = {}
    for path in sorted(sweep.glob("**/job.json"), key=lambda path: path.stat().st_mtime):
        try:
            job = json.loads(path.read_text())
            words = with_new_words(job["overrides"])
            config = with_new_keys(job["config"])
            known[material_overrides(words)] = _Earlier(path.parent, config)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # written by another program: the job gets a directory of its own
    return known


def _claim_folder(sweep: Path, wish: Path) -> Path:
    """Create the directory wished for, or if it exists, the first free number.

    Two sweeps that claim at once get different directories.
    """
    numbered = (sweep / str(n) for n in itertools.count())
    for folder in itertools.chain([wish], numbered):
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
    raise AssertionError("unreachable: numbers do not end")


def _read_result(folder: Path) -> dict[str, Any] | None:
    """``result.json`` of a run that was not interrupted; None where there is none."""
    try:
        result = json.loads((folder / "result.json").read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(result, dict) or "interrupted" in result:
        return None
    return result


def _job_return(overrides: list[str], folder: Path, result: dict[str, Any] | None) -> JobReturn:
    job = JobReturn(overrides=overrides, working_dir=str(folder))
    if result is None:
        job.status = JobStatus.FAILED
        job.return_value = RuntimeError(f"job failed, see {folder}/log.txt")
    else:
        job.status = JobStatus.COMPLETED
        job.return_value = result["metrics"].get("val/ndcg@10")
    return job


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
            _line(
                f"{stop.name} ends the sweep and its {len(running)} running jobs; to go on: the "
                f"same command with {_again(sweep)}"
            )
        )
        sys.exit(128 + stop.signum)
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


def _line(text: str) -> str:
    return printable(f"[sweep] {text}")
