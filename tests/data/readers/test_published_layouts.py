"""Data sets as their publishers ship them: tiny files in exactly that layout, read by the YAML."""

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from recexp.config import CONF
from recexp.config.check import check_config
from recexp.data.cache import prepare, read_meta
from recexp.errors import RecexpError
from tests.support.events import P3
from tests.support.running import composed


def lines(*texts: str) -> bytes:
    return "".join(text + "\n" for text in texts).encode()


def records(*entries: dict) -> bytes:
    return lines(*(json.dumps(entry) for entry in entries))


def read(folder: Path, dataset: str, on_bad_rows="error", **options):
    """Read the folder by the YAML of the data set, with other options."""
    source = OmegaConf.load(CONF / "dataset" / f"{dataset}.yaml").source
    return instantiate(OmegaConf.merge(source, options))(folder, on_bad_rows=on_bad_rows)


def events(raw) -> list[tuple]:
    frame = raw.events.collect()
    assert frame.schema["timestamp"] == pl.Int64 and frame.schema["behavior"] == pl.String
    return frame.select("user", "item", "behavior", "timestamp").rows()


def values(raw, name: str) -> list[tuple]:
    return sorted(raw.item_features[name].frame.collect().select("item", "value").rows())


def ms(*when: int) -> int:
    return round(datetime(*when, tzinfo=UTC).timestamp() * 1000)


REVIEW_2018 = {
    "overall": 5.0,
    "verified": True,
    "reviewTime": "10 17, 2015",
    "reviewerID": "A1HP7NVNPFMA4N",
    "asin": "0700026657",
    "reviewerName": "Ambrosia075",
    "reviewText": "This game is a bit hard",
    "summary": "but when you get the hang of it",
    "unixReviewTime": 1445040000,
}
META_2018 = (
    {
        "category": ["Video Games", "PC", "Games", "</span></span></span>"],
        "tech1": "",
        "description": [],
        "title": "Anno 2070",
        "brand": "by\n    \n    Ubisoft",
        "price": "$1,012.99",
        "asin": "0700026657",
    },
    {"category": [], "brand": "", "price": "$4.99 - $6.99", "asin": "0700026398"},
    {"category": ["Video Games"], "price": ".a-box-inner{background-color:#fff}", "asin": "B1"},
)


def test_amazon_2018_reviews_and_products(tmp_path):
    (tmp_path / "Video_Games.json.gz").write_bytes(gzip.compress(records(REVIEW_2018)))
    (tmp_path / "meta_Video_Games.json.gz").write_bytes(gzip.compress(records(*META_2018)))
    raw = read(tmp_path, "amazon_2018")
    assert events(raw) == [("A1HP7NVNPFMA4N", "0700026657", "rating", 1445040000000)]
    assert raw.events.collect()["value"].to_list() == [5.0]
    assert values(raw, "category") == [
        ("0700026657", "Games"),
        ("0700026657", "PC"),
        ("0700026657", "Video Games"),
        ("B1", "Video Games"),
    ]
    assert values(raw, "brand") == [("0700026657", "Ubisoft")]
    assert values(raw, "price") == [("0700026657", 1012.99)]
    (tmp_path / "Video_Games_5.json").write_bytes(records(REVIEW_2018 | {"asin": "B1"}))
    five_core = read(tmp_path, "amazon_2018", name="Video_Games_5")
    assert events(five_core)[0][1] == "B1" and len(values(five_core, "brand")) == 1
    other = read(tmp_path, "amazon_2018", file="Video_Games_5.json", meta=False)
    assert events(other)[0][1] == "B1" and other.item_features == {}


