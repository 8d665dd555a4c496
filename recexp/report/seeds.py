"""What the spread over seeds says about the difference of two systems."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import variance

from recexp.report.tables import System

ValuesOf = Callable[[System], Sequence[float]]  # of a system, one value per seed


def seed_margin(left: System, right: System, found: Sequence[System], values_of: ValuesOf) -> float:
    """Twice the standard error over seeds of the difference of two means.

    The variance is pooled over all systems found of their models that have several seeds; 0 where
    none has.
    """
    squares = 0.0
    n_free = 0
    for system in found:
        values = values_of(system)
        if len(values) > 1 and system.model in (left.model, right.model):
            squares += variance(values) * (len(values) - 1)
            n_free += len(values) - 1
    if not n_free:
        return 0.0
    return 2 * (squares / n_free * (1 / len(left.runs) + 1 / len(right.runs))) ** 0.5
