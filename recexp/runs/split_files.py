"""``python -m recexp.data.export dataset=NAME protocol=NAME --out DIR``: splits for other programs.

Writes training events, held-out targets, histories and candidates with raw ids, and
``manifest.json``, which says what each file means. Predictions that another program makes from
them go into ``python -m recexp.evaluate --predictions``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import polars as pl
import torch

from recexp.data.store import Events, Store, Targets
from recexp.errors import RecexpError
from recexp.evaluation.candidate_store import stored_candidates
from recexp.evaluation.protocol import Protocol
from recexp.io import advice, new_folder, reason, remove, write_json
from recexp.logs import printable_lines, show_logs
from recexp.runs.composed import ComposedData, composed_data
from recexp.runs.frames import write_frames
from recexp.runs.histories import RawIds
from recexp.types import Feature
from recexp.version import add_version

Format = Literal["parquet", "csv"]
ROWS_AT_ONCE = 1 << 20
SPLITS = {"val": "validation", "test": "test"}
MEANING = {
    "train": "events to train on",
    "validation": "the held-out targets of each validated user",
    "test": "the held-out targets of each tested user",
    "history_validation": "events before the validation targets of each user, oldest first",
    "history_test": "events before the test targets of each user, oldest first",
    "candidates_validation": "items that validation targets are ranked among, themselves marked",
    "candidates_test": "items that test targets are ranked among, themselves marked",
    "users": "all users",
    "items": "all items",
}


def export_split(data: ComposedData, out: Path, file_format: Format = "parquet") -> dict[str, Any]:
    """Write the files below ``out``; returns the content of ``manifest.json``.

    Large tables are written in pieces, and the folder gets its name when it is complete.

    Raises RecexpError where ``out`` holds something already or cannot be written.
    """
    if os.path.lexists(out) and not _is_empty_folder(out):
        raise RecexpError(f"{out} exists already: choose a folder that does not, or an empty one.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = new_folder(out.parent, f".{out.name}.")
        try:
            manifest = _write(data, folder, file_format)
            os.replace(folder, out)
        finally:
            remove(folder)
    except OSError as error:
        raise RecexpError(f"{out} cannot be written: {reason(error)}. {advice(error)}.") from error
    return manifest


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


def _write(data: ComposedData, folder: Path, file_format: Format) -> dict[str, Any]:
    """Write all files into a folder that has no other reader; returns the manifest."""
    files: dict[str, Any] = {}
    for name, frames in _tables(data.protocol, data.store):
        path = folder / f"{name}.{file_format}"
        n_rows = write_frames(frames, path)
        text = MEANING.get(name) or _meaning(name)
        files[path.name] = {"rows": n_rows, "meaning": text}
    manifest = _manifest(data, files)
    write_json(folder / "manifest.json", manifest)
    return manifest


def _meaning(name: str) -> str:
    owner, _, feature = name.partition("_feature_")
    return f"{owner} feature {feature!r}"


def _tables(protocol: Protocol, store: Store) -> Iterator[tuple[str, Iterator[pl.DataFrame]]]:
    """Names of files without suffix, and the rows of each in pieces."""
    ids = RawIds.of(store)
    raw = _Raw(store, ids)
    yield "users", iter([pl.DataFrame({"user": ids.users})])
    yield "items", iter([pl.DataFrame({"item": ids.items})])
    yield "train", raw.train()
    for split, word in SPLITS.items():
        targets = store.targets(split)
        if len(targets):
            yield word, raw.targets(targets)
            yield f"history_{word}", raw.histories(targets)
        if len(targets) and protocol.candidates.kind != "all":
            yield f"candidates_{word}", raw.candidates(protocol, split)
    for name in store.schema.item_features:
        yield f"item_feature_{name}", iter([raw.feature(name)])
    for name in store.schema.user_attributes:
        yield f"user_feature_{name}", iter([raw.attribute(name)])


class _Raw:
    """Prepared data with the raw ids of users, items and labels."""

    def __init__(self, store: Store, ids: RawIds) -> None:
        self.store = store
        self.ids = ids
        self.behaviors = pl.Series(["", *store.schema.behaviors])
        self.levels = pl.Series([None, *store.meta["levels"]], dtype=pl.Float64)

    def train(self) -> Iterator[pl.DataFrame]:
        n_events = len(self.store.train)
        for start in range(0, max(1, n_events), ROWS_AT_ONCE):
            row = torch.arange(start, min(start + ROWS_AT_ONCE, n_events))
            yield self._events(self.store.train, row, self.store.train.user[row])

    def targets(self, targets: Targets) -> Iterator[pl.DataFrame]:
        for rows in torch.arange(len(targets)).split(ROWS_AT_ONCE):
            frame = self._events(self.store.past, targets.rows[rows], targets.user[rows])
            yield frame.with_columns(cold=pl.Series(targets.cold[rows].numpy()))

    def histories(self, targets: Targets) -> Iterator[pl.DataFrame]:
        """Whole histories; as many users at a time as have ``ROWS_AT_ONCE`` events together."""
        first_N = targets.ptr[:-1]
        size_N = (targets.end - targets.start)[first_N].numpy()
        group_N = np.cumsum(size_N) // ROWS_AT_ONCE
        cuts = np.flatnonzero(np.diff(group_N)) + 1
        for numbers in np.split(np.arange(targets.n_users), cuts):
            rows = first_N[numbers]
            start = targets.start[rows]
            size = torch.from_numpy(size_N[numbers])
            owner = torch.repeat_interleave(torch.arange(len(rows)), size)
            n_before = size.cumsum(0) - size
            at = torch.arange(len(owner)) + (start - n_before)[owner]
            yield self._events(self.store.past, at, targets.user[rows][owner])

    def candidates(self, protocol: Protocol, split: str) -> Iterator[pl.DataFrame]:
        """The targets of each user first, then the drawn items in the order they were drawn."""
        targets = self.store.targets(split)
        drawn = stored_candidates(self.store, protocol, split)
        assert drawn is not None
        width = 1 + drawn.shape[1]
        for numbers in torch.arange(targets.n_users).split(max(1, ROWS_AT_ONCE // width)):
            rows = targets.of_users(numbers)
            drawn_BC = drawn[numbers].long()
            user_B = targets.user[targets.first(numbers)]
            user = torch.cat([targets.user[rows], user_B.repeat_interleave(drawn.shape[1])])
            order = user.argsort(stable=True)
            columns = {
                "user": self._users(user[order]),
                "item": self._items(torch.cat([targets.item[rows], drawn_BC.flatten()])[order]),
                "is_target": (order < len(rows)).numpy(),
            }
            yield pl.DataFrame(columns)

    def feature(self, name: str) -> pl.DataFrame:
        """Items and their labels, a row per label; of a numeric feature the standardized number,
        of a vector its numbers joined by "|".
        """
        feature = self.store.schema.item_features[name]
        item, value = self._values(feature, f"feature_{name}")
        return pl.DataFrame({"item": self._items(item), "value": value})

    def attribute(self, name: str) -> pl.DataFrame:
        """As ``feature``, of users."""
        user, value = self._values(self.store.schema.user_attributes[name], f"user_feature_{name}")
        return pl.DataFrame({"user": self._users(user), "value": value})

    def _values(self, feature: Feature, file: str) -> tuple[torch.Tensor, pl.Series]:
        """Numbers of items or users, and the value of each."""
        row, place = feature.id_VM.nonzero(as_tuple=True)
        if feature.kind == "numeric":
            return row, pl.Series(feature.weight_VM[row, place].numpy())
        if feature.kind == "vector":
            numbers = pl.Series(feature.weight_VM[row].tolist(), dtype=pl.List(pl.Float32))
            return row, numbers.cast(pl.List(pl.String)).list.join("|")
        vocabulary = pl.read_parquet(self.store.folder / f"{file}.parquet")
        return row, vocabulary["value"].gather((feature.id_VM[row, place] - 1).numpy())

    def _events(self, events: Events, row: torch.Tensor, user: torch.Tensor) -> pl.DataFrame:
        columns = {
            "user": self._users(user),
            "item": self._items(events.item[row].long()),
            "behavior": self.behaviors.gather(events.behavior[row].long().numpy()),
        }
        if events.value is not None:
            columns["value"] = self.levels.gather(events.value[row].long().numpy())
        columns["timestamp"] = pl.Series(events.time[row].numpy())
        for name, column in events.features.items():
            columns[name] = self._event_values(name, column[row])
        return pl.DataFrame(columns)

    def _event_values(self, name: str, number: torch.Tensor) -> pl.Series:
        """Values of an event feature: texts, or standardized numbers."""
        if number.is_floating_point():
            return pl.Series(number.numpy())
        vocabulary = pl.read_parquet(self.store.folder / f"event_feature_{name}.parquet")
        known = vocabulary["value"]
        return pl.concat([known.clear(1), known]).gather(number.long().numpy())

    def _users(self, number: torch.Tensor) -> pl.Series:
        return self.ids.users.gather(number.numpy())

    def _items(self, number: torch.Tensor) -> pl.Series:
        return self.ids.items.gather(number.numpy() - 1)


def _manifest(data: ComposedData, files: dict[str, Any]) -> dict[str, Any]:
    protocol = data.protocol
    store = data.store
    settings = asdict(protocol)
    return {
        "dataset": store.meta["dataset"],
        "simulated": store.meta["simulated"],
        "fingerprint": store.meta["fingerprint"],
        "protocol": protocol.name,
        "protocol_id": protocol.id(store.meta),
        "settings": settings,
        "users": store.schema.n_users,
        "items": store.schema.n_items,
        "behaviors": list(store.schema.behaviors),
        "files": files,
        "columns": {
            "user, item": "raw ids",
            "behavior": "the name of the behavior; behaviors lists them from weak to strong",
            "value": "the raw value, such as a rating; absent where the data have none",
            "timestamp": "milliseconds since 1970",
            "cold": "the target's item has no training event",
        },
        "ranked": _ranked_words(protocol),
        "history": _history_words(protocol),
    }


def _ranked_words(protocol: Protocol) -> str:
    if protocol.candidates.kind != "all":
        return f"the targets and {protocol.candidates.n} drawn items: those of candidates_*"
    if protocol.candidates.seen == "removed":
        return "all items of items.* but those in the user's history_*; targets are always ranked"
    return "all items of items.*, those of the user's history included"


def _history_words(protocol: Protocol) -> str:
    if protocol.history == "all_train":
        return "a model may read all events of the user in train.*"
    return "a model may read the user's events in history_* and nothing later"


def parser() -> argparse.ArgumentParser:
    """The options of ``python -m recexp.data.export``."""
    made = argparse.ArgumentParser(
        prog="python -m recexp.data.export",
        description="Write the split and the candidates of a protocol for other programs.",
    )
    add_version(made)
    words = "overrides as of python -m recexp (dataset=ml_1m protocol=p3_popular100)"
    made.add_argument("words", nargs="+", metavar="OVERRIDE", help=words)
    made.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    made.add_argument("--format", choices=get_args(Format), default="parquet")
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``python -m recexp.data.export``."""
    options = parser().parse_args(arguments)
    show_logs()
    try:
        manifest = export_split(composed_data(options.words), options.out, options.format)
    except RecexpError as error:
        sys.exit(printable_lines(f"error: {error}"))
    for name, about in manifest["files"].items():
        print(f"{about['rows']:>12,} rows  {name}: {about['meaning']}")
    print(f"written: {options.out}, {manifest['protocol']} (id {manifest['protocol_id']})")


if __name__ == "__main__":
    main()
