"""Attention whose weights come from several sources and whose values from one (DIF-SR).

Xie et al. 2022, sec. 3.3, arXiv:2204.11046; authors' code https://github.com/AIM-SE/DIF-SR.

Extra shape symbols: H heads, Q query rows, L key rows, d = width / H, S sources with the items.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recexp.errors import RecexpError
from recexp.nn.attention import attend
from recexp.nn.dropout import Dropout, dropout
from recexp.nn.gelu import gelu_linear
from recexp.nn.init import bert_init
from recexp.nn.parameters import checked_rate, one_of
from recexp.nn.transformer import select_rows

ScoreFusionKind = Literal["add", "concat", "gating"]
EPS = 1e-12


class ScoreFusion(nn.Module):
    """Scores of S sources, each broadcastable to [B, H, Q, L], to one [B, H, Q, L].

    kind: "add" sums them. "concat" is a linear map of the rows [s_1; ...; s_S] to L numbers.
    "gating" is sum_i G_i s_i with G = softmax over i of w . ReLU(W s_i + c), one per row of scores.
    max_len: the most key rows. Scores of keys that a row may not attend to must be 0.
    """

    def __init__(self, kind: ScoreFusionKind, n_sources: int, max_len: int):
        super().__init__()
        self.kind = one_of("fusion", kind, ScoreFusionKind)
        self.max_len = max_len
        if kind == "concat":
            self.mix = nn.Linear(n_sources * max_len, max_len)
        elif kind == "gating":
            self.hidden = nn.Linear(max_len, max_len)
            self.gate = nn.Linear(max_len, 1, bias=False)
        bert_init(self)

    def forward(self, scores: Sequence[Tensor]) -> Tensor:
        if self.kind == "add":
            return sum(scores[1:], scores[0])
        length = scores[0].shape[-1]
        if self.kind == "concat":
            parts = self.mix.weight[:length].split(self.max_len, dim=1)
            mixed = [F.linear(s, w[:, :length]) for s, w in zip(scores, parts, strict=True)]
            return sum(mixed[1:], mixed[0] + self.mix.bias[:length])
        weight = self.hidden.weight[:, :length]
        logits = [self.gate(F.linear(s, weight, self.hidden.bias).relu()) for s in scores]
        gates = torch.cat(torch.broadcast_tensors(*logits), -1).softmax(-1)  # [B, H, Q, S]
        return sum(g * s for g, s in zip(gates.split(1, -1), scores, strict=True))


class DecoupledAttention(nn.Module):
    """Causal multi-head attention: softmax(F(q_1 k_1^T, ..., q_S k_S^T) / sqrt(d)) v.

    Source 1 is the items' vectors, of which v is a map, too. The others, such as positions and
    attributes, have no values. Rows may attend to themselves and to those before them.

    widths: of the other sources. fusion: F, see ``ScoreFusion``. dropout: of the weights.
    Keys have no bias, which changes no "add" and, in the other fusions, adds one number to a row.
    Raises RecexpError where n_heads does not divide a width.
    """

    def __init__(
        self,
        width: int,
        n_heads: int,
        widths: Sequence[int],
        *,
        fusion: ScoreFusionKind,
        max_len: int,
        dropout: float = 0.0,
    ):
        super().__init__()
        if wrong := [w for w in (width, *widths) if n_heads < 1 or w % n_heads]:
            raise RecexpError(
                f"n_heads={n_heads} does not divide the width {wrong[0]} of n_factors or "
                "n_side_factors: choose another of the two."
            )
        self.n_heads = n_heads
        self.p = checked_rate(dropout, "attention_dropout")
        self.queries = nn.ModuleList(nn.Linear(w, w) for w in (width, *widths))
        self.keys = nn.ModuleList(nn.Linear(w, w, bias=False) for w in (width, *widths))
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.fusion = ScoreFusion(fusion, 1 + len(widths), max_len)

    def forward(
        self, x_BLD: Tensor, others: Sequence[Tensor], at_BM: Tensor | None = None
    ) -> Tensor:
        """[B, L, D], or [B, M, D] of the rows at_BM.

        others: the other sources, [B, L, width] or, common to all rows of the batch, [1, L, width].
        """
        length = x_BLD.shape[1]
        row_L = torch.arange(length, device=x_BLD.device)
        row = row_L[:, None] if at_BM is None else at_BM[:, None, :, None]
        allowed = row_L <= row  # [L, L] or [B, 1, M, L]
        queries = []
        keys = []
        sources = (x_BLD, *others)
        for source, query, key in zip(sources, self.queries, self.keys, strict=True):
            rows = source
            if at_BM is not None:
                rows = select_rows(source.expand(x_BLD.shape[0], -1, -1), at_BM)
            queries.append(self._heads(query(rows)))
            keys.append(self._heads(key(source)))
        v_BHLd = self._heads(self.value(x_BLD))
        if self.fusion.kind == "add":
            heads_BHQd = self._add(queries, keys, v_BHLd, allowed)
        else:
            weights_BHQL = self._weights(queries, keys, allowed)
            heads_BHQd = weights_BHQL.to(v_BHLd.dtype) @ v_BHLd
        return self.output(heads_BHQd.transpose(1, 2).flatten(-2))

    def _add(
        self, queries: list[Tensor], keys: list[Tensor], v_BHLd: Tensor, allowed: Tensor
    ) -> Tensor:
        """A sum of products of vectors is the product of the vectors one after another."""
        n_rows = v_BHLd.shape[0]
        q = torch.cat([q.expand(n_rows, -1, -1, -1) for q in queries], -1)
        k = torch.cat([k.expand(n_rows, -1, -1, -1) for k in keys], -1)
        scale = (q.shape[-1] / v_BHLd.shape[-1]) ** 0.5  # attend divides by the whole width's root
        mask = allowed if allowed.dim() == 4 else allowed[None, None]
        return attend(q * scale, k, v_BHLd, mask, self.p if self.training else 0.0)

    def _weights(self, queries: list[Tensor], keys: list[Tensor], allowed: Tensor) -> Tensor:
        """The attention weights [B, H, Q, L], with dropout."""
        scale = queries[0].shape[-1] ** -0.5
        scores = []
        for q, k in zip(queries, keys, strict=True):
            # Without this a row would learn from the gate what comes after it.
            scores.append((q @ k.transpose(-1, -2)).masked_fill(~allowed, 0.0))
        fused = self.fusion(scores).masked_fill(~allowed, -torch.inf)
        weights = (scale * fused).softmax(-1)
        return dropout(weights, self.p) if self.training else weights

    def _heads(self, x_BLD: Tensor) -> Tensor:
        """[B, L, D] -> [B, H, L, d]"""
        return x_BLD.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)


class DecoupledLayer(nn.Module):
    """``DecoupledAttention`` and a feed-forward net with GELU, each LN(x + Drop(f(x))).

    n_inner: inner width of the feed-forward net, 4 * width where None. Other parameters: see
    ``DecoupledAttention``.
    """

    def __init__(
        self,
        width: int,
        n_heads: int,
        widths: Sequence[int],
        *,
        fusion: ScoreFusionKind,
        max_len: int,
        n_inner: int | None,
        dropout: float,
        attention_dropout: float,
    ):
        super().__init__()
        self.attention = DecoupledAttention(
            width, n_heads, widths, fusion=fusion, max_len=max_len, dropout=attention_dropout
        )
        self.norm1 = nn.LayerNorm(width, EPS)
        self.norm2 = nn.LayerNorm(width, EPS)
        self.inner = nn.Linear(width, n_inner or 4 * width)
        self.outer = nn.Linear(n_inner or 4 * width, width)
        self.dropout = Dropout(dropout)

    def forward(
        self, x_BLD: Tensor, others: Sequence[Tensor], at_BM: Tensor | None = None
    ) -> Tensor:
        """[B, L, D], or [B, M, D] of the rows at_BM. others: see ``DecoupledAttention``."""
        attended = self.attention(x_BLD, others, at_BM)
        rows = x_BLD if at_BM is None else select_rows(x_BLD, at_BM)
        h = self.norm1(rows + self.dropout(attended))
        return self.norm2(h + self.dropout(gelu_linear(self.inner(h), self.outer)))
