"""Limits of values for parameters of torch's and Lightning's classes, by the name of their key.

Our own classes declare limits on their constructors, ``n_layers: Annotated[int, Field(ge=1)]``.
The classes here cannot be annotated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, each end included unless open.

    whole: integers only. every: the entries of a list that must not be empty. required: not null,
    even where the constructor takes null and chooses a value itself.
    """

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    whole: bool = False
    every: bool = False
    required: bool = False

    def __contains__(self, value: Any) -> bool:
        if not is_number(value) or (self.whole and not isinstance(value, int)):
            return False
        above: bool = value > self.low if self.open_low else value >= self.low
        below: bool = value < self.high if self.open_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        low = f"above {self.low:g}" if self.open_low else f"at least {self.low:g}"
        high = ""
        if self.high != math.inf:
            high = f" and {'below' if self.open_high else 'at most'} {self.high:,}"
        if self.every:
            kind = f"a list, not empty, each entry {kind}"
        return f"{kind} {low}{high}"

    def allows(self, value: Any, takes_text: bool = False) -> bool:
        """Is the value in range? Mappings pass, and texts where the parameter takes texts too."""
        if value is None:
            return not self.required
        if isinstance(value, Mapping):
            return True
        if isinstance(value, str):
            return takes_text
        if isinstance(value, Sequence):
            return self.every and len(value) > 0 and all(self.allows(v, takes_text) for v in value)
        return value in self


def is_number(value: Any) -> bool:
    """Is the value a finite number, and no truth value?"""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# torch's optimizers and schedulers, Lightning's trainer and callbacks
LIMITS: dict[str, Range] = {
    "lr": Range(0, required=True),
    "weight_decay": Range(0, required=True),
    "betas": Range(0, 1, open_high=True, every=True, required=True),
    "eps": Range(0, open_low=True, required=True),
    "alpha": Range(0),
    "momentum": Range(0, 1, open_high=True, required=True),
    "patience": Range(0, 2**31, whole=True, required=True),
    "max_epochs": Range(1, 1_000_000, whole=True, required=True),
    "accumulate_grad_batches": Range(1, 2**31, whole=True, required=True),
    "check_val_every_n_epoch": Range(1, 2**31, whole=True, required=True),
    "num_sanity_val_steps": Range(-1, whole=True),
    "num_nodes": Range(1, 2**31, whole=True),
    "max_steps": Range(-1, whole=True),  # -1: no limit
    "min_steps": Range(0, 2**31, whole=True),
    "min_learned": Range(0, 1),
    "log_every_n_steps": Range(0, 2**31, whole=True),
    "gradient_clip_val": Range(0),
    "limit_val_batches": Range(0, open_low=True),
    "limit_train_batches": Range(0, open_low=True),
    "limit_test_batches": Range(0, open_low=True),
}
