"""The Transformer layer of BERT4Rec (Sun et al. 2019, eq. 1-6, arXiv:1904.06690) and positions."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recexp.errors import RecexpError
from recexp.nn.attention import MultiHeadAttention
from recexp.nn.dropout import Dropout
from recexp.nn.gelu import gelu_linear
from recexp.nn.parameters import one_of

NormPlace = Literal["post", "pre", "none"]
NormKind = Literal["variance", "std"]
Activation = Literal["gelu", "gelu_tanh"]
PositionSide = Literal["left", "right"]
Positions = Literal["left", "right", "none"]
STD_EPS = 1e-6


class StdNorm(nn.Module):
    """(x - mean) / (std + 1e-6) * weight + bias over the last dimension, the std with n - 1.

    The layer norm of BERT4Rec-VAE-Pytorch, https://github.com/jaywonchung/BERT4Rec-VAE-Pytorch;
    torch's divides by sqrt(variance + eps), the variance with n. Raises RecexpError for width 1.
    """

    def __init__(self, width: int):
        super().__init__()
        if width < 2:
            raise RecexpError("layer_norm=std needs n_factors of at least 2.")
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        std, mean = torch.std_mean(x, -1, keepdim=True)
        return (x - mean) / (std + STD_EPS) * self.weight + self.bias


def make_norm(kind: str, width: int, eps: float) -> nn.Module:
    """torch's layer norm ("variance") with this epsilon, or ``StdNorm`` ("std")."""
    one_of("layer_norm", kind, NormKind)
    return StdNorm(width) if kind == "std" else nn.LayerNorm(width, eps)


class TransformerLayer(nn.Module):
    """Attention and a feed-forward net with GELU, each a residual step.

    n_inner: inner width of the feed-forward net, 4 D where None.
    norm: "post" is LN(x + Drop(f(x))), "pre" is x + Drop(f(LN(x))), "none" is x + Drop(f(x)).
    residual: where false, a step is Drop(f(x)) without "x +".
    ffn: where false, the layer is attention alone. Both are ablations of BERT4Rec's Table 5.
    layer_norm, eps: see ``make_norm``.
    activation: "gelu" computes it exactly, by erf; "gelu_tanh" approximates it by tanh.
    more_dropout: adds dropout after the activation and on the layer's output.
    """

    def __init__(
        self,
        width: int,
        n_heads: int,
        *,
        n_inner: int | None = None,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        norm: str = "post",
        residual: bool = True,
        ffn: bool = True,
        eps: float = 1e-12,
        layer_norm: str = "variance",
        activation: str = "gelu",
        more_dropout: bool = False,
    ):
        super().__init__()
        self.norm = one_of("norm", norm, NormPlace)
        self.residual = residual
        one_of("activation", activation, Activation)
        self.approximate = "tanh" if activation == "gelu_tanh" else "none"
        self.attention = MultiHeadAttention(width, n_heads, dropout=attention_dropout)
        self.norm1 = nn.Identity() if norm == "none" else make_norm(layer_norm, width, eps)
        if ffn:
            self.inner = nn.Linear(width, n_inner or 4 * width)
            self.outer = nn.Linear(n_inner or 4 * width, width)
            self.norm2 = nn.Identity() if norm == "none" else make_norm(layer_norm, width, eps)
        self.ffn = ffn
        self.dropout = Dropout(dropout)
        self.second_dropout = self.dropout if more_dropout else nn.Identity()

    def forward(
        self,
        x_BLD: Tensor,
        mask: Tensor,
        query_key_BLD: Tensor | None = None,
        at: slice | Tensor | None = None,
    ) -> Tensor:
        """The layer's output [B, L, D], or [B, M, D] of the rows ``at``.

        x_BLD: feeds the values and the residual.
        mask: bool, broadcast to [B, H, L, L]; True where attending is allowed.
        query_key_BLD: feeds queries and keys; x_BLD where None. NOVA-BERT gives another one.
        at: compute these rows only: a slice, or int64 [B, M]. They equal those among all rows.
        """
        value_BLD = self.norm1(x_BLD) if self.norm == "pre" else x_BLD
        key_BLD = value_BLD if query_key_BLD is None else query_key_BLD
        query = key_BLD
        if at is not None:
            x_BLD = select_rows(x_BLD, at)  # [B, M, D]
            query = select_rows(query, at)  # [B, M, D]
            if mask.shape[-2] > 1:
                mask = select_rows(mask[:, 0], at)[:, None]
        h = self._step(x_BLD, self.attention(query, key_BLD, value_BLD, mask), self.norm1)
        if not self.ffn:
            return self.second_dropout(h)
        z = self.norm2(h) if self.norm == "pre" else h
        return self.second_dropout(self._step(h, self._feed_forward(z), self.norm2))

    def _feed_forward(self, x: Tensor) -> Tensor:
        if isinstance(self.second_dropout, nn.Identity):
            return gelu_linear(self.inner(x), self.outer, self.approximate)
        z = F.gelu(self.inner(x), approximate=self.approximate)
        return self.outer(self.second_dropout(z))

    def _step(self, x: Tensor, change: Tensor, norm: nn.Module) -> Tensor:
        h = self.dropout(change)
        if self.residual:
            h = x + h
        return h if self.norm == "pre" else norm(h)


def select_rows(x_BLD: Tensor, at: slice | Tensor) -> Tensor:
    """Rows of every sequence, [B, M, D]: a slice of them, or int64 [B, M]."""
    if isinstance(at, slice):
        return x_BLD[:, at]
    return x_BLD.gather(1, at[..., None].expand(-1, -1, x_BLD.shape[-1]))


class PositionEmbedding(nn.Module):
    """Learned positions of left-padded histories, such that more padding changes nothing.

    side: "right" counts from the newest event, which has row max_len - 1; returns [L, D].
    "left" counts from the oldest event given, which has row 0, as in code that pads on the right;
    returns [B, L, D].
    """

    def __init__(self, max_len: int, width: int, side: str):
        super().__init__()
        self.side = one_of("positions", side, PositionSide)
        self.table = nn.Embedding(max_len, width)

    def forward(self, mask_BL: Tensor) -> Tensor:
        if self.side == "right":
            return self.table.weight[self.table.num_embeddings - mask_BL.shape[1] :]
        return self.table((mask_BL.cumsum(1) - 1).clamp(min=0))
