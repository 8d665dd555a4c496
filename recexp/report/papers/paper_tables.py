"""Tables in the rows and columns in which the papers print them, the published figure above ours.

A table is a ``Layout``: which fields of a figure of ``published.csv`` make its rows, which its
columns. Fields are dataset, model, metric, setting, and what a setting names (``K=64,epoch=20``).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev

from recexp.errors import RecexpError
from recexp.report.collect import Result, read_epochs, setting
from recexp.report.formats import BEST, DASH, SECOND, Cell, Table
from recexp.report.papers.deviations import same_data
from recexp.report.papers.matching import in_table
from recexp.report.papers.published import (
    FOLDER,
    Figure,
    experiment,
    paper_table,
    published_dataset,
    published_model,
    select,
)
from recexp.report.tables import System, by_protocol, departures, systems

Key = tuple[str, ...]  # values of a layout's fields


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


ITE_MODELS = ("mtmf", "nmtr", "bert4rec", "ite", "bert_ite", "bert_ite_si")
BY = ("dataset", "metric")
AVERAGED = ("hr@10", "ndcg@10", "mrr")
LAYOUTS = (
    Layout("bert4rec", "table2", "Table 2", BY, ("model",), gain_of="bert4rec", averaged=AVERAGED),
    Layout("bert4rec", "table3", "Table 3", ("model",), BY),
    Layout("bert4rec", "table4", "Table 4", ("metric",), ("max_len",), ("dataset",)),
    Layout("bert4rec", "table5", "Table 5: NDCG@10", ("setting",), ("dataset",)),
    Layout("nova_bert", "table3", "Table 3", ("model",), BY),
    Layout("nova_bert", "table4", "Table 4: NOVA, gating", ("side_info",), ("metric",)),
    Layout("nova_bert", "table5", "Table 5", ("model",), ("metric",)),
    Layout("multi_feedback", "table2", "Table 2", ("metric",), ("factors",)),
    Layout("multi_feedback", "table3", "Table 3", ("negatives",), ("metric", "factors")),
    Layout("multi_feedback", "table4", "Table 4: means of ten runs", ("metric",), ("model",)),
    Layout("ite", "fig5", "Figure 5", ("model",), ("metric", "K"), ("dataset",), ITE_MODELS),
    Layout(
        "ite", "fig10_11", "Figures 10 and 11", ("epoch",), ("model",), ("metric", "K"), ITE_MODELS
    ),
    Layout("ite", "fig12", "Figure 12", ("model",), ("metric",), ("dataset",), ITE_MODELS),
)
PAPER_TITLES = {
    "bert4rec": "Sun et al. 2019 (BERT4Rec), arXiv:1904.06690",
    "nova_bert": "Liu et al. 2021 (NOVA-BERT), arXiv:2103.03578",
    "multi_feedback": "The multi-feedback paper (MF+M-MLP)",
    "ite": "The ITE and BERT-ITE paper",
}
HEADS = {"dataset": "data", "max_len": "N", "side_info": "side information", "setting": "variant"}
# Fields whose values are numbers, and the letters before these.
NUMBERED = {"K": "K=", "max_len": "N=", "factors": "factors=", "negatives": "ng=", "epoch": ""}
RESULT_KEYS = {"samples_per_s": "examples_per_s", "gflops": "gops"}  # where result.json has them
DECIMALS = {"samples_per_s": 0, "size_mb": 1}
BYTES_PER_PARAMETER = 4  # float32
SIMULATED = "simulated_"
MARKS = {
    "†": "simulated data or smoke scale: a test of the machinery, not of the systems",
    "*": "measured on data that are not the paper's in size",
}
OPERATIONS = "FLOPs: ours are gops of result.json, where a multiply-add is one operation, not two"


def paper_tables(results: Sequence[Result], name: str = "") -> list[Table]:
    """The tables of the experiment ``name``, or of every experiment that a run was started from.

    Raises RecexpError where ``name`` is no experiment whose figures the paper prints in numbers.
    """
    wanted = {paper_table(name)} if name else {experiment(r) for r in results}
    layouts = [layout for layout in LAYOUTS if (layout.paper, layout.table) in wanted]
    if name and not layouts:
        raise RecexpError(f"No paper prints numbers of {name!r}. Try e.g. bert4rec/table2_systems.")
    return [table for layout in layouts for table in _lay_out(layout, results)]


def measured(result: Result, metric: str) -> float | None:
    """A run's value of a published metric.

    metric: a test metric such as hr@10, or samples_per_s, gflops or size_mb.
    """
    value: float | None
    if metric == "size_mb":
        n_parameters = result.get("parameters")
        return n_parameters * BYTES_PER_PARAMETER / 1e6 if n_parameters else None
    if metric in RESULT_KEYS:
        value = result.get(RESULT_KEYS[metric])
    else:
        value = result["metrics"].get(f"test/{metric}")
    return value


def fields(figure: Figure) -> dict[str, str]:
    """The values of a figure that rows and columns may be made of."""
    named = dict(re.findall(r"([A-Za-z_]+)=([^,]+)", figure.setting))
    return named | {
        "dataset": figure.dataset,
        "model": figure.model,
        "metric": figure.metric,
        "setting": figure.setting,
    }


@cache
def printed_names(path: Path = FOLDER / "names.csv") -> dict[str, str]:
    """Names as the papers' tables print them, by the names of ``published.csv``."""
    with path.open(newline="", encoding="utf-8") as file:
        return {row["name"]: row["printed"] for row in csv.DictReader(file)}


