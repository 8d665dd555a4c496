"""One search: its trials lie in a storage that several workers share.

A worker does everything with the storage under one file lock, so that the workers together make as
many trials as asked for. A trial belongs to the worker that holds the trial's own lock, and the
system releases this lock when the worker ends, however it ends: a running trial whose lock is free
was left behind, and the next worker that comes goes on with it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from recexp.errors import RecexpError
from recexp.io import NO_LOCKS, file_lock, try_lock
from recexp.search.options import Options
from recexp.search.samplers import distribution, pruner_by_name, sampler_of_trial
from recexp.search.space import Space
from recexp.search.storage import BAD_FILE, open_storage, storage_errors, storage_file

# User attributes of a study and of a trial.
ABOUT = "recexp"
FOLDER = "folder"  # of the trial's run; a trial without one was never begun
PRUNED = "pruned after epoch"
REASON = "reason"
GRID = "number in the grid"

SHOWN = 3  # differences that a message names


@dataclass
class Trial:
    """A trial of this worker.

    values: by key. n_reported: epochs whose values the study has. pruned: the epoch after which it
    is to end; None while it goes on.
    """

    number: int
    values: dict[str, Any]
    folder: Path
    n_reported: int
    pruned: int | None


@dataclass(frozen=True)
class Counts:
    """Trials by their state."""

    finished: int
    pruned: int
    failed: int
    running: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.finished + self.pruned + self.failed + self.running


@dataclass(frozen=True)
class Best:
    """The best finished trial."""

    number: int
    value: float
    values: dict[str, Any]
    folder: Path


class SharedStudy:
    """The trials of one search.

    about: everything that decides whether two trials may be compared; the study of an earlier
    start must have the same.
    """

    def __init__(self, options: Options, name: str, space: Space, about: Mapping[str, Any]) -> None:
        self.options = options
        self.name = name
        self.space = space
        file = storage_file(options.storage)
        self._grid = space.grid() if options.sampler == "grid" else None
        self._mine: dict[int, int] = {}  # descriptors of locks, by trial
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        file.parent.mkdir(parents=True, exist_ok=True)
        self._lock = file.with_name(f"{file.name}.lock-of-recexp")
        with file_lock(self._lock), storage_errors(options.storage, BAD_FILE):
            self._storage = open_storage(options.storage)
            self._study = optuna.create_study(
                storage=self._storage,
                study_name=name,
                direction="maximize",
                load_if_exists=True,
                pruner=pruner_by_name(options.pruner, options.min_epochs),
            )
            self._id = self._storage.get_study_id_from_name(name)
            self._check_same(about)
        self._locks = file.with_name(f"{file.name}.trials") / str(self._id)
        self._locks.mkdir(parents=True, exist_ok=True)
        n_combinations = options.n_trials if self._grid is None else len(self._grid)
        self.n_trials = min(options.n_trials, n_combinations)

    def plan(self) -> str:
        """How many trials of what there will be, in words."""
        options = self.options
        text = f"{self.n_trials} trials, sampler={options.sampler}, pruner={options.pruner}"
        if self._grid is not None and len(self._grid) > self.n_trials:
            text += f" (only the first {self.n_trials} of {len(self._grid)} combinations)"
        return text

    def _check_same(self, about: Mapping[str, Any]) -> None:
        """Raise RecexpError where the storage has this study with other settings."""
        before = self._study.user_attrs.get(ABOUT)
        if before is None and not self._study.get_trials(deepcopy=False):
            self._study.set_user_attr(ABOUT, dict(about))
        elif before != about:
            changed = _differences(before or {}, about, "")
            raise RecexpError(
                f"hydra.sweeper.storage={self.options.storage} has a search {self.name!r} with "
                f"other settings ({', '.join(changed[:SHOWN])}): go on with those, or name this "
                "one with hydra.sweeper.study=..."
            )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with file_lock(self._lock), storage_errors(self.options.storage):
            yield

    def claim(self, parent: Path) -> Trial | None:
        """A trial that was left behind, else a new one below ``parent``.

        None where there is none to be had: all are there, finished or with other workers.
        """
        with self._locked():
            trials = self._trials()
            for trial in trials:
                if trial.state is TrialState.RUNNING and trial.number not in self._mine:
                    claimed = self._adopt(trial)
                    if claimed is not None:
                        return claimed
            if _counts(trials).total >= self.n_trials:
                return None
            return self._new(trials, parent)

    def report(self, trial: Trial, epoch: int, value: float, *, may_end: bool) -> bool:
        """Enter the value of an epoch, counted from 1; must the trial end now?

        may_end: ask the pruner. If it says so, the study knows it from then on, and only ``finish``
        is left.
        """
        with self._locked():
            identity = self._identity(trial.number)
            self._storage.set_trial_intermediate_value(identity, epoch, value)
            trial.n_reported = epoch
            frozen = self._storage.get_trial(identity)
            if not may_end or not self._study.pruner.prune(self._study, frozen):
                return False
            self._storage.set_trial_user_attr(identity, PRUNED, epoch)
            trial.pruned = epoch
            return True

    def finish(
        self, trial: Trial, state: TrialState, value: float | None, reason: str = ""
    ) -> None:
        """Enter the end of a trial and release it."""
        with self._locked():
            if reason:
                identity = self._identity(trial.number)
                self._storage.set_trial_user_attr(identity, REASON, reason)
            is_complete = state is TrialState.COMPLETE
            self._study.tell(trial.number, value if is_complete else None, state)
        os.close(self._mine.pop(trial.number))

    def leave(self) -> None:
        """Leave the trials that are not finished to other workers."""
        while self._mine:
            os.close(self._mine.popitem()[1])

    def counts(self) -> Counts:
        """The trials of all workers."""
        with self._locked():
            return _counts(self._trials())

    def best(self) -> Best | None:
        """The best finished trial, the first of equal ones; None where none is finished."""
        with self._locked():
            finished = [t for t in self._trials() if t.state is TrialState.COMPLETE]
        if not finished:
            return None
        best = max(finished, key=lambda t: (t.value, -t.number))
        assert best.value is not None
        return Best(best.number, best.value, self._values(best), Path(best.user_attrs[FOLDER]))

    def _trials(self) -> list[FrozenTrial]:
        trials: list[FrozenTrial] = self._study.get_trials(deepcopy=False)
        return trials

    def _identity(self, number: int) -> int:
        identity: int = self._storage.get_trial_id_from_study_id_trial_number(self._id, number)
        return identity

    def _new(self, trials: list[FrozenTrial], parent: Path) -> Trial:
        number = len(trials)
        values = None
        if self._grid is not None:
            taken = {trial.user_attrs.get(GRID) for trial in trials}
            place = next(i for i in range(len(self._grid)) if i not in taken)
            values = self._grid[place]
        self._study.sampler = sampler_of_trial(
            self.options.sampler, self.options.seed, number, values
        )
        asked = self._study.ask(
            {key: distribution(parameter) for key, parameter in self.space.parameters.items()}
        )
        identity = self._identity(asked.number)
        if values is not None:
            self._storage.set_trial_user_attr(identity, GRID, place)
        folder = _new_folder(parent, asked.number)
        lock = self._trial_lock(asked.number)
        assert lock is not None, "a new trial has no other worker"
        self._storage.set_trial_user_attr(identity, FOLDER, str(folder))
        self._mine[asked.number] = lock
        return Trial(asked.number, self._values(asked), folder, 0, None)

    def _adopt(self, frozen: FrozenTrial) -> Trial | None:
        """The trial, if the worker that had it is no longer there."""
        lock = self._trial_lock(frozen.number)
        if lock is None:
            return None
        if FOLDER not in frozen.user_attrs:
            # Its worker ended before it began: its values may be incomplete.
            self._study.tell(frozen.number, state=TrialState.FAIL)
            os.close(lock)
            return None
        folder = Path(frozen.user_attrs[FOLDER])
        folder.mkdir(parents=True, exist_ok=True)
        self._mine[frozen.number] = lock
        values = self._values(frozen)
        pruned = frozen.user_attrs.get(PRUNED)
        return Trial(frozen.number, values, folder, frozen.last_step or 0, pruned)

    def _values(self, trial: FrozenTrial | optuna.Trial) -> dict[str, Any]:
        return {key: trial.params[key] for key in self.space.parameters}

    def _trial_lock(self, number: int) -> int | None:
        try:
            return try_lock(self._locks / str(number))
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            raise RecexpError(
                f"hydra.sweeper.storage={self.options.storage} is on a file system without locks, "
                "on which workers cannot share a search: name a file on another one."
            ) from error


def _counts(trials: list[FrozenTrial]) -> Counts:
    states = [trial.state for trial in trials if FOLDER in trial.user_attrs]
    return Counts(
        finished=states.count(TrialState.COMPLETE),
        pruned=states.count(TrialState.PRUNED),
        failed=states.count(TrialState.FAIL),
        running=states.count(TrialState.RUNNING),
    )


def _new_folder(parent: Path, number: int) -> Path:
    """A directory that nothing else has, named by the trial's number where that is free."""
    parent.mkdir(parents=True, exist_ok=True)
    suffix = 1
    while True:
        name = str(number) if suffix == 1 else f"{number}-{suffix}"
        try:
            (parent / name).mkdir()
        except FileExistsError:
            suffix += 1
            continue
        return (parent / name).absolute()


def _differences(before: Any, now: Any, path: str) -> list[str]:
    """Dotted keys in which two values differ."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        found = []
        for key in dict.fromkeys([*before, *now]):
            found += _differences(before.get(key), now.get(key), f"{path}.{key}".lstrip("."))
        return found
    return [] if before == now else [path]
