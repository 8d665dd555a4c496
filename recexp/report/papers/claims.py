"""What the papers claim about which system is better (``claims.csv``), in a form to test runs by.

A row of the file is one claim: left_model left_settings, relation, right_model right_settings, in
``metric``, on ``datasets`` (separated by blanks; none: on any), and its place in the paper.

relation: ``>`` the left is better; ``≈`` the two differ by no more than 5 %; ``sooner`` the left
needs fewer epochs to come near its best. gain: by how many % the left is better in the paper, where
it says so. model: a published name, or several with ``|`` between them, of which the best counts.
settings: ``key=value`` pairs separated by blanks, ``|`` between values of which any will do; a list
of weights counts by its first; ``side_info`` is the kind of NOVA's side information, as in
``published.csv``. Claims that the papers' tables show but their text does not make are marked
"read off" in ``place``.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from recexp.errors import RecexpError
from recexp.report.collect import Result, as_number, read_epochs, setting
from recexp.report.papers.published import (
    DATASETS,
    FOLDER,
    check_columns,
    published_model,
    side_information,
)

COLUMNS = [
    "paper",
    "table",
    "left_model",
    "left_settings",
    "relation",
    "right_model",
    "right_settings",
    "metric",
    "datasets",
    "gain",
    "place",
]
RELATIONS = (">", "≈", "sooner")
NEAR = 0.95  # the share of its best value at which a curve counts as near it
# Of a system with more settings than these, only what its claims vary is shown.
MAX_SHOWN = 3
SHOWN_OF_MANY = ("model.n_layers", "model.n_heads")


@dataclass(frozen=True)
class Pick:
    """A system by its published model name and settings (dotted keys).

    Several names with ``|`` between them: any of these models. A list of weights counts by its
    first; a tuple of values: any of these.
    """

    model: str
    settings: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        models = self.model.split("|")
        if len(models) > 1:
            return f"the best of {', '.join(models)}"
        abridged = len(self.settings) > MAX_SHOWN
        keys = SHOWN_OF_MANY if abridged else self.settings
        pairs = [f"{key.split('.')[-1]}={self.settings[key]}" for key in keys]
        if abridged:
            return f"{self.model} in full, {' '.join(pairs)}"
        return " ".join([self.model, *pairs])

    def meets(self, result: Result) -> bool:
        """Whether the run is one of this system."""
        names = {result["model"], published_model(result)}
        if names.isdisjoint(self.model.split("|")) or setting(result, "objective.shuffle_targets"):
            return False
        return all(_has_setting(result, key, wanted) for key, wanted in self.settings.items())


@dataclass(frozen=True)
class Claim:
    """left beats right in ``metric``; where ``alike``, they differ by no more than 5 % of it; where
    ``sooner``, left needs fewer epochs to come near its best.

    source: (paper, table). datasets: whose data the claim is about; empty means any. gain: by how
    many % of the right the left is better in the paper. place: where the paper says it.
    """

    source: tuple[str, str]
    left: Pick
    right: Pick
    metric: str = "hr@10"
    datasets: tuple[str, ...] = ()
    alike: bool = False
    sooner: bool = False
    gain: float | None = None
    place: str = ""

    def __str__(self) -> str:
        relation = ">"
        if self.sooner:
            relation = "sooner than"
        if self.alike:
            relation = "≈"
        return f"{self.left} {relation} {self.right}"

    def concerns(self, dataset: str) -> bool:
        """Whether the claim is about this data set of ours."""
        return not self.datasets or DATASETS.get(dataset, dataset) in self.datasets


def claims(paper: str, table: str) -> list[Claim]:
    """Those that the experiment of this table can test, in the paper's order."""
    return [claim for claim in all_claims() if claim.source == (paper, table)]


@cache
def all_claims(path: Path = FOLDER / "claims.csv") -> tuple[Claim, ...]:
    """All rows of the file. Raises RecexpError for a row that is no claim or stands there twice."""
    found: list[Claim] = []
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        check_columns(path, next(rows, []), COLUMNS)
        for row in rows:
            where = f"{path.name}, line {rows.line_num}"
            claim = _parse_claim(row, where)
            if any(_same(claim, other) for other in found):
                raise RecexpError(f"{where}: {claim} stands there twice.")
            found.append(claim)
    return tuple(found)


def epochs_to_near_best(result: Result, metric: str, near: float = NEAR) -> int | None:
    """After how many epochs a run had ``near`` of its best value; None where it kept no such curve.

    On the test set where the run took it in every epoch, else in validation.
    """
    rows = read_epochs(result)
    for split in ("test", "val"):
        name = f"{split}/{metric}"
        measured = [row for row in rows if name in row]
        if len(measured) > 1:
            best = max(row[name] for row in measured)
            first = next(row for row in measured if row[name] >= near * best)
            return int(first["epoch"]) + 1
    return None


def _has_setting(result: Result, key: str, wanted: Any) -> bool:
    found: Any
    if key == "side_info":
        found = side_information(result)
    else:
        found = setting(result, key)
        number = as_number(found)
        found = found if number is None else number
    return found in (wanted if isinstance(wanted, tuple) else (wanted,))


def _parse_claim(row: list[str], where: str) -> Claim:
    if len(row) != len(COLUMNS):
        raise RecexpError(
            f"{where}: {len(row)} cells where {len(COLUMNS)} are needed ({', '.join(COLUMNS)})."
        )
    cells = dict(zip(COLUMNS, row, strict=True))
    relation = cells["relation"]
    if relation not in RELATIONS:
        known = ", ".join(RELATIONS)
        raise RecexpError(f"{where}: the relation {relation!r} is not one of {known}.")
    try:
        gain = float(cells["gain"]) if cells["gain"] else None
    except ValueError:
        raise RecexpError(f"{where}: the gain {cells['gain']!r} is no number.") from None
    return Claim(
        source=(cells["paper"], cells["table"]),
        left=Pick(cells["left_model"], _parse_settings(cells["left_settings"], where)),
        right=Pick(cells["right_model"], _parse_settings(cells["right_settings"], where)),
        metric=cells["metric"],
        datasets=tuple(cells["datasets"].split()),
        alike=relation == "≈",
        sooner=relation == "sooner",
        gain=gain,
        place=cells["place"],
    )


def _parse_settings(text: str, where: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in text.split():
        key, equals, value = pair.partition("=")
        if not equals:
            raise RecexpError(f"{where}: {pair!r} is no setting; write key=value.")
        values = tuple(yaml.safe_load(v) for v in value.split("|"))
        found[key] = values if len(values) > 1 else values[0]
    return found


def _same(a: Claim, b: Claim) -> bool:
    """Whether both say the same of the same data."""
    if (a.source, str(a), a.metric) != (b.source, str(b), b.metric):
        return False
    return not a.datasets or not b.datasets or bool(set(a.datasets) & set(b.datasets))
