"""For models that fit without gradients: one pass over the whole store per epoch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recexp.contracts import ClosedForm, Objective


@dataclass
class FitPass(Objective):
    """The module calls ``model.fit_pass(store)`` once per epoch instead of optimizer steps."""

    needs = ClosedForm

    def rows(self, store) -> Tensor:
        return torch.zeros(1, dtype=torch.int64)  # one step an epoch

    def batch(self, store, rows: Tensor, generator: torch.Generator):
        return store

    def loss(self, model, batch) -> dict[str, Tensor]:
        """What the pass reports; there is nothing to minimise."""
        return model.fit_pass(batch)
