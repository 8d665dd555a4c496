"""Values that follow from parameters, computed once per evaluation instead of once per batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Kept(nn.Module):
    """Keeps the value of a function of parameters while they cannot have changed.

    Only in evaluation mode and without gradients. ``train`` and ``eval`` drop the value, and so
    does a change in place that torch counts, such as loading weights. torch does not count the
    steps of its fused optimizers, but no step is taken in evaluation mode.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kept: tuple[Any, Tensor] | None = None

    def forward(self, compute: Callable[[], Tensor], *sources: Tensor) -> Tensor:
        """``compute()``, or what it returned before.

        sources: all parameters that it reads.
        """
        if self.training or torch.is_grad_enabled():
            return compute()
        state = [(id(x), x._version, x.device, x.dtype) for x in sources]
        kept = self._kept  # read once: threads may score at the same time
        if kept is None or kept[0] != state:
            kept = (state, compute())
            self._kept = kept
        return kept[1]

    def train(self, mode: bool = True) -> Kept:
        self._kept = None
        super().train(mode)
        return self

    def __deepcopy__(self, memo: object) -> Kept:
        return Kept().train(self.training)
