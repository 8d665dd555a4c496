"""Values of a config, checked against the type hints of the parameters that they are for.

A constructor says what it takes: ``n_layers: Annotated[int, Field(ge=1)]``,
``norm: Literal["pre", "post"]``. Values pass as strict JSON would: ``true`` is no number and
``"3"`` is no whole number, but 1 is a number.
"""

from __future__ import annotations

import inspect
import json
import math
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import annotated_types
from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from recexp.config.ranges import LIMITS
from recexp.errors import RecexpError

STRICT = ConfigDict(strict=True, allow_inf_nan=False)
LARGEST = 1e30  # of any number: torch computes in float32
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
LISTS = (list, tuple, Sequence)


def check_values(path: str, values: Mapping[str, Any], callee: Any) -> None:
    """Raise RecexpError for the first value that its parameter does not take.

    values: plain, without interpolations. callee: the class or function that ``_target_`` names,
    or a dataclass whose fields are the keys. Keys without a type hint, and hints that pydantic
    cannot judge, pass.
    """
    parameters = parameters_of(callee)
    for key, value in values.items():
        _check_size(f"{path}.{key}".lstrip("."), value)
        parameter = parameters.get(key)
        if parameter is None or not parameter.constrained:
            _check_limit(path, key, value, parameter)
        if parameter is not None:
            parameter.check(f"{path}.{key}".lstrip("."), value)
    _check_heads(path, values)


def _check_size(name: str, value: Any) -> None:
    """Raise RecexpError for a number beyond what float32 holds, also within a list."""
    entries = value if isinstance(value, list | tuple) else [value]
    for entry in entries:
        if isinstance(entry, int | float) and math.isfinite(entry) and abs(entry) > LARGEST:
            raise RecexpError(f"{name}={shown(value)}: must be at most {LARGEST:g}.")


def _check_limit(path: str, key: str, value: Any, parameter: Parameter | None) -> None:
    """Hold the value against ``ranges.py``, where its parameter declares no limits itself."""
    limit = LIMITS.get(key)
    takes_text = parameter is not None and "a text" in parameter.wanted
    if limit is not None and not limit.allows(value, takes_text):
        raise RecexpError(f"{path}.{key}".lstrip(".") + f"={shown(value)}: must be {limit}.")


def _check_heads(path: str, values: Mapping[str, Any]) -> None:
    heads = values.get("n_heads")
    width = values.get("n_factors")
    if isinstance(heads, int) and isinstance(width, int) and width % heads:
        fitting = ", ".join(str(n) for n in range(1, width + 1) if width % n == 0)
        raise RecexpError(
            f"{path}.n_heads={heads}: does not divide {path}.n_factors={width}; "
            f"choose one of {fitting}."
        )


class Parameter:
    """What one parameter takes."""

    def __init__(self, hint: Any):
        self.constrained = _is_constrained(hint)
        self.wanted = describe(hint)
        self.adapter: TypeAdapter[Any] = TypeAdapter(_checkable(hint), config=STRICT)

    def check(self, name: str, value: Any) -> None:
        """Raise RecexpError that names the key, the value and what is allowed."""
        try:
            self.adapter.validate_json(json.dumps(value), strict=True)
        except ValidationError as error:
            custom = [e["msg"] for e in error.errors() if e["type"] == "value_error"]
            wanted = self.wanted or (custom or ["of another type"])[0]
            raise RecexpError(f"{name}={shown(value)}: must be {wanted}.") from None


@cache
def parameters_of(callee: Any) -> dict[str, Parameter]:
    """By name, what the parameters of a class or a function take."""
    names = inspect.signature(callee).parameters
    hints = _hints(callee)
    return {name: Parameter(hints[name]) for name in names if name in hints}


def _hints(callee: Any) -> dict[str, Any]:
    """Type hints of the parameters, those left out that name what is only imported for checkers."""
    found: dict[str, Any] = {}
    for name, parameter in inspect.signature(callee).parameters.items():
        if parameter.annotation is parameter.empty:
            continue
        holder = type("Holder", (), {"__annotations__": {name: parameter.annotation}})
        module = sys.modules[_home_of(callee, name).__module__]
        try:
            found |= typing.get_type_hints(holder, vars(module), include_extras=True)
        except (NameError, TypeError, AttributeError):
            continue
    return found


