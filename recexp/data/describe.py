"""``python -m recexp.data.describe dataset=NAME ...`` or ``... FOLDER``: what prepared data consist of.

Prints users, items, density, lengths, kinds of behaviour, side information, whom the protocol tests
and whom it leaves out, and beside them what the papers print of their data sets
(``report/papers/datasets.csv``).
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import open_dict
from omegaconf.errors import OmegaConfBaseException

from recexp.config import CONF
from recexp.config.check import build, check_config, register_resolvers
from recexp.config.presets import apply_preset
from recexp.data.cache import prepare
from recexp.data.store import Store
from recexp.errors import RecexpError
from recexp.report.formats import Cell, Table, as_csv, as_latex, as_markdown, as_terminal
from recexp.report.published import DATASETS

WRITERS: dict[str, Callable[[Sequence[Table]], str]] = {
    "markdown": lambda tables: "\n\n".join(map(as_markdown, tables)),
    "terminal": lambda tables: "\n\n".join(map(as_terminal, tables)),
    "latex": lambda tables: "\n\n".join(map(as_latex, tables)),
    "csv": as_csv,
}
NEEDED = ("left_out", "simulated", "events", "audit")  # entries of meta.json that came later
SIMULATED = "SIMULATED data: they say nothing about the data set whose form they have."


@dataclass(frozen=True)
class Printed:
    """A figure of a paper's data set table. printed: as it stands there, such as 4.79% or 1.0m."""

    paper: str
    dataset: str
    quantity: str
    printed: str
    note: str

    def agrees(self, value: float) -> bool:
        """Does the value round to what is printed?"""
        number, unit = self._number()
        decimals = len(number.partition(".")[2])
        return round(value / unit, decimals) == float(number)

    def shown(self, value: float) -> str:
        """The value in the same unit, with one decimal more where it is not a whole number."""
        number, unit = self._number()
        if unit == 1 and "." not in number and float(value).is_integer():
            return f"{value:,.0f}"
        if self.printed.endswith("m"):
            return f"{value:,.0f}"
        decimals = len(number.partition(".")[2]) + 1
        return f"{value / unit:.{decimals}f}" + ("%" if self.printed.endswith("%") else "")

    def _number(self) -> tuple[str, float]:
        if not (match := re.fullmatch(r"(\d+(?:\.\d+)?)(%|m)?", self.printed)):
            raise RecexpError(
                f"datasets.csv: {self.printed!r} is no number, percentage or count of millions."
            )
        return match[1], {"%": 0.01, "m": 1e6, None: 1.0}[match[2]]