def test_amazon_2014_five_core_has_the_products_of_its_department(tmp_path):
    review = {"reviewerID": "A1", "asin": "B1", "overall": 5.0, "unixReviewTime": 1369699200}
    product = {"asin": "B1", "categories": [["Beauty", "Hair"]], "brand": "X", "price": 4.5}
    (tmp_path / "reviews_Beauty_5.json.gz").write_bytes(gzip.compress(records(review)))
    (tmp_path / "meta_Beauty.json.gz").write_bytes(gzip.compress(records(product)))
    raw = read(tmp_path, "amazon_beauty", name="Beauty_5")
    assert events(raw) == [("A1", "B1", "rating", 1369699200000)]
    assert values(raw, "category") == [("B1", "Beauty"), ("B1", "Hair")]


def test_amazon_2018_ratings_name_the_item_first(tmp_path):
    (tmp_path / "Books.csv").write_bytes(lines("0001713353,A1C6M8LCIX4M6M,5.0,1123804800"))
    raw = read(tmp_path, "amazon_2018", name="Books")
    assert events(raw) == [("A1C6M8LCIX4M6M", "0001713353", "rating", 1123804800000)]


REVIEW_2023 = {
    "rating": 4.0,
    "title": "It's pretty sexual. Not my fav",
    "text": "I'm playing on ps5",
    "images": [],
    "asin": "B07DJWBYKP",
    "parent_asin": "B07DK1H3H5",
    "user_id": "AGCI7FAH4GL5FI65HYLKWTMFZ2CQ",
    "timestamp": 1608186804795,
    "helpful_vote": 0,
    "verified_purchase": True,
}
META_2023 = (
    {
        "main_category": "Video Games",
        "title": "Cyberpunk 2077",
        "average_rating": 4.1,
        "rating_number": 1534,
        "price": 29.99,
        "store": "WB Games",
        "categories": ["Video Games", "PlayStation 4", "Games"],
        "details": {"Rated": "Mature"},
        "parent_asin": "B07DK1H3H5",
    },
    {"price": None, "store": None, "categories": [], "parent_asin": "B1"},
    {"price": "from 14.99", "store": "Nintendo", "categories": ["Toys"], "parent_asin": "B2"},
)


def test_amazon_2023_reviews_and_products(tmp_path):
    (tmp_path / "Video_Games.jsonl.gz").write_bytes(gzip.compress(records(REVIEW_2023)))
    (tmp_path / "meta_Video_Games.jsonl").write_bytes(records(*META_2023))
    raw = read(tmp_path, "amazon_2023")
    user = "AGCI7FAH4GL5FI65HYLKWTMFZ2CQ"
    assert events(raw) == [(user, "B07DK1H3H5", "rating", 1608186804795)]
    assert values(raw, "store") == [("B07DK1H3H5", "WB Games"), ("B2", "Nintendo")]
    assert values(raw, "price") == [("B07DK1H3H5", 29.99)]
    assert len(values(raw, "category")) == 4


def test_amazon_2023_benchmark_files(tmp_path):
    head = "user_id,parent_asin,rating,timestamp"
    content = lines(head, "AE2,B1,5.0,1609459200000", "AE2,B2,1.0,1640995200001")
    (tmp_path / "Video_Games.csv.gz").write_bytes(gzip.compress(content))
    raw = read(tmp_path, "amazon_2023")
    assert events(raw)[1] == ("AE2", "B2", "rating", 1640995200001)
    # A split with histories has a column more.
    for part, item in {"train": "B1", "valid": "B2", "test": "B3"}.items():
        row = f"AE2,{item},5.0,1609459200000,B9 B8"
        (tmp_path / f"Toys.{part}.csv").write_bytes(lines(f"{head},history", row))
    parts = ["Toys.train.csv", "Toys.valid.csv", "Toys.test.csv"]
    split = read(tmp_path, "amazon_2023", name="Toys", file=parts)
    assert [item for _, item, _, _ in events(split)] == ["B1", "B2", "B3"]


@pytest.mark.parametrize("dataset", ["amazon_2018", "amazon_2023"])
def test_amazon_without_events_names_the_files(tmp_path, dataset):
    with pytest.raises(RecexpError, match=r"holds none of Toys\.csv, Toys\.csv\.gz, Toys\.json"):
        read(tmp_path, dataset, name="Toys")


