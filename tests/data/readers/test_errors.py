"""Broken raw files: the error names file, line, column and text; on_bad_rows="drop" leaves out
exactly the bad rows.
"""

import gzip
import json

import polars as pl
import pytest

from recexp.data.readers import (
    amazon,
    amazon_2018,
    amazon_2023,
    attribute_sequence,
    diginetica,
    jdata_2017,
    kuairec,
    lastfm_1k,
    movielens,
    recobell,
    retailrocket,
    sequence_file,
    steam,
    table,
    taobao,
    tmall,
    yoochoose,
)
from recexp.errors import RecexpError


def lines(*texts):
    return "".join(text + "\n" for text in texts).encode()


def packed(*records):
    return gzip.compress(lines(*(json.dumps(record) for record in records)))


ORDERS = lines('"2016-08-09 12:00:00","PW","s1","u1","i1"')
FILMS = "1::Toy Story (1995)::Animation\n".encode("latin-1")
# One good layout per reader: files, the file that the cases below spoil (None: it is packed), and
# how to read it.
LAYOUTS = {
    "retailrocket": (
        {
            "events.csv": lines(
                "timestamp,visitorid,event,itemid,transactionid",
                "5,1,view,10,",
                "6,1,transaction,11,3",
            )
        },
        "events.csv",
        retailrocket.read,
        {},
    ),
    "recobell": (
        {
            "site_view_log.csv000": ORDERS,
            "site_order_log.csv000": ORDERS,
            "site_product.csv000": lines('"i1","9","a","b","c","d","e"'),
        },
        "site_view_log.csv000",
        recobell.read,
        {},
    ),
    "taobao": (
        {"UserBehavior.csv": lines("1,2,3,pv,5", "1,4,3,buy,6")},
        "UserBehavior.csv",
        taobao.read,
        {},
    ),
    "ml_1m": (
        {"ratings.dat": lines("1::1::5::978300760"), "movies.dat": FILMS},
        "ratings.dat",
        movielens.read_1m,
        {},
    ),
    "ml_100k": (
        {"u.data": lines("1\t1\t3\t881250949"), "u.item": lines("1|A (1995)|||" + "|0" * 19)},
        "u.data",
        movielens.read_100k,
        {},
    ),
    "ml_20m": (
        {
            "ratings.csv": lines("userId,movieId,rating,timestamp", "1,1,3.5,5"),
            "movies.csv": lines("movieId,title,genres", '1,"A, B (1999)",X'),
        },
        "ratings.csv",
        movielens.read_20m,
        {},
    ),
    "amazon": (
        {"ratings_Beauty.csv": lines("A1,B1,5.0,1369699200")},
        "ratings_Beauty.csv",
        amazon.read,
        {},
    ),
    "amazon_2018": (
        {"Video_Games.csv": lines("B1,A1,5.0,1369699200", "B2,A1,5.0,1369699200")},
        "Video_Games.csv",
        amazon_2018.read,
        {},
    ),
    "amazon_2023": (
        {"Video_Games.csv": lines("user_id,parent_asin,rating,timestamp", "A1,B1,5.0,5000")},
        "Video_Games.csv",
        amazon_2023.read,
        {},
    ),
    "lastfm_1k": (
        {"log.tsv": lines("u1\t2009-05-04T23:08:57Z\t\tDeep Dish\t\tSong")},
        "log.tsv",
        lastfm_1k.read,
        {"file": "log.tsv"},
    ),
    "diginetica": (
        {
            "train-item-views.csv": lines(
                "sessionId;userId;itemId;timeframe;eventdate", "1;NA;81766;526309;2016-05-09"
            )
        },
        "train-item-views.csv",
        diginetica.read,
        {},
    ),
    "yoochoose": (
        {
            "yoochoose-clicks.dat": lines("1,2014-04-07T10:51:09.277Z,214536502,0"),
            "buys.dat": lines("1,2014-04-07T10:58:00.306Z,214536502,12462,1"),
        },
        "yoochoose-clicks.dat",
        yoochoose.read,
        {"buys": "buys.dat"},
    ),
    "tmall": (
        {
            "user_log_format1.csv": lines(
                "user_id,item_id,cat_id,seller_id,brand_id,time_stamp,action_type",
                "1,2,3,4,5,0829,0",
            )
        },
        "user_log_format1.csv",
        tmall.read,
        {},
    ),
    "jdata_2017": (
        {
            "JData_Action_201602.csv": lines(
                "user_id,sku_id,time,model_id,type,cate,brand",
                "266079.0,138778,2016-01-31 23:59:02,,1,8,403",
            )
        },
        "JData_Action_201602.csv",
        jdata_2017.read,
        {"file": "JData_Action_201602.csv"},
    ),
    "kuairec": (
        {
            "big_matrix.csv": lines(
                "user_id,video_id,play_duration,video_duration,time,date,timestamp,watch_ratio",
                "0,3649,13838,10867,2020-07-05 00:08:23.438,20200705,1593878903.438,1.27",
            )
        },
        "big_matrix.csv",
        kuairec.read,
        {},
    ),
    "steam": (
        {
            "steam_reviews.json.gz": packed(
                {"username": "a", "product_id": "1", "date": "2017-12-17"}
            )
        },
        None,
        steam.read,
        {},
    ),
    "sequence_file": (
        {"s.txt": lines("1 1", "1 2")},
        "s.txt",
        sequence_file.read,
        {"file": "s.txt"},
    ),
    "attribute_sequence": (
        {"Beauty.txt": lines("1 10 20", "2 10"), "Beauty_item2attributes.json": b'{"10": [1]}'},
        "Beauty.txt",
        attribute_sequence.read,
        {},
    ),
    "table": (
        {"t.csv": lines("user,item,behavior,timestamp", "a,x,view,1")},
        "t.csv",
        table.read,
        {"file": "t.csv", "behavior": "behavior"},
    ),
}


