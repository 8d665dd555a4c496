"""Every reader on tiny files in exactly the published layout."""

import gzip
import inspect
import json
from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl
import pytest
from hydra.utils import get_class, get_method
from omegaconf import OmegaConf

from recexp.data.readers import (
    amazon,
    attribute_sequence,
    movielens,
    recobell,
    retailrocket,
    sequence_file,
    steam,
    table,
    taobao,
)
from recexp.errors import RecexpError


def write(folder, **files):
    """name -> text or bytes; "__" in a name stands for a dot."""
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_bytes(
            content if isinstance(content, bytes) else content.encode()
        )
    return folder


def packed(*records, form=repr):
    return gzip.compress("".join(form(record) + "\n" for record in records).encode())


def rows(raw, *columns):
    frame = raw.events.collect()
    assert frame.schema["timestamp"] == pl.Int64
    assert frame.schema["behavior"] == pl.String
    assert (
        frame.schema["user"] in (pl.Int64, pl.String)
        and frame.schema["item"] == frame.schema["user"]
    )
    return frame.select(columns or ("user", "item", "behavior", "timestamp")).rows()


def values(raw, name):
    return raw.item_features[name].frame.collect().select("item", "value").rows()


def ms(*when):
    return round(datetime(*when, tzinfo=UTC).timestamp() * 1000)


EVENTS = (
    "timestamp,visitorid,event,itemid,transactionid\n"
    "1433221332117,257597,view,355908,\n"
    "1433224214164,2,addtocart,248676,\n"
)


def test_retailrocket_without_properties(tmp_path):
    write(tmp_path, events__csv=EVENTS + "1433222276276,2,transaction,248676,77\n")
    raw = retailrocket.read(tmp_path)
    assert rows(raw) == [
        (257597, 355908, "view", 1433221332117),
        (2, 248676, "addtocart", 1433224214164),
        (2, 248676, "transaction", 1433222276276),
    ]
    assert raw.item_features == {} and raw.dropped == {} and raw.files == [tmp_path / "events.csv"]


def test_retailrocket_allows_extra_columns_in_any_order(tmp_path):
    write(
        tmp_path,
        sample__csv="datetime,itemid,visitorid,event,transactionid,timestamp\n"
        "2015-06-01 21:12:12,7,3,view,,1433193132535\n",
    )
    assert rows(retailrocket.read(tmp_path, file="sample.csv")) == [(3, 7, "view", 1433193132535)]


def test_retailrocket_categories_are_dated_and_have_a_tree(tmp_path):
    head = "timestamp,itemid,property,value\n"
    write(
        tmp_path,
        events__csv=EVENTS,
        item_properties_part1__csv=head + "1435460400000,460429,categoryid,1338\n"
        "1441508400000,206783,888,1116713 960601 n277.200\n",
        item_properties_part2__csv=head
        + "1433041200000,460429,categoryid,9\n1433041200000,460429,available,0\n",
        category_tree__csv="categoryid,parentid\n1338,1278\n1278,\n",
    )
    raw = retailrocket.read(tmp_path)
    feature = raw.item_features["category"]
    assert feature.kind == "multi_label"
    assert feature.frame.collect().select("item", "value", "timestamp").rows() == [
        (460429, 1338, 1435460400000),
        (460429, 9, 1433041200000),
    ]
    assert feature.tree.collect().rows() == [(1338, 1278), (1278, None)]
    assert len(raw.files) == 4


def test_retailrocket_wants_both_property_files(tmp_path):
    write(
        tmp_path,
        events__csv=EVENTS,
        item_properties_part1__csv="timestamp,itemid,property,value\n1,2,categoryid,3\n",
    )
    with pytest.raises(RecexpError, match=r"item_properties_part2\.csv"):
        retailrocket.read(tmp_path)


VIEWS = (
    '"2016-08-08 00:00:00","PW","s1","u1","i1"\n"2016-08-07 23:59:59.999999","PW","s1","u1","i2"\n'
    '"2016-08-14 23:59:59.5","MW","s2","u2","i1"\n"2016-08-15 00:00:00","MW","s2","u2","i3"\n'
)
ORDERS = '"2016-08-09 12:00:00.25","PW","s1","u1","i1","o1","2","9900"\n'
PRODUCTS = '"i1","9900.0","a","b","","","x"\n"i2","10.0","b","b","c","d","y"\n'


def recobell_files(folder):
    return write(
        folder,
        site_view_log__csv000=VIEWS,
        site_order_log__csv000=ORDERS,
        site_product__csv000=PRODUCTS,
    )


