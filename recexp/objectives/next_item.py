"""Predict every next item from the history before it (SASRec, GRU4Rec, Caser)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recexp.objectives.sequence import SequenceObjective, read_window, shuffled, window_ends
from recexp.types import Query, RecexpError, SequenceBatch


@dataclass
class NextItem(SequenceObjective):
    """windows: "last" (one row per user: his newest max_len + 1 events, as SASRec) or "all" (older ones too, back by ``step`` events).

    targets: None puts a target at every position (the following item). A number T reads windows of max_len events and gives the T items that
    follow to the one state the model returns for it (Caser); users shorter than that get one padded window.
    """

    windows: str = "last"
    step: int | None = None
    targets: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.windows not in ("last", "all"):
            raise RecexpError(f"objective.windows={self.windows!r}: choose last or all.")

    def rows(self, store) -> Tensor:
        length = self._history + (self.targets or 1)
        step = (self.step or (1 if self.targets else length - 1)) if self.windows == "all" else 2**40
        ends = window_ends(store, length, step, least=2)
        return ends if self.windows == "all" else ends.unique()

    def batch(self, store, rows: Tensor, generator: torch.Generator) -> SequenceBatch:
        if self.targets:
            full = read_window(store, rows, self._history + self.targets)
            # A short history keeps at least one event to read and predicts what is left.
            query, target_BL = _cut(full, slice(None, -self.targets)), full.item_BL[:, -self.targets :]
            if full.item_BL.shape[1] <= self.targets:
                query, target_BL = _cut(full, slice(0, 1)), full.item_BL[:, 1:]
            empty = (query.item_BL != 0).sum(1) == 0
            target_BL = target_BL.clone()
            target_BL[empty] = _drop_first(target_BL[empty])
        else:
            full = read_window(store, rows, self._history + 1)
            query, target_BL = _cut(full, slice(None, -1)), full.item_BL[:, 1:]
            target_BL = torch.where(query.item_BL != 0, target_BL, 0)
        if self.shuffle_targets:
            target_BL = shuffled(store, target_BL, generator)
        return self._negatives(store, SequenceBatch(query, target_BL), generator)


def _cut(query: Query, part: slice) -> Query:
    return Query(
        query.user_B, query.item_BL[:, part], query.behaviour_BL[:, part], query.time_BL[:, part],
        None if query.value_BL is None else query.value_BL[:, part],
    )  # fmt: skip


def _drop_first(target_BT: Tensor) -> Tensor:
    """Without each row's first real target, which has nothing before it."""
    first = (target_BT != 0) & ((target_BT != 0).cumsum(1) == 1)
    return torch.where(first, 0, target_BT)
