"""Predict every next item from the history before it (SASRec, GRU4Rec, Caser)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recexp.errors import RecexpError
from recexp.objectives.sequence import SequenceObjective, read_window, window_ends
from recexp.types import Query, SequenceBatch


@dataclass
class NextItem(SequenceObjective):
    """windows: "last" (one row per user: his newest max_len + 1 events, as SASRec) or "all" (older ones too, back by ``step`` events; step None: so
    that every event but a user's first is a target).

    targets: None puts a target at every position (the following item). A number T reads windows of max_len events and gives the T items that
    follow to the one state the model returns for it (Caser); users shorter than that get one window.
    """

    windows: str = "last"
    step: int | None = None
    targets: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if min(self.step or 1, self.targets or 1) < 1:
            raise RecexpError(
                f"objective.step={self.step} and objective.targets={self.targets} must be at least 1."
            )
        if self.windows not in ("last", "all"):
            raise RecexpError(f"objective.windows={self.windows!r}: choose last or all.")

    def rows(self, store) -> Tensor:
        if self.windows == "last":
            ptr = store.train.ptr
            return ptr[1:][ptr[1:] - ptr[:-1] >= 2]
        length = self._history + (self.targets or 1)
        return window_ends(
            store, length, self.step or (1 if self.targets else self._history), least=2
        )

    def batch(self, store, rows: Tensor, generator: torch.Generator) -> SequenceBatch:
        if self.targets:
            batch = self._several(store, rows)
        else:
            full = read_window(store, rows, self._history + 1)
            query, target_BL = _columns(full, slice(None, -1)), full.item_BL[:, 1:]
            batch = SequenceBatch(query, torch.where(query.item_BL != 0, target_BL, 0))
        return self._negatives(store, batch, generator)

    def _several(self, store, end_B: Tensor) -> SequenceBatch:
        """The last ``targets`` events of each window as targets, of a short one fewer, so that one event at least is left to read."""
        train, user = store.train, store.train.user[end_B - 1]
        start_B = torch.maximum(train.ptr[user], end_B - self._history - self.targets)
        read_B = torch.maximum(end_B - self.targets, start_B + 1)
        at_BT = read_B[:, None] + torch.arange(self.targets, device=end_B.device)
        target_BT = torch.where(
            at_BT < end_B[:, None], train.item[at_BT.clamp(max=len(train) - 1)], 0
        ).long()
        return SequenceBatch(store.window(train, user, start_B, read_B, self._history), target_BT)


def _columns(query: Query, part: slice) -> Query:
    columns = (query.item_BL, query.behaviour_BL, query.time_BL, query.value_BL)
    return Query(query.user_B, *(None if c is None else c[:, part] for c in columns))