def test_recobell_keeps_the_week_half_open(tmp_path):
    raw = recobell.read(recobell_files(tmp_path))
    assert rows(raw) == [
        ("u1", "i1", "view", ms(2016, 8, 8)),
        ("u2", "i1", "view", ms(2016, 8, 14, 23, 59, 59, 500000)),
        ("u1", "i1", "order", ms(2016, 8, 9, 12, 0, 0, 250000)),
    ]
    assert len(rows(recobell.read(tmp_path, start=None, end=None))) == 5
    assert len(rows(recobell.read(tmp_path, start=date(2016, 8, 9), end="2016-08-16"))) == 3
    with pytest.raises(RecexpError, match="no row lies"):
        recobell.read(tmp_path, start="2017-01-01", end=None)
    with pytest.raises(RecexpError, match="not 'August'"):
        recobell.read(tmp_path, start="August")


def test_recobell_levels_have_values_of_their_own(tmp_path):
    raw = recobell.read(recobell_files(tmp_path))
    assert sorted(values(raw, "category")) == [
        ("i1", "1:a"),
        ("i1", "2:b"),
        ("i2", "1:b"),
        ("i2", "2:b"),
        ("i2", "3:c"),
        ("i2", "4:d"),
    ]
    assert recobell.read(tmp_path, products=None).item_features == {}


def test_recobell_reads_packed_files(tmp_path):
    plain = rows(recobell.read(recobell_files(tmp_path)))
    for name in ("site_view_log.csv000", "site_order_log.csv000", "site_product.csv000"):
        (tmp_path / name).write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    assert rows(recobell.read(tmp_path)) == plain


def test_taobao(tmp_path):
    write(
        tmp_path,
        UserBehavior__csv="1,2268318,2520377,pv,1511544070\n1,2268318,7,buy,1511561733\n2,9,7,fav,1511572885\n",
    )
    raw = taobao.read(tmp_path)
    assert rows(raw) == [
        (1, 2268318, "pv", 1511544070000),
        (1, 2268318, "buy", 1511561733000),
        (2, 9, "fav", 1511572885000),
    ]
    assert raw.item_features["category"].kind == "categorical"
    assert sorted(values(raw, "category")) == [(9, 7), (2268318, 7)]


def test_movielens_1m(tmp_path):
    films = (
        "1::Toy Story (1995)::Animation|Children's\n"
        "2::Cité (1902) des: x (1995)::Drama\n"
        "3::No year::Drama\n"
    )
    write(
        tmp_path,
        ratings__dat="1::2::5::978300760\n6040::1::3::956704746\n",
        movies__dat=films.encode("latin-1"),
    )
    raw = movielens.read_1m(tmp_path)
    assert rows(raw, "user", "item", "behavior", "timestamp", "value") == [
        (1, 2, "rating", 978300760000, 5.0),
        (6040, 1, "rating", 956704746000, 3.0),
    ]
    assert raw.events.collect_schema()["value"] == pl.Float32
    assert values(raw, "year") == [(1, 1995), (2, 1995)]
    assert values(raw, "genres") == [
        (1, "Animation"),
        (1, "Children's"),
        (2, "Drama"),
        (3, "Drama"),
    ]
    assert (raw.item_features["year"].kind, raw.item_features["genres"].kind) == (
        "categorical",
        "multi_label",
    )


def test_movielens_100k(tmp_path):
    def film(item, title, *genres):
        return (
            "|".join(
                [
                    str(item),
                    title,
                    "01-Jan-1995",
                    "",
                    "http://x",
                    *("1" if i in genres else "0" for i in range(19)),
                ]
            )
            + "\n"
        )

    films = (
        film(1, "Toy Story (1995)", 3, 4, 5)
        + film(2, "Misérables, Les (1958) (V)", 18)
        + film(3, "unknown", 0)
    )
    write(
        tmp_path,
        u__data="196\t242\t3\t881250949\n1\t2\t5\t881250950\n",
        u__item=films.encode("latin-1"),
    )
    raw = movielens.read_100k(tmp_path)
    assert rows(raw, "user", "item", "value", "timestamp") == [
        (196, 242, 3.0, 881250949000),
        (1, 2, 5.0, 881250950000),
    ]
    assert values(raw, "genres") == [
        (1, "Animation"),
        (1, "Children's"),
        (1, "Comedy"),
        (2, "Western"),
    ]
    assert values(raw, "year") == [(1, 1995), (2, 1958)]


