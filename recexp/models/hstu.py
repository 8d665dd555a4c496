"""HSTU: sequential transduction units instead of Transformer layers."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from recexp.errors import RecexpError
from recexp.models.common import SequenceModel, checked_length, encode_by_length, latest
from recexp.nn.attention import causal_mask
from recexp.nn.dropout import Dropout
from recexp.nn.lookup import Embedding
from recexp.nn.parameters import Depth, Length, Rate, Width
from recexp.nn.relative import STD, RelativeBias, pointwise_attention, time_buckets
from recexp.nn.transformer import PositionEmbedding, PositionSide
from recexp.types import Query, Schema

EPS = 1e-6


class TransductionUnit(nn.Module):
    """x + W_o Drop(U * LN(A V)) + b, where U, V, Q, K = SiLU(LN(x) W), without affine norms.

    A = SiLU(Q K^T + relative bias) / max_len over the events up to each one.
    """

    def __init__(self, width: int, n_heads: int, max_len: int, dropout: float):
        super().__init__()
        if width % n_heads:
            raise RecexpError(
                f"n_heads={n_heads} does not divide the width n_factors={width}: "
                "choose another of the two."
            )
        self.n_heads = n_heads
        self.max_len = max_len
        self.uvqk = nn.Linear(width, 4 * width, bias=False)
        self.bias = RelativeBias(max_len)
        self.output = nn.Linear(width, width)
        self.dropout = Dropout(dropout)
        nn.init.normal_(self.uvqk.weight, std=STD)
        nn.init.xavier_uniform_(self.output.weight)

    def forward(self, x_BLD: Tensor, bucket_BLL: Tensor, mask: Tensor, last_only: bool) -> Tensor:
        """[B, L, D]; [B, 1, D] of the last position where last_only."""
        width = x_BLD.shape[-1:]
        u, v, q, k = F.silu(self.uvqk(F.layer_norm(x_BLD, width, eps=EPS))).chunk(4, -1)
        if last_only:
            x_BLD = x_BLD[:, -1:]
            u = u[:, -1:]
            q = q[:, -1:]
            bucket_BLL = bucket_BLL[:, -1:]
            mask = mask[..., -1:, :]
        heads_BHLd = pointwise_attention(
            self._heads(q),
            self._heads(k),
            self._heads(v),
            self.bias(bucket_BLL),
            mask,
            self.max_len,
        )
        a = F.layer_norm(heads_BHLd.transpose(1, 2).flatten(-2), width, eps=EPS)
        return x_BLD + self.output(self.dropout(u * a))

    def _heads(self, x_BLD: Tensor) -> Tensor:
        """[B, L, D] -> [B, H, L, d]"""
        return x_BLD.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)


class HSTU(SequenceModel):
    """Cosines of states and item vectors, divided by a temperature.

    Inputs are sqrt(D) E[item] + P[position]; score_i = cos(state, E[i]) / temperature.

    n_factors: width D. max_len: newest events that are read.
    temperature: at most 1; the smaller, the larger the differences between scores.
    positions: P counts from the oldest event read ("left", as the authors' right-padded code) or
        from the newest ("right").

    The authors' code takes the time between an event and the one to be predicted, which it knows;
    here it is the time between the events read.

    Zhai et al. 2024, sec. 3, arXiv:2402.17152; the settings of the authors' code for MovieLens,
    https://github.com/facebookresearch/generative-recommenders.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        n_factors: Width = 50,
        n_layers: Depth = 2,
        n_heads: Width = 1,
        max_len: Length = 200,
        dropout: Rate = 0.2,
        temperature: Annotated[float, Field(gt=0, le=1)] = 0.05,
        positions: PositionSide = "left",
    ):
        super().__init__()
        self.max_len = checked_length(max_len)
        self.history = max_len
        self.temperature = temperature
        self.item = Embedding(schema.V, n_factors, padding_idx=0)
        self.position = PositionEmbedding(max_len, n_factors, positions)
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            TransductionUnit(n_factors, n_heads, max_len, dropout) for _ in range(n_layers)
        )
        with torch.no_grad():
            nn.init.trunc_normal_(self.item.weight, std=STD, a=-2 * STD, b=2 * STD)[0] = 0
            std = n_factors**-0.5
            nn.init.trunc_normal_(self.position.table.weight, std=std, a=-2 * std, b=2 * std)

    def encode(self, query: Query, last_only: bool = False) -> Tensor:
        query = latest(query, self.max_len, least=1)
        return encode_by_length(
            lambda part, rows, at: self._encode(part, last_only), query, last_only
        )

    def _encode(self, query: Query, last_only: bool) -> Tensor:
        mask_BL = query.mask_BL
        h = self.item(query.item_BL) * self.item.embedding_dim**0.5 + self.position(mask_BL)
        h = self.dropout(h) * mask_BL[..., None]
        mask = causal_mask(mask_BL)
        bucket_BLL = time_buckets(query.time_BL)
        for i, layer in enumerate(self.layers):
            # The last layer computes the last position only, where only that is wanted.
            h = layer(h, bucket_BLL, mask, last_only and i + 1 == len(self.layers))
        return h

    def head(self, h: Tensor) -> Tensor:
        return F.normalize(h, dim=-1, eps=EPS) / self.temperature

    def item_vectors(self, item: Tensor | None = None) -> tuple[Tensor, None]:
        vectors = self.item.weight[1:] if item is None else self.item(item)
        return F.normalize(vectors, dim=-1, eps=EPS), None
