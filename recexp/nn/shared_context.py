"""Transformer over rows [user; history; candidate] for many candidates that share user and history.

Attending to m shared keys and one more is a rank-one update of attending to the m keys alone. With
the context's output O and log normalizer log Z, and the new key's logit s and value v,

    softmax over m + 1 keys = (1 - g) O + g v,   g = sigmoid(s - log Z),

which is exact and never overflows. So the first layer projects the context once per row instead of
once per candidate, and the last layer computes only the user's row. Rows have no positions.

Extra shape symbols: m context rows (user first), N = m + 1 rows, h heads, d = D / h.
"""

from __future__ import annotations

import math
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recexp.errors import RecexpError
from recexp.nn.attention import attend
from recexp.nn.dropout import Dropout
from recexp.nn.gelu import gelu_linear
from recexp.nn.parameters import one_of

NormPlace = Literal["post", "pre"]


class SharedContextLayer(nn.Module):
    """One Transformer layer with exact GELU, inner width 4 D and norm "post" or "pre".

    Post-norm as in the ITE paper, eq. 1-3 and 12, and in BERT4Rec, eq. 1-6 (arXiv:1904.06690).
    Keys have no bias: it would add the same number to every logit of a softmax.

    ``forward`` is the plain layer. ``expand``, ``read_shared`` and ``read`` compute the rows that
    are needed, with what the candidates share computed once. Under attention dropout the context's
    weights have one mask, shared by all candidates of a row.
    """

    def __init__(
        self,
        width: int,
        n_heads: int,
        *,
        norm: str = "post",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ):
        super().__init__()
        self.n_heads = n_heads
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
        """All rows of one sequence each, [B, N, D].

        mask_BN: True where a row may be attended to, at least once per sequence.
        """
        z_BND = self._input(x_BND)
        q_BhNd = self._heads(self.query(z_BND)).transpose(1, 2)
        k_BhNd = self._heads(self.key(z_BND)).transpose(1, 2)
        v_BhNd = self._heads(self.value(z_BND)).transpose(1, 2)
        p = self.attention_dropout.p if self.training else 0.0
        out_BhNd = attend(q_BhNd, k_BhNd, v_BhNd, mask_BN[:, None, None, :], p)
        return self._finish(x_BND, out_BhNd.transpose(1, 2).flatten(-2))

    def expand(self, x_BmD: Tensor, mask_Bm: Tensor, e_BCD: Tensor) -> Tensor:
        """Rows [context; candidate] of every candidate after this layer, [B, C, m+1, D]."""
        x = self._input(x_BmD)
        e = self._input(e_BCD)
        q_Bhmd, k_Bhmd, v_Bhmd = self._projections(x)
        q_BhCd, k_BhCd, v_BhCd = self._projections(e)
        blocked = ~mask_Bm[:, None, None, :]

        # Context rows attend to the context, computed once, and then to the candidate.
        logits_Bhmm = (q_Bhmd @ k_Bhmd.transpose(-1, -2)).masked_fill(blocked, -math.inf)
        shared_Bhmd = self.attention_dropout(logits_Bhmm.softmax(-1)) @ v_Bhmd
        log_z_Bhm = logits_Bhmm.logsumexp(-1)
        g_BhCm = (k_BhCd @ q_Bhmd.transpose(-1, -2) - log_z_Bhm[:, :, None, :]).sigmoid()
        old_BCmh = (1 - g_BhCm).permute(0, 2, 3, 1)
        new_BCmh = self.attention_dropout(g_BhCm).permute(0, 2, 3, 1)
        context_BCmhd = torch.addcmul(
            old_BCmh[..., None] * shared_Bhmd.transpose(1, 2)[:, None],
            new_BCmh[..., None],
            v_BhCd.transpose(1, 2)[:, :, None],
        )

        # The candidate's row attends to the context and then to itself: the same update.
        logits_BhCm = (q_BhCd @ k_Bhmd.transpose(-1, -2)).masked_fill(blocked, -math.inf)
        own_BhC = (q_BhCd * k_BhCd).sum(-1)
        g_BhC1 = (own_BhC - logits_BhCm.logsumexp(-1)).sigmoid()[..., None]
        old_BhCd = (1 - g_BhC1) * (self.attention_dropout(logits_BhCm.softmax(-1)) @ v_Bhmd)
        candidate_BhCd = old_BhCd + self.attention_dropout(g_BhC1) * v_BhCd

        candidate_BC1hd = candidate_BhCd.transpose(1, 2)[:, :, None]
        attended_BCND = torch.cat([context_BCmhd, candidate_BC1hd], 2).flatten(-2)
        return self._finish(join_rows(x_BmD, e_BCD.expand(x_BmD.shape[0], -1, -1)), attended_BCND)

    def read_shared(self, x_BmD: Tensor, mask_Bm: Tensor, e_BCD: Tensor) -> Tensor:
        """The user's row, row 0 of the context, for every candidate after this layer: [B, C, D].

        Takes O(C D^2) operations per row of the batch.
        """
        x = self._input(x_BmD)
        e = self._input(e_BCD)
        folded_BhD = self._folded_query(x[:, :1])[:, 0]
        logits_Bhm = folded_BhD @ x.transpose(-1, -2)
        logits_Bhm = logits_Bhm.masked_fill(~mask_Bm[:, None, :], -math.inf)
        shared_Bhd = self._values(self.attention_dropout(logits_Bhm.softmax(-1)), x)
        log_z_Bh = logits_Bhm.logsumexp(-1)
        g_BCh = (e @ folded_BhD.transpose(-1, -2) - log_z_Bh[:, None, :]).sigmoid()
        g_BCh1 = g_BCh[..., None]
        old_BChd = (1 - g_BCh1) * shared_Bhd[:, None]
        out_BChd = old_BChd + self.attention_dropout(g_BCh1) * self._heads(self.value(e))
        return self._finish(x_BmD[:, :1], out_BChd.flatten(-2))

    def read(self, x_BCND: Tensor, mask_BN: Tensor) -> Tensor:
        """Row 0 of every sequence after this layer, [B, C, D].

        Neither keys nor values of the other rows are materialized.
        """
        x = self._input(x_BCND)
        logits_BChN = self._folded_query(x[:, :, 0]) @ x.transpose(-1, -2)
        logits_BChN = logits_BChN.masked_fill(~mask_BN[:, None, None, :], -math.inf)
        weights_BChN = self.attention_dropout(logits_BChN.softmax(-1))
        return self._finish(x_BCND[:, :, 0], self._values(weights_BChN, x).flatten(-2))

    def _input(self, x: Tensor) -> Tensor:
        return self.norm1(x) if self.pre else x

    def _heads(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., h, d]"""
        return x.unflatten(-1, (self.n_heads, -1))

    def _projections(self, x_BND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled queries, keys and values per head, each [B, h, N, d]."""
        query = self._heads(self._scaled_query(x_BND)).transpose(1, 2)
        key = self._heads(self.key(x_BND)).transpose(1, 2)
        value = self._heads(self.value(x_BND)).transpose(1, 2)
        return query, key, value

    def _scaled_query(self, x: Tensor) -> Tensor:
        return self.query(x) * math.sqrt(self.n_heads / x.shape[-1])

    def _folded_query(self, x: Tensor) -> Tensor:
        """Queries times W_K^T per head, [..., h, D].

        Their inner product with a row that was not projected is the attention logit.
        """
        return torch.einsum(
            "...hd,hde->...he",
            self._heads(self._scaled_query(x)),
            self.key.weight.unflatten(0, (self.n_heads, -1)),
        )

    def _values(self, weights: Tensor, x: Tensor) -> Tensor:
        """sum_n weights[..., h, n] value(x[..., n, :]) per head, [..., h, d].

        Averages the rows first and projects the average.
        """
        matrix_hdD = self.value.weight.unflatten(0, (self.n_heads, -1))
        bias_hd = self.value.bias.unflatten(0, (self.n_heads, -1))
        # Under dropout the weights do not sum to 1, so the bias is weighted by their sum.
        projected = torch.einsum("...he,hde->...hd", weights @ x, matrix_hdD)
        return projected + weights.sum(-1, keepdim=True) * bias_hd

    def _finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Output map, residual steps and feed-forward net, from the heads' outputs [..., D]."""
        x = x + self.dropout(self.out(attended))
        if self.pre:
            return x + self._feed_forward(self.norm2(x))
        x = self.norm1(x)
        return self.norm2(x + self._feed_forward(x))

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.dropout(gelu_linear(self.inner(x), self.outer))


