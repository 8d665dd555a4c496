"""Figures in the papers' forms: a metric against a swept setting, against epochs, against k; the papers' curves dashed beside ours.

Colours are Okabe and Ito's, which colour-blind readers tell apart; every system has a marker of its own besides.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from recexp.report.collect import epochs_table, number, setting
from recexp.report.formats import printable
from recexp.report.published import curve, experiment
from recexp.report.tables import System, _flat, protocols, systems

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#8A6D00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
INK = "#1a1a1a"  # text and axes, and nothing else: a page with a dark background replaces it
# What the papers sweep: config key -> what the axis says
SWEPT = {
    "model.num_factors": "width K (num_factors)", "objective.weights": "weight of the implicit loss", "model.num_layers": "layers",
    "model.max_len": "sequence length", "objective.mask_prob": "share of masked items", "objective.n_negatives": "negatives per positive",
}  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """name: of its files. alt: what it shows, in words, for those who do not see it."""

    name: str
    title: str
    alt: str
    svg: str
    png: bytes


@dataclass(frozen=True)
class Line:
    """One curve. dashed: the paper's, drawn in the colour of the system that has the same ``label``."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    dashed: bool = False


def swept(
    results: Sequence[dict[str, Any]], metrics: Iterable[str] = ("hr@10", "ndcg@10")
) -> list[Picture]:
    """A picture per protocol id, swept setting and metric. A line is a system whose other settings stay the same, seeds averaged."""
    made = []
    for about, runs in protocols(results).items():
        for name, says in SWEPT.items():
            for metric in metrics:
                lines = sweep_lines(runs, name, metric)
                if lines:
                    made.append(
                        _chart(f"{metric} against {says}", about, lines, says, metric, ticks=True)
                    )
    return made


def sweep_lines(results: Sequence[dict[str, Any]], name: str, metric: str) -> list[Line]:
    """Curves of one protocol id's systems over the setting ``name``, at least two points each, and those that the papers print."""
    groups: dict[tuple, dict[float, System]] = {}
    for s in systems(results):
        at = number(setting(s.first, name))
        if at is not None and s.mean(f"test/{metric}") is not None:
            groups.setdefault(_others(s.first, name), {}).setdefault(at, s)
    groups = {k: g for k, g in groups.items() if len(g) > 1}
    labels = _labels([next(iter(g.values())).first for g in groups.values()], name)
    lines = []
    for label, group in zip(labels, groups.values(), strict=True):
        points = sorted(group.items())
        lines.append(
            Line(
                label,
                tuple(x for x, _ in points),
                tuple(s.mean(f"test/{metric}") for _, s in points),
            )
        )
        found = [(x, s.figures[metric]) for x, s in points if metric in s.figures]
        theirs = [
            (x, f.value) for x, f in found if sum(f == other for _, other in found) == 1
        ]  # one figure for all points is no curve
        if theirs:
            lines.append(Line(label, *map(tuple, zip(*theirs, strict=True)), dashed=True))
    return lines


def epoch_curves(
    results: Sequence[dict[str, Any]], metrics: Iterable[str] = ("hr@10", "ndcg@10")
) -> list[Picture]:
    """Validation metrics per epoch (test's, where runs peeked at it), seeds averaged.

    One picture per width where that is swept. The ITE paper's curves are of the test set: they
    stand, dashed, beside our test curves, and are not drawn on an axis of validation values.
    """
    made = []
    for about, runs in protocols([r for r in results if "evaluated" not in r]).items():
        widths: dict[Any, list[System]] = {}
        for s in systems(runs):
            widths.setdefault(setting(s.first, "model.num_factors"), []).append(s)
        if min(len(w) for w in widths.values()) < 2 or len(widths) > 6:
            widths = {None: [s for w in widths.values() for s in w]}
        for width, members in sorted(widths.items(), key=lambda item: item[0] or 0):
            peeked = any(_peeks(s) for s in members)
            members = [
                s for s in members if _peeks(s) == peeked
            ]  # test and validation values share no axis
            shown = _best_of_each_model(members, 8)
            by_model = len({s.first["model"] for s in shown}) == len(shown)
            shown = [(s, s.first["model"] if by_model else s.label) for s in shown]
            for metric in metrics:
                lines, omitted = [], False
                for s, label in shown:
                    points = _mean_curve(s, metric)
                    if len(points) > 1:
                        lines.append(Line(label, *map(tuple, zip(*points, strict=True))))
                        theirs = curve(s.first, metric)
                        omitted = omitted or bool(theirs and not peeked)
                        if theirs and peeked:
                            lines.append(
                                Line(label, *map(tuple, zip(*theirs, strict=True)), dashed=True)
                            )
                if lines:
                    title = f"{metric} per epoch" + (
                        f", K={width}" if width is not None and len(widths) > 1 else ""
                    )
                    note = (
                        "; the paper's curves, of the test set, are not drawn here"
                        if omitted
                        else ""
                    )
                    split = "test" if peeked else "validation"
                    made.append(
                        _chart(title, about, lines, "epoch", f"{metric} ({split})", note=note)
                    )
    return made


