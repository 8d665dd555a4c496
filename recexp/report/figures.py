"""Charts in the papers' forms: a metric against a swept setting, against epochs, against k.

The papers' curves stand dashed beside ours. The colors are those of Okabe and Ito, which
color-blind readers can tell apart; every system has a marker of its own besides.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from recexp.logs import printable
from recexp.report.collect import Result, chose_on_test, read_epochs, setting
from recexp.report.papers.matching import curve
from recexp.report.papers.published import experiment
from recexp.report.tables import About, System, by_protocol, systems

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#8A6D00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
INK = "#1a1a1a"  # of text and axes alone: a page replaces it by its own text color
PUBLISHED_COLOR = "#7F7F7F"
MAX_LINES = 8  # systems in one chart
MAX_WIDTHS = 6  # widths with a chart of their own
MAX_TICKS = 10
MAX_TICK_TEXT = 36  # characters that fit beside each other below the axis
MIN_LOG_RATIO = 8  # of the largest value to the smallest on a logarithmic axis
MIN_DECIMAL_RATIO = 100  # from which on powers of 10 are marked, else of 2
MAX_MARKERS = 12  # points on a line up to which they have markers
MAX_LABEL = 56  # characters in a legend
# Experiments that show attention: BERT4Rec's figure 2, NOVA-BERT's figure 5.
ATTENTION_FIGURES = (("bert4rec", "fig2"), ("nova_bert", "fig5"))
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "font.family": "sans-serif",
    "legend.fontsize": 8,
    "axes.titlesize": 9,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "recexp",
}

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Picture:
    """name: of its files. alt: what it shows, in words, for readers who cannot see it."""

    name: str
    title: str
    alt: str
    svg: str
    png: bytes


@dataclass(frozen=True)
class Line:
    """One curve. dashed: the paper's, drawn in the color of the system of the same ``label``."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    dashed: bool = False

    @classmethod
    def through(cls, label: str, points: Points, dashed: bool = False) -> Line:
        x = tuple(point[0] for point in points)
        y = tuple(point[1] for point in points)
        return cls(label, x, y, dashed)


@dataclass(frozen=True)
class Chart:
    """A chart to be drawn.

    ticks: one per value of x, on a logarithmic axis where these span orders of magnitude.
    categories: names of x = 0, 1, 2, ... where x is no number. note: stands behind the title.
    """

    title: str
    about: About
    lines: Sequence[Line]
    x_label: str
    y_label: str
    ticks: bool = False
    categories: tuple[str, ...] = ()
    note: str = ""

    def x_text(self, x: float) -> str:
        """A value of x as people read it."""
        return self.categories[int(x)] if self.categories else f"{x:g}"


def wants_attention(result: Result) -> bool:
    """Whether the run is of an experiment that shows attention."""
    return experiment(result) in ATTENTION_FIGURES


# A metric against epochs --------------------------------------------------------------------------


def epoch_curves(
    results: Sequence[Result], metrics: Iterable[str] = ("hr@10", "ndcg@10")
) -> list[Picture]:
    """Validation metrics per epoch (test's, where the epoch was chosen on it), seeds averaged.

    One picture per width where that is swept. The ITE paper's curves are of the test set: they
    stand, dashed, beside our test curves, and are not drawn on an axis of validation values.
    """
    metrics = tuple(metrics)
    trained = [result for result in results if "evaluated" not in result]
    made = []
    for about, runs in by_protocol(trained).items():
        widths = _by_width(systems(runs))
        for width, members in sorted(widths.items(), key=lambda item: item[0] or 0):
            suffix = f", K={width}" if width is not None and len(widths) > 1 else ""
            for metric in metrics:
                chart = _epoch_chart(members, metric, about, suffix)
                if chart.lines:
                    made.append(draw(chart))
    return made


