"""The figures that the papers print (``published.csv``), and the names under which they do.

P1 to P4 in the column ``protocol`` are the protocols of the ITE, multi-feedback, BERT4Rec and NOVA
papers. The ITE paper prints curves only: its figures were read off the vector graphics and are good
to about 1e-4. Its fig5 holds each system's best test value over 200 epochs, fig10_11 the curves
over these epochs, fig12 runs of their own.

The paper "later" stands for what others published since, under the protocol of Klenitskiy and
Vasilev 2023 (P6) or, of DIF-SR, that of NOVA (P4). Its tables are sources of
``docs/references.md``; the figures stand in their repositories. A setting says the sizes of the
system, where it has them, and the number of items.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from recexp.errors import RecexpError
from recexp.report.collect import experiment_name, setting

FOLDER = Path(__file__).parent
COLUMNS = ["paper", "table", "dataset", "protocol", "model", "setting", "metric", "value"]
PAPERS = ("ite", "multi_feedback", "bert4rec", "nova_bert")
PROTOCOLS = {
    "P1": "p1_uniform999",
    "P2": "p2_uniform99",
    "P3": "p3_popular100",
    "P4": "full",
    "P6": "full_unseen",
}
# Our protocols that are another reading of a paper's protocol.
READINGS = {"p2_uniform99_later": "p2_uniform99"}
# Other extracts of a paper's data source, by our name for the data set.
DATASETS = {"taobao_31882": "taobao", "retailrocket_2174": "retailrocket"}
# Our other configurations of a published model.
VARIANTS = {
    "ite_authors": "ite",
    "bert_ite_authors": "bert_ite",
    "bert_ite_si_authors": "bert_ite_si",
    "bert4rec_vae": "bert4rec",
}
# Folders and files of conf/experiment whose names differ from those in ``published.csv``.
PAPER_NAMES = {"nova": "nova_bert", "multifeedback": "multi_feedback"}
TABLE_NAMES = {"fig10": "fig10_11", "fig11": "fig10_11"}
# Side information that the NOVA paper calls behavior-related.
BEHAVIOR_SIDES = frozenset({"value", "behavior", "time"})


@dataclass(frozen=True)
class Figure:
    """One published number. setting: e.g. ``K=64``, ``w/o PE``. metric: ours, e.g. ``hr@10``."""

    paper: str
    table: str
    dataset: str
    protocol: str
    model: str
    setting: str
    metric: str
    value: float

    @property
    def source(self) -> str:
        in_brackets = f" ({self.setting})" if self.setting else ""
        return f"{self.paper} {self.table}{in_brackets}"

    @property
    def names_data(self) -> bool:
        """Whether the paper names the figure's data set; else no run can be held against it."""
        return bool(self.dataset)


@cache
def figures(path: Path = FOLDER / "published.csv") -> tuple[Figure, ...]:
    """All published figures.

    Raises RecexpError for an incomplete row, and where a figure has two values.
    """
    found: dict[tuple[str, ...], Figure] = {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        check_columns(path, next(rows, []), COLUMNS)
        for row in rows:
            line = f"{path.name}, line {rows.line_num}"
            try:
                paper, table, dataset, protocol, model, setting, metric, value = row
                figure = Figure(
                    paper, table, dataset, protocol, model, setting, metric.lower(), float(value)
                )
            except ValueError:
                columns = ", ".join(COLUMNS)
                raise RecexpError(f"{line}: {row} is not a figure ({columns}).") from None
            key = tuple(row[:-1])
            if key in found:
                raise RecexpError(f"{line}: {', '.join(key)} stands there twice.")
            found[key] = figure
    return tuple(found.values())


def check_columns(path: Path, head: list[str], columns: list[str]) -> None:
    """Raises RecexpError where a csv file does not start with these columns."""
    if head != columns:
        raise RecexpError(
            f"{path.name}, line 1: expected the columns {','.join(columns)}, "
            f"found {','.join(head)}."
        )


def published(
    paper: str, table: str, dataset: str, model: str, setting: str, metric: str
) -> float | None:
    """The figure that a paper prints, or None."""
    found = select(
        paper=paper,
        table=table,
        dataset=dataset,
        model=model,
        setting=setting,
        metric=metric.lower(),
    )
    return found[0].value if found else None


def select(**fields: str) -> list[Figure]:
    """All figures with these fields, in the order of the file."""
    return [f for f in figures() if all(getattr(f, k) == v for k, v in fields.items())]


# Names --------------------------------------------------------------------------------------------


def published_dataset(result: Mapping[str, Any]) -> str:
    """The run's data set as ``published.csv`` names its source."""
    name = str(result["dataset"])
    return DATASETS.get(name, name)


def published_model(result: Mapping[str, Any]) -> str:
    """The run's model as ``published.csv`` names it."""
    name = str(result["model"])
    return VARIANTS.get(name, name)


def standard_protocol(protocol: str) -> str:
    """The paper's protocol that this one is a reading of; other names as they are."""
    return READINGS.get(protocol, protocol)


def paper_protocol(paper: str) -> str:
    """Our name for the protocol under which the paper's figures stand."""
    return PROTOCOLS[select(paper=paper)[0].protocol]


def paper_of(name: str) -> str:
    """``nova/table3_fusion`` -> nova_bert: the paper as ``published.csv`` names it."""
    folder = name.split("/")[0]
    return PAPER_NAMES.get(folder, folder)


def table_of(name: str) -> str:
    """``fig10_epochs`` -> fig10_11: the table as ``published.csv`` names it."""
    table = name.split("_")[0]
    return TABLE_NAMES.get(table, table)


def paper_table(name: str) -> tuple[str, str]:
    """(paper, table) of an experiment; empty strings where it is of none of the papers.

    ``bert4rec/table5_ablation`` -> (bert4rec, table5), ``ite/fig10_epochs`` -> (ite, fig10_11).
    """
    paper = paper_of(name)
    if paper not in PAPERS:
        return "", ""
    return paper, table_of(name.partition("/")[2])


def experiment(result: Mapping[str, Any]) -> tuple[str, str]:
    """(paper, table) of the experiment that a run was started from, as ``paper_table``."""
    return paper_table(experiment_name(result))


def side_information(result: Mapping[str, Any]) -> str:
    """The kind of the run's side information as the NOVA paper groups it: all, behavior, item or
    none."""
    side = setting(result, "model.side")
    names = {side} if isinstance(side, str) else set(side or [])
    has_behavior = bool(names & BEHAVIOR_SIDES)
    has_item = bool(names - BEHAVIOR_SIDES)
    if names == {"all"} or (has_behavior and has_item):
        return "all"
    if has_behavior:
        return "behavior"
    return "item" if has_item else "none"