def layout(folder, name, **changes):
    files, main, read, options = LAYOUTS[name]
    for file, content in (files | {k.replace("__", "."): v for k, v in changes.items()}).items():
        (folder / file).write_bytes(content)
    return main, read, options


# Reader, a row that spoils its file, and what the error must say.
BAD = [
    ("retailrocket", "x,1,view,10,", "column 'timestamp': 'x' is not a number"),
    ("retailrocket", "-5,1,view,10,", "column 'timestamp': '-5' is a time before 1970"),
    ("retailrocket", ",1,view,10,", "column 'timestamp': is missing"),
    ("retailrocket", "5,,view,10,", "column 'visitorid': is missing"),
    ("retailrocket", "5,1.5,view,10,", "column 'visitorid': '1.5' is not a whole number"),
    ("retailrocket", "5,1,view,,", "column 'itemid': is missing"),
    (
        "retailrocket",
        "5,1,click,10,",
        "column 'event': 'click' is not one of view, addtocart, transaction",
    ),
    ("retailrocket", "5,1,,10,", "column 'event': is missing"),
    ("retailrocket", "5,1", "column 'itemid': is missing"),
    ("retailrocket", "5,1,view,10,,9", "has 6 fields where 5 are expected"),
    ("recobell", '"yesterday","PW","s","u","i"', "column 1 (timestamp): 'yesterday' is not a date"),
    (
        "recobell",
        '"2016-02-30 00:00:00","PW","s","u","i"',
        "column 1 (timestamp): '2016-02-30 00:00:00' is not a date",
    ),
    ("recobell", '"2016-08-09 12:00:00","PW","s","","i"', "column 4 (user): is missing"),
    ("recobell", '"2016-08-09 12:00:00","PW","s","u"," "', "column 5 (item): is missing"),
    (
        "recobell",
        '"1959-08-09 12:00:00","PW","s","u","i"',
        "column 1 (timestamp): '1959-08-09 12:00:00' is a time before 1970",
    ),
    ("taobao", "1,2,3,look,5", "column 4 (behavior): 'look' is not one of pv, fav, cart, buy"),
    ("taobao", "1,2,three,pv,5", "column 3 (category): 'three' is not a whole number"),
    ("taobao", "1,2,3,pv,1511544070000", "are the times in milliseconds?"),
    (
        "taobao",
        "1,99999999999999999999,3,pv,5",
        "column 2 (item): '99999999999999999999' is not a whole number",
    ),
    ("ml_1m", "1::1::five::978300760", "column 3 (value): 'five' is not a number"),
    ("ml_1m", "1::1::nan::978300760", "column 3 (value): 'nan' is not a number"),
    ("ml_1m", "1:1:5:978300760", "column 1 (user): '1:1:5:978300760' is not a whole number"),
    ("ml_1m", "1::1::5", "column 4 (timestamp): is missing"),
    ("ml_1m", "1::1::5::1::7", "has 5 fields where 4 are expected"),
    ("ml_100k", "1 1 3 881250949", "column 1 (user): '1 1 3 881250949' is not a whole number"),
    ("ml_20m", "1,1,inf,5", "column 'rating': 'inf' is not a number"),
    ("amazon", ",B1,5.0,1369699200", "column 1 (user): is missing"),
    ("amazon", "A1,B1,5.0,1e300", "column 4 (timestamp): '1e300' is not a number"),
    ("amazon_2018", "B1,,5.0,1369699200", "column 2 (user): is missing"),
    ("amazon_2023", "A1,B1,five,5000", "column 'rating': 'five' is not a number"),
    ("lastfm_1k", "u1\tyesterday\t\tA\t\tB", "column 2 (timestamp): 'yesterday' is not a date"),
    ("lastfm_1k", "u1\t2009-05-04T23:08:57Z\t\t\t\tB", "column 4 (item): is missing"),
    ("diginetica", "1;NA;81766;late;2016-05-09", "column 'timeframe': 'late' is not a whole"),
    ("yoochoose", "1,2014-04-07T10:51:09.277Z,item,0", "column 3 (item): 'item' is not a whole"),
    ("tmall", "1,2,3,4,5,1111,4", "column 'action_type': '4' is not one of 0, 1, 2, 3"),
    ("tmall", "1,2,3,4,5,1131,0", "column 'time_stamp': '1131' is not a time of the form %m%d"),
    ("jdata_2017", "x,1,2016-01-31 23:59:02,,1,8,403", "column 'user_id': 'x' is not a number"),
    ("kuairec", "0,3649,1,1,,,,0.5", "column 'timestamp': is missing"),
    ("sequence_file", "1", "column 2 (item): is missing"),
    ("sequence_file", "1\t2", "column 1 (user): '1\\t2' is not a whole number"),
    ("sequence_file", "1 2 3", "has 3 fields where 2 are expected"),
    ("attribute_sequence", "7", "has a user ('7') and no item"),
    ("attribute_sequence", "7 x", "column 2 (item): 'x' is not a whole number"),
    ("table", "a,x,,1", "column 'behavior': is missing"),
    ("table", "a,x,view,2020-01-01", "column 'timestamp': '2020-01-01' is not a number"),
]


