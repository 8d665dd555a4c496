"""Launchers of other packages, such as submitit and Ray, as parts of a sweep that can go on.

They start every job that they are given, number the directories anew at every start, and take an
exception for a job's value. So finished jobs are not given to them, every job has the directory of
its earlier start, and failed jobs are counted.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from recexp.cli.jobs import (
    Job,
    KnownJobs,
    Place,
    compose,
    job_return,
    line,
    place,
    with_group,
    write_job,
)
from recexp.config.overrides import override
from recexp.runs.directory import DirectoryInUse, lock_directory

log = logging.getLogger(__name__)


class SkippingLauncher(Launcher):
    """Gives another launcher only the jobs that have no result yet.

    launcher: set up already. config: of the sweep.
    """

    def __init__(self, launcher: Launcher, context: HydraContext, config: DictConfig) -> None:
        self.launcher = launcher
        self.context = context
        self.config = config

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Hydra's call before ``launch``."""
        self.launcher.setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.context = hydra_context
        self.config = config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run the jobs; returns one JobReturn each. Exits with code 1 where a job failed."""
        sweep = Path(str(self.config.hydra.sweep.dir))
        known = KnownJobs.read(sweep)
        returns: dict[int, JobReturn] = {}
        failures: dict[int, str] = {}
        waiting: list[tuple[Job, list[str]]] = []
        taken: set[Path] = set()
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            job = compose(self.context, self.config, number, overrides)
            earlier = known.find(job)
            if earlier is not None and earlier.folder in taken:  # by a job of an equal config
                earlier = None
            found = place(sweep, job, earlier)
            taken.add(found.folder)
            if found.news:
                log.info(line(found.news))
            if found.result is not None:
                returns[number] = job_return(job.overrides, found.folder, found.result)
                continue
            try:
                waiting.append((job, _claimed(sweep, job, found, overrides)))
            except DirectoryInUse as error:
                failures[number] = str(error)
        for (job, _), returned in zip(waiting, self._launch(waiting, sweep), strict=True):
            returns[job.number] = returned
            if returned.status != JobStatus.COMPLETED:
                failures[job.number] = str(returned._return_value)
        for number, reason in sorted(failures.items()):
            words = " ".join(job_overrides[number - initial_job_idx])
            log.error(line(f"FAILED job {number} ({words}): {reason}"))
        if failures:
            sys.exit(1)
        return [returns[number] for number in sorted(returns)]

    def _launch(self, waiting: Sequence[tuple[Job, list[str]]], sweep: Path) -> Sequence[JobReturn]:
        """Run the jobs with the other launcher; exits with code 1 where it gives up."""
        if not waiting:
            return []
        try:
            return self.launcher.launch([words for _, words in waiting], waiting[0][0].number)
        except Exception as error:
            log.error(
                line(
                    f"{type(self.launcher).__name__} ended with {type(error).__name__}: {error}. "
                    f"Other jobs may still run. To go on: the same command, with {sweep} as the "
                    "sweep's directory"
                )
            )
            sys.exit(1)


def _claimed(sweep: Path, job: Job, found: Place, overrides: Sequence[str]) -> list[str]:
    """Prepare the job's directory; the words for the other launcher.

    Raises DirectoryInUse where an earlier start of the job still runs.
    """
    lock = lock_directory(found.folder)
    try:
        write_job(found.folder, job)
    finally:
        if lock is not None:
            os.close(lock)
    words = with_group(overrides, sweep, job)
    return [*words, override("hydra.sweep.subdir", os.path.relpath(found.folder, sweep))]
