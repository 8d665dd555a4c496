"""Dropout on CPUs by one random byte per element.

14.5 / 2.9 ms for (128, 200, 64): torch's dropout spends its time on random numbers.
Measured by ``python tests/perf/kernels.py dropout``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def byte_mask(shape: torch.Size, p: float) -> tuple[Tensor, float]:
    """A mask of the elements to keep, uint8 of 1 and 0, and the factor that keeps the expectation.

    One byte decides about one element, so p acts as q = round(256 p) / 256 (0.1 becomes 0.1016,
    below 1/512 it becomes 0), and what is kept is divided by 1 - q. The bytes come from torch's CPU
    generator, eight per draw. The mask stays uint8: torch's CPU kernels that read or write booleans
    take ten times as long as those for bytes.
    """
    n = math.prod(shape)
    drawn = torch.empty(-(-n // 8), dtype=torch.int64).random_(-(2**63), None)
    threshold = round(256 * p)
    if threshold > 255:
        return torch.zeros(shape, dtype=torch.uint8), 0.0
    keep = drawn.view(torch.uint8)[:n].ge_(threshold).view(shape)
    return keep, 256 / (256 - threshold)


def byte_dropout(x: Tensor, p: float) -> Tensor:
    """Dropout of a CPU tensor with rate p, see ``byte_mask``."""
    return _ByteDropout.apply(x, p)


class _ByteDropout(torch.autograd.Function):
    """Keeps one byte per element for the backward pass; a plain product would keep floats."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        keep, ctx.scale = byte_mask(x.shape, p)
        ctx.save_for_backward(keep)
        return keep.to(x.dtype).mul_(ctx.scale).mul_(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return keep.to(grad.dtype).mul_(ctx.scale).mul_(grad), None