@pytest.mark.parametrize("name, bad, message", BAD)
def test_a_bad_row_is_named_or_dropped(tmp_path, name, bad, message):
    main, read, options = layout(tmp_path, name)
    clean = read(tmp_path, **options).events.collect()
    path = tmp_path / main
    first, rest = path.read_bytes().split(b"\n", 1)
    path.write_bytes(
        first + b"\n\r\n" + bad.encode() + b"\r\n" + rest
    )  # the blank line counts as a line
    with pytest.raises(RecexpError) as error:
        read(tmp_path, **options)
    assert str(error.value).startswith(f"{path}, line 3")
    assert message in str(error.value) and "on_bad_rows=drop" in str(error.value)
    raw = read(tmp_path, on_bad_rows="drop", **options)
    assert raw.events.collect().equals(clean)
    [(reason, (count, examples))] = raw.dropped.items()
    assert count == 1 and reason.startswith(f"{main}: ") and examples[0].startswith(f"{main}:3")


def test_a_line_that_is_not_utf8_is_named_or_dropped(tmp_path):
    main, read, _ = layout(
        tmp_path, "amazon", ratings_Beauty__csv=b"A1,B1,5.0,1\nA\xff2,B1,5.0,1\nA3,B1,5.0,1\n"
    )
    with pytest.raises(RecexpError, match=r"line 2: is not valid UTF-8"):
        read(tmp_path)
    raw = read(tmp_path, on_bad_rows="drop")
    assert raw.events.collect()["user"].to_list() == ["A1", "A3"]
    assert raw.dropped == {f"{main}: is not valid UTF-8": (1, [f"{main}:2"])}


