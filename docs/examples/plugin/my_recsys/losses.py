"""A loss of this package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from recexp.contracts import SampledLoss, SampledScores


@dataclass(frozen=True)
class Hinge(SampledLoss):
    """Mean of max(0, margin - s_pos + s_j) over positives and negatives."""

    margin: Annotated[float, Field(gt=0)] = 1.0

    def of_sampled(self, scores: SampledScores) -> Tensor:
        too_close = self.margin - scores.positive[:, None] + scores.negative
        return too_close.clamp(min=0).mean()

    def constant_of_sampled(self, n: int, n_items: int) -> float:
        """The loss of a model that scores all items equal."""
        return self.margin