def printed(
    dataset: str, path: Path = Path(__file__).parents[1] / "report" / "papers" / "datasets.csv"
) -> list[Printed]:
    """What papers print of the data set, in the order of the file."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [Printed(**row) for row in csv.DictReader(file)]
    return [row for row in rows if row.dataset == DATASETS.get(dataset, dataset)]


def facts(store: Store) -> dict[str, float]:
    """Sizes, shares and lengths by the name that ``report/papers/datasets.csv`` has for them. Lengths are
    events per user; density is the share of the pairs of a user and an item that occur."""
    meta, pairs, schema = store.meta, store.all_pairs, store.schema
    length = np.bincount(pairs.user.numpy(), weights=pairs.count.numpy(), minlength=schema.n_users)
    cells = schema.n_users * schema.n_items
    trained = int((store.train.ptr[1:] > store.train.ptr[:-1]).sum())
    explicit = sum(1 << i for i, is_explicit in enumerate(schema.explicit) if is_explicit)
    labels = [f for f in schema.item_features.values() if f.kind != "numeric"]
    return {
        "users": schema.n_users,
        "items": schema.n_items,
        "events": sum(meta["events"].values()),
        "pairs": len(pairs),
        "explicit pairs": int(((pairs.mask & explicit) != 0).sum()),
        "kinds of behaviour": len(schema.behaviours),
        "labels": sum(f.cardinality - 1 for f in labels),
        "density": len(pairs) / cells,
        "sparsity": 1 - len(pairs) / cells,
        "mean length": float(length.mean()),
        "median length": float(np.median(length)),
        "training users": trained,
        "training items": int(store.train.item.unique().numel()),
        "training events": len(store.train),
        "training pairs": len(store.train_pairs),
        "training density": len(store.train_pairs) / cells,
        "training mean length": len(store.train) / max(1, trained),
        "training median length": _median_length(store),
    }


def _median_length(store: Store) -> float:
    length = (store.train.ptr[1:] - store.train.ptr[:-1]).numpy()
    return float(np.median(length[length > 0])) if (length > 0).any() else 0.0


def describe(store: Store, protocol: str = "") -> list[Table]:
    """The tables of one prepared data set. protocol: its name, where it is known.

    Raises RecexpError for data prepared before ``meta.json`` held what the tables say.
    """
    meta = store.meta
    if missing := [key for key in NEEDED if key not in meta]:
        raise RecexpError(
            f"{store.folder} was prepared by an earlier version (it lacks {', '.join(missing)}): "
            "describe it by dataset=... and dataset.raw_dir=..., which prepares it again."
        )
    name, found = meta["dataset"], facts(store)
    notes = (SIMULATED,) if meta["simulated"] else ()
    tables = [_sizes(name, meta, found, notes)]
    if (rows := printed(name)) and not meta["simulated"]:
        tables.append(_beside(rows, found))
    tables += [_behaviours(store), *([_features(store)] if store.schema.item_features else [])]
    split = meta["settings"]["split"]
    under = protocol or f"split {split['kind']}, target {split['target']}, purge {split['purge']}"
    return [*tables, _evaluated(store, under), _left_out(meta["left_out"], under)]


def _sizes(name: str, meta: dict, found: dict[str, float], notes: tuple[str, ...]) -> Table:
    columns = ("users", "items", "events", "pairs", "density", "mean length", "median length")

    def row(title: str, prefix: str) -> tuple[Cell, ...]:
        values = [found[prefix + column] for column in columns]
        texts = [_text(column, value) for column, value in zip(columns, values, strict=True)]
        return (Cell(title), *(Cell(t, v) for t, v in zip(texts, values, strict=True)))

    lines = [
        "density: share of all pairs of a user and an item that occur; length: events per user"
    ]
    if meta["settings"]["dataset"]["merge"] == "pairs":
        later = ", with purge=later one between two held-out events"
        later = later if meta["settings"]["split"]["purge"] == "later" else ""
        lines.append(f"the training part has one event per pair (dataset.merge=pairs){later}")
    rows = row("all", ""), row("training part", "training ")
    caption = f"{name}, fingerprint {meta['fingerprint']}, after dataset.filters."
    return Table(f"{name}: size", caption, ("", *columns), rows, (*notes, *lines))


def _text(column: str, value: float) -> str:
    if column == "density":
        return f"{value:.3%}"
    return f"{value:.1f}" if "length" in column else f"{value:,.0f}"


def _beside(rows: list[Printed], found: dict[str, float]) -> Table:
    cells = [
        (Cell(r.paper), Cell(r.quantity), Cell(r.printed),
         Cell(r.shown(found[r.quantity]), found[r.quantity]), Cell("yes" if r.agrees(found[r.quantity]) else "no"), Cell(r.note))
        for r in rows
    ]  # fmt: skip
    head = ("paper", "quantity", "printed", "here", "agrees", "note")
    return Table("Beside the papers' data set tables", "", head, tuple(cells))


def _behaviours(store: Store) -> Table:
    schema, pairs = store.schema, store.all_pairs
    kinds = [(name, 1 << i, store.meta["events"][name]) for i, name in enumerate(schema.behaviours)]
    explicit = [
        kind for kind, is_explicit in zip(kinds, schema.explicit, strict=True) if is_explicit
    ]
    if len(explicit) > 1:
        kinds.append(
            ("any explicit", sum(bit for _, bit, _ in explicit), sum(n for *_, n in explicit))
        )
    if len(schema.behaviours) > 1:
        kinds.append(("any", -1, sum(store.meta["events"].values())))
    rows = []
    for name, bit, n_events in kinds:
        has = (pairs.mask & bit) != 0
        n_users = int(pairs.user[has].unique().numel())
        counts = (n_events, int(has.sum()), n_users)
        feedback = "explicit" if any(name == n for n, *_ in explicit) else "implicit"
        feedback = "" if name.startswith("any") else feedback
        rows.append((Cell(name), Cell(feedback), *(Cell(f"{n:,}", n) for n in counts)))
    caption = "Weak to strong, before the split."
    return Table(
        "Kinds of behaviour",
        caption,
        ("behaviour", "feedback", "events", "pairs", "users"),
        tuple(rows),
    )


def _features(store: Store) -> Table:
    rows = []
    for name, feature in store.schema.item_features.items():
        known = float((feature.id_VM[1:] != 0).any(1).double().mean())
        per_item = float((feature.id_VM[1:] != 0).sum(1).double().mean())
        labels = None if feature.kind == "numeric" else feature.cardinality - 1
        rows.append((
            Cell(name), Cell(feature.kind), Cell("" if labels is None else f"{labels:,}", labels),
            Cell(f"{known:.1%}", known), Cell(f"{per_item:.2f}", per_item),
        ))  # fmt: skip
    head = ("feature", "kind", "labels", "items with it", "labels per item")
    return Table("Side information of items", "", head, tuple(rows))


def _evaluated(store: Store, under: str) -> Table:
    """Counts and shares of the held-out targets, a column per split."""
    audit, count = store.meta["audit"], store.train.item.bincount(minlength=store.schema.V)
    rows: dict[str, list[str]] = {}
    for split in ("val", "test"):
        targets = store.targets(split)
        cold = count[targets.item] == 0
        history = targets.end - targets.start
        trained = store.train_pairs.contain(targets.user, targets.item)
        shares = {
            "without a history": history == 0,
            "item without a training event": cold,
            "pair in training": trained,
            "seen before through a weaker behaviour": targets.seen,
        }
        rows.setdefault("users", []).append(f"{len(targets):,}")
        mean = f"{history.double().mean():.1f}" if len(targets) else ""
        rows.setdefault("mean history", []).append(mean)
        for title, is_so in shares.items():
            share = f"{is_so.double().mean():.1%}" if len(targets) else ""
            rows.setdefault(title, []).append(share)
        pool = f"{audit[f'{split}_targets_weaker_only']:.1%}" if len(targets) else ""
        rows.setdefault("pair in training through weaker behaviours only", []).append(pool)
    rows["time shared with another event of the user"] = ["", f"{audit['tied_targets']:.1%}"]
    body = tuple((Cell(title), *map(Cell, texts)) for title, texts in rows.items())
    notes = (
        "pair in training through weaker behaviours only: sampler=supportive_only draws these targets "
        "as negatives for their own user",
        f"{audit['future_events']:.1%} of training events happened after their user's test event",
    )
    return Table(f"Held-out targets: {under}", "", ("", "validation", "test"), body, notes)


def _left_out(left_out: dict[str, int], under: str) -> Table:
    rows = tuple((Cell(reason), Cell(f"{n:,}", n)) for reason, n in left_out.items())
    caption = "" if rows else "Every user is tested and validated."
    return Table(f"Users left out: {under}", caption, ("reason", "users"), rows)


def composed(overrides: Sequence[str]) -> tuple[Store, str]:
    """The prepared data that a run with these overrides would use, and the protocol's name."""
    register_resolvers()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = apply_preset(compose("config", list(overrides), return_hydra_config=True))
    except (HydraException, OmegaConfBaseException) as error:
        raise RecexpError(str(error).splitlines()[0]) from error
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    check_config(cfg)
    protocol = build(cfg.protocol)
    folder = prepare(build(cfg.dataset, _recursive_=False), protocol.split, cfg.cache_dir)
    return Store.open(folder), protocol.name


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m recexp.data.describe", description=__doc__.splitlines()[0]
    )
    what = "overrides as of python -m recexp (dataset=ml_1m protocol=full), or prepared folders"
    parser.add_argument("words", nargs="+", metavar="OVERRIDE|FOLDER", help=what)
    parser.add_argument("--format", choices=tuple(WRITERS), default="markdown")
    a = parser.parse_args(arguments)
    overrides = [word for word in a.words if "=" in word or word.startswith("~")]
    tables: list[Table] = []
    try:
        for folder in (Path(word) for word in a.words if word not in overrides):
            if not (folder / "meta.json").is_file():
                raise RecexpError(
                    f"{folder} holds no prepared data (no meta.json): name one below cache_dir."
                )
            tables += describe(Store.open(folder))
        if overrides:
            tables += describe(*composed(overrides))
    except RecexpError as error:
        sys.exit(f"error: {error}")
    print(WRITERS[a.format](tables))


if __name__ == "__main__":
    main()
