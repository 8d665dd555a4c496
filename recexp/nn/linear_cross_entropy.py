"""Softmax cross-entropy over a whole catalogue without ever holding all logits."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_BYTES = 16 * 2**20  # logits held at once on a CPU: about what stays in cache
CHUNK_BYTES_CUDA = 512 * 2**20


class _LinearCrossEntropy(torch.autograd.Function):
    """Gradients are computed beside the loss, chunk by chunk: three matrix products, as many as the plain computation, and no logits kept."""

    @staticmethod
    def forward(ctx, h_ND: Tensor, item_VD: Tensor, bias_V: Tensor | None, target_N: Tensor) -> Tensor:
        N, V = h_ND.shape[0], item_VD.shape[0]
        budget = CHUNK_BYTES_CUDA if h_ND.is_cuda else CHUNK_BYTES
        size = max(1, budget // (4 * V))
        total = h_ND.new_zeros((), dtype=torch.promote_types(h_ND.dtype, torch.float32))
        wanted = [ctx.needs_input_grad[i] for i in range(3)]
        dh = torch.empty_like(h_ND) if wanted[0] else None
        ditem = torch.zeros_like(item_VD) if wanted[1] else None
        dbias = torch.zeros_like(bias_V) if wanted[2] and bias_V is not None else None
        for start in range(0, N, size):
            h, target = h_ND[start : start + size], target_N[start : start + size]
            z = (h @ item_VD.T if bias_V is None else torch.addmm(bias_V, h, item_VD.T)).to(total.dtype)
            picked = z.gather(1, target[:, None])
            lse = torch.logsumexp(z, 1, keepdim=True)
            total += (lse - picked).sum()
            if not any(wanted):
                continue
            p = z.sub_(lse).exp_()  # in place: the logits are not needed again
            p.scatter_add_(1, target[:, None], torch.full_like(picked, -1.0))
            p = p.to(h_ND.dtype)
            if dh is not None:
                torch.mm(p, item_VD, out=dh[start : start + size])
            if ditem is not None:
                ditem.addmm_(p.T, h)
            if dbias is not None:
                dbias += p.sum(0)
        ctx.save_for_backward(dh, ditem, dbias)
        ctx.n = max(1, N)
        return total / ctx.n

    @staticmethod
    def backward(ctx, grad: Tensor):
        scale = grad / ctx.n
        return *(None if g is None else g * scale for g in ctx.saved_tensors), None


def linear_cross_entropy(h_ND: Tensor, item_VD: Tensor, bias_V: Tensor | None, target_N: Tensor) -> Tensor:
    """Mean over N of -log softmax(h E^T + b)[target]; target ids are 0..rows-1. Exact value and gradients; 0 where N is 0."""
    return _LinearCrossEntropy.apply(h_ND, item_VD, bias_V, target_N)
