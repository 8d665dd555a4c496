"""The ledger of hyper-parameter searches: what each model's search has spent.

A comparison of tuned systems is fair only where they had equal numbers of trials.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from recexp.errors import RecexpError
from recexp.report.formats import DASH, Cell, Table
from recexp.search.trial_file import FILE, State, TrialFile, read_trial

STATES: tuple[State, ...] = ("finished", "pruned", "failed")
HEAD = ("model", "trials", *STATES, "unfinished", "epochs", "updates", "best")

log = logging.getLogger(__name__)


def search_tables(folders: Iterable[str | Path]) -> list[Table]:
    """One table per data set, protocol and metric of the trials at and below the folders."""
    by_place: dict[tuple[str, str, str], dict[str, list[TrialFile]]] = {}
    for trial in _trials(folders):
        models = by_place.setdefault((trial.dataset, trial.protocol, trial.metric), {})
        models.setdefault(trial.model, []).append(trial)
    return [_table(*place, models) for place, models in by_place.items()]


def _trials(folders: Iterable[str | Path]) -> list[TrialFile]:
    """The trials, each once; a damaged file is a warning."""
    paths = {path.resolve(): path for folder in folders for path in Path(folder).rglob(FILE)}
    found = []
    for path in sorted(paths.values()):
        try:
            found.append(read_trial(path))
        except (RecexpError, OSError) as error:
            log.warning("warning: left out of the ledger of searches: %s", error)
    return found


def _table(dataset: str, protocol: str, metric: str, models: dict[str, list[TrialFile]]) -> Table:
    rows = tuple(_row(model, models[model]) for model in sorted(models))
    counts = {model: len(trials) for model, trials in sorted(models.items())}
    notes = []
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{model} {count}" for model, count in counts.items())
        notes.append(f"the models had unequal numbers of trials: {listed}")
    caption = f"Trials of searches; best: {metric} of a finished one, on validation."
    return Table(f"Searches: {dataset}, {protocol}", caption, HEAD, rows, tuple(notes))


def _row(model: str, trials: Sequence[TrialFile]) -> tuple[Cell, ...]:
    states = [trial.state for trial in trials]
    counts = [len(trials), *(states.count(state) for state in STATES), states.count("running")]
    spent = [sum(trial.epochs for trial in trials), sum(trial.updates for trial in trials)]
    values = [trial.value for trial in trials if trial.value is not None]
    best = Cell(f"{max(values):.4f}", max(values)) if values else Cell(DASH)
    return (Cell(model), *(Cell(f"{count:,}", count) for count in [*counts, *spent]), best)
