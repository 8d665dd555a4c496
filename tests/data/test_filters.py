"""Filters against counting by hand."""

import random
from collections import Counter

import polars as pl
import pytest

from recexp.data.filters import apply_filters
from recexp.errors import RecexpError


def frame(pairs):
    return pl.DataFrame(
        pairs,
        schema=["user", "item"],
        orient="row",
        schema_overrides={"user": pl.String, "item": pl.String},
    )


def counts(pairs, column, distinct):
    return Counter(pair[column] for pair in (set(pairs) if distinct else pairs))


def once(pairs, step):
    distinct = step.get("count") == "items"
    users, items = counts(pairs, 0, distinct), counts(pairs, 1, distinct)
    low_user, low_item, high_user = (
        step.get("user_min", 0),
        step.get("item_min", 0),
        step.get("user_max", 10**9),
    )
    return [(u, i) for u, i in pairs if low_user <= users[u] <= high_user and items[i] >= low_item]


def reference(pairs, steps, iterate):
    while True:
        before = len(pairs)
        for step in steps:
            pairs = once(pairs, step)
        if not iterate or len(pairs) == before:
            return pairs


def random_pairs(seed):
    rng = random.Random(seed)
    return [
        (f"u{int(15 * rng.random() ** 2)}", f"i{int(20 * rng.random() ** 2)}") for _ in range(160)
    ]


@pytest.mark.parametrize("iterate", [False, True])
@pytest.mark.parametrize(
    "steps",
    [
        [{"user_min": 8}],
        [{"user_min": 5, "count": "items"}],
        [{"item_min": 6, "count": "items"}],
        [{"user_max": 20}],
        [{"user_max": 9, "count": "items"}],
        [{"user_min": 7, "item_min": 6}],
        [{"user_min": 4, "item_min": 3, "count": "items"}, {"user_min": 5}],
        [{"item_min": 5}, {"user_min": 9}],
    ],
)
def test_equals_counting_by_hand_and_keeps_the_order(steps, iterate):
    for seed in range(4):
        pairs = random_pairs(seed)
        kept, lines = apply_filters(frame(pairs), steps, iterate)
        assert kept.rows() == reference(pairs, steps, iterate)
        dropped = sum(int(line.split(": ")[1].split(" of ")[0].replace(",", "")) for line in lines)
        assert dropped == len(pairs) - kept.height


def test_one_step_counts_both_keys_before_it_drops_either():
    # Dropping item b first would leave u with one event; counted jointly it has two when its turn
    # comes.
    pairs = [("u", "a"), ("u", "b"), ("v", "a"), ("v", "a")]
    assert apply_filters(frame(pairs), [{"user_min": 2, "item_min": 2}])[0].rows() == [
        ("u", "a"),
        ("v", "a"),
        ("v", "a"),
    ]
    assert apply_filters(frame(pairs), [{"item_min": 2}, {"user_min": 2}])[0].rows() == [
        ("v", "a"),
        ("v", "a"),
    ]


def test_iterating_reaches_the_core():
    # A chain: each drop starves the next, until the square u-v x a-b is left.
    square = [("u", "a"), ("u", "b"), ("v", "a"), ("v", "b")]
    chain = [("w1", "a"), ("w1", "c1"), ("w2", "c1"), ("w2", "c2"), ("w3", "c2")]
    kept, lines = apply_filters(
        frame(square + chain), [{"user_min": 2, "item_min": 2}], iterate=True
    )
    assert kept.rows() == square
    assert len(lines) > 2


def test_no_step_keeps_everything():
    pairs = random_pairs(0)
    assert apply_filters(frame(pairs), [], iterate=True)[0].rows() == pairs


def test_nothing_left_is_an_error_that_names_the_filter():
    with pytest.raises(RecexpError, match=r"user_min=99.*left no event of 160.*dataset\.filters"):
        apply_filters(frame(random_pairs(0)), [{"user_min": 99}])


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"users_min": 5}, r"unknown key \['users_min'\].*user_min"),
        (
            {"user_min": 5, "count": "clicks"},
            r"filters\[0\]\.count='clicks' is unknown; choose one of events, items",
        ),
    ],
)
def test_wrong_keys_are_errors(step, message):
    with pytest.raises(RecexpError, match=message):
        apply_filters(frame(random_pairs(0)), [step])
