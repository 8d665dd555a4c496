"""Dropout (Srivastava et al. 2014, JMLR 15)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from recexp.nn.cpu.dropout import byte_dropout
from recexp.nn.parameters import checked_rate


def dropout(x: Tensor, p: float) -> Tensor:
    """x with a share p of its elements set to 0 and the rest scaled up.

    On CPUs p is rounded to 1/256, see ``recexp.nn.cpu.dropout``.
    """
    if p == 0.0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    return byte_dropout(x, p)


class Dropout(nn.Module):
    """``dropout`` in training, the identity in evaluation. Raises RecexpError unless 0 <= p < 1."""

    def __init__(self, p: float):
        super().__init__()
        self.p = checked_rate(p)

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training else x

    def extra_repr(self) -> str:
        return f"p={self.p}"
