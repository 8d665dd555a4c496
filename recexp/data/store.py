"""The data as tensors: everything a batch needs is a gather from here, on the device the store was moved to."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recexp.data.cache import read_meta
from recexp.types import Bag, Feature, Query, Schema


def _load(path: Path) -> Tensor:
    """A tensor over the mapped file: pages are shared by all processes that read it and copied only by the move to a device."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # torch warns that the mapping is read-only; nothing here writes to it
        return torch.from_numpy(np.load(path, mmap_mode="r"))


class _Movable:
    def to(self, device: torch.device | str):
        moved = {
            f.name: v.to(device) if isinstance(v := getattr(self, f.name), Tensor) else v
            for f in dataclasses.fields(self)
        }
        return type(self)(**moved)


@dataclass
class Events(_Movable):
    """Events of all users in CSR form: user u owns rows ptr[u]..ptr[u+1], oldest first."""

    ptr: Tensor  # int64 [U+1]
    item: Tensor  # int32 [E]
    behaviour: Tensor  # int8 [E], codes 1..len(behaviours)
    time: Tensor  # int64 [E], milliseconds
    mask: Tensor  # int32 [E], bit b-1 set: the row stands for behaviour code b (several after merging to pairs)
    value: Tensor | None = None  # int16 [E], level ids, 0 unknown

    def __len__(self) -> int:
        return self.item.shape[0]

    @cached_property
    def user(self) -> Tensor:
        """int64 [E]: the owner of each row."""
        return _owners(self.ptr)


@dataclass
class Pairs(_Movable):
    """Unique (user, item) pairs in CSR form, items ascending within a user."""

    ptr: Tensor  # int64 [U+1]
    item: Tensor  # int32 [P]
    mask: Tensor  # int32 [P], bit b-1 set: behaviour code b occurred
    count: Tensor  # int32 [P], events

    @cached_property
    def user(self) -> Tensor:
        """int64 [P]"""
        return _owners(self.ptr)

    @cached_property
    def key(self) -> Tensor:
        """int64 [P], ascending: user * 2^32 + item, for membership by binary search."""
        return (self.user << 32) + self.item

    @cached_property
    def gap_key(self) -> Tensor:
        """int64 [P], ascending: user * 2^32 + number of the user's unseen items before this item (see ``sampling.unseen``)."""
        position = torch.arange(len(self.item), device=self.item.device) - self.ptr[self.user]
        return (self.user << 32) + (self.item - 1 - position)

    @cached_property
    def bits(self) -> Tensor | None:
        """uint8 [U * width]: bit i % 8 of byte user * width + i // 8 says whether the pair exists, a look where ``find`` takes a search. None where
        that takes more than 64 MiB, and off the CPU, where searches are cheap.
        """
        users, width = len(self.ptr) - 1, self._width
        if self.item.device.type != "cpu" or users * width > 2**26:
            return None
        at, bit = self.user * width + (self.item >> 3), 1 << (self.item & 7)
        return torch.zeros(users * width, dtype=torch.uint8).scatter_add_(
            0, at, bit.to(torch.uint8)
        )  # unique pairs: no bit is added twice

    @cached_property
    def _width(self) -> int:
        return (
            2 + int(self.item.max()) // 8 if len(self) else 1
        )  # the last bit is nobody's: items beyond are clamped to it

    def __len__(self) -> int:
        return self.item.shape[0]

    def contain(self, user: Tensor, item: Tensor) -> Tensor:
        """bool: does each pair exist? Any common shape."""
        if self.bits is None:
            return self.find(user, item) >= 0
        item = item.clamp(max=8 * self._width - 1)
        byte = self.bits.take(user * self._width + (item >> 3))
        return (byte >> (item & 7)).bitwise_and_(1) != 0

    def find(self, user: Tensor, item: Tensor) -> Tensor:
        """Row of each pair, -1 where the pair does not exist. Any common shape."""
        key = (user << 32) + item
        at = torch.searchsorted(self.key, key).clamp_(max=len(self) - 1)
        return torch.where(self.key.take(at) == key, at, -1)


@dataclass
class Targets(_Movable):
    """Held-out events of one split, one per evaluated user; their history is rows start..end of ``Store.past``."""

    user: Tensor  # int64 [Q], ascending
    item: Tensor  # int64 [Q]
    time: Tensor  # int64 [Q]
    behaviour: Tensor  # int8 [Q]
    seen: Tensor  # bool [Q]: met before through a weaker behaviour
    start: Tensor  # int64 [Q]
    end: Tensor  # int64 [Q]

    def __len__(self) -> int:
        return self.user.shape[0]