# Our values ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Measured:
    """What stands for a published figure: one value per run."""

    values: tuple[float, ...]
    mark: str

    @property
    def mean(self) -> float:
        return fmean(self.values)


def _as_real(result: Result) -> Result:
    """The result as if its data were real: simulated ones have a place in the layout, marked."""
    data = result["data"] | {"simulated": False}
    return result | {"data": data, "dataset": result["dataset"].removeprefix(SIMULATED)}


def _is_test_of_machinery(result: Result) -> bool:
    if "scale=smoke" in result.get("overrides", []):
        return True
    return result["dataset"].startswith(SIMULATED) or bool(result["data"].get("simulated"))


def _figures_of(result: Result, layout: Layout) -> list[Figure]:
    result = _as_real(result)
    if layout.table != "fig10_11":
        return list(in_table(result, layout.paper, layout.table).values())
    if not in_table(result, layout.paper, "fig5"):  # of the same systems
        return []
    start = f"K={setting(result, 'model.n_factors')},"
    found = select(
        paper=layout.paper,
        table=layout.table,
        model=published_model(result),
        dataset=published_dataset(result),
    )
    return [figure for figure in found if figure.setting.startswith(start)]


def _value(result: Result, figure: Figure) -> float | None:
    epoch = fields(figure).get("epoch")
    if epoch is None:
        return measured(result, figure.metric)
    rows = {int(row["epoch"]) + 1: row for row in read_epochs(result)}
    return rows.get(int(epoch), {}).get(f"test/{figure.metric}")


def _groups(results: Sequence[Result], layout: Layout) -> list[list[list[Result]]]:
    """Per table the groups of runs that fill it: of each data set one protocol id's.

    A second id of a data set, and its simulated stand-in beside real runs, fill the next table.
    """
    by_dataset: dict[str, list[list[Result]]] = {}
    for runs in by_protocol(results).values():
        kept = [run for run in runs if _figures_of(run, layout)]
        if kept:
            dataset = published_dataset(_as_real(kept[0]))
            by_dataset.setdefault(dataset, []).append(kept)
    for groups in by_dataset.values():
        groups.sort(key=lambda runs: _is_test_of_machinery(runs[0]))
    tables = zip_longest(*by_dataset.values())
    return [[group for group in groups if group] for groups in tables]


