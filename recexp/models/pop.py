"""POP: every user gets the items ordered by popularity."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from recexp.contracts import ClosedForm
from recexp.models.common import behavior_codes, select_events
from recexp.types import Query, Schema

if TYPE_CHECKING:
    from recexp.data.store import Store


class Pop(ClosedForm):
    """score(i) = number of training events of item i, the same for all users.

    behaviors: which events count: names of behaviors, "explicit" (those that the data set calls
        explicit), "strongest", or None for all.

    POP is the unpersonalized baseline of Sun et al. 2019 (BERT4Rec), arXiv:1904.06690.
    """

    needs_user = False
    n_passes = 1
    count_V: Tensor

    def __init__(self, schema: Schema, *, behaviors: list[str] | str | None = None) -> None:
        super().__init__()
        self.codes = behavior_codes(schema, behaviors)
        self.register_buffer("count_V", torch.zeros(schema.V))

    def fit_pass(self, store: Store) -> dict[str, float]:
        """Count the training events of every item."""
        _, item_E = select_events(store, self.codes)
        self.count_V.copy_(torch.bincount(item_E, minlength=len(self.count_V)))
        return {"events": float(len(item_E))}

    def score(self, query: Query, item_BC: Tensor | None = None) -> Tensor:
        if item_BC is None:
            return self.count_V[1:].expand(query.user_B.shape[0], -1)
        return self.count_V[item_BC]
