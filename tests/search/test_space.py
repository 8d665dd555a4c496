"""Spaces are read from sweeps of Hydra's command line, and bad ones are one sentence."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from recexp.errors import RecexpError
from recexp.search.space import Choice, Interval, read_space

PARSER = OverridesParser.create()


def space(params, *arguments):
    return read_space(params, arguments, PARSER)


@pytest.mark.parametrize(
    ("sweep", "expected"),
    [
        ("choice(16,32)", Choice(("16", "32"))),
        ("ce,bce", Choice(("ce", "bce"))),
        ("choice([1,2],[3])", Choice(("[1,2]", "[3]"))),
        ("interval(0,0.5)", Interval(0.0, 0.5)),
        ("int(interval(1,5))", Interval(1, 5, step=1)),
        ("tag(log,interval(1e-4,1e-2))", Interval(1e-4, 1e-2, log=True)),
        ("range(1,4)", Interval(1, 3, step=1)),
        ("range(0,10,3)", Interval(0, 9, step=3)),
        ("range(0.1,0.5,0.1)", Interval(0.1, 0.4, step=0.1)),
        ("range(2)", Interval(0, 1, step=1)),
        ("range(4,5)", Choice(("4",))),
    ],
)
def test_a_sweep_becomes_a_parameter(sweep, expected):
    assert space({"a.b": sweep}).parameters == {"a.b": expected}


def test_the_command_line_wins_over_the_file():
    params = {"model": {"dropout": "interval(0,0.5)", "n": "choice(1,2)"}, "lr": "choice(1,2)"}
    found = space(params, "model.dropout=0.3", "lr=5,6", "model=sasrec")
    assert found.parameters == {"model.n": Choice(("1", "2")), "lr": Choice(("5", "6"))}
    assert found.fixed == ("model.dropout=0.3", "model=sasrec")


def test_null_takes_a_key_out_and_a_single_value_fixes_it():
    found = space({"a": None, "b": 3, "c": "choice(1,2)"})
    assert list(found.parameters) == ["c"]
    assert found.fixed == ("b=3",)


def test_values_are_written_for_the_command_line():
    found = space({"a": "interval(0.1,0.2)", "b": "choice([1,2],[3])", "c": "range(0.1,0.5,0.1)"})
    values = {"a": 0.123456789, "b": "[1,2]", "c": 0.1 + 0.2}
    assert found.words(values) == ["a=0.1235", "b=[1,2]", "c=0.3"]


def test_a_number_from_a_narrow_interval_is_not_rounded():
    found = space({"a": "interval(0.123456,0.123457)"})
    assert found.words({"a": 0.1234561}) == ["a=0.1234561"]


def test_corners_hold_every_choice_and_both_ends():
    found = list(space({"a": "choice(1,2,3)", "b": "interval(0,1)"}).corners())
    assert found == [["a=1", "b=0.0"], ["a=2", "b=1.0"], ["a=3", "b=0.0"]]


def test_a_grid_is_every_combination():
    grid = space({"a": "choice(x,y)", "b": "range(0.1,0.35,0.1)"}).grid()
    assert len(grid) == 6
    assert [point["b"] for point in grid[:3]] == [0.1, 0.2, 0.3]


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({}, "no parameters"),
        ({"a": "choice(1,2"}, "hydra.sweeper.params.a='choice\\(1,2'"),
        ({"a": [1, 2]}, "must be a sweep in quotes"),
        ({"a": "interval(0.5,0.1)"}, "from a number to a larger one"),
        ({"a": "interval(0,inf)"}, "from a number to a larger one"),
        ({"a": "tag(log,interval(0,1))"}, "must begin above 0"),
        ({"a": "tag(lag,interval(0,1))"}, "unknown tag 'lag'"),
        ({"a": "tag(log,choice(1,2))"}, "is for an interval"),
        ({"a": "choice(1,1)"}, "stands twice"),
        ({"a": "range(3,3)"}, "must have 1 to 10,000 values"),
        ({"a": "range(0,1,0.0)"}, "range\\(0,1,0.0\\)"),
        ({"seed": "choice(0,1)"}, "seed cannot be searched"),
        ({"dataset.filters": "choice([],[5])"}, "dataset.filters cannot be searched"),
    ],
)
def test_a_bad_space_is_one_sentence(params, text):
    with pytest.raises(RecexpError, match=text):
        space(params)


def test_an_interval_has_no_grid():
    with pytest.raises(RecexpError, match=r"a has an interval: give choice"):
        space({"a": "interval(0,1)"}).grid()
