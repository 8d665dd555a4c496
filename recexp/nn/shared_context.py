"""Transformer over rows [user; history; candidate] for many candidates that share user and history.

Attending to m shared keys and one more is a rank-one update of attending to the m keys alone: with context output O,
log normaliser log Z, and the new key's logit s and value v,

    softmax over m + 1 keys = (1 - g) O + g v,   g = sigmoid(s - log Z),

which is exact and never overflows. So the first layer projects the context once per row instead of once per candidate,
and the last layer computes only the user's row (spec 6.4, methods 2 and 3). Rows have no positions.

Extra shape symbols: m context rows (user first), N = m + 1 rows, h heads, d = D / h.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recexp.errors import RecexpError
from recexp.nn.attention import attend
from recexp.nn.cpu.dropout import Dropout

NORMS = ("post", "pre")


class SharedContextLayer(nn.Module):
    """One layer: post-norm (S000 eq. 1-3, 12; S002 eq. 1-6) or pre-norm, exact GELU, inner width 4D.

    Keys carry no bias: it adds the same number to every logit of a softmax and would never get a gradient.
    ``forward`` is the plain layer; ``expand``, ``read_shared`` and ``read`` are the parts of it that sharing needs.
    Attention dropout draws one mask for the context's weights, shared by all candidates of a row.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        norm: str = "post",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.pre = norm == "pre"
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.inner = nn.Linear(width, 4 * width)
        self.outer = nn.Linear(4 * width, width)
        self.dropout = Dropout(dropout)
        self.attention_dropout = Dropout(attention_dropout)

    def forward(self, x_BND: Tensor, mask_BN: Tensor) -> Tensor:
        """All rows of one sequence each. mask: True where a row may be attended to, at least one per sequence."""
        z = self._input(x_BND)
        q, k, v = (self._heads(f(z)).transpose(1, 2) for f in (self.query, self.key, self.value))
        out = attend(
            q, k, v, mask_BN[:, None, None, :], self.attention_dropout.p if self.training else 0.0
        )
        return self._finish(x_BND, out.transpose(1, 2).flatten(-2))

    def expand(self, x_BmD: Tensor, mask_Bm: Tensor, e_BCD: Tensor) -> Tensor:
        """Rows [context; candidate] of every candidate after this layer, [B, C, m+1, D]."""
        x, e = self._input(x_BmD), self._input(e_BCD)
        q, k, v = (
            self._heads(f(x)).transpose(1, 2) for f in (self._scaled_query, self.key, self.value)
        )  # [B, h, m, d]
        qe, ke, ve = (
            self._heads(f(e)).transpose(1, 2) for f in (self._scaled_query, self.key, self.value)
        )  # [B, h, C, d]
        blocked = ~mask_Bm[:, None, None, :]
        a = (q @ k.transpose(-1, -2)).masked_fill(blocked, -math.inf)  # [B, h, m, m]
        shared = self.attention_dropout(a.softmax(-1)) @ v
        g = (ke @ q.transpose(-1, -2) - a.logsumexp(-1)[:, :, None, :]).sigmoid()  # [B, h, C, m]
        keep, new = (
            (1 - g).permute(0, 2, 3, 1),
            self.attention_dropout(g).permute(0, 2, 3, 1),
        )  # [B, C, m, h]
        context = torch.addcmul(
            keep[..., None] * shared.transpose(1, 2)[:, None],
            new[..., None],
            ve.transpose(1, 2)[:, :, None],
        )
        # The candidate's own row asks the context and itself: the same update.
        a = (qe @ k.transpose(-1, -2)).masked_fill(blocked, -math.inf)  # [B, h, C, m]
        g = ((qe * ke).sum(-1) - a.logsumexp(-1)).sigmoid()[..., None]
        candidate = (1 - g) * (self.attention_dropout(a.softmax(-1)) @ v) + self.attention_dropout(
            g
        ) * ve
        out = torch.cat([context, candidate.transpose(1, 2)[:, :, None]], 2).flatten(-2)
        rows = torch.cat(
            [
                x_BmD[:, None].expand(-1, out.shape[1], -1, -1),
                e_BCD.expand(len(out), -1, -1)[:, :, None],
            ],
            2,
        )
        return self._finish(rows, out)

    def read_shared(self, x_BmD: Tensor, mask_Bm: Tensor, e_BCD: Tensor) -> Tensor:
        """The user's row (row 0 of the context) for every candidate after this layer, [B, C, D]; O(C D^2) per row."""
        x, e = self._input(x_BmD), self._input(e_BCD)
        folded = self._folded_query(x[:, :1])[:, 0]  # [B, h, D]
        a = (folded @ x.transpose(-1, -2)).masked_fill(~mask_Bm[:, None, :], -math.inf)  # [B, h, m]
        shared = self._values(self.attention_dropout(a.softmax(-1)), x)  # [B, h, d]
        g = (e @ folded.transpose(-1, -2) - a.logsumexp(-1)[:, None, :]).sigmoid()[
            ..., None
        ]  # [B, C, h, 1]
        out = (1 - g) * shared[:, None] + self.attention_dropout(g) * self._heads(self.value(e))
        return self._finish(x_BmD[:, :1], out.flatten(-2))

    def read(self, x_BCND: Tensor, mask_BN: Tensor) -> Tensor:
        """Row 0 of every sequence after this layer, [B, C, D]. Neither keys nor values of the rows are materialised."""
        x = self._input(x_BCND)
        a = self._folded_query(x[:, :, 0]) @ x.transpose(-1, -2)  # [B, C, h, N]
        p = self.attention_dropout(a.masked_fill(~mask_BN[:, None, None, :], -math.inf).softmax(-1))
        return self._finish(x_BCND[:, :, 0], self._values(p, x).flatten(-2))

    def _input(self, x: Tensor) -> Tensor:
        return self.norm1(x) if self.pre else x

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1))

    def _scaled_query(self, x: Tensor) -> Tensor:
        return self.query(x) * math.sqrt(self.num_heads / x.shape[-1])

    def _folded_query(self, x: Tensor) -> Tensor:
        """Queries times W_K^T per head, [..., h, D]: their inner product with an unprojected row is the logit."""
        return torch.einsum(
            "...hd,hde->...he",
            self._heads(self._scaled_query(x)),
            self.key.weight.unflatten(0, (self.num_heads, -1)),
        )

    def _values(self, p: Tensor, x: Tensor) -> Tensor:
        """sum_n p[..., h, n] value(x[..., n, :]) per head, [..., h, d]: averages rows first, projects the average."""
        weight, bias = (
            self.value.weight.unflatten(0, (self.num_heads, -1)),
            self.value.bias.unflatten(0, (self.num_heads, -1)),
        )
        # Under dropout the weights do not sum to 1, so neither does their share of the bias.
        return torch.einsum("...he,hde->...hd", p @ x, weight) + p.sum(-1, keepdim=True) * bias

    def _finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.dropout(self.out(attended))
        if self.pre:
            return x + self._feed_forward(self.norm2(x))
        x = self.norm1(x)
        return self.norm2(x + self._feed_forward(x))

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.outer(F.gelu(self.inner(x))))