def test_yelp(tmp_path):
    review = {
        "review_id": "KU_O5udG6zpxOg-VcAEodg",
        "user_id": "mh_-eMZ6K5RLWhZyISBhwA",
        "business_id": "XQfwVwDr-v0ZS3_CbbE5Xw",
        "stars": 3.0,
        "useful": 0,
        "text": "If you decide to eat here, just be aware",
        "date": "2018-07-07 22:09:11",
    }
    business = {
        "business_id": "XQfwVwDr-v0ZS3_CbbE5Xw",
        "name": "Turning Point of North Wales",
        "city": "North Wales",
        "stars": 3.0,
        "attributes": {"WiFi": "u'free'"},
        "categories": "Restaurants, Breakfast & Brunch, Food",
        "hours": None,
    }
    (tmp_path / "yelp_academic_dataset_review.json").write_bytes(records(review))
    (tmp_path / "yelp_academic_dataset_business.json").write_bytes(
        records(business, {"business_id": "x", "city": "Goleta", "stars": 5.0, "categories": None})
    )
    raw = read(tmp_path, "yelp")
    user, item = review["user_id"], review["business_id"]
    assert events(raw) == [(user, item, "interaction", ms(2018, 7, 7, 22, 9, 11))]
    assert values(raw, "categories") == [
        (item, "Breakfast & Brunch"),
        (item, "Food"),
        (item, "Restaurants"),
    ]
    assert values(raw, "city") == [(item, "North Wales"), ("x", "Goleta")]


def test_gowalla(tmp_path):
    content = lines(
        "0\t2010-10-19T23:55:27Z\t30.2359091167\t-97.7951395833\t22847",
        "0\t2010-10-18T22:17:43Z\t30.2691029532\t-97.7493953705\t420315",
    )
    (tmp_path / "loc-gowalla_totalCheckins.txt.gz").write_bytes(gzip.compress(content))
    assert events(read(tmp_path, "gowalla")) == [
        ("0", "22847", "interaction", ms(2010, 10, 19, 23, 55, 27)),
        ("0", "420315", "interaction", ms(2010, 10, 18, 22, 17, 43)),
    ]


def test_lastfm_1k_has_quotes_and_blank_ids(tmp_path):
    file = "userid-timestamp-artid-artname-traid-traname.tsv"
    content = lines(
        "user_000001\t2009-05-04T23:08:57Z\tf1b1cf71-bd35\tDeep Dish\t\tFuck Me (Pacha Ibiza)",
        'user_000001\t2009-05-04T13:54:10Z\t\tNone\t\t"Heroes',
        "user_000002\t2009-05-04T13:52:04Z\ta7f7df4a\t坂本龍一\t\tComposition 0919",
    )
    (tmp_path / file).write_bytes(content)
    raw = read(tmp_path, "lastfm_1k")
    assert events(raw)[:2] == [
        ("user_000001", "Deep Dish", "listen", ms(2009, 5, 4, 23, 8, 57)),
        ("user_000001", "None", "listen", ms(2009, 5, 4, 13, 54, 10)),
    ]
    tracks = read(tmp_path, "lastfm_1k", item="track")
    assert [item for _, item, _, _ in events(tracks)] == [
        "Deep Dish / Fuck Me (Pacha Ibiza)",
        'None / "Heroes',
        "坂本龍一 / Composition 0919",
    ]
    assert ('None / "Heroes', "None") in values(tracks, "artist")
    with pytest.raises(RecexpError, match="choose artist or track"):
        read(tmp_path, "lastfm_1k", item="song")