def test_dropping_counts_all_and_shows_a_few(tmp_path):
    content = lines(
        "timestamp,visitorid,event,itemid,transactionid",
        *["5,1,view,10,", "x,1,view,10,", "5,1,click,10,"] * 20,
    )
    _, read, _ = layout(tmp_path, "retailrocket", events__csv=content)
    raw = read(tmp_path, on_bad_rows="drop")
    assert raw.events.collect().height == 20
    time, event = raw.dropped.values()
    assert time[0] == event[0] == 20 and 1 <= len(time[1]) < 20
    assert time[1][:2] == [
        "events.csv:3 column 'timestamp' 'x'",
        "events.csv:6 column 'timestamp' 'x'",
    ]
    with pytest.raises(RecexpError, match="on_bad_rows='skip'"):
        read(tmp_path, on_bad_rows="skip")


def test_a_file_of_bad_rows_only_is_an_error_even_when_dropping(tmp_path):
    _, read, _ = layout(tmp_path, "taobao", UserBehavior__csv=lines("1,2,3,look,5"))
    with pytest.raises(RecexpError, match=r"UserBehavior\.csv holds no usable row"):
        read(tmp_path, on_bad_rows="drop")


def test_the_line_of_a_row_after_a_quoted_line_end(tmp_path):
    films = lines("movieId,title,genres", '1,"A', '(1999)",X', "x,B,Y")
    _, read, _ = layout(tmp_path, "ml_20m", movies__csv=films)
    with pytest.raises(RecexpError, match=r"movies\.csv, line 4, column 'movieId': 'x'"):
        read(tmp_path)


@pytest.mark.parametrize("policy", ["error", "drop"])
def test_an_open_quote_is_an_error(tmp_path, policy):
    """All rows after it would become part of one field."""
    content = lines("user,item,behavior,timestamp", "a,x,view,1", 'b,"y,view,2', "c,z,view,3")
    _, read, options = layout(tmp_path, "table", t__csv=content)
    with pytest.raises(RecexpError, match=r"t\.csv, line 3: the quoting is broken"):
        read(tmp_path, on_bad_rows=policy, **options)


@pytest.mark.parametrize(
    "name, file", [(name, file) for name, (files, *_) in LAYOUTS.items() for file in files]
)
def test_a_missing_file_is_named_with_its_source(tmp_path, name, file):
    _, read, options = layout(tmp_path, name)
    (tmp_path / file).unlink()
    with pytest.raises(RecexpError) as error:
        read(tmp_path, **options)
    assert file in str(error.value) and str(tmp_path) in str(error.value)
    assert "Get it from" in str(error.value) or "Get one of them from" in str(error.value)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(RecexpError, match="Kaggle: retailrocket/ecommerce-dataset") as error:
        retailrocket.read(tmp_path / "nowhere")
    assert f"there is no folder {tmp_path / 'nowhere'}" in str(error.value)


