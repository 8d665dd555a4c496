"""BPR of inner products, with the gradients in closed form.

With x = p_u . (q_i - q_j) + b_i - b_j and the loss -log sigmoid(x), the gradients are
g (q_i - q_j) for p_u, g p_u for q_i and -g p_u for q_j, where g = -sigmoid(-x). Autograd would
keep the looked-up rows and add them to the gradients one by one, in random order. Here each row of
a gradient is one weighted sum of rows of the other table. One loss with its gradients, 65 536 pairs
of width 64 and tables of ML-1M's size: 30.3 / 11.8 ms.
Measured by ``python tests/perf/kernels.py bpr``.

Rendle et al. 2009 (BPR), arXiv:1205.2618, sec. 4.3.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

RADIX_SORTED = 2**15  # integers from which on torch sorts by radix sort
BLOCK = 2**17  # floats looked up at a time: half a megabyte, which stays in the cache


def factor_bpr(
    user: nn.Embedding, item: nn.Embedding, bias_V: Tensor | None, user_B: Tensor, item_BC: Tensor
) -> Tensor:
    """The mean of -log sigmoid(x) over B positives and the C - 1 negatives of each, a scalar.

    item_BC: int64, each row's positive in column 0. Row 0 of the item table is padding: no id may
    be 0. bias_V: a bias per item, or None. Gradients of a table are sparse where its ``sparse`` is
    set: they hold the rows of the batch.
    """
    loss: Tensor = _FactorBPR.apply(
        user.weight, item.weight, bias_V, user_B, item_BC, (user.sparse, item.sparse)
    )
    return loss


class _FactorBPR(torch.autograd.Function):
    """Gradients are computed with the loss and scaled in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        user_UD: Tensor,
        item_VD: Tensor,
        bias_V: Tensor | None,
        user_B: Tensor,
        item_BC: Tensor,
        sparse: tuple[bool, bool],
    ) -> Tensor:
        x_Bn = _margins(user_UD, item_VD, user_B, item_BC)
        if bias_V is not None:
            bias_BC = bias_V.index_select(0, item_BC.flatten()).view(item_BC.shape)
            x_Bn += bias_BC[:, :1] - bias_BC[:, 1:]
        loss = -F.logsigmoid(x_Bn).mean()

        # The loss's derivatives by the scores: g of a pair for the positive, -g for the negative.
        g_Bn = torch.sigmoid(-x_Bn).div_(-x_Bn.numel())
        d_score_BC = torch.cat([g_Bn.sum(1, keepdim=True), -g_Bn], 1)
        item_P = item_BC.flatten()
        owner_P = user_B[:, None].expand_as(item_BC).flatten()
        d_score_P = d_score_BC.flatten()
        ctx.shapes = user_UD.shape, item_VD.shape
        ctx.sums = (
            _row_sums(item_VD, user_B, item_BC, d_score_BC, len(user_UD), is_sparse=sparse[0]),
            _row_sums(user_UD, item_P, owner_P, d_score_P, len(item_VD), is_sparse=sparse[1]),
        )
        ctx.d_bias = None
        if bias_V is not None:
            ctx.d_bias = torch.zeros_like(bias_V).scatter_add_(0, item_P, d_score_P)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tables = []
        for (row_R, sum_RD), shape in zip(ctx.sums, ctx.shapes, strict=True):
            sum_RD *= grad
            if row_R is not None:
                sum_RD = torch.sparse_coo_tensor(
                    row_R[None], sum_RD, shape, is_coalesced=True, check_invariants=False
                )
            tables.append(sum_RD)
        d_bias = None if ctx.d_bias is None else ctx.d_bias.mul_(grad)
        # Gradients that something else holds would be copied.
        ctx.sums = None
        ctx.d_bias = None
        return *tables, d_bias, None, None, None


def _margins(user_UD: Tensor, item_VD: Tensor, user_B: Tensor, item_BC: Tensor) -> Tensor:
    """p_u . (q_i - q_j) of every negative, [B, n]."""
    x_Bn = user_UD.new_empty(len(user_B), item_BC.shape[1] - 1)
    size = max(1, BLOCK // user_UD.shape[1])
    sign_b2 = x_Bn.new_tensor([1, -1]).repeat(size, 1)
    for start in range(0, len(user_B), size):
        block = slice(start, start + size)
        user_bD = F.embedding(user_B[block], user_UD)
        positive_b, *negatives = item_BC[block].unbind(1)
        for n, negative_b in enumerate(negatives):
            # q_i - q_j as a sum of two weighted rows: neither is written on its own.
            difference_bD = F.embedding_bag(
                torch.stack([positive_b, negative_b], 1),
                item_VD,
                mode="sum",
                per_sample_weights=sign_b2[: len(user_bD)],
            )
            torch.sum(difference_bD.mul_(user_bD), 1, out=x_Bn[block, n])
    return x_Bn


def _row_sums(
    table_ND: Tensor, row_P: Tensor, source: Tensor, weight: Tensor, n_rows: int, *, is_sparse: bool
) -> tuple[Tensor | None, Tensor]:
    """Row r is the sum of weight * table[source] over the entries whose row is r.

    source, weight: [P], or [P, C] for C terms per entry. Returns None and all rows, [n_rows, D];
    where is_sparse, the distinct rows [R] of row_P and their sums [R, D].
    """
    order_P = _order(row_P, n_rows)
    row_R = None
    if is_sparse:
        row_R, n_entries_R = row_P.index_select(0, order_P).unique_consecutive(return_counts=True)
    else:
        n_entries_R = torch.bincount(row_P, minlength=n_rows)
    n_terms = source[0].numel()
    sum_RD = F.embedding_bag(
        source.index_select(0, order_P).flatten(),
        table_ND,
        (n_entries_R.cumsum(0) - n_entries_R) * n_terms,
        mode="sum",
        per_sample_weights=weight.index_select(0, order_P).flatten(),
    )
    return row_R, sum_RD


def _order(id_P: Tensor, n_ids: int) -> Tensor:
    """The order [P] that sorts the ids.

    On CPUs torch sorts RADIX_SORTED integers and more by radix sort, which takes a sixth of the
    time that half as many take. Ids that fit into 16 bits are padded by the largest integer.
    """
    if n_ids > 2**15:
        return id_P.to(torch.int32).argsort()
    short_P = id_P.to(torch.int16)
    if RADIX_SORTED // 8 < len(short_P) < RADIX_SORTED and short_P.device.type == "cpu":
        short_P = F.pad(short_P, (0, RADIX_SORTED - len(short_P)), value=2**15 - 1)
    return short_P.argsort(stable=True)[: len(id_P)]
