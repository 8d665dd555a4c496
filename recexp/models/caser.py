"""Caser: convolutional sequence embedding (Tang and Wang, WSDM 2018)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recexp.models.common import SequenceModel, checked_length, latest
from recexp.nn.dropout import Dropout
from recexp.nn.lookup import Embedding
from recexp.types import Query, Schema


class Caser(SequenceModel):
    """The last max_len items as a matrix, read by horizontal and vertical filters, and the user's vector (spec 4.7).

    One state per history, x = [z; p_u] of width 2 num_factors, that serves all targets of the window: ``encode`` returns
    [B, 1, 2D]. num_horizontal: filters per height 1..max_len (ReLU, the largest over time); num_vertical: filters over
    the whole window (no activation). Shorter histories are padded with item 0, whose vector is learned as in the
    authors' code.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        num_factors: int = 50,
        max_len: int = 5,
        num_horizontal: int = 16,
        num_vertical: int = 4,
        dropout: float = 0.5,
    ):
        super().__init__()
        self.history = self.max_len = checked_length(max_len)
        self.user = Embedding(schema.n_users, num_factors)
        self.item = Embedding(schema.V, num_factors)
        self.horizontal = nn.ModuleList(
            nn.Conv1d(num_factors, num_horizontal, height) for height in range(1, max_len + 1)
        )
        self.vertical = nn.Linear(max_len, num_vertical)
        self.dropout = Dropout(dropout)
        self.inner = nn.Linear(num_vertical * num_factors + num_horizontal * max_len, num_factors)
        self.output = Embedding(schema.V, 2 * num_factors)
        self.output_bias = nn.Parameter(torch.zeros(schema.V))
        for table in (self.user, self.item, self.output):
            nn.init.normal_(table.weight, std=1 / table.embedding_dim)

    def encode(self, query: Query, last_only: bool = False) -> Tensor:
        query = latest(query, self.max_len, least=self.max_len)
        e_BLD = self.item(query.item_BL)
        vertical = (self.vertical.weight @ e_BLD + self.vertical.bias[:, None]).flatten(
            1
        )  # [B, filters * D], one filter after the other
        pooled = [
            part.unflatten(1, (-1, conv.out_channels)).amax(1).relu()
            for conv, part in zip(self.horizontal, self._slide(e_BLD), strict=True)
        ]
        z_BD = self.inner(self.dropout(torch.cat([vertical, *pooled], -1))).relu()
        return torch.cat([z_BD, self.user(query.user_B)], -1)[:, None]

    def _slide(self, e_BLD: Tensor) -> list[Tensor]:
        """The horizontal filters of each height at all their places: [B, places * filters] per height.

        One product with the filters at every place, zero elsewhere: at most three times the operations, but many times as fast as convolutions this
        small.
        """
        L, padded, bias, size = self.max_len, [], [], []
        for conv in self.horizontal:
            height = conv.kernel_size[0]
            padded += [F.pad(conv.weight, (at, L - height - at)) for at in range(L - height + 1)]
            bias += [conv.bias] * (L - height + 1)
            size.append(conv.out_channels * (L - height + 1))
        return F.linear(
            e_BLD.flatten(1), torch.cat(padded).transpose(1, 2).flatten(1), torch.cat(bias)
        ).split(size, 1)

    def item_vectors(self, item: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if item is None:
            return self.output.weight[1:], self.output_bias[1:]
        return self.output(item), self.output_bias[item]
