"""Softmax cross-entropy over a whole catalogue without ever holding all logits."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_BYTES = 4 * 2**20  # logits held at once on a CPU: about what stays in cache
CHUNK_BYTES_CUDA = 512 * 2**20


class _LinearCrossEntropy(torch.autograd.Function):
    """Gradients are computed beside the loss, chunk by chunk: three matrix products, as many as the plain computation, and no logits kept.

    Products are taken in the precision of h, softmax and the sums over chunks in float32 at least.
    """

    @staticmethod
    def forward(
        ctx, h_ND: Tensor, item_VD: Tensor, bias_V: Tensor | None, target_N: Tensor
    ) -> Tensor:
        with torch.autocast(h_ND.device.type, enabled=False):
            return _LinearCrossEntropy._forward(ctx, h_ND, item_VD, bias_V, target_N)

    @staticmethod
    def _forward(
        ctx, h_ND: Tensor, item_VD: Tensor, bias_V: Tensor | None, target_N: Tensor
    ) -> Tensor:
        N, V = h_ND.shape[0], item_VD.shape[0]
        budget = CHUNK_BYTES_CUDA if h_ND.is_cuda else CHUNK_BYTES
        size = max(1, budget // (4 * V))
        exact = torch.promote_types(h_ND.dtype, torch.float32)
        item, bias = item_VD.to(h_ND.dtype), None if bias_V is None else bias_V.to(exact)
        total = h_ND.new_zeros((), dtype=exact)
        wanted = [ctx.needs_input_grad[i] for i in range(3)]
        dh = torch.empty_like(h_ND) if wanted[0] else None
        ditem = torch.zeros_like(item, dtype=exact) if wanted[1] else None
        dbias = torch.zeros_like(bias) if wanted[2] and bias is not None else None
        for start in range(0, N, size):
            h, target = h_ND[start : start + size], target_N[start : start + size]
            z = (h @ item.T).to(exact)
            if bias is not None:
                z += bias
            picked, largest = z.gather(1, target[:, None]), z.amax(1, keepdim=True)
            # In place, since the logits are not needed again. The largest share is 1 / sum exp(z - largest): it never vanishes.
            p = torch.softmax(z, 1, out=z)
            total += (largest - p.amax(1, keepdim=True).log() - picked).sum()
            if not any(wanted):
                continue
            p.scatter_add_(1, target[:, None], torch.full_like(picked, -1.0))
            if dbias is not None:
                dbias += p.sum(0)
            p = p.to(h.dtype)
            if dh is not None:
                torch.mm(p, item, out=dh[start : start + size])
            if ditem is not None and ditem.dtype == h.dtype:
                ditem.addmm_(p.T, h)
            elif ditem is not None:
                ditem += p.T @ h
        ctx.save_for_backward(dh, ditem, dbias)
        ctx.n = max(1, N)
        ctx.dtypes = tuple(None if x is None else x.dtype for x in (h_ND, item_VD, bias_V))
        return total / ctx.n

    @staticmethod
    def backward(ctx, grad: Tensor):
        scale = grad / ctx.n
        return *(
            None if g is None else (g * scale).to(dtype)
            for g, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ), None


def linear_cross_entropy(
    h_ND: Tensor, item_VD: Tensor, bias_V: Tensor | None, target_N: Tensor
) -> Tensor:
    """Mean over N of -log softmax(h E^T + b)[target]; target ids are 0..rows-1. Exact value and gradients; 0 where N is 0.

    Under autocast the products are taken in its dtype; the loss is float32 at least.
    """
    device = h_ND.device.type
    if torch.is_autocast_enabled(device):
        h_ND = h_ND.to(torch.get_autocast_dtype(device))
    return _LinearCrossEntropy.apply(h_ND, item_VD, bias_V, target_N)
