"""``python -m recexp.report.describe dataset=NAME ...`` or ``... FOLDER``: tables of prepared data.

First the table that papers print, with a column per data set. Then for each data set its size,
kinds of behavior, side information, which users the protocol tests and which it leaves out, and
beside them what the papers print of their data sets (``report/papers/datasets.csv``).
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from recexp.data.store import Store
from recexp.errors import RecexpError
from recexp.io import atomic_write
from recexp.report.dataset_table import dataset_table
from recexp.report.formats import Cell, Table, as_csv, as_markdown
from recexp.report.latex import as_latex
from recexp.report.papers.published import DATASETS
from recexp.report.terminal import terminal_text
from recexp.runs.composed import composed_data
from recexp.types import BAGGED
from recexp.version import add_version

WRITERS: dict[str, Callable[[Sequence[Table]], str]] = {
    "markdown": lambda tables: "\n\n".join(map(as_markdown, tables)),
    "terminal": lambda tables: terminal_text(tables, sys.stdout),
    "latex": as_latex,
    "csv": as_csv,
}
# Entries that meta.json of earlier versions lacks.
NEEDED = ("left_out", "simulated", "events", "audit")
PRINTED_FILE = Path(__file__).parent / "papers" / "datasets.csv"
UNITS = {"%": 0.01, "m": 1e6, None: 1.0}
SIMULATED = "SIMULATED data: they say nothing about the data set whose form they have."


@dataclass(frozen=True)
class Printed:
    """A number of a paper's data set table. printed: its text there, such as 4.79% or 1.0m."""

    paper: str
    dataset: str
    quantity: str
    printed: str
    note: str

    def agrees(self, value: float) -> bool:
        """Does the value round to what is printed?"""
        number, unit = self._number()
        return round(value / unit, _n_decimals(number)) == float(number)

    def shown(self, value: float) -> str:
        """The value in the same unit, with one decimal more where it is not a whole number."""
        number, unit = self._number()
        is_whole = unit == 1 and "." not in number and float(value).is_integer()
        if is_whole or self.printed.endswith("m"):
            return f"{value:,.0f}"
        text = f"{value / unit:.{_n_decimals(number) + 1}f}"
        return f"{text}%" if self.printed.endswith("%") else text

    def _number(self) -> tuple[str, float]:
        """The digits that are printed, and the size of their unit."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(%|m)?", self.printed)
        if match is None:
            raise RecexpError(
                f"datasets.csv: {self.printed!r} is no number, percentage or count of millions."
            )
        return match[1], UNITS[match[2]]


def _n_decimals(number: str) -> int:
    return len(number.partition(".")[2])


def printed(dataset: str, path: Path = PRINTED_FILE) -> list[Printed]:
    """What papers print of the data set, in the order of the file."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [Printed(**row) for row in csv.DictReader(file)]
    return [row for row in rows if row.dataset == DATASETS.get(dataset, dataset)]


def facts(store: Store) -> dict[str, float]:
    """Sizes, shares and lengths, by their names in ``report/papers/datasets.csv``.

    Lengths are events per user; density is the share of all (user, item) pairs that occur.
    """
    meta = store.meta
    pairs = store.all_pairs
    schema = store.schema
    count_P = pairs.count.numpy()
    length_U = np.bincount(pairs.user.numpy(), weights=count_P, minlength=schema.n_users)
    train_length_U = (store.train.ptr[1:] - store.train.ptr[:-1]).numpy()
    train_length_U = train_length_U[train_length_U > 0]
    n_trained = len(train_length_U)
    n_cells = schema.n_users * schema.n_items
    explicit = sum(1 << i for i, is_explicit in enumerate(schema.explicit) if is_explicit)
    labels = [f for f in schema.item_features.values() if f.kind in BAGGED]
    return {
        "users": schema.n_users,
        "items": schema.n_items,
        "events": sum(meta["events"].values()),
        "pairs": len(pairs),
        "explicit pairs": int(((pairs.mask & explicit) != 0).sum()),
        "kinds of behavior": len(schema.behaviors),
        "labels": sum(f.cardinality - 1 for f in labels),
        "density": len(pairs) / n_cells,
        "sparsity": 1 - len(pairs) / n_cells,
        "mean length": float(length_U.mean()),
        "median length": float(np.median(length_U)),
        "training users": n_trained,
        "training items": int(store.train.item.unique().numel()),
        "training events": len(store.train),
        "training pairs": len(store.train_pairs),
        "training density": len(store.train_pairs) / n_cells,
        "training mean length": len(store.train) / max(1, n_trained),
        "training median length": float(np.median(train_length_U)) if n_trained else 0.0,
    }


