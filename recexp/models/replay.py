"""Replay: offer users again what they have touched but not yet taken."""

from __future__ import annotations

import torch
from torch import Tensor

from recexp.contracts import ClosedForm
from recexp.models.mf import require_positive
from recexp.models.pop import behaviour_codes
from recexp.types import Query, Schema

_SCORED = 1 << 20  # scores scattered at a time: few enough for the processor's cache


class Replay(ClosedForm):
    """First the items of the last max_len events that have no strong event there, latest first; then all others by popularity.

    Strong are the explicit behaviours, or the strongest one where the data set calls none explicit. How far this baseline gets
    says how much of a protocol is answered by the user's own weaker behaviour.
    """

    n_passes = 1  # a second changes nothing

    def __init__(self, schema: Schema, *, max_len: int = 50) -> None:
        super().__init__()
        require_positive(max_len=max_len)
        self.history = max_len
        self.strong = behaviour_codes(schema, "explicit" if any(schema.explicit) else "strongest")
        self.register_buffer("prior_V", torch.zeros(schema.V))

    def fit_pass(self, store) -> dict[str, float]:
        """Counts training events."""
        count_V = torch.bincount(store.train.item, minlength=len(self.prior_V)).to(self.prior_V)
        self.prior_V.copy_(
            count_V / (count_V.max() + 1)
        )  # below 1, the smallest step between two history items
        return {"events": float(len(store.train.item))}

    def score(self, query: Query, item_BC: Tensor | None = None) -> Tensor:
        """[B, C], or [B, V-1] where item_BC is None."""
        rows = max(1, _SCORED // len(self.prior_V))
        out = [
            self._score_rows(
                query[slice(i, i + rows)], None if item_BC is None else item_BC[i : i + rows]
            )
            for i in range(0, max(1, len(query)), rows)
        ]
        return torch.cat(out)

    def _score_rows(self, query: Query, item_BC: Tensor | None) -> Tensor:
        item_BL, behaviour_BL = (
            query.item_BL[:, -self.history :],
            query.behaviour_BL[:, -self.history :],
        )
        strong_BL = torch.isin(behaviour_BL, torch.tensor(self.strong, device=item_BL.device))
        # counted from the right end of the row, so that padding cannot change it
        step_BL = (
            torch.arange(
                self.history - item_BL.shape[1], self.history, device=item_BL.device
            ).expand_as(item_BL)
            + 1
        )
        s_BV = self.prior_V.new_zeros(len(item_BL), len(self.prior_V))
        s_BV.scatter_reduce_(1, item_BL, step_BL.to(s_BV), "amax")
        # amax with the event's own step leaves weaker events alone and lifts strong ones above every step
        taken_BL = torch.where(strong_BL, self.history + 1, step_BL)
        taken_BV = (
            torch.zeros_like(s_BV).scatter_reduce_(1, item_BL, taken_BL.to(s_BV), "amax")
            > self.history
        )
        s_BV = s_BV.masked_fill(taken_BV, 0.0) + self.prior_V
        return s_BV[:, 1:] if item_BC is None else s_BV.gather(1, item_BC)
