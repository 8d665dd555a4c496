"""Properties of single values: ``judge`` and plain Python agree on the meaning of every text, and
quoting does not change a field.
"""

import csv
import io

import polars as pl
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from recexp.data.raw.columns import Column, judge
from recexp.data.readers import table
from recexp.errors import RecexpError
from tests.fuzz.mutations import CELLS
from tests.fuzz.values import Bad, parsed

QUICK = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
DIGITS = st.from_regex(r"[+-]?[0-9]{0,22}(\.[0-9]{0,12})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)
DAY, CLOCK = (
    r"[0-9]{4}-[01]?[0-9]-[0-3]?[0-9]",
    r"[0-2]?[0-9]:[0-6]?[0-9](:[0-6]?[0-9](\.[0-9]{1,9})?)?",
)
DATES = st.from_regex(
    rf"{DAY}([ T]{CLOCK}(Z|[+-][0-2][0-9](:?[0-5][0-9])?)?)?( UTC)?", fullmatch=True
)
CLEAN = st.characters(exclude_categories=["Cs"])
TEXTS = st.one_of(
    st.sampled_from(CELLS),
    DIGITS,
    DATES,
    st.text(CLEAN, max_size=8),
    st.integers().map(str),
    st.floats().map(repr),
)
FIELDS = st.text(CLEAN, max_size=12)


@pytest.mark.parametrize("kind", ["int", "number", "s", "ms", "iso", "id", "text"])
@QUICK
@given(texts=st.lists(TEXTS, min_size=1, max_size=60), nullable=st.booleans())
def test_a_text_means_what_python_says(kind, texts, nullable):
    column = Column("x", "x", kind, nullable=nullable)
    for text, value, reason in zip(
        texts, *judge(pl.DataFrame({"x": texts}), [column]).get_columns(), strict=True
    ):
        try:
            wanted = parsed(text, kind, nullable)
            assert reason is None and value == wanted, (text, value, reason, wanted)
        except Bad:
            assert reason is not None, (text, value)


@QUICK
@given(
    rows=st.lists(st.tuples(FIELDS, FIELDS, FIELDS), min_size=1, max_size=8),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
)
def test_any_table_that_csv_writes_is_read_or_refused(tmp_path_factory, rows, quoting):
    """Ids of any characters, quotes, separators and line ends in all places."""
    # csv leaves a carriage return unquoted where it may, and it then ends the row.
    assume(quoting == csv.QUOTE_ALL or not any("\r" in field for row in rows for field in row))
    folder, out = tmp_path_factory.mktemp("t"), io.StringIO()
    csv.writer(out, quoting=quoting, lineterminator="\n").writerows(
        [("user", "item", "note"), *rows]
    )
    (folder / "t.csv").write_bytes(out.getvalue().encode())
    good = []
    for user, item, _ in rows:
        try:
            good.append((parsed(user, "id"), parsed(item, "id")))
        except Bad:
            continue
    if not good:
        with pytest.raises(RecexpError, match="no usable row"):
            table.read(folder, file="t.csv", timestamp=None, on_bad_rows="drop")
        return
    raw = table.read(folder, file="t.csv", timestamp=None, on_bad_rows="drop")
    assert raw.events.collect().select("user", "item").rows() == good
    assert sum(count for count, _ in raw.dropped.values()) == len(rows) - len(good)


@QUICK
@given(
    users=st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)), min_size=1, max_size=9),
    times=st.sampled_from(
        [
            pl.Int64,
            pl.UInt32,
            pl.Float64,
            pl.String,
            pl.Datetime("us"),
            pl.Datetime("ns", "Asia/Seoul"),
            pl.Date,
        ]
    ),
    data=st.data(),
)
def test_parquet_of_any_types(tmp_path_factory, users, times, data):
    """Times of every type are the same milliseconds."""
    folder = tmp_path_factory.mktemp("p")
    seconds = data.draw(
        st.lists(st.integers(0, 4_000_000_000), min_size=len(users), max_size=len(users))
    )
    if times == pl.Date:
        seconds = [s // 86_400 * 86_400 for s in seconds]
        when = pl.Series([s // 86_400 for s in seconds], dtype=pl.Int32).cast(pl.Date)
    elif times == pl.Datetime:
        when = (
            pl.Series([s * 1000 for s in seconds])
            .cast(pl.Datetime("ms"))
            .dt.replace_time_zone("UTC" if times.time_zone else None)
        )
        when = (
            when.cast(pl.Datetime(times.time_unit, when.dtype.time_zone))
            if not times.time_zone
            else when.dt.convert_time_zone(times.time_zone)
        )
    else:
        when = pl.Series(seconds).cast(times)
    pl.DataFrame(
        {"user": pl.Series(users, dtype=pl.Int64), "item": ["a"] * len(users), "timestamp": when}
    ).write_parquet(folder / "t.parquet")
    good = [
        (str(user), s * 1000) for user, s in zip(users, seconds, strict=True) if user is not None
    ]
    if not good:
        with pytest.raises(RecexpError, match="no usable row"):
            table.read(folder, file="t.parquet", on_bad_rows="drop")
        return
    raw = table.read(folder, file="t.parquet", on_bad_rows="drop")
    assert raw.events.collect().select("user", "timestamp").rows() == good
