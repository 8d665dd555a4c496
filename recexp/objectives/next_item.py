"""Predict every next item from the history before it.

Kang and McAuley 2018 (SASRec), arXiv:1808.09781; Tang and Wang 2018 (Caser), arXiv:1809.07426; Zhou
et al. 2022 (FMLP-Rec), arXiv:2202.13556.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from recexp.data.store import Store
from recexp.errors import RecexpError
from recexp.objectives.base import check_choice
from recexp.objectives.sequence import SequenceObjective
from recexp.objectives.windows import newest_ends, read_window, window_ends, window_rows
from recexp.types import SequenceBatch

Windows = Literal["last", "all", "prefixes"]


@dataclass
class NextItem(SequenceObjective):
    """A row is a window of a user's history; its targets are the items that follow.

    windows: "last" (one row per user: their newest max_len + 1 events, as SASRec) or "all" (older
        ones too, back by ``step`` events; step None: so that every event but a user's first is a
        target).
    targets: None puts a target at every position, the following item. A number T reads windows of
        max_len events and gives the T items that follow to the one state that the model returns
        for it (Caser); users with fewer events get one window.
    """

    windows: Windows = "last"
    step: Annotated[int, Field(ge=1)] | None = None
    targets: Annotated[int, Field(ge=1)] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.step or 1, self.targets or 1) < 1:
            raise RecexpError(
                f"objective.step={self.step} and objective.targets={self.targets} must be at "
                "least 1."
            )
        check_choice("windows", self.windows, Windows)
        if self.windows == "prefixes" and self.targets != 1:
            raise RecexpError(
                "objective.windows=prefixes has one target per row: set objective.targets=1, or "
                "choose windows=last or all."
            )

    def rows(self, store: Store) -> Tensor:
        """Ends of windows with an event to predict, exclusive rows of ``store.train``."""
        end_N = self._ends(store)
        return self._with_positives(store, self._first_target(store, end_N), end_N)

    def _ends(self, store: Store) -> Tensor:
        if self.windows == "last":
            ptr = store.train.ptr
            return ptr[1:][ptr[1:] - ptr[:-1] >= 2]
        if self.windows == "prefixes":
            return newest_ends(store, self._history)
        length = self._history + (self.targets or 1)
        step = self.step or (1 if self.targets else self._history)
        return window_ends(store, length, step, least=2)

    def _first_target(self, store: Store, end_B: Tensor) -> Tensor:
        """The first row of ``store.train`` that each window can predict, int64 [B].

        A short window has fewer targets, so that at least one event is left to read.
        """
        ptr_B = store.train.ptr[store.train.user[end_B - 1]]
        if self.targets is None:
            return torch.maximum(ptr_B + 1, end_B - self._history)
        start_B = torch.maximum(ptr_B, end_B - self._history - self.targets)
        return torch.maximum(end_B - self.targets, start_B + 1)

    def batch(self, store: Store, rows: Tensor, generator: torch.Generator) -> SequenceBatch:
        if self.targets:
            batch = self._targets_after_window(store, rows, self.targets)
        else:
            batch = self._targets_at_positions(store, rows)
        return self._with_negatives(store, batch, generator)

    def _targets_at_positions(self, store: Store, end_B: Tensor) -> SequenceBatch:
        full = read_window(store, end_B, self._history + 1)  # [B, L + 1]
        query = full.change_columns(lambda x_BL: x_BL[:, :-1])
        next_BL = full.item_BL[:, 1:]
        is_target_BL = query.item_BL != 0
        if self.positives != "any":
            is_target_BL &= self._is_positive(store, window_rows(end_B, next_BL.shape[1]))
        return SequenceBatch(query, torch.where(is_target_BL, next_BL, 0))

    def _targets_after_window(self, store: Store, end_B: Tensor, n_targets: int) -> SequenceBatch:
        """The last events of each window as targets."""
        train = store.train
        user_B = train.user[end_B - 1]
        start_B = torch.maximum(train.ptr[user_B], end_B - self._history - n_targets)
        first_target_B = self._first_target(store, end_B)
        row_BT = first_target_B[:, None] + torch.arange(n_targets, device=end_B.device)
        is_target_BT = row_BT < end_B[:, None]
        row_BT = row_BT.clamp(max=len(train) - 1)
        if self.positives != "any":
            is_target_BT &= self._is_positive(store, row_BT)
        target_BT = torch.where(is_target_BT, train.item[row_BT], 0).long()
        query = store.window(train, user_B, start_B, first_target_B, self._history)
        return SequenceBatch(query, target_BT)