@pytest.mark.parametrize(
    "content", [b"", b"\n\n", b"\xef\xbb\xbf"], ids=["nothing", "blank lines", "bom"]
)
@pytest.mark.parametrize("name", [name for name, layout in LAYOUTS.items() if layout[1]])
def test_an_empty_file_is_an_error(tmp_path, name, content):
    main, read, options = layout(tmp_path, name)
    (tmp_path / main).write_bytes(content)
    with pytest.raises(RecexpError, match=rf"{main} (is empty|holds no usable row)"):
        read(tmp_path, **options)


@pytest.mark.parametrize("name", ["retailrocket", "ml_20m", "table"])
def test_a_header_alone_or_without_a_column_is_an_error(tmp_path, name):
    main, read, options = layout(tmp_path, name)
    path = tmp_path / main
    header = path.read_bytes().split(b"\n")[0]
    path.write_bytes(header + b"\n")
    with pytest.raises(RecexpError, match="holds no usable row"):
        read(tmp_path, **options)
    path.write_bytes(header.replace(b"timestamp", b"when") + b"\n5,1,view,10,\n")
    with pytest.raises(
        RecexpError, match=r"line 1: column 'timestamp' is not in the header: .*when"
    ):
        read(tmp_path, **options)
    path.write_bytes(header + b",timestamp\n5,1,view,10,\n")
    with pytest.raises(RecexpError, match=r"column 'timestamp' is twice in the header"):
        read(tmp_path, **options)


def test_too_few_columns_without_a_header(tmp_path):
    _, read, _ = layout(tmp_path, "taobao", UserBehavior__csv=lines("1,2,pv,5"))
    with pytest.raises(
        RecexpError, match=r"line 1: there are 4 columns; column 5 \(timestamp\) is missing"
    ):
        read(tmp_path)


@pytest.mark.parametrize(
    "name, file",
    [
        ("steam", "steam_reviews.json.gz"),
        ("amazon", "ratings_Beauty.csv"),
        ("ml_1m", "ratings.dat"),
        ("table", "t.csv"),
    ],
)
@pytest.mark.parametrize("policy", ["error", "drop"])
def test_a_truncated_gzip_file_is_an_error(tmp_path, name, file, policy):
    _, read, options = layout(tmp_path, name)
    content = (tmp_path / file).read_bytes()
    whole = gzip.compress((gzip.decompress(content) if file.endswith(".gz") else content) * 1000)
    (tmp_path / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RecexpError, match=rf"{file} is cut off or damaged"):
        read(tmp_path, on_bad_rows=policy, **options)


@pytest.mark.parametrize(
    "record, message",
    [
        ('{"username": "a", "product_id": "1"}', "column 'date': is missing"),
        (
            '{"username": "a", "product_id": "1", "date": "May 2017"}',
            "column 'date': 'May 2017' is not a date",
        ),
        (
            '{"username": null, "product_id": "1", "date": "2017-12-17"}',
            "column 'username': is missing",
        ),
        ('{"username": "a", "product_id": "1", "date": ', "is neither JSON nor a Python literal"),
        ("['a', '1']", "is not a record of keys and values"),
    ],
)
def test_bad_records(tmp_path, record, message):
    good = '{"username": "a", "product_id": "1", "date": "2017-12-17"}'
    _, read, _ = layout(
        tmp_path, "steam", steam_reviews__json__gz=gzip.compress(lines(good, record, good))
    )
    with pytest.raises(RecexpError) as error:
        read(tmp_path)
    assert f"{tmp_path / 'steam_reviews.json.gz'}, line 2" in str(error.value) and message in str(
        error.value
    )
    raw = read(tmp_path, on_bad_rows="drop")
    assert raw.events.collect().height == 2
    assert [count for count, _ in raw.dropped.values()] == [1]


