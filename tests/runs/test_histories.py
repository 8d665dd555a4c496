"""Times of histories, in the unit of the data set."""

from datetime import UTC, date, datetime

import polars as pl
import pytest

from recexp.errors import RecexpError
from recexp.runs.histories import milliseconds

NOON = 1_400_155_200
IN_MS = 1_400_155_200_000


@pytest.mark.parametrize(
    "time, unit",
    [
        ([NOON], "s"),
        ([NOON * 10**6], "us"),
        ([NOON * 10**9], "ns"),
        ([NOON * 10**6], "auto"),
        (["15.05.2014 12:00"], "%d.%m.%Y %H:%M"),
        ([201405151200], "%Y%m%d%H%M"),
        # What does not fit the pattern is read as without one.
        (["2014-05-15T12:00:00"], "%d.%m.%Y %H:%M"),
        ([NOON], "%Y%m%d"),
        ([datetime(2014, 5, 15, 12, tzinfo=UTC)], "%Y%m%d"),
    ],
)
def test_times_are_in_the_unit_of_the_data_set(time, unit):
    assert milliseconds(pl.Series(time), "The histories'", unit).to_list() == [IN_MS]


def test_dates_as_numbers_are_dates():
    """A number such as 20140515 would be a time of 1970 otherwise."""
    day = (date(2014, 5, 15) - date(1970, 1, 1)).days * 86_400_000
    assert milliseconds(pl.Series([20140515]), "The", "%Y%m%d").to_list() == [day]
    assert milliseconds(pl.Series([20140515]), "The", "s").to_list() == [20_140_515_000]


def test_times_that_fit_nothing_are_named():
    with pytest.raises(RecexpError, match=r"such as '15\.05\.14', are no ISO times"):
        milliseconds(pl.Series(["15.05.14"]), "The", "%d.%m.%Y %H:%M")
