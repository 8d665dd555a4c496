"""Times of every form are the milliseconds that Python's datetime computes."""

import random
from datetime import UTC, datetime, timedelta, timezone

import polars as pl
import pytest

from recexp.data.raw.columns import judge, time_column
from recexp.data.raw.times import check_pattern, detected_unit
from recexp.errors import RecexpError

PATTERNS = [
    "%Y%m%d",
    "%Y%m%d%H%M%S",
    "%y%m%d",
    "%d.%m.%Y",
    "%d.%m.%Y %H:%M",
    "%m/%d/%Y %I:%M %p",
    "%Y-%m-%d %H:%M:%S.%f",
    "%Y-%m-%dT%H:%M:%S%z",
    "%a %b %d %H:%M:%S %z %Y",
    "%d%b%Y",
    "%B %d, %Y",
    "%Y-%j",
    "%Y%m%d %H",
]


def read(texts, unit):
    frame = judge(pl.DataFrame({"t": texts}), [time_column("t", "t", unit)])
    return frame["t"].to_list(), frame["_reason"].to_list()


def since_1970(moment):
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_means_what_python_says(pattern):
    rng = random.Random(0)
    zones = [UTC, timezone(timedelta(hours=9)), timezone(timedelta(hours=-3, minutes=-30))]
    moments = [
        datetime.fromtimestamp(rng.randrange(3 * 10**8, 19 * 10**8), rng.choice(zones))
        for _ in range(200)
    ]
    texts = [moment.strftime(pattern) for moment in moments]
    parsed = [datetime.strptime(text, pattern) for text in texts]
    expected = [since_1970(p if p.tzinfo else p.replace(tzinfo=UTC)) for p in parsed]
    check_pattern(pattern)
    assert read(texts, pattern) == (expected, [None] * len(texts))
    times, reasons = read(["x", *(text + "x" for text in texts[:5])], pattern)
    assert set(reasons) == {f"0 is not a time of the form {pattern}"} and times == [None] * 6


def test_a_pattern_without_a_year_is_read_in_a_leap_year():
    """Times of Tmall: month and day as a number, which has lost its leading zero."""
    texts = ["1111", "0829", "829", "229", "0229"]
    days = [(11, 11), (8, 29), (8, 29), (2, 29), (2, 29)]
    check_pattern("%m%d")
    assert read(texts, "%m%d")[0] == [since_1970(datetime(2000, *d, tzinfo=UTC)) for d in days]
    assert [r is None for r in read(["1311", "230", "29", "", "11111"], "%m%d")[1]] == [False] * 5


def test_lost_zeros_are_put_back_only_where_the_width_is_fixed():
    noon = since_1970(datetime(2014, 5, 15, 9, 5, tzinfo=UTC))
    assert read(["201405150905", "15.05.2014 9:5"], "%Y%m%d%H%M")[0] == [noon, None]
    assert read(["15.5.2014 9:5"], "%d.%m.%Y %H:%M")[0] == [noon]


@pytest.mark.parametrize("pattern", ["%Q", "%", "%Y%m%d%q", "%p", "100%"])
def test_what_is_no_pattern_is_refused(pattern):
    with pytest.raises(RecexpError, match="is no pattern of a date"):
        check_pattern(pattern)


@pytest.mark.parametrize("unit, factor", [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
def test_numbers_of_all_units(unit, factor):
    seconds = [0, 1, 1_400_172_030, 4_000_000_000]
    texts = [str(second * factor) for second in seconds]
    assert read(texts, unit) == ([second * 1000 for second in seconds], [None] * 4)
    numbers = pl.Series(texts).cast(pl.Int64)
    assert read(numbers, unit)[0] == [second * 1000 for second in seconds]
    assert detected_unit(texts[2:]) == unit
    late = str(253_402_300_800 * factor)
    assert "lies beyond the year 9999" in read([late], unit)[1][0]


@pytest.mark.parametrize(
    "texts, unit",
    [
        (["1400172030.5", " 1400172031 ", None, ""], "s"),
        (["2014-05-15", "2014-05-15 16:40", "5"], "iso"),
        (["x", "1400172030123", "1400172030124"], "ms"),
        # One number beyond all units does not decide.
        (["1400172030", "1400172031", "1e300"], "s"),
        (["0", "0", "0"], "s"),
        (["1e30"], "ns"),
        (["nan", "inf"], "ns"),
        ([], "s"),
        (["", None], "s"),
    ],
)
def test_the_first_rows_decide(texts, unit):
    assert detected_unit(texts) == unit