def describe(store: Store, protocol: str = "") -> list[Table]:
    """The tables of one prepared data set. protocol: its name, where it is known.

    Raises:
        RecexpError: an earlier version prepared the data; their ``meta.json`` lacks entries.
    """
    meta = store.meta
    if missing := [key for key in NEEDED if key not in meta]:
        raise RecexpError(
            f"{store.folder} was prepared by an earlier version (it lacks {', '.join(missing)}): "
            "describe it by dataset=... and dataset.raw_dir=..., which prepares it again."
        )
    found = facts(store)
    tables = [_sizes(meta, found)]
    rows = printed(meta["dataset"])
    if rows and not meta["simulated"]:
        tables.append(_beside_papers(rows, found))
    tables.append(_behaviors(store))
    if store.schema.item_features:
        tables.append(_features(store))
    split = meta["settings"]["split"]
    under = protocol or f"split {split['kind']}, target {split['target']}, purge {split['purge']}"
    tables.append(_evaluated(store, under))
    tables.append(_left_out(meta["left_out"], under))
    return tables


def _sizes(meta: dict[str, Any], found: dict[str, float]) -> Table:
    columns = ("users", "items", "events", "pairs", "density", "mean length", "median length")

    def row(title: str, prefix: str) -> tuple[Cell, ...]:
        values = [found[prefix + column] for column in columns]
        cells = [Cell(_text(column, x), x) for column, x in zip(columns, values, strict=True)]
        return (Cell(title), *cells)

    notes = [SIMULATED] if meta["simulated"] else []
    notes.append(
        "density: share of all pairs of a user and an item that occur; length: events per user"
    )
    if meta["settings"]["dataset"]["merge"] == "pairs":
        is_later = meta["settings"]["split"]["purge"] == "later"
        later = ", with purge=later one between two held-out events" if is_later else ""
        notes.append(f"the training part has one event per pair (dataset.merge=pairs){later}")
    name = meta["dataset"]
    return Table(
        title=f"{name}: size",
        caption=f"{name}, fingerprint {meta['fingerprint']}, after dataset.filters.",
        head=("", *columns),
        rows=(row("all", ""), row("training part", "training ")),
        notes=tuple(notes),
    )


def _text(column: str, value: float) -> str:
    if column == "density":
        return f"{value:.3%}"
    return f"{value:.1f}" if "length" in column else f"{value:,.0f}"


def _beside_papers(rows: list[Printed], found: dict[str, float]) -> Table:
    """Printed and found numbers side by side."""
    body = []
    for row in rows:
        value = found[row.quantity]
        cells = (
            Cell(row.paper),
            Cell(row.quantity),
            Cell(row.printed),
            Cell(row.shown(value), value),
            Cell("yes" if row.agrees(value) else "no"),
            Cell(row.note),
        )
        body.append(cells)
    head = ("paper", "quantity", "printed", "here", "agrees", "note")
    return Table("Beside the papers' data set tables", "", head, tuple(body))


def _behaviors(store: Store) -> Table:
    schema = store.schema
    n_events = store.meta["events"]
    all_bits = 0
    explicit_bits = 0
    explicit_names = []
    # Name, feedback, bits of the mask, number of events.
    kinds: list[tuple[str, str, int, int]] = []
    for i, (name, is_explicit) in enumerate(zip(schema.behaviors, schema.explicit, strict=True)):
        all_bits |= 1 << i
        if is_explicit:
            explicit_bits |= 1 << i
            explicit_names.append(name)
        kinds.append((name, "explicit" if is_explicit else "implicit", 1 << i, n_events[name]))
    if len(explicit_names) > 1:
        n_explicit = sum(n_events[name] for name in explicit_names)
        kinds.append(("any explicit", "", explicit_bits, n_explicit))
    if len(schema.behaviors) > 1:
        kinds.append(("any", "", all_bits, sum(n_events.values())))
    rows = []
    for name, feedback, bits, n in kinds:
        occurs_P = (store.all_pairs.mask & bits) != 0
        n_users = int(store.all_pairs.user[occurs_P].unique().numel())
        counts = (n, int(occurs_P.sum()), n_users)
        rows.append((Cell(name), Cell(feedback), *(Cell(f"{x:,}", x) for x in counts)))
    return Table(
        title="Kinds of behavior",
        caption="Weak to strong, before the split.",
        head=("behavior", "feedback", "events", "pairs", "users"),
        rows=tuple(rows),
    )


def _features(store: Store) -> Table:
    rows = []
    for name, feature in store.schema.item_features.items():
        present_NM = feature.id_VM[1:] != 0  # without the padding row
        known = float(present_NM.any(1).double().mean())
        per_item = float(present_NM.sum(1).double().mean())
        n_labels = feature.cardinality - 1 if feature.kind in BAGGED else None
        cells = (
            Cell(name),
            Cell(feature.kind),
            Cell("" if n_labels is None else f"{n_labels:,}", n_labels),
            Cell(f"{known:.1%}", known),
            Cell(f"{per_item:.2f}", per_item),
        )
        rows.append(cells)
    head = ("feature", "kind", "labels", "items with it", "labels per item")
    return Table("Side information of items", "", head, tuple(rows))