def _by_width(found: Sequence[System]) -> dict[Any, list[System]]:
    """The systems by width; all under None where there is nothing to compare within a width."""
    widths: dict[Any, list[System]] = {}
    for system in found:
        widths.setdefault(setting(system.first, "model.n_factors"), []).append(system)
    if min(map(len, widths.values())) < 2 or len(widths) > MAX_WIDTHS:
        return {None: [system for members in widths.values() for system in members]}
    return widths


def _epoch_chart(members: Sequence[System], metric: str, about: About, suffix: str) -> Chart:
    on_test = any(chose_on_test(system.first) for system in members)
    # Test and validation values share no axis.
    members = [system for system in members if chose_on_test(system.first) == on_test]
    shown = _best_of_each_model(members) if len(members) > MAX_LINES else list(members)
    models = {system.model for system in shown}
    lines = []
    omitted = False
    for system in shown:
        label = system.model if len(models) == len(shown) else system.label
        points = _mean_curve(system, metric)
        if len(points) < 2:
            continue
        lines.append(Line.through(label, points))
        published = curve(system.first, metric)
        if published and on_test:
            lines.append(Line.through(label, published, dashed=True))
        omitted = omitted or bool(published and not on_test)
    note = "; the paper's curves, of the test set, are not drawn here" if omitted else ""
    split = "test" if on_test else "validation"
    title = f"{metric} per epoch{suffix}"
    return Chart(title, about, lines, "epoch", f"{metric} ({split})", note=note)


def _mean_curve(system: System, metric: str) -> list[tuple[float, float]]:
    """(epoch from 1, mean over the seeds) of the epochs that all seeds reached."""
    split = "test" if chose_on_test(system.first) else "val"
    name = f"{split}/{metric}"
    tables = []
    for run in system.runs:
        tables.append({row["epoch"] + 1: row[name] for row in read_epochs(run) if name in row})
    common = set.intersection(*map(set, tables)) if tables else set()
    return [(epoch, fmean(table[epoch] for table in tables)) for epoch in sorted(common)]


# A metric against k -------------------------------------------------------------------------------


def topk_curves(results: Sequence[Result], names: Iterable[str] = ("hr", "ndcg")) -> list[Picture]:
    """HR@k and NDCG@k against k, where three or more k are known.

    Of each model the setting with the best validation NDCG@10.
    """
    names = tuple(names)
    made = []
    for about, runs in by_protocol(results).items():
        chosen = _best_of_each_model(systems(runs))
        for name in names:
            lines = [line for system in chosen for line in _topk_lines(system, name)]
            if lines:
                title = f"{name.upper()}@k against k"
                made.append(draw(Chart(title, about, lines, "k", f"{name}@k", ticks=True)))
    return made


def _topk_lines(system: System, name: str) -> Iterator[Line]:
    ours = []
    theirs = []
    for k in _cutoffs(system.first["metrics"], name):
        metric = f"{name}@{k}"
        mean = system.mean(f"test/{metric}")
        if mean is not None:
            ours.append((float(k), mean))
        if metric in system.figures:
            theirs.append((float(k), system.figures[metric].value))
    if len(ours) >= 3:
        yield Line.through(system.label, ours)
        if len(theirs) > 1:
            yield Line.through(system.label, theirs, dashed=True)


def _cutoffs(metrics: Mapping[str, float], name: str) -> list[int]:
    found = [re.fullmatch(rf"test/{name}@(\d+)", key) for key in metrics]
    return sorted(int(match[1]) for match in found if match)


def _best_of_each_model(members: Sequence[System]) -> list[System]:
    """Of each model the system with the best validation NDCG@10, in the order given."""
    best: dict[str, System] = {}
    for system in sorted(members, key=_on_validation, reverse=True):
        best.setdefault(system.model, system)
    return [system for system in members if best[system.model] is system][:MAX_LINES]


def _on_validation(system: System) -> float:
    value = system.mean("val/ndcg@10")
    return -1.0 if value is None else value


# Attention ----------------------------------------------------------------------------------------


