"""Dropout that does not spend a third of a CPU step on random numbers."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from recexp.errors import RecexpError


def byte_mask(shape: torch.Size, p: float) -> tuple[Tensor, float]:
    """A mask of what to keep, bytes of 1 and 0, and the factor that keeps the expectation exact.

    One random byte decides about one element, so p acts as q = round(256 p) / 256 (0.1 becomes 0.1016, anything below
    1/512 becomes 0) and what is kept is divided by 1 - q. The bytes come from torch's CPU generator, eight per draw.
    They stay bytes: torch's kernels that read or write booleans are ten times slower than those for bytes.
    """
    n = math.prod(shape)
    drawn = torch.empty(-(-n // 8), dtype=torch.int64).random_(-(2**63), None)
    threshold = round(256 * p)
    if threshold > 255:
        return torch.zeros(shape, dtype=torch.uint8), 0.0
    return drawn.view(torch.uint8)[:n].ge_(threshold).view(shape), 256 / (256 - threshold)


class _ByteDropout(torch.autograd.Function):
    """Keeps one byte per element for the way back; the plain product would keep the float mask."""

    @staticmethod
    def forward(ctx, x: Tensor, p: float) -> Tensor:
        keep, ctx.scale = byte_mask(x.shape, p)
        ctx.save_for_backward(keep)
        return keep.to(x.dtype).mul_(ctx.scale).mul_(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        (keep,) = ctx.saved_tensors
        return keep.to(grad.dtype).mul_(ctx.scale).mul_(grad), None


def dropout(x: Tensor, p: float) -> Tensor:
    """x with a share p of its elements zeroed and the rest scaled up, for use in training. On CPUs see ``byte_mask``."""
    if p == 0.0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    return _ByteDropout.apply(x, p)


class Dropout(nn.Module):
    """``dropout`` in training, the identity in evaluation. Raises RecexpError unless 0 <= p < 1."""

    def __init__(self, p: float):
        super().__init__()
        self.p = checked_rate(p)

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training else x

    def extra_repr(self) -> str:
        return f"p={self.p}"


def checked_rate(p: float, name: str = "dropout") -> float:
    """p, if it is a rate; RecexpError otherwise."""
    if not 0.0 <= p < 1.0:
        raise RecexpError(f"{name}={p} is not a rate: it must be at least 0 and below 1.")
    return float(p)
