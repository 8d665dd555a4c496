"""Replay: rank the items that users have touched but not yet taken before all others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from recexp.contracts import ClosedForm
from recexp.models.common import behavior_codes, has_behavior
from recexp.nn.parameters import Length, require_positive
from recexp.types import Query, Schema

if TYPE_CHECKING:
    from recexp.data.store import Store

_SCORED = 1 << 20  # scores scattered at a time: few enough for the processor's cache


class Replay(ClosedForm):
    """First the history's items without a strong event there, latest first; then all by popularity.

    max_len: the history is the last max_len events. Strong are the explicit behaviors, or the
    strongest one where the data set calls none explicit.

    A baseline without a paper: it shows how much of a protocol is answered by the user's own weaker
    behavior.
    """

    needs_user = False
    n_passes = 1
    prior_V: Tensor

    def __init__(self, schema: Schema, *, max_len: Length = 50) -> None:
        super().__init__()
        require_positive(max_len=max_len)
        self.history = max_len
        self.strong = behavior_codes(schema, "explicit" if any(schema.explicit) else "strongest")
        self.register_buffer("prior_V", torch.zeros(schema.V))

    def fit_pass(self, store: Store) -> dict[str, float]:
        """Count the training events of every item."""
        count_V = torch.bincount(store.train.item, minlength=len(self.prior_V)).to(self.prior_V)
        # Below 1, the smallest difference between two items of a history.
        self.prior_V.copy_(count_V / (count_V.max() + 1))
        return {"events": float(len(store.train.item))}

    def score(self, query: Query, item_BC: Tensor | None = None) -> Tensor:
        if torch.compiler.is_exporting():
            return self._score_rows(query, item_BC)
        n_rows = max(1, _SCORED // len(self.prior_V))
        parts = []
        for start in range(0, max(1, len(query)), n_rows):
            rows = slice(start, start + n_rows)
            candidates = None if item_BC is None else item_BC[rows]
            parts.append(self._score_rows(query[rows], candidates))
        return torch.cat(parts)

    def _score_rows(self, query: Query, item_BC: Tensor | None) -> Tensor:
        item_BL = query.item_BL[:, -self.history :]
        behavior_BL = query.behavior_BL[:, -self.history :]
        assert self.strong is not None
        strong_BL = has_behavior(behavior_BL, self.strong)

        # Steps end at ``history``, so that padding on the left does not change them.
        first = self.history - item_BL.shape[1]
        step_L = torch.arange(first, self.history, device=item_BL.device)
        step_BL = step_L.expand_as(item_BL) + 1
        s_BV = self.prior_V.new_zeros(item_BL.shape[0], len(self.prior_V))
        s_BV.scatter_reduce_(1, item_BL, step_BL.to(s_BV), "amax")

        # A strong event counts as a step above all others: the maximum shows which items have one.
        marked_BL = torch.where(strong_BL, self.history + 1, step_BL)
        latest_BV = torch.zeros_like(s_BV).scatter_reduce_(1, item_BL, marked_BL.to(s_BV), "amax")
        s_BV = s_BV.masked_fill(latest_BV > self.history, 0.0) + self.prior_V
        return s_BV[:, 1:] if item_BC is None else s_BV.gather(1, item_BC)