def _evaluated(store: Store, under: str) -> Table:
    """Counts and shares of the held-out targets, a column per split."""
    audit = store.meta["audit"]
    val = _target_texts(store, "val")
    test = _target_texts(store, "test")
    rows = [(Cell(title), Cell(val[title]), Cell(test[title])) for title in test]
    tied = f"{audit['tied_targets']:.1%}"
    rows.append((Cell("time shared with another event of the user"), Cell(""), Cell(tied)))
    notes = (
        "pair in training through weaker behaviors only: sampler=supportive_only draws these "
        "targets as negatives for their own user",
        f"{audit['future_events']:.1%} of training events happened after their user's test event",
    )
    head = ("", "validation", "test")
    return Table(f"Held-out targets: {under}", "", head, tuple(rows), notes)


def _target_texts(store: Store, split: str) -> dict[str, str]:
    """Counts and shares of the targets of "val" or "test"; shares are blank without targets."""
    targets = store.targets(split)
    first_N = targets.ptr[:-1]
    length_Q = targets.end[first_N] - targets.start[first_N]
    texts = {"users": f"{targets.n_users:,}"}
    if targets.at is not None:
        texts["targets"] = f"{len(targets):,}"
    texts |= {
        "mean history": f"{length_Q.double().mean():.1f}",
        "without a history": _share(length_Q == 0),
        "item without a training event": _share(targets.cold),
        "pair in training": _share(store.train_pairs.contain(targets.user, targets.item)),
        "met before through an equal or stronger behavior": _share(targets.repeat),
        "seen before through a weaker behavior": _share(targets.seen),
    }
    weaker_only = store.meta["audit"][f"{split}_targets_weaker_only"]
    texts["pair in training through weaker behaviors only"] = f"{weaker_only:.1%}"
    if not len(targets):
        return {title: text if title == "users" else "" for title, text in texts.items()}
    return texts


def _share(flags: Tensor) -> str:
    return f"{flags.double().mean():.1%}"


def _left_out(left_out: dict[str, int], under: str) -> Table:
    rows = tuple((Cell(reason), Cell(f"{n:,}", n)) for reason, n in left_out.items())
    caption = "" if rows else "Every user is tested and validated."
    return Table(f"Users left out: {under}", caption, ("reason", "users"), rows)


def overrides_per_dataset(words: Sequence[str]) -> list[list[str]]:
    """Overrides as a list per data set.

    Each ``dataset=`` begins a data set, to which the words behind it belong. Those before the first
    one are of all data sets.
    """
    begins = [n for n, word in enumerate(words) if word.startswith("dataset=")]
    if not begins:
        return [list(words)] if words else []
    common = list(words[: begins[0]])
    ends = [*begins[1:], len(words)]
    return [common + list(words[a:b]) for a, b in zip(begins, ends, strict=True)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables of the folders, and of the data sets that the overrides choose."""
    options = _parser().parse_args(arguments)
    overrides = [word for word in options.words if "=" in word or word.startswith("~")]
    folders = [Path(word) for word in options.words if word not in overrides]
    try:
        stores, protocols = _opened(folders, overrides)
        described = [describe(*pair) for pair in zip(stores, protocols, strict=True)]
        summary = dataset_table(stores, [facts(store) for store in stores], protocols)
        if options.figure is not None:
            _save_picture(options.figure, stores, summary.head[1:])
    except RecexpError as error:
        sys.exit(f"error: {error}")
    details = [] if options.summary else [table for tables in described for table in tables]
    print(WRITERS[options.format]([summary, *details]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m recexp.report.describe", description=str(__doc__).splitlines()[0]
    )
    add_version(parser)
    words = (
        "overrides as of python -m recexp (dataset=ml_1m protocol=full), or prepared folders; each "
        "dataset= begins another data set, and words before the first one are of all"
    )
    parser.add_argument("words", nargs="+", metavar="OVERRIDE|FOLDER", help=words)
    parser.add_argument("--format", choices=tuple(WRITERS), default="markdown")
    parser.add_argument("--summary", action="store_true", help="print the first table only")
    parser.add_argument(
        "--figure",
        type=Path,
        metavar="FILE",
        help="draw lengths, popularity and events over time into a .svg or .png file",
    )
    return parser


def _opened(folders: Sequence[Path], overrides: Sequence[str]) -> tuple[list[Store], list[str]]:
    """The data sets, and the names of the protocols that split them, "" where it is not known."""
    stores = []
    protocols = []
    for folder in folders:
        if not (folder / "meta.json").is_file():
            raise RecexpError(
                f"{folder} holds no prepared data (no meta.json): name one below cache_dir."
            )
        stores.append(Store.open(folder))
        protocols.append("")
    for words in overrides_per_dataset(overrides):
        data = composed_data(words)
        stores.append(data.store)
        protocols.append(data.protocol.name)
    return stores, protocols


def _save_picture(path: Path, stores: Sequence[Store], names: Sequence[str]) -> None:
    """Raises RecexpError where the file is of another format or cannot be written."""
    if path.suffix not in (".svg", ".png"):
        raise RecexpError(f"--figure {path}: the name must end in .svg or .png.")
    from recexp.report.dataset_picture import dataset_picture  # imports matplotlib

    picture = dataset_picture(stores, names)
    content = picture.svg.encode() if path.suffix == ".svg" else picture.png
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


if __name__ == "__main__":
    main()