def topk_curves(
    results: Sequence[dict[str, Any]], names: Iterable[str] = ("hr", "ndcg")
) -> list[Picture]:
    """HR@k and NDCG@k against k, where three or more are known; of each model the setting with the best validation NDCG@10."""
    made = []
    for about, runs in protocols(results).items():
        chosen = _best_of_each_model(systems(runs), 8, one=True)
        for name in names:
            lines = []
            for s in chosen:
                ks = sorted(
                    int(m[1])
                    for key in s.first["metrics"]
                    if (m := re.fullmatch(rf"test/{name}@(\d+)", key))
                )
                if len(ks) < 3:
                    continue
                lines.append(
                    Line(s.label, tuple(ks), tuple(s.mean(f"test/{name}@{k}") for k in ks))
                )
                theirs = [
                    (k, s.figures[f"{name}@{k}"].value) for k in ks if f"{name}@{k}" in s.figures
                ]
                if len(theirs) > 1:
                    lines.append(Line(s.label, *map(tuple, zip(*theirs, strict=True)), dashed=True))
            if lines:
                made.append(
                    _chart(
                        f"{name.upper()}@k against k", about, lines, "k", f"{name}@k", ticks=True
                    )
                )
    return made


def heat_maps(
    weights_LHQK: np.ndarray,
    label: str,
    about: tuple[str, str, str],
    limits: tuple[float, float] | None = None,
) -> Picture:
    """Average attention, layers by heads, queries down and keys across, both counted from the newest position (0 is the last).

    weights_LHQK: float [layers, heads, last, last], as ``recexp.report.attention`` returns them. limits: of the
    colour scale, where several systems share one; the weights' own unless given.
    """
    layers, heads, last, _ = weights_LHQK.shape
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(1.7 * heads + 1.1, 1.7 * layers + 0.6), layout="constrained")
        axes = figure.subplots(layers, heads, squeeze=False)
        low, top = float(weights_LHQK.min()), float(weights_LHQK.max())
        darkest, lightest = limits or (low, top)
        for (i, j), ax in np.ndenumerate(axes):
            image = ax.imshow(
                weights_LHQK[i, j],
                cmap="cividis",
                vmin=darkest,
                vmax=lightest,
                origin="upper",
                interpolation="nearest",
            )
            ticks = list(range(last - 1, -1, -max(1, last // 4)))
            ax.set_xticks(ticks, [str(t - last + 1) for t in ticks])
            ax.set_yticks(ticks, [str(t - last + 1) for t in ticks])
            ax.set_title(f"layer {i + 1}, head {j + 1}", fontsize=8)
            if i == layers - 1:
                ax.set_xlabel("attended to")
            if j == 0:
                ax.set_ylabel("position")
        figure.colorbar(image, ax=axes.ravel().tolist(), shrink=0.8, label="mean weight")
        strongest = np.unravel_index(np.argmax(weights_LHQK.mean(axis=(0, 1))), (last, last))
        alt = f"Mean attention weights of {label} on {about[0]}: {layers} layer(s) by {heads} head(s), the last {last} positions, "
        alt += f"{low:.2f} to {top:.2f}; "
        alt += f"on average strongest from position {strongest[0] - last + 1} to position {strongest[1] - last + 1}."
        figure.suptitle(_short(label), fontsize=9)
        return _picture(
            figure,
            f"attention of {label} {' '.join(about)}",
            f"Attention of {label}: {about[0]}, {about[1]} (id {about[2]})",
            alt,
        )


_STYLE = {
    "font.size": 9, "axes.titlesize": 9, "legend.fontsize": 8, "svg.fonttype": "none", "svg.hashsalt": "recexp", "axes.edgecolor": INK,
    "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "font.family": "sans-serif",
    "text.parse_math": False, "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip


def _chart(
    title: str,
    about: tuple[str, str, str],
    lines: Sequence[Line],
    xlabel: str,
    ylabel: str,
    ticks: bool = False,
    note: str = "",
) -> Picture:
    """note: stands in the caption, behind the title."""
    with mpl.rc_context(_STYLE):
        names = sorted(
            {line.label for line in lines}
        )  # the same systems have the same colours in every picture
        columns = 1 if max(map(len, names)) > 24 else 2
        figure = Figure(
            figsize=(4.6, 3.0 + 0.17 * math.ceil((len(names) + 1) / columns)), layout="constrained"
        )
        ax = figure.subplots()
        for line in sorted(lines, key=lambda line: (line.dashed, line.label)):
            n = names.index(line.label)
            many = len(line.x) > 12
            ax.plot(
                line.x, line.y, color=COLOURS[n % len(COLOURS)], linestyle="--" if line.dashed else "-", linewidth=1.2 if line.dashed else 1.6,
                marker=None if many or (line.dashed and len(line.x) > 1) else MARKERS[n % len(MARKERS)], markersize=4.5,
                alpha=0.8 if line.dashed else 1, label="_" if line.dashed else _short(line.label),
            )  # fmt: skip
        if any(line.dashed for line in lines):
            ax.plot([], [], color="#7F7F7F", linestyle="--", linewidth=1.2, label="published")
        xs = sorted({x for line in lines for x in line.x})
        if ticks and len(xs) <= 10:
            if xs[0] > 0 and xs[-1] / xs[0] >= 8:
                ax.set_xscale("log", base=2)
            ax.set_xticks(xs, [f"{x:g}" for x in xs])
            ax.minorticks_off()
        elif all(float(x).is_integer() for x in xs):
            ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set(xlabel=xlabel, ylabel=ylabel)
        ax.grid(alpha=0.25, linewidth=0.6)
        figure.legend(loc="outside lower center", ncols=columns, frameon=False)
        figure.suptitle(printable(title) + "\n" + printable(f"{about[0]}, {about[1]}"), fontsize=9)
        caption = f"{title}: {about[0]}, {about[1]} (id {about[2]}){note}"
        return _picture(figure, f"{title} {' '.join(about)}", caption, _words(title, about, lines))


def _short(label: str, most: int = 56) -> str:
    """Names in a legend keep their beginning and their end; the alt text has them whole."""
    label = printable(label).lstrip("_")  # a legend leaves out what begins with an underscore
    return label if len(label) <= most else f"{label[: most // 2]}…{label[1 - most // 2 :]}"


def _words(title: str, about: tuple[str, str, str], lines: Sequence[Line]) -> str:
    told = []
    for line in lines:
        best = max(range(len(line.y)), key=line.y.__getitem__)
        who = f"{line.label} (published)" if line.dashed else line.label
        span = f"from {line.y[0]:.4f} at {line.x[0]:g} to {line.y[-1]:.4f} at {line.x[-1]:g}"
        told.append(f"{who} {span}, highest {line.y[best]:.4f} at {line.x[best]:g}")
    return f"{title} on {about[0]}, {about[1]}. " + "; ".join(told) + "."


def _picture(figure: Figure, name: str, title: str, alt: str) -> Picture:
    svg, png = io.StringIO(), io.BytesIO()
    figure.savefig(
        svg,
        format="svg",
        transparent=True,
        metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
    )
    figure.savefig(png, format="png", dpi=160, facecolor="white")
    return Picture(
        re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:120],
        title,
        alt,
        svg.getvalue(),
        png.getvalue(),
    )


def _others(result: dict[str, Any], name: str) -> tuple:
    """What stays the same along a line. The budget may change along it, and with the width what must fit it."""
    along = {name, "trainer.max_epochs", "batch_size", "optimizer.lr", "eval_batch_size"}
    if name == "model.num_factors":
        along |= {"model.num_inner", "model.num_heads"}
    flat = {k: v for k, v in _flat(result.get("config") or {}).items() if k not in along}
    return result["model"], str(result["selection"]), tuple(sorted(flat.items()))


def _labels(results: Sequence[dict[str, Any]], name: str) -> list[str]:
    """Model names, with the settings in which lines of one model differ."""
    flats = [_flat(r.get("config") or {}) for r in results]
    labels = []
    for r, flat in zip(results, flats, strict=True):
        rivals = [
            f for other, f in zip(results, flats, strict=True) if other["model"] == r["model"]
        ]
        apart = [k for k in flat if k != name and any(f.get(k) != flat[k] for f in rivals)]
        labels.append(" ".join([r["model"], *(f"{k.split('.')[-1]}={flat[k]}" for k in apart[:3])]))
    return [
        label if labels.count(label) == 1 else f"{label} ({n + 1})"
        for n, label in enumerate(labels)
    ]


def _mean_curve(s: System, metric: str) -> list[tuple[float, float]]:
    """(epoch from 1, mean over the seeds) of the epochs that all seeds reached."""
    split = "test" if _peeks(s) else "val"
    tables = [
        {
            row["epoch"] + 1: row[f"{split}/{metric}"]
            for row in epochs_table(r)
            if f"{split}/{metric}" in row
        }
        for r in s.runs
    ]
    common = set.intersection(*map(set, tables)) if tables else set()
    return [(e, fmean(t[e] for t in tables)) for e in sorted(common)]


def _peeks(s: System) -> bool:
    """Whether test metrics were taken in every epoch, as the ITE paper's curves are."""
    return s.first["selection"].startswith("test_peek")


def _best_of_each_model(members: Sequence[System], most: int, one: bool = False) -> list[System]:
    """All of them where they are few; else (or where ``one``) of each model the one chosen on validation."""
    if len(members) <= most and not one:
        return list(members)
    ranked = sorted(
        members, key=lambda s: -(s.mean("val/ndcg@10") if s.mean("val/ndcg@10") is not None else -1)
    )
    first = {s.first["model"]: s for s in reversed(ranked)}
    return [s for s in members if s in first.values()][:most]


def wants_attention(result: dict[str, Any]) -> bool:
    """Whether the run is of an experiment that shows attention: BERT4Rec's fig. 2, NOVA's fig. 5."""
    return experiment(result) in (("bert4rec", "fig2"), ("nova_bert", "fig5"))
