"""MB-STR: a bidirectional Transformer whose weights depend on the behaviors of events."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from recexp.models.bert4rec import MaskedLength
from recexp.models.common import (
    BidirectionalModel,
    append_item,
    asked_code,
    checked_length,
    latest,
)
from recexp.nn.attention import key_mask
from recexp.nn.behavior_attention import STD, BehaviorExperts, PairLayer
from recexp.nn.dropout import Dropout
from recexp.nn.init import normal_embeddings
from recexp.nn.parameters import Depth, Rate, Width
from recexp.nn.transformer import select_rows
from recexp.types import Query, Schema

Experts = Annotated[int, Field(ge=1, le=1024)]


class MBSTR(BidirectionalModel):
    """States of masked items, by experts of the behavior that is asked for, against the item table.

    score_i = h . E_i, h = ``BehaviorExperts`` of the state of [MASK] (item V), which is appended to
    the history with the asked behavior. Inputs are item vectors alone: behaviors and relative
    positions act in the layers (``PairLayer``).

    n_factors: width D. n_inner: inner width of the feed-forward nets, 4 D where None.
    max_len: events that are read, [MASK] included.
    asked_behavior: of the events that scores are for: the name of a behavior, or "strongest".
    n_shared, n_own: experts that all behaviors share, and experts of each.

    Yuan et al. 2022 (MB-STR), SIGIR 2022; authors' code https://github.com/yuanenming/mb-str.
    """

    asks_behavior = True

    def __init__(
        self,
        schema: Schema,
        *,
        n_factors: Width = 64,
        n_layers: Depth = 2,
        n_heads: Width = 2,
        n_inner: Width | None = None,
        max_len: MaskedLength = 50,
        dropout: Rate = 0.1,
        asked_behavior: str = "strongest",
        n_shared: Experts = 3,
        n_own: Experts = 1,
    ):
        super().__init__()
        self.asked_code = asked_code(schema, asked_behavior)
        self.max_len = checked_length(max_len, least=2)
        self.history = max_len - 1  # the last place is that of [MASK]
        self.V = schema.V
        self.n_behaviors = len(schema.behaviors)
        self.item = nn.Embedding(schema.V + 1, n_factors, padding_idx=0)
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            PairLayer(n_factors, n_heads, self.n_behaviors, n_inner=n_inner, dropout=dropout)
            for _ in range(n_layers)
        )
        self.experts = BehaviorExperts(n_factors, self.n_behaviors, n_shared=n_shared, n_own=n_own)
        normal_embeddings(self.item, STD)
        for part in self.layers.modules():
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=STD)
                nn.init.zeros_(part.bias)

    def _encode(self, query: Query, at: slice | Tensor | None) -> Tensor:
        """At the rows ``at``; None: at all. Codes that the data do not have are unknown."""
        h = self.dropout(self.item(query.item_BL))
        code_BL = query.behavior_BL.masked_fill(query.behavior_BL > self.n_behaviors, 0)
        mask = key_mask(query.mask_BL)
        for i, layer in enumerate(self.layers):
            h = layer(h, code_BL, mask, at if i + 1 == len(self.layers) else None)
        if at is not None:
            code_BL = select_rows(code_BL[..., None], at)[..., 0]
        return self.experts(h, code_BL)

    def item_vectors(self, item: Tensor | None = None) -> tuple[Tensor, None]:
        return (self.item.weight[1 : self.V] if item is None else self.item(item)), None

    def score(self, query: Query, item_BC: Tensor | None = None) -> Tensor:
        asked = append_item(latest(query, self.history), self.V, self.asked_code)
        return super().score(asked, item_BC)