def _home_of(callee: Any, name: str) -> Any:
    """The class (or function) in whose module the annotation of a parameter was written."""
    if not isinstance(callee, type):
        return callee
    for base in callee.__mro__:
        constructor = vars(base).get("__init__")
        if name in vars(base).get("__annotations__", {}):
            return base
        if constructor is not None and not is_dataclass(base):
            return base
    return callee


def _checkable(hint: Any) -> Any:
    """The hint as pydantic is to see it: a class stands for a node with a ``_target_``."""
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if origin is Annotated:
        return Annotated[(_checkable(arguments[0]), *arguments[1:])]
    if origin in (Union, types.UnionType):
        return Union[tuple(_checkable(part) for part in arguments)]  # noqa: UP007
    if origin in LISTS and arguments:
        return origin[tuple(part if part is ... else _checkable(part) for part in arguments)]
    if hint in WORDS or hint in LISTS or hint in (None, type(None)) or origin is Literal:
        return hint
    if origin in (dict, Mapping) or hint in (dict, Mapping):
        return dict[str, Any]
    if hint is Path:
        return str
    if _is_class(hint):
        return Annotated[Any, AfterValidator(_is_node)]
    return Any


def _is_class(hint: Any) -> bool:
    """Is the hint a class that says something? ``Any`` is a class since Python 3.11."""
    return isinstance(hint, type) and hint not in (object, Any)


def _is_node(value: Any) -> Any:
    if not isinstance(value, Mapping) or "_target_" not in value:
        raise ValueError("a node with a _target_")
    return value


def _is_constrained(hint: Any) -> bool:
    """Does the hint say more than a type?"""
    if typing.get_origin(hint) in (Annotated, Literal):
        return True
    return any(_is_constrained(part) for part in typing.get_args(hint))


def describe(hint: Any) -> str:
    """What a value must be, as an error says it; null, where it is allowed, goes unmentioned."""
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if origin is Annotated:
        return _described(arguments[0], arguments[1:])
    if origin in (Union, types.UnionType):
        parts = [describe(part) for part in arguments if part is not type(None)]
        return " or ".join(dict.fromkeys(part for part in parts if part))
    if origin is Literal:
        words = ["null" if word is None else str(word) for word in arguments]
        return f"one of {', '.join(words)}" if len(words) > 1 else words[0]
    if hint in LISTS or origin in LISTS:
        entry = describe(arguments[0]) if arguments else ""
        return f"a list, each entry {entry}" if entry else "a list"
    if hint in (dict, Mapping) or origin in (dict, Mapping):
        return "names with values"
    if hint is Path:
        return "a text"
    if hint in (None, type(None)):
        return "null"
    if _is_class(hint):
        return WORDS.get(hint, f"a {hint.__name__} with a _target_")
    return ""


def _described(hint: Any, metadata: Sequence[Any]) -> str:
    """The description of an annotated hint with its limits."""
    text = describe(hint)
    parts: list[Any] = []
    for entry in metadata:
        parts += entry.metadata if isinstance(entry, FieldInfo) else [entry]
    limits: list[str] = []
    for part in parts:
        match part:
            case annotated_types.Ge(ge=value):
                limits.append(f"at least {_number(value)}")
            case annotated_types.Gt(gt=value):
                limits.append(f"above {_number(value)}")
            case annotated_types.Le(le=value):
                limits.append(f"at most {_number(value)}")
            case annotated_types.Lt(lt=value):
                limits.append(f"below {_number(value)}")
            case annotated_types.MinLen(min_length=1):
                text = text.replace("a list", "a list, not empty", 1)
            case annotated_types.MinLen(min_length=value):
                text = text.replace("a list", f"a list of at least {value} entries", 1)
    return f"{text} {' and '.join(limits)}".strip()


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def shown(value: Any) -> str:
    """The value as YAML has it, shortened."""
    if value is None:
        text = "null"
    elif isinstance(value, bool):
        text = str(value).lower()
    else:
        text = repr(value)
    return text if len(text) < 80 else f"{text[:77]}..."
