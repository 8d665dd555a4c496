"""For models that fit without gradients: one pass over the whole store per epoch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recexp.contracts import ClosedForm, Objective
from recexp.data.store import Store


@dataclass
class FitPass(Objective[ClosedForm, Store]):
    """An epoch is one step, and a step is one call of ``model.fit_pass(store)``."""

    needs = ClosedForm

    def rows(self, store: Store) -> Tensor:
        return torch.zeros(1, dtype=torch.int64)

    def batch(self, store: Store, rows: Tensor, generator: torch.Generator) -> Store:
        return store

    def losses(self, model: ClosedForm, batch: Store) -> dict[str, float]:
        """What the pass reports; there is nothing to minimize."""
        return model.fit_pass(batch)
