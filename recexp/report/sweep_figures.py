"""Charts of a metric against every setting that runs vary, numbers and names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from recexp.report.collect import Result, as_number, setting
from recexp.report.figures import MAX_LINES, Chart, Line, Picture, draw
from recexp.report.tables import About, System, as_words, by_protocol, flat_config, systems

MAX_CATEGORIES = 12
CLASS = "_target_"  # the part of a key that names a class
# Settings that the papers sweep, and the text of the axis.
SWEPT = {
    "model.n_factors": "width K (n_factors)",
    "objective.weights": "weight of the implicit loss",
    "model.n_layers": "layers",
    "model.max_len": "sequence length",
    "objective.mask_prob": "share of masked items",
    "objective.n_negatives": "negatives per positive",
}
# Settings that may change along a curve of these: the budget, and with the width what must fit it.
MAY_VARY = frozenset({"trainer.max_epochs", "batch_size", "optimizer.lr", "eval_batch_size"})
MAY_VARY_WITH_WIDTH = frozenset({"model.n_inner", "model.n_heads"})

Value = float | str


def swept(
    results: Sequence[Result], metrics: Iterable[str] = ("hr@10", "ndcg@10")
) -> list[Picture]:
    """A picture per protocol id, swept setting and metric.

    A line is a system whose other settings stay the same, seeds averaged.
    """
    metrics = tuple(metrics)
    made = []
    for about, runs in by_protocol(results).items():
        for key in swept_keys(runs):
            for metric in metrics:
                chart = sweep_chart(runs, key, metric, about)
                if chart is not None:
                    made.append(draw(chart))
    return made


def swept_keys(results: Sequence[Result]) -> list[str]:
    """Settings that differ among the runs of a model, those of the papers first."""
    values: dict[tuple[str, str], set[str]] = {}
    for result in results:
        for key, value in flat_config(result).items():
            values.setdefault((result["model"], key), set()).add(value)
    varied = {key for (_, key), found in values.items() if len(found) > 1}
    return [*SWEPT, *sorted(varied - SWEPT.keys())]


def sweep_chart(results: Sequence[Result], key: str, metric: str, about: About) -> Chart | None:
    """Curves of one protocol id's systems over the setting ``key``, and those of the papers.

    A curve has at least two points. None where there is none.
    """
    curves = _sweeps(results, key, metric)
    values = {x for points in curves for x in points}
    categories = tuple(sorted(x for x in values if isinstance(x, str)))
    if not curves or len(categories) > MAX_CATEGORIES:
        return None
    note = ""
    if len(curves) > MAX_LINES:
        note = f"; the best {MAX_LINES} of {len(curves)} lines"
        curves = sorted(curves, key=lambda points: -_highest(points, metric))[:MAX_LINES]
    labels = _labels([next(iter(points.values())).first for points in curves], key)
    lines = []
    for label, points in zip(labels, curves, strict=True):
        lines += _lines(label, points, categories, metric)
    text = SWEPT.get(key) or key.removesuffix(f".{CLASS}")
    title = f"{metric} against {text}"
    return Chart(title, about, lines, text, metric, ticks=True, categories=categories, note=note)


def _lines(
    label: str, points: Mapping[Value, System], categories: Sequence[str], metric: str
) -> list[Line]:
    """Our curve, and the published one where there is one."""
    ours = []
    figures = []
    for value, system in points.items():
        x = categories.index(value) if isinstance(value, str) else value
        ours.append((float(x), _mean(system, metric)))
        if metric in system.figures:
            figures.append((float(x), system.figures[metric]))
    ours.sort()
    lines = [Line.through(label, ours)]
    # A figure that stands for several points of x is no curve.
    all_figures = [figure for _, figure in figures]
    theirs = [(x, figure.value) for x, figure in figures if all_figures.count(figure) == 1]
    if theirs:
        lines.append(Line.through(label, sorted(theirs), dashed=True))
    return lines


def _mean(system: System, metric: str) -> float:
    mean = system.mean(f"test/{metric}")
    assert mean is not None, "_sweeps has left out systems without the metric"
    return mean


def _highest(points: Mapping[Value, System], metric: str) -> float:
    return max(_mean(system, metric) for system in points.values())


def _sweeps(results: Sequence[Result], key: str, metric: str) -> list[dict[Value, System]]:
    """Per curve its systems by the value of the setting."""
    found = [
        system
        for system in systems(results)
        if key in flat_config(system.first) and system.mean(f"test/{metric}") is not None
    ]
    if key in SWEPT:
        found = [s for s in found if as_number(setting(s.first, key)) is not None]
    values = _values(found, key)
    groups: dict[tuple[Any, ...], dict[Value, System]] = {}
    for system, value in zip(found, values, strict=True):
        groups.setdefault(_same_along(system.first, key), {}).setdefault(value, system)
    return [group for group in groups.values() if len(group) > 1]


def _values(found: Sequence[System], key: str) -> list[Value]:
    """The setting of every system: numbers where all have one, else texts."""
    if key.endswith(CLASS):
        return list(_class_names(found, key))
    raw = [setting(system.first, key) for system in found]
    numbers = [as_number(value) for value in raw]
    # Of a list of weights the first counts; other lists are texts.
    if key not in SWEPT and any(isinstance(value, list) for value in raw):
        return [str(value) for value in raw]
    known = [number for number in numbers if number is not None]
    return list(known) if len(known) == len(raw) else [str(value) for value in raw]


def _class_names(found: Sequence[System], key: str) -> list[str]:
    """Names of classes, with those of their settings in which objects of one class differ."""
    start = key.removesuffix(CLASS)
    parts = []
    for system in found:
        config = flat_config(system.first)
        parts.append({k: v for k, v in config.items() if k.startswith(start)})
    names = []
    for own in parts:
        rivals = [other for other in parts if other[key] == own[key]]
        words = [own[key].rpartition(".")[2]]
        for name, value in own.items():
            if any(rival.get(name) != value for rival in rivals):
                words.append(as_words(name.removeprefix(start), value))
        names.append(" ".join(words))
    return names


def _same_along(result: Result, key: str) -> tuple[Any, ...]:
    """What stays the same along a curve over the setting ``key``."""
    varying = {key}
    if key in SWEPT:
        varying |= MAY_VARY
    if key == "model.n_factors":
        varying |= MAY_VARY_WITH_WIDTH
    # The settings of a class go with it.
    start = key.removesuffix(CLASS) if key.endswith(CLASS) else None
    config = []
    for name, value in flat_config(result).items():
        goes_along = start is not None and name.startswith(start)
        if name not in varying and not goes_along:
            config.append((name, value))
    return result["model"], str(result["selection"]), tuple(sorted(config))


def _labels(results: Sequence[Result], key: str) -> list[str]:
    """Model names, with up to three settings in which the curves of one model differ."""
    configs = [flat_config(result) for result in results]
    labels = []
    for result, config in zip(results, configs, strict=True):
        rivals = []
        for other, other_config in zip(results, configs, strict=True):
            if other["model"] == result["model"]:
                rivals.append(other_config)
        apart = []
        for name, value in config.items():
            if name != key and any(rival.get(name) != value for rival in rivals):
                shown, _, text = as_words(name, value).partition("=")
                apart.append(f"{shown.rpartition('.')[2]}={text}")
        labels.append(" ".join([result["model"], *list(dict.fromkeys(apart))[:3]]))
    numbered = []
    for n, label in enumerate(labels, 1):
        numbered.append(label if labels.count(label) == 1 else f"{label} ({n})")
    return numbered
