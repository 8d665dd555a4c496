"""Tables in the rows and columns in which the papers print them, the published figure above ours.

A table is a ``Layout``: which fields of a figure of ``published.csv`` make its rows, which its
columns. Fields are dataset, model, metric, setting, and what a setting names (``K=64,epoch=20``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from math import sqrt
from statistics import fmean, stdev
from typing import Any

from recexp.errors import RecexpError
from recexp.report.collect import epochs_table, setting
from recexp.report.formats import BEST, SECOND, Cell, Table
from recexp.report.published import (
    DATASETS,
    VARIANTS,
    Figure,
    experiment,
    in_table,
    paper_table,
    same_data,
    select,
)
from recexp.report.tables import System, departures, protocols, systems


@dataclass(frozen=True)
class Layout:
    """rows, columns: the fields whose values make them. apart: fields with a table per value.

    models: their order, where it is not that of ``published.csv``.
    gain_of: the model whose gain over the best of the other columns, in %, stands in the last one.
    averaged: metrics whose gain is averaged over the data sets, in lines below.
    """

    paper: str
    table: str
    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    apart: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    gain_of: str = ""
    averaged: tuple[str, ...] = ()


ITE = ("mtmf", "nmtr", "bert4rec", "ite", "bert_ite", "bert_ite_si")
BY = ("dataset", "metric")
CLAIMED = ("hr@10", "ndcg@10", "mrr")
LAYOUTS = (
    Layout(
        "bert4rec", "table2", "Table 2", BY, ("model",), gain_of="bert4rec", averaged=CLAIMED
    ),
    Layout("bert4rec", "table3", "Table 3", ("model",), BY),
    Layout("bert4rec", "table4", "Table 4", ("metric",), ("max_len",), ("dataset",)),
    Layout("bert4rec", "table5", "Table 5: NDCG@10", ("setting",), ("dataset",)),
    Layout("nova_bert", "table3", "Table 3", ("model",), BY),
    Layout("nova_bert", "table4", "Table 4: NOVA, gating", ("side_info",), ("metric",)),
    Layout("nova_bert", "table5", "Table 5", ("model",), ("metric",)),
    Layout("multi_feedback", "table2", "Table 2", ("metric",), ("factors",)),
    Layout("multi_feedback", "table3", "Table 3", ("negatives",), ("metric", "factors")),
    Layout("multi_feedback", "table4", "Table 4: means of ten runs", ("metric",), ("model",)),
    Layout("ite", "fig5", "Figure 5", ("model",), ("metric", "K"), ("dataset",), ITE),
    Layout("ite", "fig10_11", "Figures 10 and 11", ("epoch",), ("model",), ("metric", "K"), ITE),
    Layout("ite", "fig12", "Figure 12", ("model",), ("metric",), ("dataset",), ITE),
)  # fmt: skip
PAPERS = {
    "bert4rec": "Sun et al. 2019 (BERT4Rec), arXiv:1904.06690",
    "nova_bert": "Liu et al. 2021 (NOVA-BERT), arXiv:2103.03578",
    "multi_feedback": "The multi-feedback paper (MF+M-MLP)",
    "ite": "The ITE and BERT-ITE paper",
}
NAMES = {
    "amazon_beauty": "Beauty", "steam": "Steam", "ml_1m": "ML-1m", "ml_20m": "ML-20m",
    "app": "APP", "taobao": "Taobao", "retailrocket": "RetailRocket", "recobell": "Recobell",
    "samples_per_s": "samples/s", "gflops": "FLOPs × 10⁹", "size_mb": "size, MB",
    "pop": "POP", "bpr_mf": "BPR-MF", "ncf": "NCF", "fpmc": "FPMC", "gru4rec": "GRU4Rec",
    "gru4rec_plus": "GRU4Rec+", "caser": "Caser", "sasrec": "SASRec", "bert4rec": "BERT4Rec",
    "bert4rec_one_mask": "BERT4Rec (1 mask)", "mfpr": "MFPR", "wmf": "WMF",
    "mf_mmlp": "MF+M-MLP", "mtmf": "MTMF", "nmtr": "NMTR", "ite": "ITE",
    "bert_ite": "BERT-ITE", "bert_ite_si": "BERT-ITE-Si", "invasive_bert_add": "Invasive, add",
    "invasive_bert_concat": "Invasive, concat", "invasive_bert_gating": "Invasive, gating",
    "nova_bert_add": "NOVA, add", "nova_bert_concat": "NOVA, concat",
    "nova_bert_gating": "NOVA, gating",
    "none": "None", "item": "Item", "behavior": "Behavior", "all": "All",
}  # fmt: skip
HEADS = {"dataset": "data", "max_len": "N", "side_info": "side information", "setting": "variant"}
COUNTED = {"samples_per_s": "examples_per_s", "gflops": "gops"}  # keys of result.json
SIMULATED = "simulated_"
MARKS = {
    "†": "simulated data or smoke scale: a test of the machinery, not of the systems",
    "*": "measured on data that are not the paper's in size",
}
OPERATIONS = "FLOPs: ours are gops of result.json, where a multiply-add is one operation, not two"


def paper_tables(results: Sequence[dict[str, Any]], name: str = "") -> list[Table]:
    """The tables of the experiment ``name``, or of every experiment that a run was started from.

    Raises RecexpError where ``name`` is no experiment whose figures the paper prints in numbers.
    """
    wanted = {paper_table(name)} if name else {experiment(r) for r in results}
    found = [layout for layout in LAYOUTS if (layout.paper, layout.table) in wanted]
    if name and not found:
        raise RecexpError(f"No paper prints numbers of {name!r}. Try e.g. bert4rec/table2_systems.")
    return [table for layout in found for table in _laid_out(layout, results)]


def measured(result: dict[str, Any], metric: str) -> float | None:
    """A run's value of a published metric: hr@10 and its kin (test set), samples_per_s, gflops or
    size_mb."""
    if metric == "size_mb":  # float32 parameters
        return result["parameters"] * 4 / 1e6 if result.get("parameters") else None
    if metric in COUNTED:
        return result.get(COUNTED[metric])
    return result["metrics"].get(f"test/{metric}")


def fields(figure: Figure) -> dict[str, str]:
    """The values of a figure that rows and columns may be made of."""
    named = dict(re.findall(r"([A-Za-z_]+)=([^,]+)", figure.setting))
    return named | {k: getattr(figure, k) for k in ("dataset", "model", "metric", "setting")}


# Ours ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ours:
    """What stands for a published figure: one value per run."""

    values: tuple[float, ...]
    mark: str

    @property
    def mean(self) -> float:
        return fmean(self.values)


def _unsimulated(result: dict[str, Any]) -> dict[str, Any]:
    """The result as if its data were real: simulated ones have a place in the layout, marked."""
    real = {"data": result["data"] | {"simulated": False}}
    return result | real | {"dataset": result["dataset"].removeprefix(SIMULATED)}


def _is_simulated(result: dict[str, Any]) -> bool:
    smoke = "scale=smoke" in result.get("overrides", [])
    return smoke or result["dataset"].startswith(SIMULATED) or bool(result["data"].get("simulated"))


def _figures_of(result: dict[str, Any], layout: Layout) -> Iterable[Figure]:
    result = _unsimulated(result)
    if layout.table != "fig10_11":
        return in_table(result, layout.paper, layout.table).values()
    if not in_table(result, layout.paper, "fig5"):  # the same systems
        return []
    model = VARIANTS.get(result["model"], result["model"])
    start = f"K={setting(result, 'model.num_factors')},"
    dataset = DATASETS.get(result["dataset"], result["dataset"])
    found = select(paper=layout.paper, table=layout.table, model=model, dataset=dataset)
    return [f for f in found if f.setting.startswith(start)]


def _value(result: dict[str, Any], figure: Figure) -> float | None:
    if "epoch" not in fields(figure):
        return measured(result, figure.metric)
    epoch = int(fields(figure)["epoch"])
    rows = {int(row["epoch"]) + 1: row for row in epochs_table(result)}
    return rows.get(epoch, {}).get(f"test/{figure.metric}")


def _groups(results: Sequence[dict[str, Any]], layout: Layout) -> list[list[list[dict[str, Any]]]]:
    """Per table the groups of runs that fill it: of each data set one protocol id's.

    A second id of a data set, and its simulated stand-in beside real runs, fill the next table.
    """
    of_dataset: dict[str, list[list[dict[str, Any]]]] = {}
    for runs in protocols(results).values():
        kept = [r for r in runs if list(_figures_of(r, layout))]
        if kept:
            name = _unsimulated(kept[0])["dataset"]
            of_dataset.setdefault(DATASETS.get(name, name), []).append(kept)
    for groups in of_dataset.values():
        groups.sort(key=lambda runs: _is_simulated(runs[0]))
    return [[g for g in row if g] for row in zip_longest(*of_dataset.values())]


def _ours(
    groups: Sequence[Sequence[dict[str, Any]]], layout: Layout
) -> tuple[dict[Figure, _Ours], list[System]]:
    """Of several systems for one figure the one chosen on validation counts, not the better one."""
    found: dict[Figure, _Ours] = {}
    used: list[System] = []
    for runs in groups:
        for system in sorted(systems(runs), key=_on_validation, reverse=True):
            new = [f for f in _figures_of(system.first, layout) if f not in found]
            for figure in new:
                values = [v for r in system.runs if (v := _value(r, figure)) is not None]
                if values:
                    found[figure] = _Ours(tuple(values), _mark(system.first, figure))
            used += [system] if any(f in found for f in new) else []
    return found, used


def _on_validation(system: System) -> float:
    value = system.mean("val/ndcg@10")
    return -1.0 if value is None else value


def _mark(result: dict[str, Any], figure: Figure) -> str:
    if _is_simulated(result):
        return "†"
    return "" if same_data(result, figure) else "*"


# Layout -------------------------------------------------------------------------------------------


def _laid_out(layout: Layout, results: Sequence[dict[str, Any]]) -> list[Table]:
    figures = select(paper=layout.paper, table=layout.table)
    if layout.models:
        figures.sort(key=lambda f: layout.models.index(f.model))
    made = []
    for groups in _groups(results, layout) or [[]]:
        ours, used = _ours(groups, layout)
        for part in dict.fromkeys(_key(f, layout.apart) for f in figures):
            mine = [f for f in figures if _key(f, layout.apart) == part]
            if len(layout.apart) == 0 or not ours or any(f in ours for f in mine):
                made.append(_table(layout, part, mine, ours, used))
    return made


def _key(figure: Figure, names: Sequence[str]) -> tuple[str, ...]:
    found = fields(figure)
    return tuple(found[n] for n in names)


def _in_order(figures: Sequence[Figure], names: Sequence[str]) -> list[tuple[str, ...]]:
    """Distinct values in the paper's order, numbers ascending; the first field is the outermost."""
    first: list[dict[str, int]] = [{} for _ in names]
    for figure in figures:
        for rank, value in zip(first, _key(figure, names), strict=True):
            rank.setdefault(value, len(rank))

    def place(key: tuple[str, ...]) -> list[float]:
        return [float(v) if v.isdigit() else r[v] for v, r in zip(key, first, strict=True)]

    return sorted({_key(f, names) for f in figures}, key=place)


