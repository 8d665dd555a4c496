"""Tables of results. Figures of different protocols never share one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any, NamedTuple

from recexp.report.collect import (
    Result,
    changes_numbers,
    chose_on_test,
    data_name,
    is_external,
    is_of_lists,
    model_defaults,
    settings,
    trained_under,
    without_budget,
)
from recexp.report.columns import METRICS, PUBLISHED, TRAINING, Layout, setting_cell
from recexp.report.formats import BEST, DASH, SECOND, Cell, Table
from recexp.report.papers.deviations import deviations, same_data
from recexp.report.papers.matching import match
from recexp.report.papers.published import Figure

# Not part of a system's identity: the seed, what only watches a training, and the debug mode.
NOT_IN_IDENTITY = ("seed", "callbacks", "debug")
DEFAULT_LAYOUT = Layout()
SPEED = "samples_per_s"  # the paper's rows per second, on its machine


class About(NamedTuple):
    """What a table is about: figures may share a column only where all three agree."""

    dataset: str  # says where the data are simulated
    protocol: str
    protocol_id: str

    def __str__(self) -> str:
        return f"{self.dataset}, {self.protocol} (id {self.protocol_id})"


@dataclass
class System:
    """Runs of one protocol that differ in nothing but the seed."""

    runs: list[Result] = field(default_factory=list)
    label: str = ""  # model, and the settings that tell it from the table's others

    @property
    def first(self) -> Result:
        return self.runs[0]

    @property
    def model(self) -> str:
        return str(self.first["model"])

    @property
    def figures(self) -> dict[str, Figure]:
        """Per metric the published figure beside which the system may stand."""
        return match(self.first)

    def values(self, metric: str) -> list[float]:
        """The metric of every run that has it."""
        found = [run["metrics"].get(metric) for run in self.runs]
        return [value for value in found if value is not None]

    def mean(self, metric: str) -> float | None:
        found = self.values(metric)
        return fmean(found) if found else None

    def deviations(self) -> list[str]:
        """In what the runs depart from the paper, in words."""
        figure = next(iter(self.figures.values()), None)
        return deviations(self.first, figure, len(self.runs))


def about(result: Mapping[str, Any]) -> About:
    return About(data_name(result), result["protocol"], result["protocol_id"])


def by_protocol(results: Sequence[Result]) -> dict[About, list[Result]]:
    """The results by what a table is about, in order of appearance."""
    groups: dict[About, list[Result]] = {}
    for result in results:
        groups.setdefault(about(result), []).append(result)
    return groups


def systems(results: Sequence[Result], metric: str = "test/ndcg@10") -> list[System]:
    """Runs of one protocol id joined over seeds, best first.

    A second run of a system with the same seed is no second sample: it gets a row of its own.
    """
    found: dict[tuple[Any, int], System] = {}
    for result in results:
        key = identity(result)
        repetition = 0
        while _has_seed(found.get((key, repetition)), result["seed"]):
            repetition += 1
        found.setdefault((key, repetition), System()).runs.append(result)
    ranked = sorted(found.values(), key=lambda system: _descending(system.mean(metric)))
    for system in ranked:
        system.runs.sort(key=lambda run: run["seed"])
    _set_labels(ranked)
    return ranked


def tables(
    results: Sequence[Result],
    metric: str = "test/ndcg@10",
    layout: Layout = DEFAULT_LAYOUT,
) -> list[Table]:
    """One table per data set and protocol id, rows ordered by ``metric``.

    Cells have the mean and the standard deviation over seeds, the published figure, and how far
    ours lies from it (in % of the published one). Notes say in what the runs depart from the
    papers.
    """
    return [_table(group, metric, layout) for group in by_protocol(results).values()]


def departures(found: Sequence[System]) -> list[str]:
    """In what the systems depart from the papers, each note once.

    Before a note stand the systems that it is about, if they are not all.
    """
    labels: dict[str, list[str]] = {}
    for system in found:
        for note in system.deviations():
            labels.setdefault(note, []).append(system.label)
    notes = []
    for note, concerned in labels.items():
        about_all = len(concerned) == len(found) > 1
        names_its_system = " is a reconstruction" in note
        prefix = "" if about_all or names_its_system else f"{', '.join(concerned)}: "
        notes.append(prefix + note)
    return notes


def row_name(system: System) -> str:
    """The label, with what a reader must know of the system before they compare it."""
    name = system.label
    if is_external(system.first):
        name += " (predictions of another program)"
    if system.first.get("reconstruction"):
        name += " (reconstructed)"
    if chose_on_test(system.first):
        name += " (epoch chosen on the test set)"
    if protocol := trained_under(system.first):
        name += f" (trained and selected under {protocol})"
    return name


# Cells --------------------------------------------------------------------------------------------


class _Column(NamedTuple):
    """A column of a table. cells: one per system. is_detail: it may be left out."""

    head: str
    cells: Sequence[Cell]
    is_detail: bool = False


def _table(results: Sequence[Result], metric: str, layout: Layout) -> Table:
    if len({about(result) for result in results}) != 1:
        raise ValueError("results of several protocol ids in one table")
    rows = systems(results, metric)
    if layout.models:
        rows.sort(key=lambda system: layout.models.index(system.model))
    columns = [_Column("model", [Cell(row_name(system)) for system in rows])]
    for name in layout.columns:
        columns += _columns(rows, name, layout)
    notes = departures(rows) if PUBLISHED in layout.columns else []
    if any(len(system.runs) > 1 for system in rows):
        notes.append("± is the standard deviation over seeds")
    if {"rows/s", "s"}.intersection(layout.columns):
        notes += _hardware_notes(rows)
    return Table(
        title=str(about(results[0])),
        caption=_data_caption(results[0]),
        head=tuple(column.head for column in columns),
        rows=tuple(zip(*(column.cells for column in columns), strict=True)),
        notes=tuple(notes),
        details=tuple(n for n, column in enumerate(columns) if column.is_detail),
    )


def _hardware_notes(rows: Sequence[System]) -> list[str]:
    """Which systems ran on which device, where there are several: their times do not compare."""
    labels: dict[str, list[str]] = {}
    for system in rows:
        devices = {(run.get("hardware") or {}).get("device") for run in system.runs}
        for device in sorted(filter(None, devices)):
            labels.setdefault(device, []).append(system.label)
    if len(labels) < 2:
        return []
    most = max(labels, key=lambda device: len(labels[device]))
    parts = [
        f"{', '.join(found)} on {device}" for device, found in labels.items() if device != most
    ]
    return [f"times are of several machines: {'; '.join(parts)}; the others on {most}"]


def _columns(rows: Sequence[System], name: str, layout: Layout) -> list[_Column]:
    """The columns of a name of the layout; those of a metric without a value are left out."""
    if name == METRICS:
        return [column for metric in layout.metrics for column in _columns(rows, metric, layout)]
    has_published = PUBLISHED in layout.columns
    is_detail = name in layout.details
    if name in TRAINING:
        columns = [_Column(name, [TRAINING[name](system.runs) for system in rows], is_detail)]
        if name == "rows/s" and has_published and any(SPEED in s.figures for s in rows):
            columns.append(_Column(PUBLISHED, list(map(_published_speed, rows)), is_detail))
        return columns
    if name == PUBLISHED:  # stands beside the metrics
        return []
    if not any(name in run["metrics"] for system in rows for run in system.runs):
        is_metric = name.startswith(("test/", "val/"))
        return [] if is_metric else [_Column(name, [setting_cell(s.runs, name) for s in rows])]
    means = [system.mean(name) for system in rows]
    has_best = not is_of_lists((run for system in rows for run in system.runs), name)
    marks = best_marks(means) if has_best else [""] * len(means)
    cells = [mean_cell(s.values(name), mark) for s, mark in zip(rows, marks, strict=True)]
    columns = [_Column(name, cells)]
    if has_published and any(_metric(name) in system.figures for system in rows):
        pairs = [_published_cells(system, name) for system in rows]
        columns.append(_Column(PUBLISHED, [pair[0] for pair in pairs]))
        columns.append(_Column("Δ %", [pair[1] for pair in pairs]))
    return columns


def _data_caption(result: Result) -> str:
    counts = []
    for name in ("users", "items", "interactions"):
        n = result["data"].get(name)
        counts.append(f"{DASH if n is None else format(n, ',')} {name}")
    caption = ", ".join(counts)
    n_tested = result["metrics"].get("test/users")
    return f"{caption}, {int(n_tested):,} of them tested" if n_tested else caption


def _metric(column: str) -> str:
    """The metric of a column as ``published.csv`` names it."""
    return column.removeprefix("test/")


def mean_cell(values: Sequence[float], mark: str) -> Cell:
    if not values:
        return Cell(DASH)
    mean = fmean(values)
    text = f"{mean:.4f}"
    if len(values) > 1:
        text += f" ± {stdev(values):.4f}"
    return Cell(text, mean, mark)


def _published_cells(system: System, column: str) -> list[Cell]:
    """The published figure, and by how many % ours lies from it."""
    figure = system.figures.get(_metric(column))
    if figure is None:
        return [Cell(DASH), Cell(DASH)]
    star = "" if same_data(system.first, figure) else " *"  # explained in the notes
    published = Cell(f"{figure.value:.4f}{star}", figure.value)
    ours = system.mean(column)
    if ours is None:
        return [published, Cell(DASH)]
    change = 100 * (ours / figure.value - 1)
    return [published, Cell(f"{change:+.1f}{star}", change)]


def _published_speed(system: System) -> Cell:
    speed = system.figures.get(SPEED)
    return Cell(f"{speed.value:,.0f}", speed.value) if speed else Cell(DASH)


def best_marks(values: Sequence[float | None]) -> list[str]:
    """The best and the second best of two or more values."""
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return [""] * len(values)
    ranked = sorted(set(known), reverse=True)
    marks: dict[float | None, str] = dict(zip(ranked, (BEST, SECOND), strict=False))
    return [marks.get(value, "") for value in values]


# Identity and labels ------------------------------------------------------------------------------


def flat_config(result: Mapping[str, Any]) -> dict[str, str]:
    """The config by dotted keys, without paths, names and the seed.

    Settings that the model has got since the run have the values of today's YAML, which leave its
    results as they were.
    """
    config = result.get("config") or {}
    of_model = config.get("model")
    if isinstance(of_model, dict):
        config = {**config, "model": {**model_defaults(str(result["model"])), **of_model}}
    return _flatten(config, "")


def _flatten(config: Mapping[str, Any], start: str) -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in config.items():
        key = f"{start}{name}"
        if key in NOT_IN_IDENTITY or not changes_numbers(key):
            continue
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{key}.")
        else:
            flat[key] = str(value)
    return flat


def as_words(key: str, value: str) -> str:
    """``loss=BCE`` for a class, ``key=value`` for another setting."""
    group, _, name = key.rpartition(".")
    if name != "_target_":
        return f"{key}={value}"
    return f"{group.rpartition('.')[2]}={value.rpartition('.')[2]}"


def identity(result: Mapping[str, Any]) -> tuple[Any, ...]:
    """What two seeds of one system have in common: their settings, whatever words chose them.

    Of a result whose settings were not kept its overrides.
    """
    chosen: list[Any] = sorted(flat_config(result).items())
    if not chosen:
        chosen = sorted(settings(result))
    return (result["model"], result.get("selection", "val"), *chosen)


def _has_seed(system: System | None, seed: int) -> bool:
    return system is not None and any(run["seed"] == seed for run in system.runs)


def _descending(value: float | None) -> float:
    """Sorts large values first and unknown ones last."""
    return float("inf") if value is None else -value


def _set_labels(ranked: Sequence[System]) -> None:
    for system in ranked:
        rivals = [other for other in ranked if other.model == system.model]
        system.label = " ".join([system.model, *_distinguishing(system, rivals)])
    # Repeated seeds have the same label, and so may configs that differ where no override does.
    labels = [system.label for system in ranked]
    for n, system in enumerate(ranked):
        if labels.count(labels[n]) > 1:
            system.label += f" ({labels[: n + 1].count(labels[n])})"


def _distinguishing(system: System, rivals: Sequence[System]) -> list[str]:
    """The settings in which a system differs from the table's others of its model.

    Overrides where they tell it apart, for they are what was varied on purpose; else the config.
    How long a run may train is named where nothing else tells it apart.
    """
    own = settings(system.first)
    overrides = [set(settings(rival.first)) for rival in rivals]
    short = [set(without_budget(o)) for o in overrides]
    if short.count(set(without_budget(own))) == 1:
        own = without_budget(own)
        overrides = short
    apart = [o for o in own if not all(o in others for others in overrides)]
    if not apart and overrides.count(set(own)) > 1:
        apart = _config_apart(system, rivals)
    words = [o.lstrip("+~").removeprefix("model.").removeprefix("objective.") for o in apart]
    if len({_selection(rival) for rival in rivals}) > 1:
        words.append(f"selection={_selection(system)}")
    return words


def _config_apart(system: System, rivals: Sequence[System]) -> list[str]:
    """Config keys whose value differs among the rivals."""
    configs = [flat_config(rival.first) for rival in rivals]
    apart = []
    for key, value in flat_config(system.first).items():
        if any(config.get(key) != value for config in configs):
            apart.append(as_words(key, value))
    return list(dict.fromkeys(apart))


def _selection(system: System) -> str:
    return str(system.first["selection"].partition(" ")[0].rstrip(","))
