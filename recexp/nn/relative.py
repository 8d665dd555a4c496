"""Attention weights that are no softmax, and their biases by relative position and time.

Zhai et al. 2024 (HSTU), arXiv:2402.17152, and the authors' code,
https://github.com/facebookresearch/generative-recommenders.

Extra shape symbols: H heads, Q query rows (the newest ones), d = D / H.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STD = 0.02
N_BUCKETS = 128  # beyond bucket 0
BUCKET_WIDTH = 0.301  # in natural logarithms of seconds
N_COPIES = 256  # of the biases of times on a GPU


def time_buckets(time_BL: Tensor) -> Tensor:
    """floor(ln(seconds between two events) / 0.301), int64 [B, L, L] in 0..128.

    time_BL: milliseconds. Less than a second counts as one.
    """
    seconds_BLL = (time_BL[:, :, None] - time_BL[:, None, :]).abs() // 1000
    log_BLL = seconds_BLL.clamp(min=1).float().log_()
    return log_BLL.div_(BUCKET_WIDTH).long().clamp_(max=N_BUCKETS)


class RelativeBias(nn.Module):
    """b_ij = p[i - j] + t[bucket of the time between the events i and j], for j <= i.

    max_len: the longest history, one more than the largest i - j.
    """

    def __init__(self, max_len: int):
        super().__init__()
        self.position = nn.Parameter(torch.empty(max_len).normal_(std=STD))
        self.time = nn.Parameter(torch.empty(N_BUCKETS + 1).normal_(std=STD))

    def forward(self, bucket_BQL: Tensor) -> Tensor:
        """[B, Q, L], of the newest Q of L events. bucket_BQL: of ``time_buckets``.

        Pairs with j > i have no bias of the position; a causal mask leaves them out.
        """
        Q, L = bucket_BQL.shape[1:]
        # Row i reads p[i], ..., p[0] and then zeros: a window of one sequence, and the gradient of
        # a distance is the sum of a diagonal.
        position_QL = F.pad(self.position[:L].flip(0), (0, Q - 1)).unfold(0, L, 1).flip(0)
        return position_QL + self._of_times(bucket_BQL)

    def _of_times(self, bucket_BQL: Tensor) -> Tensor:
        """t[bucket].

        A GPU adds gradients of the same row one after the other, so there a row has copies, and
        neighboring pairs read different ones.
        """
        index = bucket_BQL.flatten()
        table: Tensor = self.time
        if index.device.type != "cpu" and torch.is_grad_enabled():
            copy = torch.arange(len(index), device=index.device) % N_COPIES
            index = index + len(table) * copy
            table = table.repeat(N_COPIES)
        return table.index_select(0, index).view(bucket_BQL.shape)


def pointwise_attention(
    q_BHQd: Tensor, k_BHLd: Tensor, v_BHLd: Tensor, bias_BQL: Tensor, mask: Tensor, n: int
) -> Tensor:
    """(SiLU(q k^T + bias) / n) v over the allowed keys, [B, H, Q, d].

    mask: bool, broadcast to [B, H, Q, L]; True where attending is allowed.
    """
    weights_BHQL = F.silu(q_BHQd @ k_BHLd.transpose(-1, -2) + bias_BQL[:, None]) * mask
    return (weights_BHQL.to(v_BHLd.dtype) @ v_BHLd) / n
