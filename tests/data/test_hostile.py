"""Malformed input: one test for each fault that the fuzz tests (tests/fuzz) found.

Each fault was a wrong number, a traceback or an endless loop.
"""

import gzip
import json

import polars as pl
import pytest

from recexp.data.cache import prepare
from recexp.data.dataset import Dataset
from recexp.data.raw import scanning
from recexp.data.raw import text as rawtext
from recexp.data.readers import amazon, movielens, steam, table, taobao
from recexp.data.split import Split
from recexp.data.store import Store
from recexp.errors import RecexpError
from tests.data.readers.test_errors import layout, lines, packed

HEADER = "user,item,timestamp,note"


def written(folder, *rows, name="t.csv", end="\n"):
    (folder / name).write_bytes("".join(row + end for row in rows).encode())
    return folder


def events(folder, **options):
    return (
        table.read(folder, file="t.csv", **options)
        .events.collect()
        .select("user", "item", "timestamp")
        .rows()
    )


def test_quotes_amid_fields_swallow_no_rows(tmp_path):
    """An inch sign in two titles: polars read the rows between them as one row."""
    written(tmp_path, HEADER, "a,x,1,", 'b,y,2,10" tube', "c,z,3,", 'd,z,4,12" tube', "e,z,5,")
    assert [user for user, *_ in events(tmp_path)] == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize("fields", ['b,y,"2"x,', 'b,"y"x"z",2,', 'b,y,2,"open'])
def test_misplaced_quotes_are_an_error(tmp_path, fields):
    written(tmp_path, HEADER, "a,x,1,", fields, "c,z,3,")
    with pytest.raises(RecexpError, match=r"t\.csv, line 3: the quoting is broken"):
        events(tmp_path)


@pytest.mark.parametrize("extra", ["5,1,view,10,,9", "5,1,view,10,", "5,1,vi,ew,10,"])
def test_rows_of_too_many_fields_are_noticed(tmp_path, extra):
    """polars counts the fields only where all columns are read; shifted fields were accepted."""
    _, read, _ = layout(
        tmp_path,
        "retailrocket",
        events__csv=lines("timestamp,visitorid,event,itemid", "6,2,view,10", extra, "7,2,view,11"),
    )
    with pytest.raises(
        RecexpError, match=r"events\.csv, line 3: has . fields where 4 are expected"
    ):
        read(tmp_path)
    assert read(tmp_path, on_bad_rows="drop").events.collect().height == 2


def test_streaming_notices_rows_of_too_many_fields(tmp_path, monkeypatch):
    monkeypatch.setattr(scanning, "LARGE", 0)
    written(tmp_path, "1,2,3,pv,5,x", "1,2,3,pv,5,x,y", name="UserBehavior.csv")
    with pytest.raises(RecexpError, match="line 2: has 7 fields where 6 are expected"):
        taobao.read(tmp_path)


def test_a_last_row_cut_within_a_quote_is_an_error(tmp_path):
    products = b'"i1","9","a","b","c","d","e"\n"i2","'
    _, read, _ = layout(tmp_path, "recobell", site_product__csv000=products)
    with pytest.raises(RecexpError, match=r"site_product\.csv000, line 2: the quoting is broken"):
        read(tmp_path)


@pytest.mark.parametrize(
    "end, message",
    [
        ("\r", "line 1 holds a carriage return that ends no line"),
        ("\n\r", "line 2: holds a carriage return"),
    ],
)
def test_lone_carriage_returns(tmp_path, end, message):
    written(tmp_path, HEADER, "a,x,1,", "b,y,2,", end=end)
    with pytest.raises(RecexpError, match=message):
        events(tmp_path)


def test_a_carriage_return_within_an_id_is_a_bad_row(tmp_path):
    written(tmp_path, HEADER, "a\rb,x,1,", "b,y,2,", '"c\rd",z,3,')
    with pytest.raises(RecexpError, match="line 2: holds a carriage return that ends no line"):
        events(tmp_path)
    assert events(tmp_path, on_bad_rows="drop") == [("b", "y", 2000)]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_utf_16_is_named(tmp_path, encoding):
    (tmp_path / "t.csv").write_bytes(
        f"\ufeff{HEADER}\na,x,1,\n".removeprefix("\ufeff" if encoding == "utf-16" else "").encode(
            encoding
        )
    )
    with pytest.raises(RecexpError, match=r"t\.csv is UTF-16 text\. Save it as UTF-8\."):
        events(tmp_path)


