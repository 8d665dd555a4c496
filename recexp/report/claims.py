"""What the papers claim about which system is better (``claims.csv``), in a form that runs can be
held against.

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
from recexp.report.collect import epochs_table, number, setting
from recexp.report.published import DATASETS, VARIANTS, _kinds

COLUMNS = [
    "paper", "table", "left_model", "left_settings", "relation", "right_model", "right_settings",
    "metric", "datasets", "gain", "place",
]  # fmt: skip
RELATIONS = (">", "≈", "sooner")
NEAR = 0.95  # of its best value: where a system's curve counts as having come near it


@dataclass(frozen=True)
class Pick:
    """A system by its published model name and settings (dotted keys; a list of weights counts by
    its first; a tuple: any of these). Several names with | between them: any of these models."""

    model: str
    settings: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        models = self.model.split("|")
        if len(models) > 1:
            return f"the best of {', '.join(models)}"
        shown = self.settings
        if len(shown) > 3:  # a system in full: only what its claims vary
            shown = {k: shown[k] for k in ("model.num_layers", "model.num_heads")}
        pairs = [f"{k.split('.')[-1]}={v}" for k, v in shown.items()]
        if len(self.settings) > 3:
            return f"{self.model} in full, {' '.join(pairs)}"
        return " ".join([self.model, *pairs])

    def meets(self, result: dict[str, Any]) -> bool:
        names = {result["model"], VARIANTS.get(result["model"])}
        if names.isdisjoint(self.model.split("|")) or setting(result, "objective.shuffle_targets"):
            return False
        return all(self._has(result, name, wanted) for name, wanted in self.settings.items())

    @staticmethod
    def _has(result: dict[str, Any], name: str, wanted: Any) -> bool:
        if name == "side_info":
            found: Any = _kinds(setting(result, "model.side"))
        else:
            found = setting(result, name)
            found = found if number(found) is None else number(found)
        return found in (wanted if isinstance(wanted, tuple) else (wanted,))


@dataclass(frozen=True)
class Claim:
    """left beats right in ``metric``; where ``alike``, neither matters more than 5 % of it; where
    ``sooner``, left needs fewer epochs to come near its best. source: (paper, table).

    datasets: whose data the claim is about; empty means any. gain: by how many % of the right the
    left is better in the paper. place: where the paper says it.
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
        relation = "≈" if self.alike else "sooner than" if self.sooner else ">"
        return f"{self.left} {relation} {self.right}"

    def concerns(self, dataset: str) -> bool:
        return not self.datasets or DATASETS.get(dataset, dataset) in self.datasets


def claims(paper: str, table: str) -> list[Claim]:
    """Those that the experiment of this table can test, in the paper's order."""
    return [c for c in every_claim() if c.source == (paper, table)]


@cache
def every_claim(path: Path = Path(__file__).parent / "papers" / "claims.csv") -> tuple[Claim, ...]:
    """All rows of the file. Raises RecexpError for a row that is no claim or stands there twice."""
    found: list[Claim] = []
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        if (head := next(rows, [])) != COLUMNS:
            wanted = ",".join(COLUMNS)
            raise RecexpError(
                f"{path.name}, line 1: expected the columns {wanted}, found {','.join(head)}."
            )
        for row in rows:
            claim = _claim(row, f"{path.name}, line {rows.line_num}")
            if any(_same(claim, other) for other in found):
                raise RecexpError(f"{path.name}, line {rows.line_num}: {claim} stands there twice.")
            found.append(claim)
    return tuple(found)


def _claim(row: list[str], where: str) -> Claim:
    if len(row) != len(COLUMNS):
        raise RecexpError(
            f"{where}: {len(row)} cells where {len(COLUMNS)} are needed ({', '.join(COLUMNS)})."
        )
    cells = dict(zip(COLUMNS, row, strict=True))
    if cells["relation"] not in RELATIONS:
        raise RecexpError(
            f"{where}: the relation {cells['relation']!r} is not one of {', '.join(RELATIONS)}."
        )
    try:
        gain = float(cells["gain"]) if cells["gain"] else None
    except ValueError:
        raise RecexpError(f"{where}: the gain {cells['gain']!r} is no number.") from None
    return Claim(
        (cells["paper"], cells["table"]),
        Pick(cells["left_model"], _settings(cells["left_settings"], where)),
        Pick(cells["right_model"], _settings(cells["right_settings"], where)),
        cells["metric"],
        tuple(cells["datasets"].split()),
        alike=cells["relation"] == "≈",
        sooner=cells["relation"] == "sooner",
        gain=gain,
        place=cells["place"],
    )


def _settings(text: str, where: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in text.split():
        name, equals, value = pair.partition("=")
        if not equals:
            raise RecexpError(f"{where}: {pair!r} is no setting; write key=value.")
        values = tuple(yaml.safe_load(v) for v in value.split("|"))
        found[name] = values if len(values) > 1 else values[0]
    return found


def _same(a: Claim, b: Claim) -> bool:
    """Whether both say the same of the same data."""
    shared = not a.datasets or not b.datasets or set(a.datasets) & set(b.datasets)
    return bool(shared) and (a.source, str(a), a.metric) == (b.source, str(b), b.metric)


def epochs_to(result: dict[str, Any], metric: str, near: float = NEAR) -> int | None:
    """After how many epochs a run had ``near`` of its best value, None where it kept no such curve.

    On the test set where the run took it in every epoch, else in validation.
    """
    rows = epochs_table(result)
    for split in ("test", "val"):
        values = [
            (int(r["epoch"]) + 1, r[f"{split}/{metric}"]) for r in rows if f"{split}/{metric}" in r
        ]
        if len(values) > 1:
            best = max(v for _, v in values)
            return next(epoch for epoch, v in values if v >= near * best)
    return None
