"""The values that a search may choose from, written as sweeps of Hydra's command line.

``choice(16,32)`` or ``16,32`` is a choice, ``range(1,4)`` counts up to and without its stop,
``interval(0.1,0.5)`` is continuous, ``int(interval(1,5))`` whole. ``tag(log, ...)`` draws an
interval by its logarithm.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    IntervalSweep,
    Override,
    RangeSweep,
)
from hydra.errors import HydraException

from recexp.config.values import shown
from recexp.errors import RecexpError

PARAMS = "hydra.sweeper.params"
# What decides whether two results may be compared, and so may not be searched.
NOT_SEARCHED = ("dataset", "protocol", "selection", "seed", "evaluation")
LOG = "log"
MOST_VALUES = 10_000  # of a range
DIGITS = 12  # of the values of a range: sums of steps such as 0.1 are not exact
SHOWN = 4  # significant digits of a number from an interval
NEAR = 1e-3  # of the interval: by so much may rounding change a number

Number = int | float


@dataclass(frozen=True)
class Choice:
    """words: the values as the command line writes them."""

    words: tuple[str, ...]

    def grid(self) -> tuple[str, ...]:
        """All values."""
        return self.words

    def corners(self) -> tuple[str, ...]:
        """The values to check before a search."""
        return self.words

    def word(self, value: str) -> str:
        """The value on the command line."""
        return value


@dataclass(frozen=True)
class Interval:
    """Numbers from low to high, both included; whole ones where both are whole.

    step: between two values; None: any number. log: drawn by its logarithm.
    """

    low: Number
    high: Number
    step: Number | None = None
    log: bool = False

    def grid(self) -> tuple[Number, ...] | None:
        """All values; None where they are not counted."""
        if self.step is None:
            return None
        n_values = round((self.high - self.low) / self.step) + 1
        return tuple(round(self.low + i * self.step, DIGITS) for i in range(n_values))

    def corners(self) -> tuple[Number, ...]:
        """The ends."""
        return self.low, self.high

    def word(self, value: Number) -> str:
        """The value on the command line; one that no step bounds is rounded, for readers."""
        if isinstance(value, int):
            return str(value)
        if self.step is not None:
            return repr(round(value, DIGITS))
        rounded = float(f"{value:.{SHOWN}g}")
        is_near = abs(rounded - value) <= NEAR * (self.high - self.low)
        return repr(rounded if is_near and self.low <= rounded <= self.high else value)


Parameter = Choice | Interval


@dataclass(frozen=True)
class Space:
    """parameters: by key. fixed: the other overrides of the command line."""

    parameters: dict[str, Parameter]
    fixed: tuple[str, ...]

    def words(self, values: Mapping[str, Any]) -> list[str]:
        """The overrides that set the parameters to these values."""
        return [f"{key}={self.parameters[key].word(values[key])}" for key in self.parameters]

    def corners(self) -> Iterator[list[str]]:
        """A few settings that together hold every choice and both ends of every interval."""
        columns = {key: parameter.corners() for key, parameter in self.parameters.items()}
        for i in range(max(map(len, columns.values()))):
            yield self.words({key: column[i % len(column)] for key, column in columns.items()})

    def grid(self) -> list[dict[str, Any]]:
        """Every combination.

        Raises RecexpError where an interval has no finite number of values.
        """
        columns = []
        for key, parameter in self.parameters.items():
            values = parameter.grid()
            if values is None:
                raise RecexpError(
                    f"hydra.sweeper.sampler=grid needs single values, and {key} has an interval: "
                    f"give choice(...) or range(...)."
                )
            columns.append([(key, value) for value in values])
        return [dict(pairs) for pairs in itertools.product(*columns)]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it, for comparing with the space of an earlier start."""
        plain = {key: asdict(parameter) for key, parameter in self.parameters.items()}
        content: dict[str, Any] = json.loads(json.dumps(plain))
        return content


