"""Types of constructor parameters, and the checks for callers from Python.

``recexp.config.check`` validates a YAML's values against these annotations before any work starts.
A constructor called from Python does not pass through it; the functions below serve there.
"""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import Field

from recexp.errors import RecexpError

Count = Annotated[int, Field(ge=1, le=2**31)]
Width = Annotated[int, Field(ge=1, le=65_536)]  # of a vector, or the number of heads or filters
Depth = Annotated[int, Field(ge=1, le=256)]  # layers
Length = Annotated[int, Field(ge=1, le=1_000_000)]  # events of a history
Rate = Annotated[float, Field(ge=0, lt=1)]  # of dropout
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Decay = Annotated[float, Field(gt=0, le=1)]  # per event


def one_of(name: str, value: str, words: Any) -> str:
    """The value, where it is one of the words of a Literal type.

    Raises RecexpError that names the parameter and its choices.
    """
    choices = get_args(words)
    if value not in choices:
        raise RecexpError(f"{name}={value!r} is not one of {', '.join(choices)}.")
    return value


def checked_rate(p: float, name: str = "dropout") -> float:
    """p, where 0 <= p < 1. Raises RecexpError otherwise."""
    if not 0.0 <= p < 1.0:
        raise RecexpError(f"{name}={p} is not a rate: it must be at least 0 and below 1.")
    return float(p)


def checked_decay(decay: float) -> float:
    """decay, where 0 < decay <= 1. Raises RecexpError otherwise."""
    if not 0 < decay <= 1:
        raise RecexpError(f"decay={decay}: must lie in (0, 1].")
    return decay


def require_positive(**values: int) -> None:
    """Raise RecexpError for the first parameter that is not a whole number of at least 1."""
    for name, value in values.items():
        if not isinstance(value, int) or value < 1:
            raise RecexpError(f"{name}={value!r}: must be a whole number of at least 1.")