def test_a_long_field_is_no_broken_quote(tmp_path):
    """csv's limit of 131 072 characters; polars has none."""
    written(tmp_path, HEADER, f"a,x,1,{'k' * 300_000}", "")
    assert events(tmp_path) == [("a", "x", 1000)]


def test_errors_show_little_of_a_long_text(tmp_path):
    written(tmp_path, HEADER, f"a,x,{'k' * 300_000},")
    with pytest.raises(RecexpError, match=r"'kkkkk.*' is not a number") as error:
        events(tmp_path)
    assert len(str(error.value)) < 500
    (tmp_path / "t.csv").write_bytes(b"us\xffer" * 10_000 + b",item\na,x\n")
    with pytest.raises(RecexpError, match=r"'user' is not in the header: us.udcffer") as error:
        events(tmp_path)
    assert len(str(error.value).encode()) < 500  # and it can be written to a log


def test_a_long_user_without_items_is_shown_in_short(tmp_path):
    _, read, _ = layout(tmp_path, "attribute_sequence", Beauty__txt=lines("1 10", "k" * 10_000))
    with pytest.raises(RecexpError, match=r"line 2: has a user .'kkk") as error:
        read(tmp_path)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("separator", ["", '"', "\n", "é", 'a"'])
def test_separators_that_cannot_separate(tmp_path, separator):
    with pytest.raises(RecexpError, match="cannot separate: choose one ASCII character"):
        events(written(tmp_path, HEADER, "a,x,1,"), separator=separator)


@pytest.mark.parametrize("last", ["", "\n\n"], ids=["fast", "slow"])
def test_several_characters_separate_without_quotes(tmp_path, last):
    written(tmp_path, 'user::item::timestamp\n"a"::x::1' + last)
    assert events(tmp_path, separator="::") == [('"a"', "x", 1000)]


def test_the_stand_in_for_a_separator_separates_nothing(tmp_path):
    _, read, _ = layout(
        tmp_path, "ml_1m", ratings__dat=b"1::1::5::978300760\n1::2::5\x1f978300760\n"
    )
    with pytest.raises(
        RecexpError,
        match=r"ratings\.dat, line 2, column 3 \(value\): '5.x1f978300760' is not a number",
    ):
        read(tmp_path)


def test_a_value_too_large_for_32_bits_is_refused(tmp_path):
    """It became infinite, and a price's mean and spread with it."""
    written(tmp_path, HEADER, "a,x,1,1e39")
    with pytest.raises(RecexpError, match=r"column 'note': '1e39' lies beyond 3\.4e\+38"):
        table.read(tmp_path, file="t.csv", value="note")


def test_years_in_other_digits_are_no_years(tmp_path):
    films = 'movieId,title,genres\n1,A (１９９５),X\n2,"B\n(1996)",X\n'.encode()
    layout(tmp_path, "ml_20m", movies__csv=films)
    assert movielens.read_20m(tmp_path).item_features["year"].frame.collect().rows() == [(2, 1996)]


@pytest.mark.parametrize("value", ["0x" + "f" * 5000, "['a']", "True", "{1}", "b'a'", "1j"])
def test_ids_of_records_are_texts_or_whole_numbers(tmp_path, value):
    good = "{'username': 'a', 'product_id': '1', 'date': '2017-12-17'}"
    layout(tmp_path, "steam", steam_reviews__json__gz=lines(good, good.replace("'1'", value)))
    with pytest.raises(
        RecexpError,
        match=r"line 2: has something at 'product_id' that is neither a text nor a whole number",
    ):
        steam.read(tmp_path)
    assert steam.read(tmp_path, on_bad_rows="drop").events.collect().height == 1


@pytest.mark.parametrize(
    "bomb",
    [
        "[" * 10**5,
        "-" * 10**5 + "1",
        "1+" * 10**5 + "1j",
        "{'a':" * 99,
        "f(" * 5000,
        "9" * 5000,
        "'" + "a" * (2 << 20),
    ],
)
def test_records_that_blow_up_a_parser_are_bad_rows(tmp_path, bomb):
    layout(
        tmp_path,
        "steam",
        steam_reviews__json__gz=gzip.compress(
            lines("{'username': 'a', 'product_id': '1', 'date': '2017-12-17'}", bomb)
        ),
    )
    with pytest.raises(RecexpError, match=r"line 2: .* is (not JSON|neither JSON|not a record)"):
        steam.read(tmp_path)


