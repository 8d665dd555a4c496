"""A search's trials as jobs for the launcher: started, watched, ended early, told to the study."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recexp.cli.search_configs import SearchConfigs
from recexp.errors import RecexpError
from recexp.io import write_json
from recexp.runs.loading import read_epoch_table, read_json
from recexp.search.messages import message
from recexp.search.trial_file import State, TrialFile
from recexp.training.interrupts import SIGNALS

if TYPE_CHECKING:
    from recexp.search.study import Best, SharedStudy, Trial

CHECK = 2.0  # seconds between two checks for trials that other workers left
MOST_KILLS = 3  # starts of a trial whose process is killed while its worker lives
MOST_FAILURES = 3  # trials that fail before any finishes

log = logging.getLogger(__name__)


@dataclass
class _Running:
    """words: what the trial sets. seen: time of the last change of metrics.csv that was read.

    n_kills: of its process.
    """

    trial: Trial
    words: list[str]
    seen: int = 0
    n_kills: int = 0


class Trials:
    """The trials as a source of jobs for the launcher."""

    def __init__(
        self, study: SharedStudy, configs: SearchConfigs, metric: str, folder: Path
    ) -> None:
        self.study = study
        self.configs = configs
        self.metric = metric
        self.folder = folder
        self._running: dict[int, _Running] = {}
        self._again: list[int] = []
        self._looked = -CHECK
        self._over = False

    def next(self) -> tuple[int, list[str], Path] | None:
        """A trial to run; one that is only to be told of is told of here."""
        if self._again:
            return self._job(self._again.pop())
        if time.monotonic() - self._looked < CHECK:
            return None
        trial = self.study.claim(self.folder)
        if trial is None:
            self._looked = time.monotonic()
            counts = self.study.counts()
            self._over = counts.total >= self.study.n_trials and not counts.running
            return None
        self._running[trial.number] = _Running(trial, self.configs.space.words(trial.values))
        if trial.pruned is not None:
            self._finish(trial, "pruned", None)
            return None
        self._write(trial, "running", None)
        return self._job(trial.number)

    def _job(self, number: int) -> tuple[int, list[str], Path]:
        one = self._running[number]
        return number, [*self.configs.space.fixed, *one.words], one.trial.folder

    def is_over(self) -> bool:
        """Are all trials at their ends, also those of other workers?"""
        return self._over

    def must_end(self, number: int) -> bool:
        """Report the new epochs; says once whether the pruner ends the trial."""
        one = self._running[number]
        if one.trial.pruned is not None:
            return False
        table = one.trial.folder / "metrics.csv"
        try:
            changed = table.stat().st_mtime_ns
        except FileNotFoundError:
            return False
        if changed == one.seen:
            return False
        one.seen = changed
        return self._report(one)

    def _report(self, one: _Running) -> bool:
        """Does the pruner end the trial after one of its new epochs?"""
        n_epochs = _n_epochs(one.trial.folder)
        for row in _epochs(one.trial.folder):
            epoch = int(row["epoch"]) + 1
            if epoch <= one.trial.n_reported or self.metric not in row:
                continue
            # After the last epoch the run is about to have its result.
            may_end = epoch < n_epochs
            if self.study.report(one.trial, epoch, row[self.metric], may_end=may_end):
                return True
        return False

    def end(self, number: int, code: int, result: dict[str, Any] | None, reason: str) -> None:
        """Tell the study how the trial ended, or let it go on where its process was killed."""
        one = self._running[number]
        trial = one.trial
        if result is None and trial.pruned is not None:
            self._finish(trial, "pruned", None)
            return
        if result is None and _by_signal(code) and one.n_kills + 1 < MOST_KILLS:
            one.n_kills += 1
            self._again.append(number)
            log.warning(message(f"trial {number} goes on, for its process was ended: {reason}"))
            return
        if result is None:
            self._finish(trial, "failed", None, reason)
            return
        self._report(one)
        value = result.get("metrics", {}).get(self.metric)
        if isinstance(value, int | float) and math.isfinite(value):
            self._finish(trial, "finished", float(value))
        else:
            self._finish(trial, "failed", None, f"its result has {self.metric}={value}")

    def _finish(self, trial: Trial, state: State, value: float | None, reason: str = "") -> None:
        from optuna.trial import TrialState

        states = {
            "finished": TrialState.COMPLETE,
            "pruned": TrialState.PRUNED,
            "failed": TrialState.FAIL,
        }
        if state == "pruned":
            reason = f"ended by the pruner after epoch {trial.pruned}"
            _mark_pruned(trial.folder, reason)
        self._write(trial, state, value, reason)
        self.study.finish(trial, states[state], value, reason)
        del self._running[trial.number]
        self._say(trial, state, value, reason)
        self._check_failures(state, reason, trial)

    def _say(self, trial: Trial, state: State, value: float | None, reason: str) -> None:
        counts = self.study.counts()
        best = self.study.best()
        parts = [f"trial {trial.number} {state}"]
        parts.append(f"{self.metric} {value:.4f}" if value is not None else reason)
        if best is not None:
            parts.append(f"best {best.value:.4f} (trial {best.number})")
        n_done = counts.total - counts.running
        log.info(message(f"{', '.join(parts)}; {n_done} of {self.study.n_trials} done"))

    def _check_failures(self, state: State, reason: str, trial: Trial) -> None:
        """Raise RecexpError where trials fail and none has ever ended otherwise."""
        counts = self.study.counts()
        if state != "failed" or counts.finished or counts.pruned:
            return
        if counts.failed >= min(MOST_FAILURES, self.study.n_trials):
            raise RecexpError(
                f"The first {counts.failed} trials failed, so the search ends; the last one: "
                f"{reason} ({trial.folder}/log.txt). Start again with another "
                "hydra.sweeper.study=... when the cause is gone."
            )

    def _write(self, trial: Trial, state: State, value: float | None, reason: str = "") -> None:
        rows = _epochs(trial.folder)
        TrialFile(
            search=self.study.name,
            number=trial.number,
            state=state,
            **self.configs.names_of(trial.values),
            metric=self.metric,
            value=value,
            values=trial.values,
            epochs=len(rows),
            updates=_n_updates(trial.folder, rows),
            reason=reason,
        ).write(trial.folder)

    def conclude(self) -> Best:
        """The best trial, said to the user.

        Raises RecexpError where no trial finished.
        """
        counts = self.study.counts()
        best = self.study.best()
        summary = f"{counts.finished} finished, {counts.pruned} pruned, {counts.failed} failed"
        if best is None:
            raise RecexpError(f"No trial of the search finished ({summary}).")
        log.info(message(f"{self.study.name}: {summary}"))
        values = " ".join(self.configs.space.words(best.values))
        log.info(
            message(f"best {self.metric} {best.value:.4f}, trial {best.number} in {best.folder}")
        )
        log.info(message(f"with {values}"))
        return best


def _by_signal(code: int) -> bool:
    """Was the process ended from outside? A run exits with 128 and the signal that ends it."""
    return code < 0 or code in {128 + signum for signum in SIGNALS}


def _epochs(folder: Path) -> list[dict[str, float]]:
    """The rows of ``metrics.csv``; none where there is no table, or a damaged one."""
    try:
        return read_epoch_table(folder / "metrics.csv")
    except (FileNotFoundError, RecexpError):
        return []


def _n_epochs(folder: Path) -> float:
    """The epochs that the trial may train, as the launcher wrote them down."""
    settings = read_json(folder / "job.json")["config"]
    most = settings.get("trainer", {}).get("max_epochs")
    return most if isinstance(most, int) and most >= 0 else math.inf


def _n_updates(folder: Path, rows: Sequence[Mapping[str, float]]) -> int:
    """Optimizer steps: of the result, else of the last epoch."""
    try:
        result = read_json(folder / "result.json")
    except (FileNotFoundError, RecexpError):
        result = {}
    updates = result.get("updates") if isinstance(result, dict) else None
    if isinstance(updates, int):
        return updates
    return int(rows[-1].get("step", 0)) if rows else 0


def _mark_pruned(folder: Path, reason: str) -> None:
    """Let the ``result.json`` of the ended run say what ended it."""
    try:
        result = read_json(folder / "result.json")
    except (FileNotFoundError, RecexpError):
        return
    if isinstance(result, dict) and "interrupted" in result:
        write_json(
            folder / "result.json", result | {"interrupted": "the pruner", "stop_reason": reason}
        )