def _table(
    layout: Layout,
    part: tuple[str, ...],
    figures: Sequence[Figure],
    ours: dict[Figure, _Ours],
    used: Sequence[System],
) -> Table:
    columns = _in_order(figures, layout.columns)
    at = {(_key(f, layout.rows), _key(f, layout.columns)): f for f in figures}
    body, gains = [], {}
    for row in _in_order(figures, layout.rows):
        line = [at.get((row, column)) for column in columns]
        names = [_shown(n, v) for n, v in zip(layout.rows, row, strict=True)]
        for source in ("published", "ours"):
            cells = [_cell(f, ours, source) for f in line]
            if layout.gain_of:
                cells = _marked(cells)
                gain = _gain(cells, [c[0] for c in columns].index(layout.gain_of))
                gains[(*row, source)] = gain
                cells.append(_percent(gain))
            body.append((*map(Cell, names), Cell(source), *cells))
    body += _averages(layout, figures, columns, gains)
    head = [HEADS.get(n, n) for n in layout.rows]
    head += ["from", *(_named(layout.columns, c) for c in columns)]
    head += ["improvement, %"] if layout.gain_of else []
    title = " · ".join(
        [f"{PAPERS[layout.paper]}, {layout.title}", *map(_shown, layout.apart, part)]
    )
    shown = [ours[f] for f in figures if f in ours]
    notes = _notes(figures, shown, used)
    return Table(title, "", tuple(head), tuple(body), tuple(notes))


