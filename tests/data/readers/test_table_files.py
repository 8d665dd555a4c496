"""The reader of any table: formats, separators, numbered columns and units of time."""

import gzip
import json
from datetime import UTC, datetime

import polars as pl
import pytest

from recexp.data.cache import prepare, read_meta
from recexp.data.dataset import Dataset
from recexp.data.readers import table
from recexp.data.split import Split
from recexp.errors import RecexpError

EVENTS = [("ann", "a", 1_400_172_030), ("ann", "b", 1_400_172_090), ("bob", "a", 1_400_172_060)]
FORMS = {
    "s": lambda s: s,
    "ms": lambda s: s * 1000,
    "us": lambda s: s * 10**6,
    "ns": lambda s: s * 10**9,
    "iso": lambda s: datetime.fromtimestamp(s, UTC).isoformat(),
    "%d.%m.%Y %H:%M:%S": lambda s: datetime.fromtimestamp(s, UTC).strftime("%d.%m.%Y %H:%M:%S"),
}


def write(folder, events=EVENTS, separator=",", header=True, name="events.csv", unit="s"):
    folder.mkdir(exist_ok=True)
    rows = [(user, item, FORMS[unit](time)) for user, item, time in events]
    lines = [("user", "item", "timestamp"), *rows] if header else rows
    text = "".join(separator.join(map(str, line)) + "\n" for line in lines)
    (folder / name).write_text(text)
    return folder


def rows(folder, **options):
    raw = table.read(folder, **({"file": "events.csv"} | options))
    return raw.events.collect().select("user", "item", "timestamp").rows()


EXPECTED = [(user, item, time * 1000) for user, item, time in EVENTS]


@pytest.mark.parametrize("separator", ["tab", "\\t", "\t"])
def test_a_tab_may_be_named(tmp_path, separator):
    write(tmp_path, separator="\t")
    assert rows(tmp_path, separator=separator) == EXPECTED


def test_columns_without_names_are_numbered(tmp_path):
    write(tmp_path, header=False)
    numbered = {"header": False, "user": 0, "item": "1", "timestamp": 2}
    assert rows(tmp_path, **numbered) == EXPECTED
    assert rows(tmp_path, **numbered | {"time_unit": "auto"}) == EXPECTED
    with pytest.raises(RecexpError, match=r"dataset.source.item='item' must be the number of a"):
        rows(tmp_path, header=False, user=0)
    with pytest.raises(RecexpError, match=r"there are 3 columns; column 8 \(value\) is missing"):
        rows(tmp_path, **numbered, value=7)
    # With a header a number is a name, as pandas gives to columns without one.
    (tmp_path / "events.csv").write_text("1,0,2\na,ann,5\n")
    assert rows(tmp_path, user=0, item=1, timestamp=2) == [("ann", "a", 5000)]


@pytest.mark.parametrize("unit", FORMS)
@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
def test_every_unit_in_every_format_gives_the_same_times(tmp_path, unit, form):
    """auto finds the unit, except that of a pattern."""
    names = {"csv": "events.csv", "json": "events.jsonl.gz", "parquet": "events.parquet"}
    write(tmp_path, unit=unit)
    frame = pl.read_csv(tmp_path / "events.csv")
    if form == "json":
        lines = "".join(json.dumps(row) + "\n" for row in frame.to_dicts())
        (tmp_path / names[form]).write_bytes(gzip.compress(lines.encode()))
    if form == "parquet":
        frame.write_parquet(tmp_path / names[form])
    options = {"file": names[form]}
    assert rows(tmp_path, **options, time_unit=unit) == EXPECTED
    if "%" not in unit:
        assert rows(tmp_path, **options, time_unit="auto") == EXPECTED
        assert table.read(tmp_path, **options, time_unit="auto").decided == {"time_unit": unit}


def test_a_first_file_without_rows_decides_nothing(tmp_path):
    write(tmp_path, [], name="part-1.csv", unit="ms")
    write(tmp_path, name="part-2.csv", unit="ms")
    assert rows(tmp_path, file="part-*.csv", time_unit="auto") == EXPECTED


def test_rows_that_do_not_fit_the_unit_of_the_first_ones_are_faults(tmp_path):
    write(tmp_path, name="part-1.csv")
    write(tmp_path, name="part-2.csv", unit="ms")
    with pytest.raises(RecexpError, match=r"part-2\.csv, line 2, column 'timestamp': '140017"):
        rows(tmp_path, file="part-*.csv", time_unit="auto")


def test_dates_of_parquet_need_no_unit(tmp_path):
    when = pl.Series([datetime.fromtimestamp(time, UTC) for *_, time in EVENTS])
    frame = pl.DataFrame(EVENTS, schema=["user", "item", "timestamp"], orient="row")
    frame.with_columns(timestamp=when).write_parquet(tmp_path / "events.parquet")
    for unit in ("auto", "s", "%Y"):
        assert rows(tmp_path, file="events.parquet", time_unit=unit) == EXPECTED


@pytest.mark.parametrize(
    "options, words",
    [
        ({"time_unit": "%Q"}, "time_unit='%Q' is no pattern of a date"),
        ({"time_unit": None}, "time_unit=None is not known"),
        ({"separator": "\n"}, "cannot separate"),
        ({"file": "*.tsv"}, r"No file of .* matches '\*\.tsv'"),
        ({"file": "none.parquet"}, r"none\.parquet is missing"),
        ({"user": "who"}, "column 'who' is not in the header: user, item, timestamp"),
    ],
)
def test_wrong_options_are_named(tmp_path, options, words):
    write(tmp_path)
    with pytest.raises(RecexpError, match=words):
        rows(tmp_path, **options)


def prepared(folder, cache, behaviors=("interaction",), **source):
    source = {"_target_": "recexp.data.readers.table.read", "_partial_": True} | source
    dataset = Dataset("mine", str(folder), {"file": "events.csv"} | source, behaviors, behaviors)
    return read_meta(prepare(dataset, Split(), cache))


def test_a_unit_that_was_found_has_the_fingerprint_of_the_same_unit_by_hand(tmp_path):
    for unit in ("s", "ms", "iso"):
        folder = write(tmp_path / unit, unit=unit)
        by_hand = prepared(folder, tmp_path / "cache 1", time_unit=unit)
        found = prepared(folder, tmp_path / "cache 2", time_unit="auto", header=True)
        assert found["fingerprint"] == by_hand["fingerprint"]
        assert f"dataset.source.time_unit=auto: taken as {unit}" in found["report"]
        assert found["arrays"] == by_hand["arrays"]
    numbered = {"header": False, "user": 0, "item": 1, "timestamp": 2}
    assert (
        prepared(folder, tmp_path / "cache", time_unit="iso")["fingerprint"]
        != (
            prepared(write(tmp_path / "s", header=False), tmp_path / "cache", **numbered)[
                "fingerprint"
            ]
        )
    )
