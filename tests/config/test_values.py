"""Values are held against the type hints of the constructor that they are for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest
from pydantic import Field

from recexp.config import CONF
from recexp.config.values import check_values, describe, parameters_of
from recexp.errors import RecexpError

if TYPE_CHECKING:
    from nowhere import Unknown  # type: ignore[import-not-found]

Positive = Annotated[int, Field(ge=1)]


class Part:
    """Stands for a class that a node instantiates."""


class Base:
    def __init__(self, depth: Annotated[int, Field(ge=1, le=8)] = 1, secret: Unknown = None):
        pass


class Child(Base):
    """Takes its base's constructor."""


@dataclass
class Model:
    """One parameter of every kind."""

    n: Annotated[int, Field(ge=1, le=2**31)] = 1
    n_or_null: Positive | None = None
    ks: Annotated[list[Positive], Field(min_length=1)] = ()
    pair: tuple[float, float] = (0.0, 0.0)
    names: Sequence[str] | None = None
    norm: Literal["post", "pre"] = "pre"
    part: Part | None = None
    weights: Mapping[str, float] | None = None
    rate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    flag: bool = True
    anything: Any = None
    function: Callable[[], None] | None = None
    scale: Annotated[float, Field(gt=0)] | Literal["auto"] = 1.0


NODE = {"_target_": "somewhere.Part"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("n", 1),
        ("n_or_null", None),
        ("n_or_null", 3),
        ("ks", [1, 10]),
        ("pair", [1, 0.5]),
        ("names", ["a"]),
        ("names", None),
        ("norm", "pre"),
        ("part", NODE),
        ("part", None),
        ("weights", {"a": 1}),
        ("rate", 0),
        ("rate", 0.5),
        ("flag", False),
        ("anything", [3]),
        ("function", NODE),
        ("scale", "auto"),
        ("scale", 2),
        ("unknown", "x"),
    ],
)
def test_what_the_hint_allows_passes(key, value):
    check_values("model", {key: value}, Model)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("n", 0, "model.n=0: must be a whole number at least 1 and at most 2,147,483,648."),
        ("n", True, "model.n=true: must be a whole number"),
        ("n", "3", "model.n='3': must be a whole number"),
        ("n", 1.0, "model.n=1.0: must be a whole number"),
        ("n", None, "model.n=null: must be a whole number"),
        ("n_or_null", 0, "must be a whole number at least 1."),
        ("ks", [], "model.ks=[]: must be a list, not empty, each entry a whole number at least 1."),
        ("ks", [0], "model.ks=[0]: must be a list, not empty"),
        ("ks", 3, "must be a list"),
        ("pair", [1], "must be a list, each entry a number"),
        ("names", "a", "must be a list, each entry a text"),
        ("norm", "x", "model.norm='x': must be one of post, pre."),
        ("part", 3, "model.part=3: must be a Part with a _target_."),
        ("weights", 3, "must be names with values"),
        ("rate", 1, "must be a number at least 0 and below 1."),
        ("rate", True, "must be a number"),
        ("rate", float("nan"), "must be a number"),
        ("rate", float("inf"), "must be a number"),
        ("flag", 1, "must be true or false"),
        ("scale", "x", "must be a number above 0 or auto."),
        ("scale", 0, "must be a number above 0 or auto."),
    ],
)
def test_an_error_names_key_value_and_what_is_allowed(key, value, text):
    with pytest.raises(RecexpError) as caught:
        check_values("model", {key: value}, Model)
    assert text in str(caught.value)


def test_hints_of_a_base_class_count_and_unresolvable_ones_pass():
    check_values("model", {"depth": 8, "secret": "anything"}, Child)
    with pytest.raises(RecexpError, match=r"model\.depth=9: must be a whole number at least 1 and"):
        check_values("model", {"depth": 9}, Child)


def test_a_limit_on_the_parameter_replaces_the_table_of_ranges():
    def own(momentum: Annotated[float, Field(ge=0, le=5)]) -> None: ...

    def silent(momentum: float) -> None: ...

    check_values("optimizer", {"momentum": 3}, own)
    with pytest.raises(RecexpError, match=r"optimizer\.momentum=3: must be a number at least 0 a"):
        check_values("optimizer", {"momentum": 3}, silent)


OWN_GROUPS = ("dataset", "model", "objective", "loss", "sampler", "protocol", "optimizer", "debug")
OWN_TARGET = re.compile(r"_target_: (recexp[\w.]+)")


def own_targets() -> list[str]:
    """Our classes and functions that the YAMLs of these groups name."""
    files = [path for group in OWN_GROUPS for path in (CONF / group).rglob("*.yaml")]
    return sorted({name for path in files for name in OWN_TARGET.findall(path.read_text())})


@pytest.mark.parametrize("target", own_targets())
def test_every_number_of_our_constructors_declares_its_limits(target):
    parameters = parameters_of(resolve_name(target))
    unlimited = [k for k, p in parameters.items() if "number" in p.wanted and not p.constrained]
    assert not unlimited


def test_heads_must_divide_the_width():
    with pytest.raises(RecexpError, match="choose one of 1, 2, 4, 8"):
        check_values("model", {"n_heads": 3, "n_factors": 8}, Model)


def test_a_hint_is_described_in_words():
    assert describe(int | str | None) == "a whole number or a text"
    assert describe(Any) == ""
