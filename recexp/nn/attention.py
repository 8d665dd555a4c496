"""Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762, eq. 1) and its masks.

Extra shape symbols: H heads, Q query rows, d = D / H.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recexp.errors import RecexpError
from recexp.nn.cpu.attention import block_attention
from recexp.nn.parameters import checked_rate


def key_mask(mask_BL: Tensor) -> Tensor:
    """Every row may attend to the real events: bool [B, 1, 1, L].

    A history without events attends to its padding, which avoids NaN.
    """
    return (mask_BL | ~mask_BL.any(-1, keepdim=True))[:, None, None]


def causal_mask(mask_BL: Tensor) -> Tensor:
    """A row may attend to itself and to real events before it: bool [B, 1, L, L]."""
    length = mask_BL.shape[-1]
    before_LL = torch.ones(length, length, dtype=torch.bool, device=mask_BL.device).tril()
    self_LL = torch.eye(length, dtype=torch.bool, device=mask_BL.device)
    return ((before_LL & mask_BL[:, None]) | self_LL)[:, None]


def attend(q_BHQd: Tensor, k_BHLd: Tensor, v_BHLd: Tensor, mask: Tensor, p: float = 0.0) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, [B, H, Q, d], with the weights dropped at rate p.

    mask: bool, broadcast to [B, H, Q, L]; True where attending is allowed, at least once per row.
    """
    trains_in_half = q_BHQd.dtype.itemsize < 4 and torch.is_grad_enabled() and q_BHQd.requires_grad
    if q_BHQd.device.type == "cpu" and (p > 0.0 or trains_in_half):
        return block_attention(q_BHQd, k_BHLd, v_BHLd, mask, p)
    return F.scaled_dot_product_attention(q_BHQd, k_BHLd, v_BHLd, attn_mask=mask, dropout_p=p)


class MultiHeadAttention(nn.Module):
    """Multi-head attention: queries [B, Q, D], keys and values [B, L, D], output [B, Q, D].

    dropout: of the attention weights. output: whether a linear map follows the heads.
    Keys have no bias: it would add the same number to every logit of a softmax.
    Raises RecexpError where n_heads does not divide width.
    """

    def __init__(self, width: int, n_heads: int, *, dropout: float = 0.0, output: bool = True):
        super().__init__()
        if n_heads < 1 or width % n_heads:
            raise RecexpError(
                f"n_heads={n_heads} does not divide the width n_factors={width}: "
                "choose another of the two."
            )
        self.n_heads = n_heads
        self.p = checked_rate(dropout, "attention_dropout")
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width) if output else nn.Identity()

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        q_BHQd = self._heads(self.query(query))
        k_BHLd = self._heads(self.key(key))
        v_BHLd = self._heads(self.value(value))
        heads_BHQd = attend(q_BHQd, k_BHLd, v_BHLd, mask, self.p if self.training else 0.0)
        return self.output(heads_BHQd.transpose(1, 2).flatten(-2))

    def _heads(self, x_BLD: Tensor) -> Tensor:
        """[B, L, D] -> [B, H, L, d]"""
        return x_BLD.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
