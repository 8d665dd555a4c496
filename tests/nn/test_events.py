"""Vectors of event features, against loops over events."""

from __future__ import annotations

import pytest
import torch

from recexp.errors import RecexpError
from recexp.nn.events import EventSides, GapSide, TimeSide
from recexp.testing import toy
from recexp.types import Schema
from tests.support import features

SCHEMA = features.schema()
MASK = SCHEMA.V
QUERY = features.query([0, 1, 2], [[3, 1, 7, 2], [5], [4, 9]])


def bucket(seconds):
    """1 for no second, 2 for one, 3 for two and three, and so on."""
    return 1 + int(seconds).bit_length()


def rows_of(side, query):
    """The row of the table that each event takes."""
    with torch.no_grad():
        side.table.weight.copy_(torch.arange(len(side.table.weight))[:, None])
    return side(query, MASK)[..., 0].long().tolist()


def test_a_gap_is_the_time_since_the_event_before():
    side = GapSide(1)
    expected = []
    for items, times in zip(QUERY.item_BL.tolist(), QUERY.time_BL.tolist(), strict=True):
        row = []
        for at, item in enumerate(items):
            is_known = at > 0 and items[at - 1] != 0
            gap = (times[at] - times[at - 1]) // 1000 if is_known else None
            row.append(0 if item == 0 else side.unknown if gap is None else bucket(gap))
        expected.append(row)
    assert rows_of(side, QUERY) == expected


def test_a_gap_beside_a_masked_event_is_unknown():
    side = GapSide(1)
    query = features.query([0], [[3, 1, 7, 2]])
    query.item_BL[0, 1] = MASK
    query.time_BL[0, 1] = 0
    (row,) = rows_of(side, query)
    gap = int(query.time_BL[0, 3] - query.time_BL[0, 2]) // 1000
    assert row == [side.unknown, side.masked, side.unknown, bucket(gap)]


def test_an_age_counts_from_the_newest_event_that_is_not_masked():
    side = TimeSide(1)
    query = features.query([0], [[3, 1, 7, 2]])
    query.item_BL[0, 3] = MASK
    query.time_BL[0, 3] = 0
    (row,) = rows_of(side, query)
    seconds = [int(query.time_BL[0, 2] - query.time_BL[0, at]) // 1000 for at in range(3)]
    assert row == [*map(bucket, seconds), side.masked]


def test_sides_add_up_and_vanish_at_padding():
    names = ["value", "behavior", "device", "dwell", "gap"]
    sides = toy.randomise(EventSides(SCHEMA, 4, names, causal=True))
    x_BLD = torch.zeros(*QUERY.item_BL.shape, 4, dtype=torch.float64)
    total = sides.add_to(x_BLD, QUERY)
    value, behavior, device, dwell = (side.table.weight for side in sides.sides[:4])
    codes = QUERY.features_BL["device"]
    for b, at in QUERY.mask_BL.nonzero().tolist():
        code = int(codes[b, at]) or sides.sides[2].unknown
        expected = (
            value[QUERY.value_BL[b, at]]
            + behavior[QUERY.behavior_BL[b, at]]
            + device[code]
            + QUERY.features_BL["dwell"][b, at].double() * dwell[1]
            + dwell[2]
            + sides.sides[4](QUERY, -1)[b, at]
        )
        assert torch.allclose(total[b, at], expected, atol=1e-12)
    assert not total[~QUERY.mask_BL].any()
    assert torch.equal(sides.add_to_last(x_BLD[:, -1], QUERY), total[:, -1])


def test_a_query_without_the_columns_counts_as_unknown():
    sides = toy.randomise(EventSides(SCHEMA, 4, ["device", "dwell"], causal=True))
    query = toy.query([0], [[3, 1]])
    x_BLD = torch.zeros(1, 2, 4, dtype=torch.float64)
    device, dwell = sides.sides
    expected = device.table.weight[device.unknown] + dwell.table.weight[2]  # the mean
    assert torch.allclose(sides.add_to(x_BLD, query), expected.expand(1, 2, 4))


@pytest.mark.parametrize(
    ("side", "message"),
    [
        (["time"], "takes ['value', 'behavior', 'device', 'dwell', 'gap']"),
        (["brand"], "event_side names ['brand']"),
        (["gap", "gap"], "names a feature twice"),
    ],
)
def test_what_a_causal_model_does_not_take_is_refused(side, message):
    with pytest.raises(RecexpError) as error:
        EventSides(SCHEMA, 4, side, causal=True)
    assert message in str(error.value)


def test_all_is_refused_where_the_data_have_none():
    with pytest.raises(RecexpError, match="the prepared data has no features of events"):
        EventSides(Schema(2, 2, ("view",), (False,)), 4, "all", causal=True)