def _measure(
    groups: Sequence[Sequence[Result]], layout: Layout
) -> tuple[dict[Figure, _Measured], list[System]]:
    """Our values per figure, and the systems they are of.

    Of several systems for one figure the one chosen on validation counts, not the better one.
    """
    found: dict[Figure, _Measured] = {}
    used: list[System] = []
    for runs in groups:
        for system in sorted(systems(runs), key=_on_validation, reverse=True):
            new = [f for f in _figures_of(system.first, layout) if f not in found]
            for figure in new:
                values = [_value(run, figure) for run in system.runs]
                known = tuple(value for value in values if value is not None)
                if known:
                    found[figure] = _Measured(known, _mark(system.first, figure))
            if any(figure in found for figure in new):
                used.append(system)
    return found, used


def _on_validation(system: System) -> float:
    value = system.mean("val/ndcg@10")
    return -1.0 if value is None else value


def _mark(result: Result, figure: Figure) -> str:
    if _is_test_of_machinery(result):
        return "†"
    return "" if same_data(result, figure) else "*"


# Layout -------------------------------------------------------------------------------------------


def _lay_out(layout: Layout, results: Sequence[Result]) -> list[Table]:
    figures = select(paper=layout.paper, table=layout.table)
    if layout.models:
        figures.sort(key=lambda figure: layout.models.index(figure.model))
    made = []
    for groups in _groups(results, layout) or [[]]:
        ours, used = _measure(groups, layout)
        for part in dict.fromkeys(_key(figure, layout.apart) for figure in figures):
            of_part = [figure for figure in figures if _key(figure, layout.apart) == part]
            if not layout.apart or not ours or any(figure in ours for figure in of_part):
                made.append(_table(layout, part, of_part, ours, used))
    return made


def _key(figure: Figure, names: Sequence[str]) -> Key:
    found = fields(figure)
    return tuple(found[name] for name in names)


def _in_order(figures: Sequence[Figure], names: Sequence[str]) -> list[Key]:
    """Distinct values in the paper's order, numbers ascending; the first field is the outermost."""
    ranks: list[dict[str, int]] = [{} for _ in names]  # of values, by first appearance
    for figure in figures:
        for rank, value in zip(ranks, _key(figure, names), strict=True):
            rank.setdefault(value, len(rank))

    def place(key: Key) -> list[float]:
        pairs = zip(key, ranks, strict=True)
        return [float(value) if value.isdigit() else rank[value] for value, rank in pairs]

    return sorted({_key(figure, names) for figure in figures}, key=place)


def _table(
    layout: Layout,
    part: Key,
    figures: Sequence[Figure],
    ours: Mapping[Figure, _Measured],
    used: Sequence[System],
) -> Table:
    columns = _in_order(figures, layout.columns)
    body, gains = _body(layout, figures, columns, ours)
    body += _averages(layout, figures, columns, gains)
    head = [HEADS.get(name, name) for name in layout.rows]
    head.append("from")
    head += [" ".join(map(_printed, layout.columns, column)) for column in columns]
    if layout.gain_of:
        head.append("improvement, %")
    parts = map(_printed, layout.apart, part)
    title = " · ".join([f"{PAPER_TITLES[layout.paper]}, {layout.title}", *parts])
    shown = [ours[figure] for figure in figures if figure in ours]
    notes = _notes(figures, shown, used)
    return Table(title, "", tuple(head), tuple(body), tuple(notes))


def _body(
    layout: Layout,
    figures: Sequence[Figure],
    columns: Sequence[Key],
    ours: Mapping[Figure, _Measured],
) -> tuple[list[tuple[Cell, ...]], dict[Key, float | None]]:
    """Two lines per row, published and ours, and the gains in them by (*row, source)."""
    at = {(_key(f, layout.rows), _key(f, layout.columns)): f for f in figures}
    lines: list[tuple[Cell, ...]] = []
    gains: dict[Key, float | None] = {}
    for row in _in_order(figures, layout.rows):
        in_row = [at.get((row, column)) for column in columns]
        names = [Cell(_printed(name, value)) for name, value in zip(layout.rows, row, strict=True)]
        for source in ("published", "ours"):
            cells = [_cell(figure, ours, source) for figure in in_row]
            if layout.gain_of:
                cells = _with_marks(cells)
                own_column = [column[0] for column in columns].index(layout.gain_of)
                gain = _gain(cells, own_column)
                gains[(*row, source)] = gain
                cells.append(_percent(gain))
            lines.append((*names, Cell(source), *cells))
    return lines, gains