def test_literals_are_not_executed(tmp_path):
    layout(
        tmp_path,
        "steam",
        steam_reviews__json__gz=lines(
            f"{{'username': open({str(tmp_path / 'made')!r}, 'w').name}}"
        ),
    )
    with pytest.raises(RecexpError, match=r"line 1: .* is neither JSON nor a Python literal"):
        steam.read(tmp_path)
    assert not (tmp_path / "made").exists()


def test_names_may_hold_line_ends_and_be_blank(tmp_path):
    games = packed({"id": "1", "genres": ["a", "", " ", "b\nc"]})
    layout(tmp_path, "steam", steam_games__json__gz=games)
    assert steam.read(tmp_path).item_features["genres"].frame.collect().rows() == [
        ("1", "a"),
        ("1", "b\nc"),
    ]
    meta = packed({"asin": "B1", "categories": [["a", ""], ["b\nc", "a"]]})
    layout(tmp_path, "amazon", meta_Beauty__json__gz=meta)
    assert amazon.read(tmp_path).item_features["category"].frame.collect().rows() == [
        ("B1", "a"),
        ("B1", "b\nc"),
    ]


@pytest.mark.parametrize("file", ["ratings_Beauty.csv", "meta_Beauty.json.gz"])
@pytest.mark.parametrize("policy", ["error", "drop"])
def test_a_file_that_unpacks_to_absurd_lengths_is_refused(tmp_path, monkeypatch, file, policy):
    monkeypatch.setattr(rawtext, "FREE", 1 << 16)
    row = (
        b"A1,B1,5.0,1\n"
        if file.endswith("csv")
        else json.dumps({"asin": "B1", "price": 1}).encode() + b"\n"
    )
    layout(tmp_path, "amazon", **{file.replace(".", "__"): gzip.compress(row * 100_000)})
    with pytest.raises(RecexpError, match=rf"{file} unpacks to more than 200 times its size"):
        amazon.read(tmp_path, on_bad_rows=policy)


def test_a_line_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(rawtext, "MAX_LINE", 1 << 20)
    layout(tmp_path, "steam", steam_reviews__json__gz=gzip.compress(b"\0" * (1 << 22)))
    with pytest.raises(RecexpError, match="line 1 is longer than 1 MiB"):
        steam.read(tmp_path, on_bad_rows="drop")


def test_packed_in_parts_is_read_whole(tmp_path):
    (tmp_path / "t.csv").write_bytes(
        gzip.compress(f"{HEADER}\na,x,1,\n".encode()) + gzip.compress(b"b,y,2,\n") + b"\0" * 9
    )
    assert events(tmp_path) == [("a", "x", 1000), ("b", "y", 2000)]


@pytest.mark.parametrize("price", ["1e30", "0.1", "100000.1", "0"])
def test_equal_numbers_have_no_spread(tmp_path, price):
    """The rounding error of their mean became the value -1 for every item."""
    written(tmp_path, HEADER, *(f"u{n % 2},i{n},{n}," for n in range(6)))
    written(tmp_path, "item,price", *(f"i{n},{price}" for n in range(6)), name="i.csv")
    features = {"file": "i.csv", "item": "item", "columns": {"price": "numeric"}}
    source = {
        "_target_": "recexp.data.readers.table.read",
        "_partial_": True,
        "file": "t.csv",
        "features": features,
    }
    dataset = Dataset("x", str(tmp_path), source, ["interaction"], ["interaction"])
    feature = Store.open(prepare(dataset, Split(), tmp_path / "cache")).schema.item_features[
        "price"
    ]
    assert feature.id_VM[:, 0].tolist() == [0] + [1] * 6 and not feature.weight_VM.any()


def test_any_byte_of_a_parquet_file_may_be_wrong(tmp_path):
    """``except Exception`` does not catch panics of polars. A file that stays valid is read:
    parquet has no checksum.
    """
    path = tmp_path / "t.parquet"
    pl.DataFrame(
        {"user": ["a", "b", "c"] * 20, "item": [1, 2, 3] * 20, "timestamp": range(60)}
    ).write_parquet(path)
    content, refused = path.read_bytes(), 0
    for at in range(0, len(content), 3):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])
        try:
            assert (
                table.read(tmp_path, file="t.parquet", on_bad_rows="drop").events.collect().height
                <= 60
            )
        except RecexpError as error:
            assert "t.parquet" in str(error)
            refused += 1
    assert refused > 100