class SharedContextTransformer(nn.Module):
    """Layers over [user; history; candidate]; returns the user's row after the last one.

    brute_force: compute every row of every candidate's sequence (the reference the shortcuts are tested against).
    Raises RecexpError where the heads do not divide the width.
    """

    def __init__(
        self,
        width: int,
        num_layers: int,
        num_heads: int,
        *,
        norm: str = "post",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        brute_force: bool = False,
    ):
        super().__init__()
        if num_layers < 1:
            raise RecexpError(f"num_layers={num_layers}: at least one layer is needed.")
        if num_heads < 1 or width % num_heads:
            raise RecexpError(
                f"num_factors={width} is not a multiple of num_heads={num_heads}; choose heads that divide the width."
            )
        if norm not in NORMS:
            raise RecexpError(f"norm={norm!r} is not one of {', '.join(NORMS)}.")
        self.layers = nn.ModuleList(
            SharedContextLayer(
                width, num_heads, norm=norm, dropout=dropout, attention_dropout=attention_dropout
            )
            for _ in range(num_layers)
        )
        self.brute_force = brute_force

    @property
    def keeps_rows(self) -> bool:
        """Does memory grow with candidates times rows (or with candidates alone)?"""
        return self.brute_force or len(self.layers) > 1

    def forward(self, x_BmD: Tensor, mask_Bm: Tensor, e_BCD: Tensor | None = None) -> Tensor:
        """The user's state with each candidate in the sequence, [B, C, D]; without candidates [B, 1, D].

        x: context rows, the user first (its mask must be True). e may be [1, C, D] where all rows share candidates.
        """
        *front, last = self.layers
        if e_BCD is None:
            for layer in front:
                x_BmD = layer(x_BmD, mask_Bm)
            return last.read(x_BmD[:, None], mask_Bm)
        mask_BN = F.pad(mask_Bm, (0, 1), value=True)
        if self.brute_force:
            e_BCD = e_BCD.expand(len(x_BmD), -1, -1)
            x_BCND = torch.cat(
                [x_BmD[:, None].expand(-1, e_BCD.shape[1], -1, -1), e_BCD[:, :, None]], 2
            )
            return self._plain(self.layers, x_BCND, mask_BN)[:, :, 0]
        if not front:
            return last.read_shared(x_BmD, mask_Bm, e_BCD)
        x_BCND = front[0].expand(x_BmD, mask_Bm, e_BCD)
        return last.read(self._plain(front[1:], x_BCND, mask_BN), mask_BN)

    @staticmethod
    def _plain(layers: list[SharedContextLayer], x_BCND: Tensor, mask_BN: Tensor) -> Tensor:
        C = x_BCND.shape[1]
        for layer in layers:
            x_BCND = layer(x_BCND.flatten(0, 1), mask_BN.repeat_interleave(C, 0)).unflatten(
                0, (-1, C)
            )
        return x_BCND
