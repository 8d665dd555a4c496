"""Prepared data as tensors in CSR form, on the device they were moved to.

Everything that a batch needs is a gather from here. Suffixes of shapes as in ``types``; besides, E
events, P pairs, Q held-out targets.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recexp.data.cache import read_meta
from recexp.errors import RecexpError
from recexp.types import BAGGED, Bag, EventFeature, Feature, Query, Schema

MAX_BITMAP = 2**26  # bytes


@dataclass
class Events:
    """Events of all users: user u owns rows ptr[u]..ptr[u+1], oldest first."""

    ptr: Tensor  # int64 [U+1]
    item: Tensor  # int32 [E]
    behavior: Tensor  # int8 [E], codes 1..K
    time: Tensor  # int64 [E], milliseconds
    mask: Tensor  # int32 [E], bit b-1 set: the row stands for behavior code b (several if merged)
    value: Tensor | None = None  # int16 [E], level ids, 0 unknown
    # By name, [E]: int32 value ids, 0 unknown, or float32 numbers (``types.EventFeature``)
    features: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.item.shape[0]

    @cached_property
    def user(self) -> Tensor:
        """The owner of each row, int64 [E]."""
        return _owners(self.ptr)

    def to(self, device: torch.device | str) -> Events:
        return Events(
            ptr=self.ptr.to(device),
            item=self.item.to(device),
            behavior=self.behavior.to(device),
            time=self.time.to(device),
            mask=self.mask.to(device),
            value=None if self.value is None else self.value.to(device),
            features={name: column.to(device) for name, column in self.features.items()},
        )


@dataclass
class Pairs:
    """Unique (user, item) pairs: user u owns rows ptr[u]..ptr[u+1], items ascending."""

    ptr: Tensor  # int64 [U+1]
    item: Tensor  # int32 [P]
    mask: Tensor  # int32 [P], bit b-1 set: behavior code b occurred
    count: Tensor  # int32 [P], number of events

    def __len__(self) -> int:
        return self.item.shape[0]

    @cached_property
    def user(self) -> Tensor:
        """The owner of each row, int64 [P]."""
        return _owners(self.ptr)

    @cached_property
    def key(self) -> Tensor:
        """user * 2^32 + item, int64 [P], ascending: for membership by binary search."""
        return (self.user << 32) + self.item

    @cached_property
    def gap_key(self) -> Tensor:
        """user * 2^32 + number of the user's unseen items before this item, int64 [P], ascending.

        ``objectives.samplers`` finds a user's r-th unseen item with it.
        """
        position = torch.arange(len(self.item), device=self.item.device) - self.ptr[self.user]
        return (self.user << 32) + (self.item - 1 - position)

    @cached_property
    def bits(self) -> Tensor | None:
        """Bitmap of all pairs, uint8 [U * width]; item i: bit i % 8 of byte user * width + i // 8.

        One gather then replaces a binary search. None where the bitmap would take more than 64 MiB,
        and on a GPU, where searches are cheap.
        """
        n_bytes = (len(self.ptr) - 1) * self._width
        if self.item.device.type != "cpu" or n_bytes > MAX_BITMAP:
            return None
        at = self.user * self._width + (self.item >> 3)
        bit = (1 << (self.item & 7)).to(torch.uint8)
        # Pairs are unique, so no bit is added twice.
        return torch.zeros(n_bytes, dtype=torch.uint8).scatter_add_(0, at, bit)

    @cached_property
    def _width(self) -> int:
        """Bytes per user. The last bit stands for no item: larger items are clamped to it."""
        return 2 + int(self.item.max()) // 8 if len(self) else 1

    def contain(self, user: Tensor, item: Tensor) -> Tensor:
        """Does each pair exist? bool in the common shape of user and item."""
        if self.bits is None:
            return self.find(user, item) >= 0
        item = item.clamp(max=8 * self._width - 1)
        byte = elements(self.bits, user * self._width + (item >> 3))
        return (byte >> (item & 7)).bitwise_and_(1) != 0

    def find(self, user: Tensor, item: Tensor) -> Tensor:
        """Row of each pair, -1 where it does not exist; int64 in the common shape."""
        key = (user << 32) + item
        at = torch.searchsorted(self.key, key).clamp_(max=len(self) - 1)
        return torch.where(elements(self.key, at) == key, at, -1)

    def to(self, device: torch.device | str) -> Pairs:
        return Pairs(
            ptr=self.ptr.to(device),
            item=self.item.to(device),
            mask=self.mask.to(device),
            count=self.count.to(device),
        )


@dataclass
class Targets:
    """Held-out events of one split, one or several per evaluated user, N users.

    The history before the targets of a user is rows start..end of ``Store.past``.
    """

    user: Tensor  # int64 [Q], ascending; no (user, item) pair stands twice
    item: Tensor  # int64 [Q]
    time: Tensor  # int64 [Q], milliseconds
    behavior: Tensor  # int8 [Q]
    seen: Tensor  # bool [Q]: the user met the item before, through weaker behaviors only
    start: Tensor  # int64 [Q]
    end: Tensor  # int64 [Q]
    repeat: Tensor  # bool [Q]: the user met it before through an equal or a stronger behavior
    cold: Tensor  # bool [Q]: the item has no training event
    at: Tensor | None = None  # int64 [Q], rows of the targets in ``past``; None: they are ``end``

    def __len__(self) -> int:
        return self.user.shape[0]

    @cached_property
    def ptr(self) -> Tensor:
        """The targets of the n-th user who has some are rows ptr[n]..ptr[n+1]; int64 [N+1]."""
        is_first = self.user[1:] != self.user[:-1]
        start = is_first.nonzero().flatten() + 1
        n = min(len(self), 1)
        return torch.cat([start.new_zeros(n), start, start.new_full((1,), len(self))])

    @property
    def n_users(self) -> int:
        """Number of users who have targets."""
        return len(self.ptr) - 1

    @property
    def rows(self) -> Tensor:
        """The rows of the targets in ``Store.past``, int64 [Q]."""
        return self.end if self.at is None else self.at

    def first(self, number_B: Tensor) -> Tensor:
        """The first target of the n-th users who have some; int64 [B]."""
        return number_B if self.n_users == len(self) else self.ptr[number_B]

    def of_users(self, number_B: Tensor) -> Tensor:
        """All targets of the n-th users who have some, user by user; int64 [M]."""
        if self.n_users == len(self):
            return number_B
        n_targets_B = self.n_of_users(number_B)
        n_before_B = n_targets_B.cumsum(0) - n_targets_B
        at_M = torch.arange(int(n_targets_B.sum()), device=number_B.device)
        return at_M + torch.repeat_interleave(self.ptr[number_B] - n_before_B, n_targets_B)

    def n_of_users(self, number_B: Tensor) -> Tensor:
        """How many targets the n-th users who have some have; int64 [B]."""
        return self.ptr[number_B + 1] - self.ptr[number_B]

    def items_of_users(self, number_B: Tensor) -> Tensor:
        """The items of all targets, int64 [B, T]. Users with fewer have their last one repeated."""
        if self.n_users == len(self):
            return self.item[number_B, None]
        n_targets_B1 = self.n_of_users(number_B)[:, None]
        width = int(n_targets_B1.max()) if len(number_B) else 0
        place_T = torch.arange(width, device=number_B.device)
        return self.item[self.ptr[number_B, None] + place_T.minimum(n_targets_B1 - 1)]

    def to(self, device: torch.device | str) -> Targets:
        return Targets(
            user=self.user.to(device),
            item=self.item.to(device),
            time=self.time.to(device),
            behavior=self.behavior.to(device),
            seen=self.seen.to(device),
            start=self.start.to(device),
            end=self.end.to(device),
            repeat=self.repeat.to(device),
            cold=self.cold.to(device),
            at=None if self.at is None else self.at.to(device),
        )


@dataclass
class Store:
    """Prepared data.

    ``past`` holds training events and held-out targets in one time order, for the histories in
    evaluation. ``meta`` is ``meta.json``.
    """

    schema: Schema
    meta: dict[str, Any]
    folder: Path
    train: Events
    past: Events
    train_pairs: Pairs
    all_pairs: Pairs
    val: Targets
    test: Targets
    item_count: Tensor  # int64 [V]: events per item over all splits

    @classmethod
    def open(cls, folder: Path) -> Store:
        """Map the arrays of a prepared folder (``cache.prepare``) into memory.

        Raises:
            RecexpError: ``meta.json`` is damaged, or an earlier version prepared the folder.
        """
        meta = read_meta(folder)
        if not (folder / "test_cold.npy").is_file():
            raise RecexpError(
                f"{folder} was prepared by an earlier version (it lacks test_cold.npy): prepare "
                "the data again."
            )
        return cls(
            schema=_schema(folder, meta),
            meta=meta,
            folder=folder,
            train=_events(folder, "train", meta),
            past=_events(folder, "past", meta),
            train_pairs=Pairs(**_arrays(Pairs, folder, "train_pairs")),
            all_pairs=Pairs(**_arrays(Pairs, folder, "all_pairs")),
            val=Targets(**_arrays(Targets, folder, "val")),
            test=Targets(**_arrays(Targets, folder, "test")),
            item_count=_map(folder / "item_count.npy"),
        )

    def to(self, device: torch.device | str) -> Store:
        """The same data on another device; ``self`` where they are there already."""
        if self.device == torch.device(device):
            return self
        return Store(
            schema=self.schema,
            meta=self.meta,
            folder=self.folder,
            train=self.train.to(device),
            past=self.past.to(device),
            train_pairs=self.train_pairs.to(device),
            all_pairs=self.all_pairs.to(device),
            val=self.val.to(device),
            test=self.test.to(device),
            item_count=self.item_count.to(device),
        )

    @property
    def device(self) -> torch.device:
        return self.train.ptr.device

    def targets(self, split: str) -> Targets:
        """The held-out targets of "val" or "test"."""
        return {"val": self.val, "test": self.test}[split]

    def query(self, row_B: Tensor, length: int) -> Query:
        """What each user did strictly before a training event: their last ``length`` events.

        row_B: int64, rows of ``train``.
        """
        user_B = elements(self.train.user, row_B)
        if length == 0:  # models without a history have short steps, where this counts
            empty_BL = row_B.new_zeros(len(row_B), 0)
            value_BL = None if self.train.value is None else empty_BL
            features_BL = dict.fromkeys(self.train.features, empty_BL)
            columns = (user_B, empty_BL, empty_BL, empty_BL, value_BL)
            return Query(*columns, features_BL=features_BL)
        return self.window(self.train, user_B, self.train.ptr[user_B], row_B, length)

    def query_held_out(
        self, targets: Targets, row_Q: Tensor, length: int, history: str = "before_target"
    ) -> Query:
        """What each user did before a held-out target: their last ``length`` events.

        row_Q: int64, rows of ``targets``. history: "all_train" takes all training events of the
        user, later ones too, as the code of the ITE paper does.
        """
        user_Q = targets.user[row_Q]
        if history == "all_train":
            ptr = self.train.ptr
            return self.window(self.train, user_Q, ptr[user_Q], ptr[user_Q + 1], length)
        return self.window(self.past, user_Q, targets.start[row_Q], targets.end[row_Q], length)

    def window(
        self, events: Events, user_B: Tensor, start_B: Tensor, end_B: Tensor, length: int
    ) -> Query:
        """The last ``length`` rows of start..end, left-padded to the longest of the batch."""
        return window(events, user_B, start_B, end_B, length)

    def items_between(
        self, events: Events, start_B: Tensor, end_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """All events in the ranges start..end, range by range.

        Returns row_M, int64, the number 0..B-1 of the range, and item_M, int64.
        """
        size_B = end_B - start_B
        row_M = torch.repeat_interleave(torch.arange(len(start_B), device=start_B.device), size_B)
        n_before_B = size_B.cumsum(0) - size_B
        at_M = torch.arange(len(row_M), device=row_M.device) + (start_B - n_before_B)[row_M]
        return row_M, elements(events.item, at_M).long()


def window(events: Events, user_B: Tensor, start_B: Tensor, end_B: Tensor, length: int) -> Query:
    """The last ``length`` rows of start..end, left-padded to the longest of the batch."""
    longest = int((end_B - start_B).max()) if len(user_B) else 0
    from_end_L = torch.arange(min(length, longest), 0, -1, device=user_B.device)
    at_BL = end_B[:, None] - from_end_L
    real_BL = at_BL >= start_B[:, None]
    at_BL = at_BL.clamp_(min=0)

    def gather(column: Tensor) -> Tensor:
        found_BL = torch.where(real_BL, elements(column, at_BL), 0)
        return found_BL if column.is_floating_point() else found_BL.long()

    return Query(
        user_B=user_B,
        item_BL=gather(events.item),
        behavior_BL=gather(events.behavior),
        time_BL=gather(events.time),
        value_BL=None if events.value is None else gather(events.value),
        features_BL={name: gather(column) for name, column in events.features.items()},
    )


def _schema(folder: Path, meta: dict[str, Any]) -> Schema:
    """The schema with its mapped feature tables."""
    features = {}
    bags = {}
    for entry in meta["features"]:
        name = entry["name"]
        features[name] = _feature(folder / f"feature_{name}", entry)
        if entry["kind"] in BAGGED:
            bags[name] = Bag(
                cardinality=entry["cardinality"],
                ptr=_map(folder / f"bag_{name}_ptr.npy"),
                id=_map(folder / f"bag_{name}_id.npy"),
                count=_map(folder / f"bag_{name}_count.npy"),
            )
    attributes = {
        entry["name"]: _feature(folder / f"user_feature_{entry['name']}", entry)
        for entry in meta.get("user_features", [])
    }
    of_events = {
        entry["name"]: EventFeature(entry["kind"], entry["cardinality"])
        for entry in meta.get("event_features", [])
    }
    return Schema(
        n_users=meta["users"],
        n_items=meta["items"],
        behaviors=tuple(meta["behaviors"]),
        explicit=tuple(meta["explicit"]),
        n_values=len(meta["levels"]),
        item_features=features,
        user_features=bags,
        user_attributes=attributes,
        event_features=of_events,
    )


def _feature(path: Path, entry: Mapping[str, Any]) -> Feature:
    """path: prefix of the files ``_id`` and ``_weight``. entry: of ``meta.json``."""
    return Feature(
        kind=entry["kind"],
        cardinality=entry["cardinality"],
        id_VM=_map(Path(f"{path}_id.npy")),
        weight_VM=_map(Path(f"{path}_weight.npy")),
    )


def _events(folder: Path, name: str, meta: Mapping[str, Any]) -> Events:
    names = [entry["name"] for entry in meta.get("event_features", [])]
    features = {feature: _map(folder / f"{name}_feature_{feature}.npy") for feature in names}
    return Events(**_arrays(Events, folder, name), features=features)


def _arrays(kind: type[Events | Pairs | Targets], folder: Path, name: str) -> dict[str, Tensor]:
    """The tensors of a part by field name; a column that the data lack (value) is absent."""
    paths = {f.name: folder / f"{name}_{f.name}.npy" for f in dataclasses.fields(kind)}
    return {field: _map(path) for field, path in paths.items() if path.exists()}


def _map(path: Path) -> Tensor:
    """A tensor over the mapped file: processes that read it share its pages."""
    with warnings.catch_warnings():
        # torch warns that the mapping is read-only; nothing here writes to it.
        warnings.simplefilter("ignore")
        return torch.from_numpy(np.load(path, mmap_mode="r"))


def elements(column_N: Tensor, at: Tensor) -> Tensor:
    """``column_N[at]`` for int64 numbers ``at`` >= 0 of any shape.

    On CPUs ``index_select`` is faster than indexing and than ``take``.
    """
    return column_N.index_select(0, at.flatten()).view(at.shape)


def _owners(ptr: Tensor) -> Tensor:
    """The owner of each row of a CSR structure, int64. ptr: int64 [U+1]."""
    users = torch.arange(len(ptr) - 1, device=ptr.device)
    return torch.repeat_interleave(users, ptr[1:] - ptr[:-1])
