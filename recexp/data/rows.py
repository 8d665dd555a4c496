"""Events as numpy columns, and what preparation computes from their (user, item) pairs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

BLOCK = 4_000_000  # rows that are sorted at a time

# What a split makes of a row.
TRAIN = 0
VAL = 1
TEST = 2
DROPPED = 3
PAST = 4  # read as history in evaluation, never trained on


@dataclass
class Rows:
    """One entry per event, sorted by user, then time, then the order of the source: never by item.

    E rows, U users, V - 1 items, K behaviors.
    """

    user: np.ndarray  # int32 [E], 0..U-1
    item: np.ndarray  # int32 [E], 1..V-1
    behavior: np.ndarray  # int8 [E], codes 1..K, weak to strong
    time: np.ndarray  # int64 [E], milliseconds
    mask: np.ndarray  # int8 or int32 [E], bit b-1 set: the row stands for behavior code b
    origin: np.ndarray  # int32 [E], int64 from 2^31 rows on: the row's number before any merging
    value: np.ndarray | None = None  # int16 [E], level ids 1.., 0 unknown; None: events carry none
    part: np.ndarray | None = None  # int8 [E], code of the split that the data name; None: none
    # By name, [E]: int32 value ids 1.., 0 unknown, or float32 numbers, NaN unknown
    features: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.user)

    def __getitem__(self, at: np.ndarray) -> Rows:
        return Rows(
            user=self.user[at],
            item=self.item[at],
            behavior=self.behavior[at],
            time=self.time[at],
            mask=self.mask[at],
            origin=self.origin[at],
            value=None if self.value is None else self.value[at],
            part=None if self.part is None else self.part[at],
            features={name: column[at] for name, column in self.features.items()},
        )

    def keep(self, at: np.ndarray) -> None:
        """As ``self[at]``, in place, a column at a time: two complete copies might not fit."""
        self.user = self.user[at]
        self.item = self.item[at]
        self.behavior = self.behavior[at]
        self.time = self.time[at]
        self.mask = self.mask[at]
        self.origin = self.origin[at]
        if self.value is not None:
            self.value = self.value[at]
        if self.part is not None:
            self.part = self.part[at]
        for name in self.features:
            self.features[name] = self.features[name][at]

    def merged(self, explicit: list[bool], stretch: np.ndarray | None = None) -> Rows:
        """One row per (user, item), with the strongest behavior of the pair.

        Its time is that of the pair's last explicit event, or of its last event where none is
        explicit (ITE paper). explicit: per behavior code - 1.
        stretch: int [E], ascending, not shared by users; pairs are merged within a stretch only.
        """
        is_explicit = np.asarray([False, *explicit])  # by behavior code
        parts = []
        for order, starts in self._by_pair(self.user if stretch is None else stretch):
            explicit_row = np.where(is_explicit[self.behavior[order]], order, -1)
            last_explicit = np.maximum.reduceat(explicit_row, starts)
            last = np.maximum.reduceat(order, starts)
            kept = np.where(last_explicit < 0, last, last_explicit)
            mask = np.bitwise_or.reduceat(self.mask[order], starts)
            behavior = np.maximum.reduceat(self.behavior[order], starts)
            in_time = np.argsort(kept)
            parts.append((kept[in_time], mask[in_time], behavior[in_time]))
        kept, mask, behavior = (np.concatenate(part) for part in zip(*parts, strict=True))
        return replace(self[kept], mask=mask, behavior=behavior)

    def pairs(self) -> dict[str, np.ndarray]:
        """Unique (user, item), sorted: "user", "item", "mask" of behaviors, "count" of events."""
        parts: dict[str, list[np.ndarray]] = {"user": [], "item": [], "mask": [], "count": []}
        for order, starts in self._by_pair(self.user):
            first = order[starts]
            count = np.diff(np.append(starts, len(order)))
            parts["user"].append(self.user[first])
            parts["item"].append(self.item[first])
            parts["mask"].append(np.bitwise_or.reduceat(self.mask[order], starts))
            parts["count"].append(count.astype(np.int32))
        return {name: np.concatenate(part) for name, part in parts.items()}

    def met_before(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which pairs have earlier rows: bool per row of ``at``, twice.

        The first tells whether all of them have weaker behaviors, the second whether one has an
        equal or a stronger behavior. Both are False where there is no earlier row.

        at: row numbers, at most one per user.
        """
        if not len(at):
            return np.zeros(0, dtype=bool), np.zeros(0, dtype=bool)
        target_U = np.full(int(self.user[-1]) + 1, -1, dtype=self.origin.dtype)
        target_U[self.user[at]] = at
        target_E = target_U[self.user]
        is_earlier = np.arange(len(self), dtype=target_E.dtype) < target_E
        is_earlier &= self.item == self.item[target_E]
        is_weaker = self.behavior < self.behavior[target_E]
        repeat = np.isin(self.user[at], self.user[is_earlier & ~is_weaker])
        weaker = np.isin(self.user[at], self.user[is_earlier & is_weaker])
        return weaker & ~repeat, repeat

    def met_in(
        self, is_history: np.ndarray, user: np.ndarray, item: np.ndarray, behavior: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """As ``met_before``, of several pairs per user and for rows of any order.

        is_history: bool [E], the rows that count as earlier. user, item, behavior: int [Q] of the
        pairs, none of which stands twice.
        """
        key_Q = (user.astype(np.int64) << 32) + item
        order = np.argsort(key_Q)
        weaker_Q = np.zeros(len(user), dtype=bool)
        repeat_Q = np.zeros_like(weaker_Q)
        if not len(user):
            return weaker_Q, repeat_Q
        is_asked_U = np.zeros(int(self.user[-1]) + 1, dtype=bool)
        is_asked_U[user] = True
        at = np.flatnonzero(is_history & is_asked_U[self.user])
        key = (self.user[at].astype(np.int64) << 32) + self.item[at]
        place = np.searchsorted(key_Q[order], key).clip(max=len(user) - 1)
        pair = order[place]
        is_pair = key_Q[pair] == key
        is_weaker = self.behavior[at] < behavior[pair]
        repeat_Q[pair[is_pair & ~is_weaker]] = True
        weaker_Q[pair[is_pair & is_weaker]] = True
        return weaker_Q & ~repeat_Q, repeat_Q

    def _by_pair(self, stretch: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Row numbers grouped by (stretch, item), and where each group starts among them.

        Row numbers ascend within a group. Yields blocks of whole stretches.
        """
        for block in blocks(stretch):
            key = (stretch[block].astype(np.int64) << 32) + self.item[block]
            order = np.argsort(key, kind="stable")
            starts = np.flatnonzero(np.diff(key[order], prepend=-1))
            yield order + block.start, starts


def blocks(owner: np.ndarray, size: int = BLOCK) -> Iterator[slice]:
    """Ranges of about ``size`` rows that split no owner. owner: int [E], ascending."""
    start = 0
    while start < len(owner):
        end = min(start + size, len(owner))
        if end < len(owner):
            end = int(np.searchsorted(owner, owner[end]))
        if end <= start:  # one owner has more than ``size`` rows
            end = int(np.searchsorted(owner, owner[start], side="right"))
        yield slice(start, end)
        start = end
