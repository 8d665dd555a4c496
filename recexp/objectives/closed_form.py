"""For models that fit without gradients: one pass over the whole store per epoch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recexp.objectives.base import Objective, require


@dataclass
class Sweep(Objective):
    """The module calls ``model.sweep(store)`` once per epoch instead of optimiser steps."""

    needs = ("sweep",)

    def check(self, model, store) -> None:
        require(model, self)

    def rows(self, store) -> Tensor:
        return torch.zeros(1, dtype=torch.int64)  # one step an epoch

    def batch(self, store, rows: Tensor, generator: torch.Generator):
        return store

    def loss(self, model, batch) -> dict[str, Tensor]:
        """What the sweep reports; there is nothing to minimise."""
        return model.sweep(batch)