def test_movielens_20m(tmp_path):
    films = (
        "movieId,title,genres\n"
        '11,"American President, The (1995)",Comedy|Drama\n'
        '12,"A ""B"" (2006–2007)",(no genres listed)\n'
    )
    write(
        tmp_path,
        ratings__csv="userId,movieId,rating,timestamp\n1,11,3.5,1112486027\n",
        movies__csv=films,
    )
    raw = movielens.read_20m(tmp_path)
    assert rows(raw, "user", "item", "value", "timestamp") == [(1, 11, 3.5, 1112486027000)]
    assert values(raw, "year") == [(11, 1995), (12, 2006)]
    assert values(raw, "genres") == [(11, "Comedy"), (11, "Drama")]


REVIEWS = [
    {
        "reviewerID": "A39",
        "asin": "0205616461",
        "overall": 5.0,
        "unixReviewTime": 1369699200,
        "reviewText": 'say "x"\n',
    },
    {
        "reviewerID": "A3J",
        "asin": "B00",
        "overall": 4.0,
        "unixReviewTime": 1355443200,
        "reviewText": None,
    },
]


@pytest.mark.parametrize("form", [json.dumps, repr])
def test_amazon_reviews_equal_ratings(tmp_path, form):
    write(tmp_path, reviews_Beauty__json__gz=packed(*REVIEWS, form=form))
    reviews = amazon.read(tmp_path)
    write(tmp_path, ratings_Beauty__csv="A39,0205616461,5.0,1369699200\nA3J,B00,4.0,1355443200\n")
    ratings = amazon.read(tmp_path)
    columns = ("user", "item", "value", "behavior", "timestamp")
    expected = [
        ("A39", "0205616461", 5.0, "rating", 1369699200000),
        ("A3J", "B00", 4.0, "rating", 1355443200000),
    ]
    assert rows(reviews, *columns) == rows(ratings, *columns) == expected
    assert [raw.files[0].name for raw in (reviews, ratings)] == [
        "reviews_Beauty.json.gz",
        "ratings_Beauty.csv",
    ]


def test_amazon_meta(tmp_path):
    meta = packed(
        {
            "asin": "B00",
            "categories": [["Beauty", "Make-up, Face"], ["Beauty", "Gifts"]],
            "brand": "It's",
            "price": 6.99,
        },
        {"asin": "B01", "categories": [["Beauty"]], "brand": "", "title": "no price"},
        {"asin": "B02"},
    )
    write(tmp_path, ratings_Toys__csv="A39,B00,5.0,1369699200\n", meta_Toys__json__gz=meta)
    raw = amazon.read(tmp_path, name="Toys")
    assert values(raw, "category") == [
        ("B00", "Beauty"),
        ("B00", "Make-up, Face"),
        ("B00", "Gifts"),
        ("B01", "Beauty"),
    ]
    assert values(raw, "brand") == [("B00", "It's")]
    assert values(raw, "price") == [("B00", 6.99)]
    assert {name: feature.kind for name, feature in raw.item_features.items()} == {
        "category": "multi_label",
        "brand": "categorical",
        "price": "numeric",
    }
    assert amazon.read(tmp_path, name="Toys", meta=False).item_features == {}


def test_amazon_meta_is_parsed_not_run(tmp_path):
    marker = tmp_path / "ran"
    call = f"{{'asin': open({str(marker)!r}, 'w').write('x')}}\n"
    write(
        tmp_path,
        ratings_Beauty__csv="A39,B00,5.0,1369699200\n",
        meta_Beauty__json__gz=gzip.compress(call.encode()),
    )
    with pytest.raises(
        RecexpError, match=r"meta_Beauty\.json\.gz, line 1: .*neither JSON nor a Python literal"
    ):
        amazon.read(tmp_path)
    assert not marker.exists()


def test_steam(tmp_path):
    reviews = gzip.compress(
        b"{u'username': u'null', u'hours': 0.1, u'product_id': u'725280', "
        b"u'date': u'2017-12-17', u'text': u'it\\u2019s'}\n"
        b"{u'username': u'Caf\\xe9 42', u'product_id': u'10', "
        b"u'date': u'2010-01-02', u'early_access': False}\n"
    )
    games = packed(
        {"id": "10", "genres": ["Action", "Indie"]},
        {"genres": ["Lost"]},
        {"id": "20", "app_name": "no genre"},
    )
    write(tmp_path, steam_reviews__json__gz=reviews)
    assert steam.read(tmp_path).item_features == {}
    write(tmp_path, steam_games__json__gz=games)
    raw = steam.read(tmp_path)
    assert rows(raw) == [
        ("null", "725280", "review", ms(2017, 12, 17)),
        ("Café 42", "10", "review", ms(2010, 1, 2)),
    ]
    assert values(raw, "genres") == [("10", "Action"), ("10", "Indie")]
    assert steam.read(tmp_path, games=False).item_features == {}


