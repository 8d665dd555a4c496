"""Scaled dot-product attention (S002 eq. 1-2) and its masks.

Extra shape symbols: H heads, Q query rows, d = D / H.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from recexp.errors import RecexpError
from recexp.nn.cpu.dropout import byte_mask, checked_rate

# Weights of one block of histories: a few megabytes, so that softmax and dropout find them in the cache.
BLOCK = 2**19


def key_mask(mask_BL: Tensor) -> Tensor:
    """Everyone may attend to the real events: [B, 1, 1, L]. A history without events attends to its padding, not to NaN."""
    return (mask_BL | ~mask_BL.any(-1, keepdim=True))[:, None, None]


def causal_mask(mask_BL: Tensor) -> Tensor:
    """Everyone may attend to itself and to real events before: [B, 1, L, L]."""
    length = mask_BL.shape[-1]
    before = torch.ones(length, length, dtype=torch.bool, device=mask_BL.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=mask_BL.device)
    return ((before & mask_BL[:, None]) | itself)[:, None]


class _BlockAttention(torch.autograd.Function):
    """Attention with dropped weights on a CPU, block by block. Kept for the way back: weights, and a byte for each.

    torch's fused kernel has no dropout there; what torch falls back to takes four times as long. In half precision the
    kernel's own way back is two to five times slower than this one, dropout or none.
    """

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, p: float) -> Tensor:
        ctx.root, out, kept = (
            q.shape[-1] ** -0.5,
            torch.empty(*q.shape[:3], v.shape[-1], dtype=v.dtype),
            [],
        )
        for rows in _blocks(q, k):
            weights = (
                (q[rows] @ k[rows].transpose(-1, -2))
                .to(torch.promote_types(q.dtype, torch.float32))
                .mul_(ctx.root)
            )
            # Added, since torch is slow at masking by booleans. In a row without anything allowed all weights are equal.
            allowed = (
                mask[rows if len(mask) > 1 else slice(None)].view(torch.uint8).to(weights.dtype)
            )
            weights += allowed.sub_(1).mul_(torch.finfo(weights.dtype).max)
            torch.softmax(weights, -1, out=weights)
            keep, ctx.scale = byte_mask(weights.shape, p)
            out[rows] = (keep.to(v.dtype).mul_(weights) @ v[rows]).mul_(ctx.scale)
            kept += [weights, keep]
        ctx.save_for_backward(q, k, v, out, *kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        q, k, v, out, *kept = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for rows, weights, keep in zip(_blocks(q, k), kept[::2], kept[1::2], strict=True):
            g, dropped = grad[rows] * ctx.scale, keep.to(v.dtype)
            dv[rows] = (dropped * weights).to(v.dtype).transpose(-1, -2) @ g
            # The softmax's own derivative w (g - sum w g), whose sum is that of the output times its gradient.
            logits = (g @ v[rows].transpose(-1, -2)).mul_(dropped).to(weights.dtype)
            logits = (
                logits.sub_((grad[rows] * out[rows]).sum(-1, keepdim=True))
                .mul_(weights)
                .mul_(ctx.root)
                .to(q.dtype)
            )
            dq[rows] = logits @ k[rows]
            dk[rows] = logits.transpose(-1, -2) @ q[rows]
        return dq, dk, dv, None, None


def _blocks(q_BHQd: Tensor, k_BHLd: Tensor) -> list[slice]:
    size = max(1, BLOCK // max(1, q_BHQd.shape[1] * q_BHQd.shape[2] * k_BHLd.shape[2]))
    return [slice(start, start + size) for start in range(0, len(q_BHQd), size)]


def attend(q_BHQd: Tensor, k_BHLd: Tensor, v_BHLd: Tensor, mask: Tensor, p: float = 0.0) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, weights dropped with rate p. mask, broadcast to [B, H, Q, L]: True where attending is
    allowed, somewhere in every row."""
    kernel_is_slow = p > 0.0 or (
        q_BHQd.dtype.itemsize < 4 and torch.is_grad_enabled() and q_BHQd.requires_grad
    )
    if q_BHQd.device.type != "cpu" or not kernel_is_slow:
        return F.scaled_dot_product_attention(q_BHQd, k_BHLd, v_BHLd, attn_mask=mask, dropout_p=p)
    return _BlockAttention.apply(q_BHQd, k_BHLd, v_BHLd, mask, p)


class MultiHeadAttention(nn.Module):
    """Attention with inputs [B, Q, D] for the queries and [B, L, D] for keys and values, output [B, Q, D].

    output: whether a linear map follows the heads. dropout: of the attention weights.
    Keys have no bias: it would add the same number to every logit of a softmax.
    Raises RecexpError where num_heads does not divide width.
    """

    def __init__(self, width: int, num_heads: int, *, dropout: float = 0.0, output: bool = True):
        super().__init__()
        if num_heads < 1 or width % num_heads:
            raise RecexpError(
                f"num_heads={num_heads} does not divide the width num_factors={width}: choose another of the two."
            )
        self.num_heads = num_heads
        self.p = checked_rate(dropout, "attention_dropout")
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width) if output else nn.Identity()

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (
            x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x in (self.query(query), self.key(key), self.value(value))
        )
        heads = attend(q, k, v, mask, self.p if self.training else 0.0)
        return self.output(heads.transpose(1, 2).flatten(-2))
