"""Softmax cross-entropy over a whole catalogue without holding all logits at once.

Logits are computed in chunks that stay in the processor's cache, and the gradients beside the loss.
Against ``F.cross_entropy(F.linear(...))``:

    640 rows, 3 416 items, width 64           15.8 /  14.6 ms
    2 560 rows, 3 416 items, width 256       235.2 / 174.6 ms
    1 280 rows, 40 000 items, width 64       723.3 / 498.4 ms

torch 2.13's ``F.linear_cross_entropy`` takes 18.0, 251.8 and 790.6 ms for the three.
Measured by ``python tests/perf/kernels.py cross_entropy``.

Extra shape symbols: N positions with a target, V rows of the table given, here without padding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recexp.nn.cpu.sharded_cross_entropy import sharded_cross_entropy
from recexp.types import CatalogShard

CHUNK_BYTES = 4 * 2**20  # logits held at once on a CPU: about what stays in its cache
CHUNK_BYTES_CUDA = 512 * 2**20


def linear_cross_entropy(
    h_ND: Tensor, item_VD: Tensor | CatalogShard, bias_V: Tensor | None, target_N: Tensor
) -> Tensor:
    """Mean over N of -log softmax(h E^T + b)[target]; 0 where N is 0.

    item_VD: all items; or a process's share of them, of which target_N counts all.
    target_N: rows of item_VD. Value and gradients are exact. Under autocast the products are taken
    in its dtype; the loss is float32 at least.
    """
    device = h_ND.device.type
    if torch.is_autocast_enabled(device):
        h_ND = h_ND.to(torch.get_autocast_dtype(device))
    if isinstance(item_VD, CatalogShard):
        return sharded_cross_entropy(h_ND, item_VD, bias_V, target_N)
    return _LinearCrossEntropy.apply(h_ND, item_VD, bias_V, target_N)


class _LinearCrossEntropy(torch.autograd.Function):
    """Three matrix products, as many as the plain computation, and no logits kept.

    Products are taken in the dtype of h; softmax and sums over chunks in float32 at least.
    """

    @staticmethod
    def forward(
        ctx: Any, h_ND: Tensor, item_VD: Tensor, bias_V: Tensor | None, target_N: Tensor
    ) -> Tensor:
        with torch.autocast(h_ND.device.type, enabled=False):
            return _loss_and_gradients(ctx, h_ND, item_VD, bias_V, target_N)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scale = grad / ctx.n
        gradients = [
            None if gradient is None else (gradient * scale).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return *gradients, None


def _loss_and_gradients(
    ctx: Any, h_ND: Tensor, item_VD: Tensor, bias_V: Tensor | None, target_N: Tensor
) -> Tensor:
    """The loss; saves the gradients of h, items and bias in ctx, not yet divided by N."""
    n_rows = h_ND.shape[0]
    budget = CHUNK_BYTES_CUDA if h_ND.is_cuda else CHUNK_BYTES
    size = max(1, budget // (4 * item_VD.shape[0]))
    exact = torch.promote_types(h_ND.dtype, torch.float32)
    item = item_VD.to(h_ND.dtype)
    bias = None if bias_V is None else bias_V.to(exact)
    wants_h, wants_item, wants_bias = ctx.needs_input_grad[:3]
    d_h = torch.empty_like(h_ND) if wants_h else None
    d_item = torch.zeros_like(item, dtype=exact) if wants_item else None
    d_bias = torch.zeros_like(bias) if wants_bias and bias is not None else None

    total = h_ND.new_zeros((), dtype=exact)
    for start in range(0, n_rows, size):
        h = h_ND[start : start + size]
        target = target_N[start : start + size]
        logits = (h @ item.T).to(exact)
        if bias is not None:
            logits += bias
        loss, share = _softmax_in_place(logits, target)
        total += loss
        if not (wants_h or wants_item or wants_bias):
            continue
        # Gradient of the logits: softmax minus the one-hot target.
        share.scatter_add_(1, target[:, None], share.new_full((len(target), 1), -1.0))
        if d_bias is not None:
            d_bias += share.sum(0)
        share = share.to(h.dtype)
        if d_h is not None:
            torch.mm(share, item, out=d_h[start : start + size])
        if d_item is not None:
            _add_product(d_item, share.T, h)
    ctx.save_for_backward(d_h, d_item, d_bias)
    ctx.n = max(1, n_rows)
    ctx.dtypes = tuple(None if x is None else x.dtype for x in (h_ND, item_VD, bias_V))
    return total / ctx.n


def _softmax_in_place(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The summed loss of a chunk, and the softmax in the logits' memory.

    The largest share is 1 / sum exp(logit - largest), so the normalizer costs no second exponential
    and its logarithm is finite.
    """
    picked = logits.gather(1, target[:, None])
    largest = logits.amax(1, keepdim=True)
    share = torch.softmax(logits, 1, out=logits)
    loss = (largest - share.amax(1, keepdim=True).log() - picked).sum()
    return loss, share


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, in place where the dtypes agree."""
    if total.dtype == right.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