def test_diginetica(tmp_path):
    (tmp_path / "train-item-views.csv").write_bytes(
        lines(
            "sessionId;userId;itemId;timeframe;eventdate",
            "1;NA;81766;526309;2016-05-09",
            "1;NA;31331;1031018;2016-05-09",
            "2;57;32118;243569;2016-05-10",
        )
    )
    (tmp_path / "train-purchases.csv").write_bytes(
        lines(
            "sessionId;userId;timeframe;eventdate;ordernumber;itemId", "2;57;300000;2016-05-10;7;5"
        )
    )
    (tmp_path / "product-categories.csv").write_bytes(lines("itemId;categoryId", "81766;756"))
    (tmp_path / "products.csv").write_bytes(
        lines("itemId;pricelog2;product.name.tokens", "81766;10;4875,776,56689")
    )
    raw = read(tmp_path, "diginetica")
    assert events(raw) == [
        (1, 81766, "view", ms(2016, 5, 9) + 526309),
        (1, 31331, "view", ms(2016, 5, 9) + 1031018),
        (2, 32118, "view", ms(2016, 5, 10) + 243569),
    ]
    assert values(raw, "category") == [(81766, 756)] and values(raw, "price") == [(81766, 10.0)]
    both = read(tmp_path, "diginetica", purchases=True, user="userId")
    assert events(both)[-1] == ("57", 5, "purchase", ms(2016, 5, 10) + 300000)
    assert [user for user, *_ in events(both)] == ["NA", "NA", "57", "57"]


def test_yoochoose(tmp_path):
    (tmp_path / "yoochoose-clicks.dat").write_bytes(
        lines(
            "1,2014-04-07T10:51:09.277Z,214536502,0",
            "1,2014-04-07T10:54:09.868Z,214536500,S",
            "2,2014-09-07T13:56:37.614Z,214536502,2089555391",
        )
    )
    (tmp_path / "yoochoose-buys.dat").write_bytes(
        lines("1,2014-04-07T10:58:00.306Z,214536500,12462,1")
    )
    time = ms(2014, 4, 7, 10, 51, 9) + 277
    assert events(read(tmp_path, "yoochoose"))[0] == (1, 214536502, "click", time)
    raw = read(tmp_path, "yoochoose", buys="yoochoose-buys.dat", category=True)
    bought = (1, 214536500, "buy", ms(2014, 4, 7, 10, 58, 0) + 306)
    assert events(raw)[-1] == bought and len(events(raw)) == 4
    assert values(raw, "category") == [(214536500, "S"), (214536502, "2089555391")]


TMALL = "user_id,item_id,cat_id,seller_id,brand_id,time_stamp,action_type"


def test_tmall(tmp_path):
    (tmp_path / "user_log_format1.csv").write_bytes(
        lines(TMALL, "328862,323294,833,2882,2661,0829,0", "328862,844400,1271,2882,,1111,2")
    )
    raw = read(tmp_path, "tmall")
    assert events(raw) == [
        (328862, 323294, "0", ms(2000, 8, 29)),
        (328862, 844400, "2", ms(2000, 11, 11)),
    ]
    assert values(raw, "category") == [(323294, 833), (844400, 1271)]
    assert values(raw, "brand") == [(323294, 2661)]
    assert read(tmp_path, "tmall", features=False).item_features == {}


def test_tmall_days_that_do_not_exist_are_named_or_dropped_once(tmp_path):
    path = tmp_path / "user_log_format1.csv"
    path.write_bytes(lines(TMALL, "1,2,3,4,5,1111,0", "1,2,3,4,5,1301,0", "x,2,3,4,5,1111,0"))
    with pytest.raises(RecexpError, match=r"line 3, column 'time_stamp': '1301' is not a time"):
        read(tmp_path, "tmall")
    raw = read(tmp_path, "tmall", on_bad_rows="drop")
    assert len(events(raw)) == 1 and sum(n for n, _ in raw.dropped.values()) == 2


