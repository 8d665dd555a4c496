"""A model of this package."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from recexp.contracts import Recommender
from recexp.types import Query, Schema


class HistoryMean(Recommender):
    """score = <mean of the vectors of the last max_len items, vector of the item>."""

    needs_user = False

    def __init__(
        self,
        schema: Schema,
        *,
        n_factors: Annotated[int, Field(ge=1)] = 64,
        max_len: Annotated[int, Field(ge=1)] = 20,
    ) -> None:
        super().__init__()
        self.history = max_len
        self.items = nn.Embedding(schema.V, n_factors, padding_idx=0)
        nn.init.normal_(self.items.weight[1:], std=0.01)

    def score(self, query: Query, item_BC: Tensor | None = None) -> Tensor:
        """Scores [B, C] of the candidates, [B, V-1] of all items where item_BC is None."""
        event_BL = query.item_BL[:, -self.history :]
        length_B1 = (event_BL != 0).sum(1, keepdim=True).clamp(min=1)
        mean_BD = self.items(event_BL).sum(1) / length_B1
        if item_BC is None:
            return mean_BD @ self.items.weight[1:].T
        return (self.items(item_BC) * mean_BD.unsqueeze(1)).sum(-1)

    def item_embeddings(self) -> Tensor:
        return self.items.weight[1:]