def join_rows(x_BmD: Tensor, e_BCD: Tensor) -> Tensor:
    """The sequences [context; candidate], [B, C, m+1, D]."""
    context_BCmD = x_BmD[:, None].expand(-1, e_BCD.shape[1], -1, -1)
    return torch.cat([context_BCmD, e_BCD[:, :, None]], 2)


class SharedContextTransformer(nn.Module):
    """Layers over [user; history; candidate]; returns the user's row after the last one.

    norm: "post" or "pre". brute_force: compute every row of every candidate's sequence, the
    reference that the shortcuts are tested against.
    Raises RecexpError where the heads do not divide the width.
    """

    def __init__(
        self,
        width: int,
        n_layers: int,
        n_heads: int,
        *,
        norm: str = "post",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        brute_force: bool = False,
    ):
        super().__init__()
        if n_layers < 1:
            raise RecexpError(f"n_layers={n_layers}: at least one layer is needed.")
        if n_heads < 1 or width % n_heads:
            raise RecexpError(
                f"n_factors={width} is not a multiple of n_heads={n_heads}; "
                "choose heads that divide the width."
            )
        one_of("norm", norm, NormPlace)
        self.layers = nn.ModuleList(
            SharedContextLayer(
                width, n_heads, norm=norm, dropout=dropout, attention_dropout=attention_dropout
            )
            for _ in range(n_layers)
        )
        self.brute_force = brute_force
        self.widest = 4 * width  # of a row's vectors, in the feed-forward nets

    @property
    def keeps_rows(self) -> bool:
        """Whether memory grows with candidates times rows rather than with candidates alone."""
        return self.brute_force or len(self.layers) > 1

    def forward(self, x_BmD: Tensor, mask_Bm: Tensor, e_BCD: Tensor | None = None) -> Tensor:
        """The user's state with each candidate in the sequence, [B, C, D].

        x_BmD: context rows, the user first; the user's mask must be True.
        e_BCD: candidates, [1, C, D] where all rows share them. None: the sequences are the context
            alone; returns [B, 1, D].
        """
        *front, last = cast(list[SharedContextLayer], list(self.layers))
        if e_BCD is None:
            for layer in front:
                x_BmD = layer(x_BmD, mask_Bm)
            return last.read(x_BmD[:, None], mask_Bm)
        mask_BN = F.pad(mask_Bm, (0, 1), value=True)
        if self.brute_force:
            x_BCND = join_rows(x_BmD, e_BCD.expand(x_BmD.shape[0], -1, -1))
            return _run_plain([*front, last], x_BCND, mask_BN)[:, :, 0]
        if not front:
            return last.read_shared(x_BmD, mask_Bm, e_BCD)
        x_BCND = front[0].expand(x_BmD, mask_Bm, e_BCD)
        return last.read(_run_plain(front[1:], x_BCND, mask_BN), mask_BN)


def _run_plain(layers: list[SharedContextLayer], x_BCND: Tensor, mask_BN: Tensor) -> Tensor:
    """The layers on every candidate's sequence, [B, C, N, D]."""
    n_candidates = x_BCND.shape[1]
    for layer in layers:
        x_FND = x_BCND.flatten(0, 1)  # F = B * C
        mask_FN = mask_BN.repeat_interleave(n_candidates, 0)
        x_BCND = layer(x_FND, mask_FN).unflatten(0, (-1, n_candidates))
    return x_BCND