def test_jdata(tmp_path):
    (tmp_path / "jdata_action.csv").write_bytes(
        lines(
            "user_id,sku_id,action_time,module_id,type",
            "937922,357022,2018-02-04 08:28:15,8107857,1",
            "937922,226519,2018-02-04 08:28:16.0,8107857,2",
        )
    )
    (tmp_path / "jdata_product.csv").write_bytes(
        lines(
            "sku_id,brand,shop_id,cate,market_time",
            "226519,6302,2399,79,2015-07-02 11:19:04.0",
            "357022,,2399,79,",
        )
    )
    raw = read(tmp_path, "jdata")
    assert events(raw) == [
        ("937922", "357022", "1", ms(2018, 2, 4, 8, 28, 15)),
        ("937922", "226519", "2", ms(2018, 2, 4, 8, 28, 16)),
    ]
    assert values(raw, "brand") == [("226519", "6302")]
    assert values(raw, "cate") == [("226519", "79"), ("357022", "79")]


def test_jdata_2017_users_are_alike_in_all_months(tmp_path):
    head = "user_id,sku_id,time,model_id,type,cate,brand"
    for month, user in {"201602": "266079.0", "201604": "266079"}.items():
        row = f"{user},138778,2016-01-31 23:59:02,,1,8,403"
        (tmp_path / f"JData_Action_{month}.csv").write_bytes(lines(head, row))
    (tmp_path / "JData_Product.csv").write_bytes(lines("sku_id,a1,a2,a3,cate,brand"))
    raw = read(tmp_path, "jdata_2017")
    assert events(raw) == [(266079, 138778, "1", ms(2016, 1, 31, 23, 59, 2))] * 2
    assert len(raw.files) == 2 and values(raw, "brand") == [(138778, 403)]


def test_kuairec(tmp_path):
    head = "user_id,video_id,play_duration,video_duration,time,date,timestamp,watch_ratio"
    row = "0,3649,13838,10867,2020-07-05 00:08:23.438,20200705,1593878903.438,1.2733965215790926"
    (tmp_path / "big_matrix.csv").write_bytes(lines(head, row))
    (tmp_path / "item_categories.csv").write_bytes(
        lines("video_id,feat", "3649,[8]", '1,"[27, 9]"', "2,[]")
    )
    raw = read(tmp_path, "kuairec")
    assert events(raw) == [(0, 3649, "watch", 1593878903438)]
    assert raw.events.collect()["value"].to_list() == [pytest.approx(1.2733965)]
    assert values(raw, "category") == [(1, 9), (1, 27), (3649, 8)]
    # Some rows of the fully observed part have no time.
    (tmp_path / "small_matrix.csv").write_bytes(lines(head, row, "14,148,4381,6067,,,,0.7221"))
    with pytest.raises(RecexpError, match=r"line 3, column 'timestamp': is missing"):
        read(tmp_path, "kuairec", file="small_matrix.csv")
    assert len(events(read(tmp_path, "kuairec", "drop", file="small_matrix.csv"))) == 1


@pytest.mark.parametrize("name", ["ml_25m", "ml_32m"])
def test_movielens_25m_and_32m(tmp_path, name):
    (tmp_path / "ratings.csv").write_bytes(
        lines("userId,movieId,rating,timestamp", "1,17,4.0,944249077", "1,25,1.0,944250228")
    )
    (tmp_path / "movies.csv").write_bytes(
        lines("movieId,title,genres", '17,"Sense, and Sensibility (1995)",Drama|Romance')
    )
    raw = read(tmp_path, name)
    assert events(raw)[0] == (1, 17, "rating", 944249077000)
    assert values(raw, "genres") == [(17, "Drama"), (17, "Romance")]


def prepared(folder: Path, name: str) -> dict:
    """``meta.json`` of the data prepared as the YAML says, without its filters."""
    config = OmegaConf.load(CONF / "dataset" / f"{name}.yaml")
    config = OmegaConf.merge(config, {"raw_dir": str(folder), "filters": []})
    return read_meta(prepare(instantiate(config, _recursive_=False), P3, folder / "cache"))


def test_names_of_digits_pass_the_checks_of_a_run(tmp_path):
    check_config(composed(tmp_path / "run", "model=pop", "dataset=tmall", small=()))


