"""Events as numpy columns, and what preparation does with their (user, item) pairs."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np


@dataclass
class Rows:
    """One entry per event, sorted by user, then time, then the order of the source: never by item.

    origin: the row's number before any merging. value: level ids 1.., 0 unknown, or None.
    """

    user: np.ndarray  # int64 [E], 0..U-1
    item: np.ndarray  # int64 [E], 1..V-1
    behaviour: np.ndarray  # int64 [E], codes 1..K, weak to strong
    time: np.ndarray  # int64 [E], milliseconds
    mask: np.ndarray  # int64 [E], bit b-1 set: the row stands for behaviour code b
    origin: np.ndarray  # int64 [E]
    value: np.ndarray | None = None  # int16 [E]

    def __len__(self) -> int:
        return len(self.user)

    def __getitem__(self, at: np.ndarray) -> Rows:
        return Rows(**{f.name: None if (x := getattr(self, f.name)) is None else x[at] for f in fields(self)})

    def merged(self, explicit: list[bool], stretch: np.ndarray | None = None) -> Rows:
        """One row per (user, item): the strongest behaviour, at the last explicit time, or the last time where none is explicit (S000).

        stretch: int64 [E], ascending and never shared by users; a pair is merged within a stretch only.
        """
        order, starts = self._by_pair(self.user if stretch is None else stretch)
        strong = np.asarray([False, *explicit])[self.behaviour[order]]
        last_strong = np.maximum.reduceat(np.where(strong, order, -1), starts)
        kept = np.where(last_strong < 0, np.maximum.reduceat(order, starts), last_strong)
        mask, behaviour = np.bitwise_or.reduceat(self.mask[order], starts), np.maximum.reduceat(self.behaviour[order], starts)
        in_time = np.argsort(kept)
        return replace(self[kept[in_time]], mask=mask[in_time], behaviour=behaviour[in_time])

    def pairs(self) -> dict[str, np.ndarray]:
        """Unique (user, item) with the mask of behaviours and the count of events, sorted."""
        order, starts = self._by_pair(self.user)
        first = order[starts]
        count = np.diff(np.append(starts, len(self)))
        return {"user": self.user[first], "item": self.item[first], "mask": np.bitwise_or.reduceat(self.mask[order], starts), "count": count}

    def seen_weaker(self, at: np.ndarray) -> np.ndarray:
        """bool per row of ``at`` (at most one row per user): has an earlier row of its pair a weaker behaviour?"""
        if not len(at):
            return np.zeros(0, dtype=bool)
        target = np.full(self.user[-1] + 1, -1)
        target[self.user[at]] = at
        mine = target[self.user]
        earlier = (np.arange(len(self)) < mine) & (self.item == self.item[mine]) & (self.behaviour < self.behaviour[mine])
        return np.isin(self.user[at], self.user[earlier])

    def _by_pair(self, stretch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers grouped by (stretch, item), ascending within a group, and where each group starts among them."""
        key = (stretch << 32) + self.item
        order = np.argsort(key, kind="stable")
        return order, np.flatnonzero(np.diff(key[order], prepend=-1))
