"""Attention with dropout, and attention in half precision, on CPUs.

torch's fused CPU kernel has no dropout; what torch falls back to is slower. In half precision the
backward pass of the fused kernel is slow, dropout or none.

    (B, H, Q, L, d)              float32, dropout 0.1    bfloat16, no dropout
    (32, 4, 100, 100, 64)        38.9 / 27.3 ms          54.0 / 19.8 ms
    (32, 2, 200, 200, 32)        52.7 / 26.9 ms          35.0 / 22.5 ms
    (128, 2, 50, 50, 32)         16.8 / 11.0 ms          37.3 /  8.3 ms

Measured by ``python tests/perf/kernels.py attention``.

Extra shape symbols: H heads, Q query rows, L key rows, d = D / H, b histories of one block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from recexp.nn.cpu.dropout import byte_mask

# Weights of one block of histories: a few megabytes, so that softmax and dropout find them in the
# processor's cache.
BLOCK = 2**19


def block_attention(
    q_BHQd: Tensor, k_BHLd: Tensor, v_BHLd: Tensor, mask: Tensor, p: float
) -> Tensor:
    """As ``recexp.nn.attention.attend``, for tensors on a CPU. Returns [B, H, Q, d]."""
    return _BlockAttention.apply(q_BHQd, k_BHLd, v_BHLd, mask, p)


class _BlockAttention(torch.autograd.Function):
    """Attention block by block of histories.

    Kept for the backward pass: the weights, and one byte per weight that says whether it was kept.
    """

    @staticmethod
    def forward(
        ctx: Any, q_BHQd: Tensor, k_BHLd: Tensor, v_BHLd: Tensor, mask: Tensor, p: float
    ) -> Tensor:
        ctx.root = q_BHQd.shape[-1] ** -0.5
        B, H, Q, _ = q_BHQd.shape
        # In the order [B, Q, H, d], so that joining the heads afterwards needs no copy.
        out_BQHd = torch.empty(B, Q, H, v_BHLd.shape[-1], dtype=v_BHLd.dtype)
        out_BHQd = out_BQHd.transpose(1, 2)
        saved = []
        for rows in _blocks(q_BHQd, k_BHLd):
            weights_bHQL = _softmax_weights(q_BHQd[rows], k_BHLd[rows], _rows_of(mask, rows))
            keep_bHQL, ctx.scale = byte_mask(weights_bHQL.shape, p)
            dropped_bHQL = keep_bHQL.to(v_BHLd.dtype).mul_(weights_bHQL)
            out_BHQd[rows] = (dropped_bHQL @ v_BHLd[rows]).mul_(ctx.scale)
            saved += [weights_bHQL, keep_bHQL]
        ctx.save_for_backward(q_BHQd, k_BHLd, v_BHLd, out_BHQd, *saved)
        return out_BHQd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BHQd: Tensor) -> tuple[Tensor | None, ...]:
        q_BHQd, k_BHLd, v_BHLd, out_BHQd, *saved = ctx.saved_tensors
        d_q = torch.empty_like(q_BHQd)
        d_k = torch.empty_like(k_BHLd)
        d_v = torch.empty_like(v_BHLd)
        blocks = _blocks(q_BHQd, k_BHLd)
        for rows, weights_bHQL, keep_bHQL in zip(blocks, saved[::2], saved[1::2], strict=True):
            grad_bHQd = grad_BHQd[rows] * ctx.scale
            keep_bHQL = keep_bHQL.to(v_BHLd.dtype)
            d_v[rows] = (keep_bHQL * weights_bHQL).to(v_BHLd.dtype).transpose(-1, -2) @ grad_bHQd

            # Derivative of the softmax: w (g - sum w g). Its sum is that of output times gradient.
            d_logits = (grad_bHQd @ v_BHLd[rows].transpose(-1, -2)).mul_(keep_bHQL)
            d_logits = d_logits.to(weights_bHQL.dtype)
            d_logits.sub_((grad_BHQd[rows] * out_BHQd[rows]).sum(-1, keepdim=True))
            d_logits = d_logits.mul_(weights_bHQL).mul_(ctx.root).to(q_BHQd.dtype)
            d_q[rows] = d_logits @ k_BHLd[rows]
            d_k[rows] = d_logits.transpose(-1, -2) @ q_BHQd[rows]
        return d_q, d_k, d_v, None, None


def _softmax_weights(q_bHQd: Tensor, k_bHLd: Tensor, mask: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) over the allowed keys, [b, H, Q, L], float32 at least."""
    logits = q_bHQd @ k_bHLd.transpose(-1, -2)
    logits = logits.to(torch.promote_types(q_bHQd.dtype, torch.float32))
    logits.mul_(q_bHQd.shape[-1] ** -0.5)
    # The mask is added as bytes, since torch is slow at masking by booleans. In a row where no key
    # is allowed, all weights are equal.
    allowed = mask.view(torch.uint8).to(logits.dtype)
    logits += allowed.sub_(1).mul_(torch.finfo(logits.dtype).max)
    return torch.softmax(logits, -1, out=logits)


def _rows_of(mask: Tensor, rows: slice) -> Tensor:
    """The block's rows of a mask, which may have one row for all histories."""
    return mask[rows] if len(mask) > 1 else mask


def _blocks(q_BHQd: Tensor, k_BHLd: Tensor) -> list[slice]:
    n_weights = q_BHQd.shape[1] * q_BHQd.shape[2] * k_BHLd.shape[2]  # of one history
    size = max(1, BLOCK // max(1, n_weights))
    return [slice(start, start + size) for start in range(0, len(q_BHQd), size)]