def _shown(name: str, value: str) -> str:
    if name == "metric" and value not in NAMES:
        return value.upper()
    if name in ("K", "max_len", "factors", "negatives", "epoch"):
        words = {"max_len": "N", "negatives": "ng"}
        return value if name == "epoch" else f"{words.get(name, name)}={value}"
    return NAMES.get(value, value)


def _named(names: Sequence[str], values: Sequence[str]) -> str:
    return " ".join(map(_shown, names, values))


def _cell(figure: Figure | None, ours: dict[Figure, _Ours], source: str) -> Cell:
    if figure is None or (source == "ours" and figure not in ours):
        return Cell("–")
    if source == "published":
        return Cell(_number(figure.value, figure.metric), figure.value)
    found = ours[figure]
    text = _number(found.mean, figure.metric)
    if len(found.values) > 1:
        error = stdev(found.values) / sqrt(len(found.values))
        text += f" ± {_number(error, figure.metric)}"
    return Cell(f"{text} {found.mark}".rstrip(), found.mean)


def _number(value: float, metric: str) -> str:
    digits = {"samples_per_s": 0, "size_mb": 1}.get(metric, 4)
    return f"{value:,.{digits}f}"


def _marked(cells: Sequence[Cell]) -> list[Cell]:
    ranked = sorted({c.value for c in cells if c.value is not None}, reverse=True)
    if sum(c.value is not None for c in cells) < 2:
        return list(cells)
    marks = dict(zip(ranked, (BEST, SECOND), strict=False))
    return [Cell(c.text, c.value, marks.get(c.value, "")) for c in cells]


