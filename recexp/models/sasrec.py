"""SASRec: self-attentive sequential recommendation (Kang and McAuley, ICDM 2018), block as the authors coded it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recexp.models.common import SequenceModel, by_length, checked_length, latest
from recexp.nn.attention import MultiHeadAttention, causal_mask
from recexp.nn.dropout import Dropout
from recexp.nn.lookup import Embedding
from recexp.nn.embeddings import one_of
from recexp.nn.init import xavier_linears
from recexp.nn.transformer import PositionEmbedding
from recexp.types import Query, Schema

RESIDUALS = ("normed", "plain")
EPS = 1e-8


class SASRecLayer(nn.Module):
    """Causal attention without an output map, then a feed-forward net of inner width D (spec 4.8).

    residual "normed", the authors' code: q = LN(x); y = Attn(q, x, x) + q; w = LN(y); w + FFN(w).
    residual "plain", the paper's text: y = x + Drop(Attn(q, q, q)); y + FFN(LN(y)).
    """

    def __init__(
        self, width: int, num_heads: int, *, dropout: float, attention_dropout: float, residual: str
    ):
        super().__init__()
        self.plain = residual == "plain"
        self.attention = MultiHeadAttention(
            width, num_heads, dropout=attention_dropout, output=False
        )
        self.norm1, self.norm2 = nn.LayerNorm(width, EPS), nn.LayerNorm(width, EPS)
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)
        self.dropout = Dropout(dropout)

    def forward(self, x_BLD: Tensor, mask: Tensor, last_only: bool = False) -> Tensor:
        if self.plain:
            q = key = self.norm1(x_BLD)
        else:
            q, key = self.norm1(x_BLD[:, -1:] if last_only else x_BLD), x_BLD
        if last_only:
            x_BLD, q, mask = x_BLD[:, -1:], q[:, -1:], mask[..., -1:, :]
        a = self.attention(q, key, key, mask)
        y = x_BLD + self.dropout(a) if self.plain else q + a
        w = self.norm2(y)
        change = self.dropout(self.outer(self.dropout(self.inner(w).relu())))
        return (y if self.plain else w) + change


class SASRec(SequenceModel):
    """States of a left-to-right Transformer against the item table, which is input and output at once.

    Inputs are sqrt(D) E[v_t] + P[t], zero at padding; P counts from the newest event. num_factors: width D.
    residual: see SASRecLayer. attention_dropout: as dropout where None.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        num_factors: int = 50,
        num_layers: int = 2,
        num_heads: int = 1,
        max_len: int = 200,
        dropout: float = 0.2,
        attention_dropout: float | None = None,
        residual: str = "normed",
    ):
        super().__init__()
        self.history = self.max_len = checked_length(max_len)
        one_of("residual", residual, RESIDUALS)
        self.item = Embedding(schema.V, num_factors, padding_idx=0)
        self.position = PositionEmbedding(max_len, num_factors, "right")
        self.dropout = Dropout(dropout)
        options = dict(
            dropout=dropout,
            attention_dropout=dropout if attention_dropout is None else attention_dropout,
            residual=residual,
        )
        self.layers = nn.ModuleList(
            SASRecLayer(num_factors, num_heads, **options) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(num_factors, EPS)
        # Glorot uniform everywhere is TensorFlow's default, which the authors' code keeps.
        xavier_linears(self)
        with torch.no_grad():
            nn.init.xavier_uniform_(self.position.table.weight)
            nn.init.xavier_uniform_(self.item.weight)[0] = 0

    def encode(self, query: Query, last_only: bool = False) -> Tensor:
        query = latest(query, self.max_len, least=1)
        return by_length(lambda part, rows, at: self._encode(part, last_only), query, last_only)

    def _encode(self, query: Query, last_only: bool) -> Tensor:
        mask_BL = query.mask_BL
        h = self.item(query.item_BL) * self.item.embedding_dim**0.5 + self.position(mask_BL)
        h = self.dropout(h) * mask_BL[..., None]
        mask = causal_mask(mask_BL)
        for i, layer in enumerate(self.layers):
            h = layer(h, mask, last_only=last_only and i + 1 == len(self.layers))
        return self.norm(h[:, -1:] if last_only else h)

    def item_vectors(self, item: Tensor | None = None) -> tuple[Tensor, None]:
        return (self.item.weight[1:] if item is None else self.item(item)), None