def _printed(name: str, value: str) -> str:
    """The value of a field as the paper prints it."""
    if name in NUMBERED:
        return f"{NUMBERED[name]}{value}"
    printed = printed_names().get(value)
    if printed is None:
        return value.upper() if name == "metric" else value
    return printed


def _cell(figure: Figure | None, ours: Mapping[Figure, _Measured], source: str) -> Cell:
    if figure is None or (source == "ours" and figure not in ours):
        return Cell(DASH)
    if source == "published":
        return Cell(_number(figure.value, figure.metric), figure.value)
    found = ours[figure]
    text = _number(found.mean, figure.metric)
    if len(found.values) > 1:
        error = stdev(found.values) / sqrt(len(found.values))
        text += f" ± {_number(error, figure.metric)}"
    return Cell(f"{text} {found.mark}".rstrip(), found.mean)


def _number(value: float, metric: str) -> str:
    return f"{value:,.{DECIMALS.get(metric, 4)}f}"


def _with_marks(cells: Sequence[Cell]) -> list[Cell]:
    """The cells with the best and the second best marked, where two or more have values."""
    values = [cell.value for cell in cells if cell.value is not None]
    if len(values) < 2:
        return list(cells)
    ranked = sorted(set(values), reverse=True)
    marks: dict[float | None, str] = dict(zip(ranked, (BEST, SECOND), strict=False))
    return [Cell(cell.text, cell.value, marks.get(cell.value, "")) for cell in cells]


def _gain(cells: Sequence[Cell], own_column: int) -> float | None:
    """Of one column over the best other one, in %.

    None unless every column has a value: the best of some systems is not the best of all.
    """
    values = [cell.value for cell in cells if cell.value is not None]
    if len(values) < len(cells):
        return None
    own = values.pop(own_column)
    return 100 * (own / max(values) - 1)


def _percent(gain: float | None) -> Cell:
    return Cell(DASH) if gain is None else Cell(f"{gain:+.2f}", gain)


def _averages(
    layout: Layout,
    figures: Sequence[Figure],
    columns: Sequence[Key],
    gains: Mapping[Key, float | None],
) -> list[tuple[Cell, ...]]:
    datasets = list(dict.fromkeys(figure.dataset for figure in figures))
    lines = []
    for metric in layout.averaged:
        for source in ("published", "ours"):
            found = [gains[dataset, metric, source] for dataset in datasets]
            known = [gain for gain in found if gain is not None]
            mean = fmean(known) if len(known) == len(found) else None
            names = (Cell("average"), Cell(_printed("metric", metric)), Cell(source))
            blanks = [Cell(DASH)] * len(columns)
            lines.append((*names, *blanks, _percent(mean)))
    return lines


def _notes(
    figures: Sequence[Figure], shown: Sequence[_Measured], used: Sequence[System]
) -> list[str]:
    notes = []
    for mark, meaning in MARKS.items():
        if any(found.mark == mark for found in shown):
            notes.append(f"{mark} {meaning}")
    counts = sorted({len(found.values) for found in shown} - {1})
    if counts:
        notes.append(f"± is the standard error over {_alternatives(counts)} runs")
    if any(figure.metric == "gflops" for figure in figures):
        notes.append(OPERATIONS)
    ids = dict.fromkeys("{dataset}, {protocol} (id {protocol_id})".format(**s.first) for s in used)
    if ids:
        notes.append(f"ours: {'; '.join(ids)}")
    return notes + departures(used)


def _alternatives(values: Iterable[int]) -> str:
    return " or ".join(map(str, values))