def _gain(cells: Sequence[Cell], at: int) -> float | None:
    """Of the column ``at`` over the best other one, in %. None unless every column has a value: the
    best of some systems is not the best of all."""
    values = [c.value for c in cells]
    if None in values:
        return None
    return 100 * (values[at] / max(v for n, v in enumerate(values) if n != at) - 1)


def _percent(gain: float | None) -> Cell:
    return Cell("–") if gain is None else Cell(f"{gain:+.2f}", gain)


def _averages(
    layout: Layout,
    figures: Sequence[Figure],
    columns: Sequence[tuple[str, ...]],
    gains: dict[tuple[str, ...], float | None],
) -> list[tuple[Cell, ...]]:
    lines = []
    for metric in layout.averaged:
        for source in ("published", "ours"):
            found = [gains[d, metric, source] for d in dict.fromkeys(f.dataset for f in figures)]
            mean = None if None in found else fmean(found)
            names = Cell("average"), Cell(_shown("metric", metric)), Cell(source)
            lines.append((*names, *[Cell("–")] * len(columns), _percent(mean)))
    return lines


def _notes(figures: Sequence[Figure], shown: Sequence[_Ours], used: Sequence[System]) -> list[str]:
    notes = [f"{mark} {says}" for mark, says in MARKS.items() if any(o.mark == mark for o in shown)]
    if counts := sorted({len(o.values) for o in shown} - {1}):
        notes.append(f"± is the standard error over {' or '.join(map(str, counts))} runs")
    if any(f.metric == "gflops" for f in figures):
        notes.append(OPERATIONS)
    ids = dict.fromkeys("{dataset}, {protocol} (id {protocol_id})".format(**s.first) for s in used)
    return notes + [f"ours: {'; '.join(ids)}"] * bool(ids) + departures(used)
