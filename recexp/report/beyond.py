"""Tables of what was measured besides the accuracy over all users: lists, and groups of users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from recexp.errors import RecexpError
from recexp.report.collect import Result, is_of_lists
from recexp.report.formats import DASH, Cell, Table
from recexp.report.ranks import KIND_FLAGS, Floats, per_group
from recexp.report.significance import mean_intervals
from recexp.report.tables import (
    About,
    System,
    best_marks,
    by_protocol,
    mean_cell,
    row_name,
    systems,
)

CUTOFF = 10  # of the metrics of lists, where the metric asked for has none
PREFIX = "test/"


def list_tables(results: Sequence[Result], metric: str = "ndcg@10") -> list[Table]:
    """One table per protocol id of the systems whose lists were kept: metrics of lists.

    metric: its cut-off is that of all columns; 10 where it has none or no run measured it.
    """
    made = []
    for about, runs in by_protocol(results).items():
        measured = [run for run in runs if run.get("list_metrics")]
        if measured:
            made.append(_list_table(about, measured, metric))
    return made


def _list_table(about: About, runs: Sequence[Result], metric: str) -> Table:
    names = list(dict.fromkeys(name for run in runs for name in run["list_metrics"]))
    cutoff = _cutoff(runs, names, metric)
    columns = [f"{name}@{cutoff}" for name in names]
    rows = []
    for system in systems(runs):
        cells = [mean_cell(system.values(PREFIX + column), "") for column in columns]
        rows.append((Cell(row_name(system)), *cells))
    caption = "Of recommended lists, defined in docs/guides/beyond_accuracy.md."
    notes = ["more is not always better: read them beside the accuracy"]
    if any(run.get("list_candidates", "all") != "all" for run in runs):
        notes.append("the lists are of drawn candidates, which limits what they can hold")
    return Table(f"Lists: {about}", caption, ("model", *columns), tuple(rows), tuple(notes))


def _cutoff(runs: Sequence[Result], names: Sequence[str], metric: str) -> int:
    """That of the metric, else 10, else the largest; of those that were measured."""
    measured = set()
    for run in runs:
        for key in run["metrics"]:
            name, _, cutoff = key.removeprefix(PREFIX).partition("@")
            if name in names and cutoff.isdigit():
                measured.add(int(cutoff))
    wanted = metric.partition("/")[0].partition("@")[2]
    for cutoff in (int(wanted) if wanted.isdigit() else CUTOFF, CUTOFF):
        if cutoff in measured:
            return cutoff
    return max(measured, default=CUTOFF)


def group_tables(results: Sequence[Result], metric: str = "ndcg@10") -> list[Table]:
    """One table per protocol id with ``evaluation.groups``: a metric by group and system.

    Cells have the mean and its 95 % interval over the users of the group.
    """
    metric = metric.partition("/")[0]
    made = []
    for about, runs in by_protocol(results).items():
        groups = _groups(runs, "ndcg@10" if is_of_lists(runs, metric) else metric)
        if any(group not in KIND_FLAGS for group in groups):
            made.append(_group_table(about, runs, groups, metric))
    return made


def _groups(runs: Sequence[Result], metric: str) -> list[str]:
    """The groups that some run has the metric of, in order of appearance."""
    start = f"{PREFIX}{metric}/"
    found = [
        key.removeprefix(start) for run in runs for key in run["metrics"] if key.startswith(start)
    ]
    return list(dict.fromkeys(found))


def _group_table(about: About, runs: Sequence[Result], groups: Sequence[str], metric: str) -> Table:
    found = systems(runs)
    values: dict[str, dict[str, Floats]] = {}  # by system and group
    notes = []
    for system in found:
        try:
            values[row_name(system)] = _values_of(system, groups, metric)
        except RecexpError as error:
            notes.append(f"{row_name(system)}: {error}")
    rows = []
    for group in groups:
        of_group = {name: known[group] for name, known in values.items() if group in known}
        n_users = max((len(value_U) for value_U in of_group.values()), default=0)
        cells = _group_cells(found, of_group, with_marks=not is_of_lists(runs, metric))
        rows.append((Cell(group), Cell(f"{n_users:,}", n_users), *cells))
    head = ("group", "users", *map(row_name, found))
    caption = f"{metric} with its 95 % interval over the users of the group."
    return Table(f"Groups: {about}", caption, head, tuple(rows), tuple(notes))


def _values_of(system: System, groups: Sequence[str], metric: str) -> dict[str, Floats]:
    """The metric of each user of each group that the system's runs tell apart, mean over seeds.

    Raises RecexpError where ranks cannot be read, or runs were not measured on the same users.
    """
    found = [per_group(run["folder"], metric, groups) for run in system.runs]
    values = {}
    for group in groups:
        if not all(group in of_run for of_run in found):
            continue
        users = [of_run[group][0] for of_run in found]
        if not all(np.array_equal(user_U, users[0]) for user_U in users):
            raise RecexpError("its runs were not measured on the same users.")
        values[group] = np.mean([of_run[group][1] for of_run in found], axis=0)
    return values


def _group_cells(
    found: Sequence[System], values: Mapping[str, Floats], with_marks: bool
) -> list[Cell]:
    """A cell per system. with_marks: mark the best means."""
    known = {name: value_U[np.isfinite(value_U)] for name, value_U in values.items()}
    known = {name: value_U for name, value_U in known.items() if len(value_U)}
    means = {name: float(value_U.mean()) for name, value_U in known.items()}
    intervals = _intervals(known)
    names = [row_name(system) for system in found]
    marks = best_marks([means.get(name) for name in names])
    cells = []
    for name, mark in zip(names, marks, strict=True):
        if name not in means:
            cells.append(Cell(DASH))
            continue
        low, high = intervals[name]
        text = f"{means[name]:.4f} ({low:.4f} to {high:.4f})"
        cells.append(Cell(text, means[name], mark if with_marks else ""))
    return cells


def _intervals(values: Mapping[str, Floats]) -> dict[str, tuple[float, float]]:
    """95 % intervals of the means; systems with equally many users share their samples."""
    by_size: dict[int, list[str]] = {}
    for name, value_U in values.items():
        by_size.setdefault(len(value_U), []).append(name)
    intervals = {}
    for names in by_size.values():
        bounds_S2 = mean_intervals(np.stack([values[name] for name in names], axis=1))
        for name, (low, high) in zip(names, bounds_S2.tolist(), strict=True):
            intervals[name] = (low, high)
    return intervals