@dataclass
class Store:
    """Prepared data. ``past`` holds training events and held-out targets in one time order, for histories in evaluation."""

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
        """Map the arrays of a prepared folder (``prepare.prepare``)."""
        meta = read_meta(folder)

        def part(kind: type, name: str):
            fields = {f.name: folder / f"{name}_{f.name}.npy" for f in dataclasses.fields(kind)}
            return kind(**{k: _load(p) for k, p in fields.items() if p.exists()})

        features = {
            f["name"]: Feature(
                f["kind"],
                f["cardinality"],
                *(_load(folder / f"feature_{f['name']}_{x}.npy") for x in ("id", "weight")),
            )
            for f in meta["features"]
        }
        bags = {
            name: Bag(
                f.cardinality,
                *(_load(folder / f"bag_{name}_{x}.npy") for x in ("ptr", "id", "count")),
            )
            for name, f in features.items()
            if f.kind != "numeric"
        }
        schema = Schema(
            meta["users"],
            meta["items"],
            tuple(meta["behaviours"]),
            tuple(meta["explicit"]),
            len(meta["levels"]),
            features,
            bags,
        )
        return cls(
            schema, meta, folder, part(Events, "train"), part(Events, "past"), part(Pairs, "train_pairs"), part(Pairs, "all_pairs"),
            part(Targets, "val"), part(Targets, "test"), _load(folder / "item_count.npy"),
        )  # fmt: skip

    def to(self, device: torch.device | str) -> Store:
        """The same data on another device; itself where it is there already."""
        if self.device == torch.device(device):
            return self
        parts = {
            f.name: v.to(device) if hasattr(v := getattr(self, f.name), "to") else v
            for f in dataclasses.fields(self)
        }
        return Store(**parts)

    @property
    def device(self) -> torch.device:
        return self.train.ptr.device

    def targets(self, split: str) -> Targets:
        """The held-out targets of "val" or "test"."""
        return {"val": self.val, "test": self.test}[split]

    def query(self, row_B: Tensor, length: int) -> Query:
        """The state of the world strictly before each training event: at most ``length`` of its user's earlier training events."""
        user = self.train.user.take(row_B)  # a fifth of the time of indexing
        if length == 0:  # for models without a history, whose steps are short
            nothing = row_B.new_zeros(len(row_B), 0)
            return Query(
                user, nothing, nothing, nothing, None if self.train.value is None else nothing
            )
        return self.window(self.train, user, self.train.ptr[user], row_B, length)

    def query_held_out(
        self, targets: Targets, row_Q: Tensor, length: int, history: str = "before_target"
    ) -> Query:
        """The state before held-out targets. history "all_train": all the user's training events, later ones too (S000's code)."""
        user = targets.user[row_Q]
        if history == "all_train":
            return self.window(
                self.train, user, self.train.ptr[user], self.train.ptr[user + 1], length
            )
        return self.window(self.past, user, targets.start[row_Q], targets.end[row_Q], length)

    def window(
        self, events: Events, user_B: Tensor, start_B: Tensor, end_B: Tensor, length: int
    ) -> Query:
        """The last ``length`` rows of start..end per user, left-padded to the longest of the batch."""
        longest = int((end_B - start_B).max()) if len(user_B) else 0
        length = min(length, longest)
        at_BL = end_B[:, None] - torch.arange(length, 0, -1, device=user_B.device)
        real_BL = at_BL >= start_B[:, None]
        at_BL = at_BL.clamp_(min=0)

        def gather(column: Tensor | None) -> Tensor | None:
            return None if column is None else torch.where(real_BL, column.take(at_BL), 0).long()

        return Query(
            user_B, *(gather(c) for c in (events.item, events.behaviour, events.time, events.value))
        )

    def items_between(
        self, events: Events, start_B: Tensor, end_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The rows 0..B-1 and items of all events in the ranges, row by row: int64 [M] each."""
        row_M = torch.repeat_interleave(
            torch.arange(len(start_B), device=start_B.device), end_B - start_B
        )
        before_B = (end_B - start_B).cumsum(0) - (end_B - start_B)
        at_M = torch.arange(len(row_M), device=row_M.device) + (start_B - before_B)[row_M]
        return row_M, events.item.take(at_M).long()


def _owners(ptr: Tensor) -> Tensor:
    return torch.repeat_interleave(
        torch.arange(len(ptr) - 1, device=ptr.device), ptr[1:] - ptr[:-1]
    )