def test_bad_metadata(tmp_path):
    meta = packed(
        {"asin": "B1", "price": "cheap"},
        {"asin": "B2", "categories": "Beauty"},
        {"asin": "B3", "price": 2},
        {"price": 1},
    )
    _, read, _ = layout(tmp_path, "amazon", meta_Beauty__json__gz=meta)
    with pytest.raises(
        RecexpError, match=r"meta_Beauty\.json\.gz, line 1, column 'price': 'cheap' is not a number"
    ):
        read(tmp_path)
    raw = read(tmp_path, on_bad_rows="drop")
    assert raw.item_features["price"].frame.collect().rows() == [("B3", 2.0)]
    assert sum(count for count, _ in raw.dropped.values()) == 3
    games = packed({"id": "1", "genres": "Action"})
    _, read, _ = layout(tmp_path, "steam", steam_games__json__gz=games)
    with pytest.raises(
        RecexpError, match=r"steam_games\.json\.gz, line 1: has genres that are not a list"
    ):
        read(tmp_path)


def test_bad_flags_and_films(tmp_path):
    _, read, _ = layout(tmp_path, "ml_100k", u__item=lines("1|A (1995)|||" + "|0" * 18 + "|2"))
    with pytest.raises(
        RecexpError, match=r"u\.item, line 1, column 24 \(Western\): '2' is not one of 0, 1"
    ):
        read(tmp_path)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"{", "is not valid JSON"),
        (b"[1]", "is not a map of items to lists"),
        (b'{"10": 1}', "is not a map of items to lists"),
        (b'{"10": [1], "x": [2]}', "entry 2, column 1 (item): 'x' is not a whole number"),
        (b'{"10": [1, "red"]}', "entry 1, column 2 (value): 'red' is not a whole number"),
    ],
)
def test_bad_attributes(tmp_path, content, message):
    _, read, _ = layout(tmp_path, "attribute_sequence", Beauty_item2attributes__json=content)
    with pytest.raises(RecexpError) as error:
        read(tmp_path)
    assert "Beauty_item2attributes.json" in str(error.value) and message in str(error.value)


def test_bad_parquet(tmp_path):
    frame = pl.DataFrame(
        {
            "user": ["a", None],
            "item": [1, 2],
            "timestamp": [5, -5],
            "price": [1.5, 2.5],
            "tags": [["a"], ["b"]],
        }
    )
    frame.write_parquet(tmp_path / "t.parquet")
    with pytest.raises(RecexpError, match=r"t\.parquet, row 2, column 'user': is missing"):
        table.read(tmp_path, file="t.parquet")
    raw = table.read(tmp_path, file="t.parquet", on_bad_rows="drop")
    assert raw.events.collect().select("user", "item").rows() == [("a", "1")]
    with pytest.raises(RecexpError, match="column 'price': its type is Float64"):
        table.read(tmp_path, file="t.parquet", item="price")
    with pytest.raises(RecexpError, match="column 'tags': its type is List"):
        table.read(tmp_path, file="t.parquet", item="tags")
    with pytest.raises(RecexpError, match="column 'sku' is not in the header: user, item"):
        table.read(tmp_path, file="t.parquet", item="sku")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(RecexpError, match=r"t\.parquet cannot be read as parquet"):
        table.read(tmp_path, file="t.parquet")


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"time_unit": "minutes"},
            "time_unit='minutes' is not known; choose auto, s, ms, us, ns, iso",
        ),
        ({"features": {"file": "i.csv"}}, "features needs the keys file, item and columns"),
        (
            {"features": {"file": "i.csv", "item": "sku", "columns": {"a": "text"}}},
            "features.columns.a='text' is not a kind",
        ),
    ],
)
def test_bad_options_of_table(tmp_path, options, message):
    _, read, defaults = layout(tmp_path, "table")
    with pytest.raises(RecexpError) as error:
        read(tmp_path, **defaults, **options)
    assert message in str(error.value)
