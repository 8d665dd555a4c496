"""Limits of values by the name of their key, for parameters that declare none themselves.

Two kinds stand here: parameters of torch's and Lightning's classes, which cannot be annotated, and
those of our classes that have no annotation yet. A limit on the constructor replaces the entry:
``n_layers: Annotated[int, Field(ge=1)]``.
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


def limit_of(path: str, key: str) -> Range | None:
    """The limit of a key of the node at ``path``, by the last two parts of its name or the last."""
    group = path.rsplit(".", 1)[-1]
    return RANGES.get(f"{group}.{key}") or RANGES.get(str(key))


COUNT = Range(1, 2**31, whole=True)
SIZE = Range(1, 65_536, whole=True)
INDEX = Range(0, 2**31, whole=True)
RATE = Range(0, 1, open_high=True)
SHARE = Range(0, 1)
INSIDE = Range(0, 1, open_low=True, open_high=True)
POSITIVE = Range(0, open_low=True)
WEIGHT = Range(0)
BEHAVIORS = Range(1, 31, whole=True)

# torch's optimizers, Lightning's trainer and callbacks
THEIRS: dict[str, Range] = {
    "lr": Range(0, required=True),
    "weight_decay": Range(0, required=True),
    "betas": Range(0, 1, open_high=True, every=True, required=True),
    "eps": Range(0, open_low=True, required=True),
    "momentum": Range(0, 1, open_high=True, required=True),
    "patience": Range(0, 2**31, whole=True, required=True),
    "max_epochs": Range(1, 1_000_000, whole=True, required=True),
    "accumulate_grad_batches": Range(1, 2**31, whole=True, required=True),
    "check_val_every_n_epoch": Range(1, 2**31, whole=True, required=True),
    "num_sanity_val_steps": Range(-1, whole=True),
    "num_nodes": COUNT,
    "max_steps": Range(-1, whole=True),  # -1: no limit
    "min_steps": INDEX,
    "log_every_n_steps": INDEX,
    "gradient_clip_val": WEIGHT,
    "limit_val_batches": POSITIVE,
    "limit_train_batches": POSITIVE,
    "limit_test_batches": POSITIVE,
}

# Ours, as long as their constructors declare no limits
OURS: dict[str, Range] = {
    # models
    **dict.fromkeys(("n_factors", "n_inner", "n_heads"), SIZE),
    **dict.fromkeys(("n_horizontal", "n_vertical"), SIZE),
    **dict.fromkeys(("dropout", "attention_dropout", "embedding_dropout"), RATE),
    **dict.fromkeys(("alpha", "init_std", "history_damping", "item_damping"), WEIGHT),
    **dict.fromkeys(("popularity", "implicit_share"), WEIGHT),
    **dict.fromkeys(("chunk", "window", "neighbors"), COUNT),
    **dict.fromkeys(("elu_alpha", "regularization"), POSITIVE),
    "n_layers": Range(1, 256, whole=True),
    "max_len": Range(0, 1_000_000, whole=True),
    "n_behaviors": BEHAVIORS,
    "user_dropout": SHARE,
    "decay": Range(0, 1, open_low=True),
    # objectives and samplers
    **dict.fromkeys(("last_prob", "t", "share"), SHARE),
    **dict.fromkeys(("bpreg", "l2", "balance"), WEIGHT),
    **dict.fromkeys(("max_masked", "targets"), COUNT),
    **dict.fromkeys(("copies", "rounds"), INDEX),
    "n_negatives": Range(0, 1_000_000, whole=True),
    "mask_prob": INSIDE,
    "step": POSITIVE,
    "weights": Range(0, every=True),
    "replace": Range(0, 1, every=True),
    "objective.levels": Range(1, 31, whole=True, every=True),
    # protocols and data
    "seed": Range(0, 2**32 - 1, whole=True),
    **dict.fromkeys(("test_share", "val_share"), INSIDE),
    **dict.fromkeys(("user_min", "item_min"), INDEX),
    "user_max": COUNT,
    "candidates.n": COUNT,
    "ks": Range(1, 2**31, whole=True, every=True),
    # training
    "warmup": WEIGHT,
    "threads": Range(1, 4096, whole=True),
    # the simulated shop
    **dict.fromkeys(("users", "items", "categories"), COUNT),
    **dict.fromkeys(("sessions", "session_length"), Range(1, 200)),
    **dict.fromkeys(("cart_rate", "purchase_rate"), INSIDE),
}

RANGES = THEIRS | OURS
