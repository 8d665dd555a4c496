"""Scaled dot-product attention (S002 eq. 1-2) and its masks.

Extra shape symbols: H heads, Q query rows, d = D / H.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recexp.nn.dropout import checked_rate, dropout
from recexp.types import RecexpError

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


def attend(q_BHQd: Tensor, k_BHLd: Tensor, v_BHLd: Tensor, mask: Tensor, p: float = 0.0) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, weights dropped with rate p. mask, broadcast to [B, H, Q, L]: True where attending is
    allowed, somewhere in every row."""
    if p == 0.0 or q_BHQd.device.type != "cpu":
        return F.scaled_dot_product_attention(q_BHQd, k_BHLd, v_BHLd, attn_mask=mask, dropout_p=p)
    # torch's fused CPU kernel has no dropout and falls back to something four times slower than this.
    batch, heads, rows, length = *q_BHQd.shape[:3], k_BHLd.shape[2]
    mask = mask.expand(batch, *mask.shape[1:])
    size = max(1, BLOCK // max(1, heads * rows * length))
    blocks = zip(*(x.split(size) for x in (q_BHQd, k_BHLd, v_BHLd, mask)), strict=True)
    return torch.cat([_attend_block(*block, p) for block in blocks])


def _attend_block(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, p: float) -> Tensor:
    logits = (q @ k.transpose(-1, -2)).mul_(q.shape[-1] ** -0.5)
    weights = logits.masked_fill_(~mask, torch.finfo(logits.dtype).min).softmax(-1)
    return dropout(weights, p).to(v.dtype) @ v


class MultiHeadAttention(nn.Module):
    """Attention with inputs [B, Q, D] for the queries and [B, L, D] for keys and values, output [B, Q, D].

    output: whether a linear map follows the heads. dropout: of the attention weights.
    Keys have no bias: it would add the same number to every logit of a softmax.
    Raises RecexpError where num_heads does not divide width.
    """

    def __init__(self, width: int, num_heads: int, *, dropout: float = 0.0, output: bool = True):
        super().__init__()
        if num_heads < 1 or width % num_heads:
            raise RecexpError(f"num_heads={num_heads} does not divide the width num_factors={width}: choose another of the two.")
        self.num_heads = num_heads
        self.p = checked_rate(dropout, "attention_dropout")
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width) if output else nn.Identity()

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (self.query(query), self.key(key), self.value(value)))
        heads = attend(q, k, v, mask, self.p if self.training else 0.0)
        return self.output(heads.transpose(1, 2).flatten(-2))