def read_space(
    params: Mapping[str, Any], arguments: Sequence[str], parser: OverridesParser
) -> Space:
    """The space of ``hydra.sweeper.params`` and of the sweeps on the command line.

    params: key -> sweep, nested or with dots; null takes a key out, a single value is fixed.
    arguments: overrides of the command line, which win over params.

    Raises RecexpError for a space that cannot be searched.
    """
    given = parser.parse_overrides(list(arguments))
    keys_given = {override.key_or_group for override in given}
    overrides = []
    for key, value in _flat(params, ""):
        if key.lstrip("+") not in keys_given and value is not None:
            overrides.append(_parsed(key, value, parser))
    parameters: dict[str, Parameter] = {}
    fixed = []
    for override in [*overrides, *given]:
        key = override.get_key_element()
        if override.is_sweep_override():
            _check_key(override)
            parameters[key] = _parameter(override)
        else:
            fixed.append(override.input_line or "")
    if not parameters:
        raise RecexpError(
            "The search has no parameters: choose a space with search=... (search=? lists them), "
            "or give one, such as 'optimizer.lr=tag(log,interval(1e-4,1e-2))'."
        )
    return Space(parameters, tuple(fixed))


def _flat(node: Mapping[Any, Any], path: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        dotted = f"{path}.{key}".lstrip(".")
        if isinstance(value, Mapping):
            yield from _flat(value, dotted)
        else:
            yield dotted, value


def _parsed(key: str, value: Any, parser: OverridesParser) -> Override:
    if not isinstance(value, str | int | float):
        raise RecexpError(
            f"{PARAMS}.{key}={shown(value)}: must be a sweep in quotes, such as "
            '"choice(16,32)" or "interval(0.1,0.5)".'
        )
    word = str(value).lower() if isinstance(value, bool) else value
    try:
        (override,) = parser.parse_overrides([f"{key}={word}"])
    except HydraException as error:
        raise RecexpError(f"{PARAMS}.{key}={shown(value)}: {_one_line(error)}.") from error
    return override


def _one_line(error: Exception) -> str:
    """What Hydra's parser says, without the picture of the place."""
    return str(error).splitlines()[0].rstrip(".")


def _check_key(override: Override) -> None:
    """Raise RecexpError for what makes trials incomparable."""
    root = override.key_or_group.partition(".")[0].partition("/")[0]
    if root in NOT_SEARCHED:
        raise RecexpError(
            f"{override.key_or_group} cannot be searched: trials that differ in "
            f"{', '.join(NOT_SEARCHED)} cannot be compared. Start a search for each."
        )


def _parameter(override: Override) -> Parameter:
    key = override.key_or_group
    value = override.value()
    tags = set(value.tags) if isinstance(value, IntervalSweep | RangeSweep | ChoiceSweep) else set()
    if unknown := sorted(tags - {LOG}):
        raise RecexpError(f"{key}: unknown tag {unknown[0]!r}; known is {LOG}.")
    if tags and not isinstance(value, IntervalSweep):
        raise RecexpError(f"{key}: tag({LOG}, ...) is for an interval.")
    if isinstance(value, IntervalSweep):
        return _interval(key, value)
    if isinstance(value, RangeSweep):
        return _range(key, value)
    words = list(override.sweep_string_iterator())
    if len(set(words)) < len(words):
        raise RecexpError(f"{key}: a value stands twice in {', '.join(words)}.")
    if not words:
        raise RecexpError(f"{key}: there is nothing to choose from.")
    return Choice(tuple(words))


def _interval(key: str, sweep: IntervalSweep) -> Interval:
    low, high = sweep.start, sweep.end
    assert low is not None and high is not None
    log = LOG in sweep.tags
    if not low < high or abs(low) == float("inf") or abs(high) == float("inf"):
        raise RecexpError(f"{key}: interval({low},{high}) must go from a number to a larger one.")
    if log and low <= 0:
        raise RecexpError(f"{key}: interval({low},{high}) with tag log must begin above 0.")
    is_whole = isinstance(low, int) and isinstance(high, int)
    return Interval(low, high, step=1 if is_whole else None, log=log)


def _range(key: str, sweep: RangeSweep) -> Interval | Choice:
    text = f"range({sweep.start},{sweep.stop},{sweep.step})"
    try:
        values = list(itertools.islice(sweep.range(), MOST_VALUES + 1))
    except (HydraException, ValueError) as error:
        raise RecexpError(f"{key}: {text}: {_one_line(error)}.") from error
    if not 0 < len(values) <= MOST_VALUES:
        raise RecexpError(f"{key}: {text} must have 1 to {MOST_VALUES:,} values.")
    if len(values) == 1:
        return Choice((repr(values[0]),))
    low, high = round(min(values), DIGITS), round(max(values), DIGITS)
    return Interval(low, high, step=abs(sweep.step))