def test_digits_become_behaviors_and_some_are_left_out(tmp_path):
    rows = []
    for user in range(4):
        for item in range(6):
            rows.append(f"{user},{item},2018-02-0{item + 1} 08:28:15,7,{1 + (user + item) % 5}")
    path = tmp_path / "jdata_action.csv"
    path.write_bytes(lines("user_id,sku_id,action_time,module_id,type", *rows))
    products = lines("sku_id,brand,shop_id,cate,market_time", "0,1,2,3,")
    (tmp_path / "jdata_product.csv").write_bytes(products)
    meta = prepared(tmp_path, "jdata")
    n_comments = sum(row.endswith(",4") for row in rows)
    assert list(meta["events"]) == ["view", "follow", "cart", "order"]
    assert sum(meta["events"].values()) == len(rows) - n_comments
    assert meta["explicit"] == [False, False, False, True]


def test_tmall_is_prepared_from_days_without_a_year(tmp_path):
    rows = []
    for user in range(4):
        for item in range(5):
            rows.append(f"{user},{item},{item % 2},7,{item},05{11 + item},{item % 4}")
    (tmp_path / "user_log_format1.csv").write_bytes(lines(TMALL, *rows))
    meta = prepared(tmp_path, "tmall")
    assert meta["events"] == {"click": 8, "favorite": 4, "cart": 4, "purchase": 4}
    assert any("2000-05-11 00:00 to 2000-05-15" in line for line in meta["report"])


YAMBDA = {
    "uid": pl.Series([100, 100, 200, 200], dtype=pl.UInt32),
    "timestamp": pl.Series([39420, 39425, 40000, 40005], dtype=pl.UInt32),
    "item_id": pl.Series([8326270, 1441281, 8326270, 5], dtype=pl.UInt32),
    "is_organic": pl.Series([0, 1, 1, 0], dtype=pl.UInt8),
    "played_ratio_pct": pl.Series([100, 22, None, None], dtype=pl.UInt16),
    "track_length_seconds": pl.Series([105, 185, None, None], dtype=pl.UInt32),
    "event_type": pl.Series(
        ["listen", "listen", "like", "unlike"],
        dtype=pl.Enum(["listen", "dislike", "like", "unlike", "undislike"]),
    ),
}


def test_yambda(tmp_path):
    path = tmp_path / "multi_event.parquet"
    pl.DataFrame(YAMBDA).write_parquet(path)
    assert events(read(tmp_path, "yambda", min_played=None)) == [
        (100, 8326270, "listen", 39420000),
        (100, 1441281, "listen", 39425000),
        (200, 8326270, "like", 40000000),
        (200, 5, "unlike", 40005000),
    ]
    # The YAML leaves out tracks of which less than half was played.
    assert [item for _, item, _, _ in events(read(tmp_path, "yambda"))] == [8326270, 8326270, 5]


def test_yambda_that_is_damaged_blank_or_sequential_is_named(tmp_path):
    path = tmp_path / "multi_event.parquet"
    frame = pl.DataFrame(YAMBDA)
    frame.with_columns(uid=pl.Series([100, None, 200, 200], dtype=pl.UInt32)).write_parquet(path)
    with pytest.raises(RecexpError, match="1 rows have no user, item, event or time"):
        read(tmp_path, "yambda", min_played=None)
    raw = read(tmp_path, "yambda", "drop", min_played=None)
    assert len(events(raw)) == 3 and sum(n for n, _ in raw.dropped.values()) == 1
    frame.group_by("uid").agg(pl.all()).write_parquet(path)
    with pytest.raises(RecexpError, match="this is the sequential form"):
        read(tmp_path, "yambda")
    frame.drop("item_id").write_parquet(path)
    with pytest.raises(RecexpError, match="column 'item_id' is not in"):
        read(tmp_path, "yambda")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(RecexpError, match="cannot be read as parquet"):
        read(tmp_path, "yambda")