def heat_maps(
    weights_LHQK: NDArray[np.float64],
    label: str,
    about: About,
    limits: tuple[float, float] | None = None,
) -> Picture:
    """Average attention, layers by heads, queries down and keys across.

    Positions are counted from the newest, which is 0.

    weights_LHQK: float [layers, heads, last, last], as ``recexp.report.attention`` returns them.
    limits: of the color scale, where several systems share one; else the weights' own.
    """
    n_layers, n_heads, last, _ = weights_LHQK.shape
    low = float(weights_LHQK.min())
    high = float(weights_LHQK.max())
    with mpl.rc_context(STYLE):
        size = (1.7 * n_heads + 1.1, 1.7 * n_layers + 0.6)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(n_layers, n_heads, squeeze=False)
        vmin, vmax = limits or (low, high)
        for (layer, head), ax in np.ndenumerate(axes):
            image = ax.imshow(
                weights_LHQK[layer, head],
                cmap="cividis",
                vmin=vmin,
                vmax=vmax,
                origin="upper",
                interpolation="nearest",
            )
            ticks = list(range(last - 1, -1, -max(1, last // 4)))
            tick_labels = [str(tick - last + 1) for tick in ticks]
            ax.set_xticks(ticks, tick_labels)
            ax.set_yticks(ticks, tick_labels)
            ax.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=8)
            if layer == n_layers - 1:
                ax.set_xlabel("attended to")
            if head == 0:
                ax.set_ylabel("position")
        figure.colorbar(image, ax=axes.ravel().tolist(), shrink=0.8, label="mean weight")
        figure.suptitle(_short(label), fontsize=9)
        strongest = np.unravel_index(np.argmax(weights_LHQK.mean(axis=(0, 1))), (last, last))
        query, key = (int(position) - last + 1 for position in strongest)
        alt = (
            f"Mean attention weights of {label} on {about.dataset}: {n_layers} layer(s) by "
            f"{n_heads} head(s), the last {last} positions, {low:.2f} to {high:.2f}; "
            f"on average strongest from position {query} to position {key}."
        )
        name = f"attention of {label} {' '.join(about)}"
        return as_picture(figure, name, f"Attention of {label}: {about}", alt)


# Drawing ------------------------------------------------------------------------------------------


def draw(chart: Chart) -> Picture:
    lines = chart.lines
    # In the order of names, so that the same systems have the same colors in every picture.
    names = sorted({line.label for line in lines})
    n_columns = 1 if max(map(len, names)) > 24 else 2
    height = 3.0 + 0.17 * math.ceil((len(names) + 1) / n_columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.6, height), layout="constrained")
        ax = figure.subplots()
        for line in sorted(lines, key=lambda line: (line.dashed, line.label)):
            _draw_line(ax, line, names.index(line.label), is_joined=not chart.categories)
        if any(line.dashed for line in lines):
            ax.plot([], [], color=PUBLISHED_COLOR, linestyle="--", linewidth=1.2, label="published")
        if chart.categories:
            _set_categories(ax, chart.categories)
        else:
            _set_ticks(ax, sorted({x for line in lines for x in line.x}), chart.ticks)
        ax.set(xlabel=chart.x_label, ylabel=chart.y_label)
        ax.grid(alpha=0.25, linewidth=0.6)
        figure.legend(loc="outside lower center", ncols=n_columns, frameon=False)
        about = chart.about
        subtitle = printable(f"{about.dataset}, {about.protocol}")
        figure.suptitle(f"{printable(chart.title)}\n{subtitle}", fontsize=9)
        name = f"{chart.title} {' '.join(about)}"
        caption = f"{chart.title}: {about}{chart.note}"
        return as_picture(figure, name, caption, _in_words(chart))


def _draw_line(ax: Axes, line: Line, n: int, is_joined: bool) -> None:
    color = COLORS[n % len(COLORS)]
    marker = MARKERS[n % len(MARKERS)]
    has_many_points = len(line.x) > MAX_MARKERS
    if line.dashed:
        is_curve = is_joined and (has_many_points or len(line.x) > 1)
        ax.plot(
            line.x,
            line.y,
            color=color,
            linestyle="--" if is_joined else "none",
            linewidth=1.2,
            marker=None if is_curve else marker,
            markersize=4.5,
            alpha=0.8,
            label="_",  # not in the legend
        )
        return
    ax.plot(
        line.x,
        line.y,
        color=color,
        linestyle="-" if is_joined else "none",
        linewidth=1.6,
        marker=None if has_many_points and is_joined else marker,
        markersize=4.5,
        alpha=1,
        label=_short(line.label),
    )


def _set_categories(ax: Axes, names: Sequence[str]) -> None:
    labels = [_short(name) for name in names]
    is_long = sum(map(len, labels)) > MAX_TICK_TEXT
    rotation: dict[str, Any] = {"rotation": 30, "ha": "right"} if is_long else {}
    ax.set_xticks(range(len(labels)), labels, **rotation)
    ax.set_xlim(-0.5, len(labels) - 0.5)


def _set_ticks(ax: Axes, xs: Sequence[float], ticks: bool) -> None:
    if ticks:
        _set_scale(ax, xs)
        if len(xs) <= MAX_TICKS and all(float(f"{x:.3g}") == x for x in xs):
            ax.set_xticks(xs, [f"{x:g}" for x in xs])
            ax.minorticks_off()
    elif all(float(x).is_integer() for x in xs):
        locator = ax.xaxis.get_major_locator()
        assert isinstance(locator, MaxNLocator)
        locator.set_params(integer=True)


def _set_scale(ax: Axes, xs: Sequence[float]) -> None:
    """Logarithmic where the values span orders of magnitude; 0 lies in a linear part beside it."""
    positive = [x for x in xs if x > 0]
    if xs[0] < 0 or not positive or positive[-1] / positive[0] < MIN_LOG_RATIO:
        return
    base = 10 if positive[-1] / positive[0] >= MIN_DECIMAL_RATIO else 2
    if xs[0] == 0:
        ax.set_xscale("symlog", base=base, linthresh=positive[0], linscale=0.5)
    else:
        ax.set_xscale("log", base=base)


def _short(label: str) -> str:
    """The beginning and the end of a long name, for a legend; the alt text has it in full."""
    label = printable(label).lstrip("_")  # matplotlib hides names that begin with an underscore
    if len(label) <= MAX_LABEL:
        return label
    half = MAX_LABEL // 2
    return f"{label[:half]}…{label[1 - half :]}"


def _in_words(chart: Chart) -> str:
    told = []
    for line in chart.lines:
        best = max(range(len(line.y)), key=line.y.__getitem__)
        name = f"{line.label} (published)" if line.dashed else line.label
        first, last, highest = (chart.x_text(line.x[n]) for n in (0, -1, best))
        told.append(
            f"{name} from {line.y[0]:.4f} at {first} to {line.y[-1]:.4f} at {last}, "
            f"highest {line.y[best]:.4f} at {highest}"
        )
    about = chart.about
    return f"{chart.title} on {about.dataset}, {about.protocol}. {'; '.join(told)}."


def on_white(svg: str) -> str:
    """The SVG as a file of its own, whose dark text is read on dark pages too."""
    start = svg.index(">", svg.index("<svg")) + 1
    return f'{svg[:start]}<rect width="100%" height="100%" fill="white"/>{svg[start:]}'


def as_picture(figure: Figure, name: str, title: str, alt: str) -> Picture:
    """The figure in both formats. name: of its files. alt: what it shows, in words."""
    svg = io.StringIO()
    png = io.BytesIO()
    # No date and no version, so that the same runs give the same bytes.
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(svg, format="svg", transparent=True, metadata=metadata)
    figure.savefig(png, format="png", dpi=160, facecolor="white")
    file_name = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:120]
    return Picture(file_name, title, alt, svg.getvalue(), png.getvalue())
