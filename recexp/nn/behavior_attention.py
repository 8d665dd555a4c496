"""Attention, feed-forward nets and a prediction head with weights of each behavior (MB-STR).

Yuan et al. 2022 (MB-STR), SIGIR 2022; what the paper leaves open is as in code derived from the
authors', https://github.com/yuanenming/mb-str.

Behavior codes are 1..K, 0 is unknown. The pair of the behaviors a and b of two events is
(a - 1) K + b, and 0 where one of them is unknown.

Extra shape symbols: H heads, Q query rows, d = D / H, P = K^2 + 1 pairs, X experts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from recexp.errors import RecexpError
from recexp.nn.dropout import Dropout
from recexp.nn.transformer import select_rows

N_BUCKETS = 32  # of relative positions, those of earlier events in the first half
MAX_DISTANCE = 40  # from here on all distances share a bucket
STD = 0.02


def pairs(query_BQ: Tensor, key_BL: Tensor, n_behaviors: int) -> Tensor:
    """The pair of the behaviors of each query row and each key, int64 [B, Q, L]."""
    pair_BQL = (query_BQ[:, :, None] - 1) * n_behaviors + key_BL[:, None]
    known_BQL = (query_BQ[:, :, None] != 0) & (key_BL[:, None] != 0)
    return torch.where(known_BQL, pair_BQL, 0)


def position_buckets(distance: Tensor) -> Tensor:
    """The bucket of each distance i - j between a query i and a key j, int64 of the same shape.

    Half of the buckets are for keys after the query; half of those, 8, have one distance each,
    the others grow with its logarithm (Raffel et al. 2020 (T5), arXiv:1910.10683).
    """
    half = N_BUCKETS // 2
    n_exact = half // 2
    size = distance.abs()
    growth = (size.clamp(min=1).double() / n_exact).log() / math.log(MAX_DISTANCE / n_exact)
    far = n_exact + (growth * (half - n_exact)).long()
    bucket = torch.where(size < n_exact, size, far.clamp(max=half - 1))
    return bucket + half * (distance < 0)


class PairAttention(nn.Module):
    """Attention whose maps depend on the behaviors of both events, [B, L, D] -> [B, Q, D].

    For heads of queries, keys and values by matrices of each event's own behavior:
    s_ij = q_i A_p k_j / sqrt(d) + r_p[bucket of i - j], p the pair of i and j,
    out_i = sum_j softmax_j(s_ij) v_j C_p, without a map after the heads.
    A_p = sum_m softmax_m(a_p) A_m is a mixture of K matrices of the head, and so is C_p.

    Raises RecexpError where n_heads does not divide width.
    """

    def __init__(self, width: int, n_heads: int, n_behaviors: int, *, dropout: float):
        super().__init__()
        if width % n_heads:
            raise RecexpError(
                f"n_heads={n_heads} does not divide the width n_factors={width}: "
                "choose another of the two."
            )
        self.n_heads = n_heads
        self.n_behaviors = n_behaviors
        d = width // n_heads
        K = n_behaviors
        n_pairs = K * K + 1
        self.query = nn.Parameter(STD * torch.randn(K + 1, width, width))
        self.key = nn.Parameter(STD * torch.randn(K + 1, width, width))
        self.value = nn.Parameter(STD * torch.randn(K + 1, width, width))
        self.match = nn.Parameter(torch.randn(K, n_heads, d, d))
        self.match_mix = nn.Parameter(torch.randn(n_pairs, K, n_heads))
        self.carry = nn.Parameter(torch.randn(K, n_heads, d, d))
        self.carry_mix = nn.Parameter(torch.randn(n_pairs, K, n_heads))
        self.position = nn.Parameter(torch.randn(n_pairs, N_BUCKETS, n_heads))
        self.dropout = Dropout(dropout)

    def forward(
        self, x_BLD: Tensor, code_BL: Tensor, mask: Tensor, at: slice | Tensor | None = None
    ) -> Tensor:
        """[B, L, D]; [B, Q, D] of the rows ``at``: a slice, or int64 [B, Q].

        mask: bool, broadcast to [B, H, L, L], the same for all query rows.
        """
        row_BL = torch.arange(code_BL.shape[1], device=code_BL.device).expand_as(code_BL)
        query_BQD = x_BLD
        query_code_BQ = code_BL
        row_BQ = row_BL
        if at is not None:
            query_BQD = select_rows(x_BLD, at)
            query_code_BQ = select_rows(code_BL[..., None], at)[..., 0]
            row_BQ = select_rows(row_BL[..., None], at)[..., 0]
        pair_BQL = pairs(query_code_BQ, code_BL, self.n_behaviors)
        bucket_BQL = position_buckets(row_BQ[:, :, None] - row_BL[:, None])

        q_BHQd = self._heads(query_BQD, query_code_BQ, self.query)
        k_BHLd = self._heads(x_BLD, code_BL, self.key)
        v_BHLd = self._heads(x_BLD, code_BL, self.value)
        q_BKHQd = torch.einsum("bhqd,khde->bkhqe", q_BHQd, self.match)
        s_BKHQL = q_BKHQd @ k_BHLd[:, None].transpose(-1, -2)
        s_BHQL = (s_BKHQL * _mixture(self.match_mix, pair_BQL)).sum(1)
        bias_BHQL = self.position[pair_BQL, bucket_BQL].permute(0, 3, 1, 2)
        s_BHQL = s_BHQL / math.sqrt(q_BHQd.shape[-1]) + bias_BHQL
        weight_BHQL = self.dropout(s_BHQL.masked_fill(~mask, -torch.inf).softmax(-1))
        v_BKHLd = torch.einsum("bhld,khde->bkhle", v_BHLd, self.carry)
        weight_BKHQL = weight_BHQL[:, None] * _mixture(self.carry_mix, pair_BQL)
        return (weight_BKHQL @ v_BKHLd).sum(1).transpose(1, 2).flatten(-2)

    def _heads(self, x_BLD: Tensor, code_BL: Tensor, weight: Tensor) -> Tensor:
        """x by the matrix of its behavior, [B, H, L, d]."""
        every_BLKD = torch.einsum("bld,kde->blke", x_BLD, weight)
        return of_code(every_BLKD, code_BL).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)


def _mixture(mix_PKH: Tensor, pair_BQL: Tensor) -> Tensor:
    """Shares of the K matrices for each pair of events, [B, K, H, Q, L]."""
    return mix_PKH.softmax(1)[pair_BQL].permute(0, 3, 4, 1, 2)


def of_code(x: Tensor, code: Tensor) -> Tensor:
    """x[..., code, :] of each event, [..., N, D] -> [..., D]."""
    index = code[..., None, None].expand(*code.shape, 1, x.shape[-1])
    return x.gather(-2, index)[..., 0, :]


class PairLayer(nn.Module):
    """Drop(LN(y + Drop(FFN_b(y)))), y = LN(x + Drop(PairAttention(x))).

    FFN_b is the feed-forward net with ReLU of the event's behavior b; 0 where it is unknown.
    """

    def __init__(
        self, width: int, n_heads: int, n_behaviors: int, *, n_inner: int | None, dropout: float
    ):
        super().__init__()
        self.attention = PairAttention(width, n_heads, n_behaviors, dropout=dropout)
        inner = n_inner or 4 * width
        self.inner = nn.ModuleList(nn.Linear(width, inner) for _ in range(n_behaviors))
        self.outer = nn.ModuleList(nn.Linear(inner, width) for _ in range(n_behaviors))
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = Dropout(dropout)

    def forward(
        self, x_BLD: Tensor, code_BL: Tensor, mask: Tensor, at: slice | Tensor | None = None
    ) -> Tensor:
        """[B, L, D]; [B, Q, D] of the rows ``at``."""
        change = self.attention(x_BLD, code_BL, mask, at)
        if at is not None:
            x_BLD = select_rows(x_BLD, at)
            code_BL = select_rows(code_BL[..., None], at)[..., 0]
        y = self.norm1(x_BLD + self.dropout(change))
        out = torch.zeros_like(y)
        for b, (inner, outer) in enumerate(zip(self.inner, self.outer, strict=True), start=1):
            out = out + (code_BL == b)[..., None] * outer(self.dropout(inner(y).relu()))
        return self.dropout(self.norm2(y + self.dropout(out)))


class BehaviorExperts(nn.Module):
    """h + LN(sum_x g_x E_x(h)), g = softmax(h G_b), of a state that predicts behavior b.

    The experts E are linear maps: those that all behaviors share, and those of b. The sum is 0
    where b is unknown.
    """

    def __init__(self, width: int, n_behaviors: int, *, n_shared: int, n_own: int):
        super().__init__()
        self.n_behaviors = n_behaviors
        self.shared = nn.Linear(width, n_shared * width)
        self.own = nn.Linear(width, n_behaviors * n_own * width)
        self.gate = nn.Parameter(torch.randn(n_behaviors, width, n_shared + n_own))
        self.norm = nn.LayerNorm(width)

    def forward(self, h: Tensor, code: Tensor) -> Tensor:
        """[..., D]. code: int64 [...]."""
        width = h.shape[-1]
        row = (code - 1).clamp(min=0)
        own = of_code(self.own(h).unflatten(-1, (self.n_behaviors, -1)), row)
        expert_XD = torch.cat([self.shared(h), own], -1).unflatten(-1, (-1, width))
        gate_X = of_code(torch.einsum("...d,kdx->...kx", h, self.gate), row).softmax(-1)
        mixed = (gate_X[..., None] * expert_XD).sum(-2)
        return h + self.norm(mixed * (code != 0)[..., None])
