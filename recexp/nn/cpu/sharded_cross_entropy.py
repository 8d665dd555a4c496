"""Softmax cross-entropy over a catalog of which every process keeps a share of the items.

Every process gets the states of all processes and computes their logits for its own items. What
crosses the network are states and their gradients, 2 N D floats for each other process, and three
numbers per state, instead of the V D floats of the table.

Extra shape symbols: N own positions with a target, M positions of all processes, the same number
for each, with rows of zeros behind its own; v items that this process keeps.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from recexp.types import CatalogShard

CHUNK_BYTES = 4 * 2**20  # logits held at once on a CPU: about what stays in its cache
CHUNK_BYTES_CUDA = 512 * 2**20


def sharded_cross_entropy(
    h_ND: Tensor, shard: CatalogShard, bias_V: Tensor | None, target_N: Tensor
) -> Tensor:
    """As ``linear_cross_entropy`` of the whole catalog. Every process must call it.

    The gradients of the shard and the bias are sums over the losses of all processes, that of the
    bias for the shard's items only.
    """
    bias_v = None
    if bias_V is not None:
        bias_v = bias_V[shard.first : shard.first + len(shard.rows_vD)]
    loss: Tensor = _ShardedCrossEntropy.apply(h_ND, shard.rows_vD, bias_v, target_N, shard)
    return loss


class _ShardedCrossEntropy(torch.autograd.Function):
    """Logits are computed in chunks, and again in the backward pass: softmax needs all items.

    Products are taken in the dtype of h; softmax and sums over chunks in float32 at least.
    """

    @staticmethod
    def forward(
        ctx: Any,
        h_ND: Tensor,
        item_vD: Tensor,
        bias_v: Tensor | None,
        target_N: Tensor,
        shard: CatalogShard,
    ) -> Tensor:
        group = shard.group
        n = len(h_ND)
        most = torch.tensor(n, device=h_ND.device)
        dist.all_reduce(most, dist.ReduceOp.MAX, group=group)
        n_padding = int(most) - n
        h_MD = _of_all(F.pad(h_ND.detach(), (0, 0, 0, n_padding)), group)
        place_M = _of_all(F.pad(target_N, (0, n_padding), value=-1), group) - shard.first

        exact = torch.promote_types(h_ND.dtype, torch.float32)
        sum_M = torch.empty(len(h_MD), dtype=exact, device=h_ND.device)
        picked_M = torch.zeros_like(sum_M)
        with torch.autocast(h_ND.device.type, enabled=False):
            for rows, logits in _logits(h_MD, item_vD, bias_v):
                sum_M[rows] = logits.logsumexp(1)
                row_P, place_P = _owned(place_M[rows], logits.shape[1])
                picked_M[rows][row_P] = logits[row_P, place_P]
        largest_M = sum_M.clone()
        dist.all_reduce(largest_M, dist.ReduceOp.MAX, group=group)
        total_M = (sum_M - largest_M).exp()
        dist.all_reduce(total_M, group=group)
        dist.all_reduce(picked_M, group=group)
        log_sum_M = largest_M + total_M.log()

        first = group.rank() * int(most)
        own = slice(first, first + n)
        ctx.save_for_backward(h_MD, item_vD, bias_v, place_M, log_sum_M)
        ctx.group = group
        ctx.own = own
        return (log_sum_M[own] - picked_M[own]).sum() / max(1, n)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        h_MD, item_vD, bias_v, place_M, log_sum_M = ctx.saved_tensors
        n = ctx.own.stop - ctx.own.start
        # The weight of each row in the loss of its process; 0 for padding.
        weight_N = log_sum_M.new_zeros(len(h_MD) // ctx.group.size())
        weight_N[:n] = grad / max(1, n)
        weight_M = _of_all(weight_N, ctx.group)

        d_h_MD = torch.empty_like(h_MD)
        d_item = torch.zeros(item_vD.shape, dtype=log_sum_M.dtype, device=item_vD.device)
        d_bias = None if bias_v is None else torch.zeros_like(bias_v)
        item = item_vD.to(h_MD.dtype)
        with torch.autocast(h_MD.device.type, enabled=False):
            for rows, logits in _logits(h_MD, item_vD, bias_v):
                # Softmax minus the one-hot target, times the row's weight.
                share = logits.sub_(log_sum_M[rows, None]).exp_()
                row_P, place_P = _owned(place_M[rows], share.shape[1])
                share[row_P, place_P] -= 1
                share *= weight_M[rows, None]
                if d_bias is not None:
                    d_bias += share.sum(0)
                share = share.to(h_MD.dtype)
                d_h_MD[rows] = share @ item
                d_item += share.T @ h_MD[rows]
        # Every process has a part of the gradient of every state.
        parts = torch.empty_like(d_h_MD)
        dist.all_to_all_single(parts, d_h_MD, group=ctx.group)
        d_h_ND = parts.view(ctx.group.size(), -1, h_MD.shape[1]).sum(0)[:n]
        return d_h_ND, d_item.to(item_vD.dtype), d_bias, None, None


def _logits(h_MD: Tensor, item_vD: Tensor, bias_v: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
    """Rows and their logits [m, v], in float32 at least, a chunk at a time."""
    budget = CHUNK_BYTES_CUDA if h_MD.is_cuda else CHUNK_BYTES
    size = max(1, budget // (4 * len(item_vD)))
    exact = torch.promote_types(h_MD.dtype, torch.float32)
    item = item_vD.to(h_MD.dtype)
    for start in range(0, len(h_MD), size):
        rows = slice(start, start + size)
        logits = (h_MD[rows] @ item.T).to(exact)
        if bias_v is not None:
            logits += bias_v
        yield rows, logits


def _owned(place_m: Tensor, n_items: int) -> tuple[Tensor, Tensor]:
    """Rows [P] whose target is one of this process's items, and the places of their targets."""
    row_P = ((place_m >= 0) & (place_m < n_items)).nonzero().flatten()
    return row_P, place_m[row_P]


def _of_all(own: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The tensors of all processes, which have the same shape, behind each other."""
    parts = [torch.empty_like(own) for _ in range(group.size())]
    dist.all_gather(parts, own.contiguous(), group=group)
    return torch.cat(parts)