def test_sequence_file(tmp_path):
    write(tmp_path, beauty__txt="1 1\n1 2\n2 43\n")
    raw = sequence_file.read(tmp_path, file="beauty.txt")
    assert rows(raw) == [
        (1, 1, "interaction", 1),
        (1, 2, "interaction", 2),
        (2, 43, "interaction", 3),
    ]


def test_attribute_sequence(tmp_path):
    write(
        tmp_path,
        Beauty__txt="1 10 20 30\n2 10\n",
        Beauty_item2attributes__json='{"10": [1, 2], "20": [2], "30": []}',
    )
    raw = attribute_sequence.read(tmp_path)
    assert rows(raw, "user", "item", "timestamp") == [
        (1, 10, 1),
        (1, 20, 2),
        (1, 30, 3),
        (2, 10, 4),
    ]
    assert raw.item_features["attribute"].kind == "multi_label"
    assert values(raw, "attribute") == [(10, 1), (10, 2), (20, 2)]


def test_table_csv_with_names_times_and_features(tmp_path):
    write(
        tmp_path,
        log__csv='who;what;how;"stars; 1 to 5";when\n'
        "ann;007;like;4.5;2020-01-02\n"
        "bob;7;see;;2020-01-02T03:04:05+01:00\n",
        items__csv="sku;color;tags;eur\n007;red;a|b;1.5\n7;;;\n",
    )
    raw = table.read(
        tmp_path,
        file="log.csv",
        user="who",
        item="what",
        behavior="how",
        value="stars; 1 to 5",
        timestamp="when",
        time_unit="iso",
        separator=";",
        features={
            "file": "items.csv",
            "item": "sku",
            "columns": {"color": "categorical", "tags": "multi_label", "eur": "numeric"},
        },
    )
    assert rows(raw, "user", "item", "behavior", "value", "timestamp") == [
        ("ann", "007", "like", 4.5, ms(2020, 1, 2)),
        ("bob", "7", "see", None, ms(2020, 1, 2, 2, 4, 5)),
    ]
    assert values(raw, "color") == [("007", "red")]
    assert values(raw, "tags") == [("007", "a"), ("007", "b")]
    assert values(raw, "eur") == [("007", 1.5)]


@pytest.mark.parametrize(
    "unit, text",
    [("s", "1577934245.678"), ("ms", "1577934245678"), ("iso", "2020-01-02 03:04:05.678")],
)
def test_table_time_units(tmp_path, unit, text):
    write(tmp_path, log__csv=f"user,item,timestamp\na,b,{text}\n")
    assert rows(table.read(tmp_path, file="log.csv", time_unit=unit)) == [
        ("a", "b", "interaction", 1577934245678)
    ]


@pytest.mark.parametrize("unit", ["s", "iso"])
@pytest.mark.parametrize("zone", [None, "Asia/Seoul"])
def test_table_parquet_dates_need_no_unit(tmp_path, unit, zone):
    when = pl.Series([datetime(2020, 1, 2, 3)]).dt.replace_time_zone(zone)
    pl.DataFrame({"user": [1], "item": ["x"], "timestamp": when}).write_parquet(
        tmp_path / "log.parquet"
    )
    expected = ms(2020, 1, 2, 3) - (0 if zone is None else 9 * 3600 * 1000)
    assert rows(table.read(tmp_path, file="log.parquet", time_unit=unit)) == [
        ("1", "x", "interaction", expected)
    ]


def test_table_without_times_takes_the_row_number(tmp_path):
    write(tmp_path, log__csv="user,item\nb,x\na,y\n")
    assert rows(table.read(tmp_path, file="log.csv", timestamp=None), "user", "timestamp") == [
        ("b", 1),
        ("a", 2),
    ]


CONF = Path(__file__).parents[3] / "conf" / "dataset"


@pytest.mark.parametrize("name", sorted(path.stem for path in CONF.glob("*.yaml")))
def test_every_setting_of_a_dataset_is_known(name):
    config = OmegaConf.load(CONF / f"{name}.yaml")
    assert config.name == name and set(config.explicit) <= set(config.behaviors)
    reader = inspect.signature(get_method(config.source._target_))
    options = {
        key: value for key, value in config.source.items() if key not in ("_target_", "_partial_")
    }
    reader.bind("raw_dir", on_bad_rows=config.on_bad_rows, **options)
    inspect.signature(get_class(config._target_)).bind(
        **{key: value for key, value in config.items() if key != "_target_"}
    )
