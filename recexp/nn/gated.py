"""Transformer layers whose residual steps pass a gate, with a gated feed-forward net."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from recexp.nn.attention import MultiHeadAttention
from recexp.nn.dropout import Dropout

EPS = 1e-5


class SwiGLU(nn.Module):
    """W_2 (SiLU(W_1 x) * W_3 x) without biases, [..., D] -> [..., D]; dropout before W_2.

    Shazeer 2020, eq. 6, arXiv:2002.05202.
    """

    def __init__(self, width: int, n_inner: int, *, dropout: float = 0.0):
        super().__init__()
        self.gate = nn.Linear(width, n_inner, bias=False)
        self.inner = nn.Linear(width, n_inner, bias=False)
        self.outer = nn.Linear(n_inner, width, bias=False)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.dropout(F.silu(self.gate(x)) * self.inner(x)))


class GatedLayer(nn.Module):
    """The LiGR layer: x + sigma(W x + b) * Drop(f(LN(x))), with f attention, then SwiGLU.

    n_inner: inner width of the feed-forward net, 4 D where None.

    Borisyuk et al. 2025 (LiGR), arXiv:2502.03417, as eSASRec's authors code it.
    """

    def __init__(
        self,
        width: int,
        n_heads: int,
        *,
        n_inner: int | None = None,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, EPS)
        self.attention = MultiHeadAttention(width, n_heads, dropout=attention_dropout)
        self.gate1 = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, EPS)
        self.feed_forward = SwiGLU(width, n_inner or 4 * width, dropout=dropout)
        self.gate2 = nn.Linear(width, width)
        self.dropout = Dropout(dropout)

    def forward(self, x_BLD: Tensor, mask: Tensor, last_only: bool = False) -> Tensor:
        """[B, L, D]; [B, 1, D] of the last position where last_only."""
        key_BLD = self.norm1(x_BLD)
        query = key_BLD
        if last_only:
            x_BLD = x_BLD[:, -1:]
            query = query[:, -1:]
            mask = mask[..., -1:, :]
        attended = self.attention(query, key_BLD, key_BLD, mask)
        y = x_BLD + self.gate1(x_BLD).sigmoid() * self.dropout(attended)
        change = self.feed_forward(self.norm2(y))
        return y + self.gate2(y).sigmoid() * self.dropout(change)
