"""Events as numpy columns, and what preparation does with their (user, item) pairs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np

BLOCK = 4_000_000  # rows that are sorted at a time


@dataclass
class Rows:
    """One entry per event, sorted by user, then time, then the order of the source: never by item.

    origin: the row's number before any merging. value: level ids 1.., 0 unknown, or None.
    """

    user: np.ndarray  # int32 [E], 0..U-1
    item: np.ndarray  # int32 [E], 1..V-1
    behaviour: np.ndarray  # int8 [E], codes 1..K, weak to strong
    time: np.ndarray  # int64 [E], milliseconds
    mask: np.ndarray  # int8 or int32 [E], bit b-1 set: the row stands for behaviour code b
    origin: np.ndarray  # int32 [E], int64 from 2^31 rows on
    value: np.ndarray | None = None  # int16 [E]

    def __len__(self) -> int:
        return len(self.user)

    def __getitem__(self, at: np.ndarray) -> Rows:
        return Rows(
            **{
                f.name: None if (x := getattr(self, f.name)) is None else x[at]
                for f in fields(self)
            }
        )

    def keep(self, at: np.ndarray) -> None:
        """As ``self[at]``, in place: one column at a time, where two sets of rows would not fit."""
        for field in fields(self):
            if (x := getattr(self, field.name)) is not None:
                setattr(self, field.name, x[at])

    def merged(self, explicit: list[bool], stretch: np.ndarray | None = None) -> Rows:
        """One row per (user, item): the strongest behaviour, at the last explicit time, or the last time where none is explicit (S000).

        stretch: [E], ascending and never shared by users; a pair is merged within a stretch only.
        """
        parts = []
        for order, starts in self._by_pair(self.user if stretch is None else stretch):
            strong = np.asarray([False, *explicit])[self.behaviour[order]]
            last_strong = np.maximum.reduceat(np.where(strong, order, -1), starts)
            kept = np.where(last_strong < 0, np.maximum.reduceat(order, starts), last_strong)
            mask, behaviour = (
                np.bitwise_or.reduceat(self.mask[order], starts),
                np.maximum.reduceat(self.behaviour[order], starts),
            )
            in_time = np.argsort(kept)
            parts.append((kept[in_time], mask[in_time], behaviour[in_time]))
        kept, mask, behaviour = (np.concatenate(part) for part in zip(*parts, strict=True))
        return replace(self[kept], mask=mask, behaviour=behaviour)

    def pairs(self) -> dict[str, np.ndarray]:
        """Unique (user, item) with the mask of behaviours and the count of events, sorted."""
        parts = []
        for order, starts in self._by_pair(self.user):
            first, count = order[starts], np.diff(np.append(starts, len(order))).astype(np.int32)
            parts.append(
                (
                    self.user[first],
                    self.item[first],
                    np.bitwise_or.reduceat(self.mask[order], starts),
                    count,
                )
            )
        return {
            name: np.concatenate(part)
            for name, part in zip(
                ("user", "item", "mask", "count"), zip(*parts, strict=True), strict=True
            )
        }

    def seen_weaker(self, at: np.ndarray) -> np.ndarray:
        """bool per row of ``at`` (at most one row per user): has an earlier row of its pair a weaker behaviour?"""
        if not len(at):
            return np.zeros(0, dtype=bool)
        target = np.full(int(self.user[-1]) + 1, -1, dtype=self.origin.dtype)
        target[self.user[at]] = at
        mine = target[self.user]
        earlier = (
            (np.arange(len(self), dtype=mine.dtype) < mine)
            & (self.item == self.item[mine])
            & (self.behaviour < self.behaviour[mine])
        )
        return np.isin(self.user[at], self.user[earlier])

    def _by_pair(self, stretch: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Row numbers grouped by (stretch, item), ascending within a group, and where each group starts among them; in blocks of whole stretches."""
        for block in blocks(stretch):
            key = (stretch[block].astype(np.int64) << 32) + self.item[block]
            order = np.argsort(key, kind="stable")
            yield order + block.start, np.flatnonzero(np.diff(key[order], prepend=-1))


def blocks(owner: np.ndarray, size: int = BLOCK) -> Iterator[slice]:
    """Ranges of about ``size`` rows that cut nobody in two; owner is ascending."""
    start = 0
    while start < len(owner):
        end = min(start + size, len(owner))
        if end < len(owner):
            end = int(np.searchsorted(owner, owner[end]))
            end = end if end > start else int(np.searchsorted(owner, owner[start], side="right"))
        yield slice(start, end)
        start = end
