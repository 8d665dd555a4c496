"""Side information of items and users, against plain counting."""

from collections import Counter
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
import yaml

from recexp.data.cache import prepare
from recexp.data.dataset import Dataset
from recexp.data.features import build_features, build_user_features
from recexp.data.readers import ItemFeature, UserFeature
from recexp.data.store import Store
from recexp.errors import RecexpError
from tests.support import features
from tests.support.events import GLOBAL, P1, P3, dataset, listed, names, random_events, store

ITEMS = pl.DataFrame({"index": [1, 2, 3, 4], "item": [10, 20, 30, 40]})
PAIRS = {"user": np.array([0, 0, 0, 2, 2]), "item": np.array([1, 2, 4, 2, 3])}
N_USERS = 4


def long(*rows, dated=False):
    """(item, value[, timestamp]) rows."""
    return pl.DataFrame(
        rows, schema=["item", "value", "timestamp"][: 3 if dated else 2], orient="row"
    ).lazy()


def built(tmp_path, feature, items=ITEMS, end=100):
    """(values per item as {value: weight}, bag per user as {value: count}, cardinality, report
    line).
    """
    report = []
    (described,) = build_features({"side": feature}, items, PAIRS, end, N_USERS, tmp_path, report)
    ids, weights = (
        np.load(tmp_path / "feature_side_id.npy"),
        np.load(tmp_path / "feature_side_weight.npy"),
    )
    assert ids.shape == weights.shape and ids.dtype == np.int64 and weights.dtype == np.float32
    assert not ids[0].any() and not weights[0].any() and ids.max() < described["cardinality"]
    vocabulary = dict(
        pl.read_parquet(tmp_path / "feature_side.parquet").select("id", "value").iter_rows()
    )
    tables = [
        {vocabulary[i]: float(w) for i, w in zip(*row, strict=True) if i}
        for row in zip(ids, weights, strict=True)
    ]
    assert all(float(w) == 0 for i, w in zip(ids.ravel(), weights.ravel(), strict=True) if i == 0)
    ptr, bag, count = (np.load(tmp_path / f"bag_side_{x}.npy") for x in ("ptr", "id", "count"))
    bags = [
        {vocabulary[i]: float(n) for i, n in zip(bag[a:b], count[a:b], strict=True)}
        for a, b in pairwise(ptr)
    ]
    return tables, bags, described, report[0]


def test_categorical(tmp_path):
    tables, bags, described, line = built(
        tmp_path, ItemFeature("categorical", long((10, "b"), (20, "a"), (30, "b"), (99, "z")))
    )
    assert tables == [
        {},
        {"b": 1},
        {"a": 1},
        {"b": 1},
        {},
    ]  # item 40 has none, item 99 is not in the data
    assert bags == [{"b": 1, "a": 1}, {}, {"a": 1, "b": 1}, {}]
    assert described == {
        "name": "side",
        "kind": "categorical",
        "cardinality": 3,
        "coverage": 0.75,
    }
    assert line == "item feature side (categorical): 2 values, known for 75.0% of items"


def test_a_categorical_feature_has_one_value(tmp_path):
    tables, *_ = built(tmp_path, ItemFeature("categorical", long((10, "b"), (20, "a"), (10, "c"))))
    assert tables[1] == {"c": 1}


def test_multi_label(tmp_path):
    frame = long((10, 5), (10, 7), (10, 5), (20, 7), (40, 7), (40, 9), (40, 5))
    tables, bags, described, _ = built(tmp_path, ItemFeature("multi_label", frame))
    assert tables == [
        {},
        {5: 0.5, 7: 0.5},
        {7: 1},
        {},
        {k: pytest.approx(1 / 3) for k in (5, 7, 9)},
    ]
    assert bags == [
        {5: 2, 7: 3, 9: 1},
        {},
        {7: 1},
        {},
    ]  # items per value, not weights
    assert described["cardinality"] == 4


def test_items_without_any_value(tmp_path):
    without_rows = long((99, "a")).filter(pl.col("item") == 10)
    tables, bags, described, line = built(tmp_path, ItemFeature("multi_label", without_rows))
    assert (
        tables == [{}] * 5
        and bags == [{}] * 4
        and described["cardinality"] == 1
        and "known for 0.0%" in line
    )


def test_values_as_of_the_end_of_training(tmp_path):
    frame = long(
        *((10, "old", 1), (10, "now", 100), (10, "late", 101)),  # the last one at or before the end
        *((20, "later", 300), (20, "late", 200)),  # none in time: the first
        *((30, "a", 50), (30, "b", 50), (30, "c", 40)),  # several at the same time
        (40, "only", 0),
        dated=True,
    )
    tables, *_ = built(tmp_path, ItemFeature("multi_label", frame))
    assert tables == [{}, {"now": 1}, {"late": 1}, {"a": 0.5, "b": 0.5}, {"only": 1}]
    tables, *_ = built(tmp_path, ItemFeature("multi_label", frame), end=250)
    assert tables[1:3] == [{"late": 1}, {"late": 1}]


def test_ancestors(tmp_path):
    """Every value up to the root, each once, with equal weights; a tree may hold unknown values and
    miss known ones.
    """
    tree = pl.DataFrame({"value": [1, 2, 3, 4, 8], "parent": [None, 1, 2, 1, 3]}).lazy()
    frame = long((10, 3), (20, 1), (30, 4), (30, 2), (40, 77))
    tables, bags, _, _ = built(tmp_path, ItemFeature("multi_label", frame, tree))
    third = pytest.approx(1 / 3)
    assert tables == [
        {},
        {3: third, 2: third, 1: third},
        {1: 1},
        {4: third, 2: third, 1: third},
        {77: 1},
    ]
    assert bags[0] == {3: 1, 2: 1, 1: 2, 77: 1} and bags[2] == {1: 2, 4: 1, 2: 1}


def test_a_cycle_in_the_tree_is_an_error(tmp_path):
    tree = pl.DataFrame({"value": [1, 2, 3], "parent": [2, 3, 1]}).lazy()
    with pytest.raises(
        RecexpError,
        match=r"tree of item feature side has a cycle, or more than 64 levels: value [123]",
    ):
        built(tmp_path, ItemFeature("multi_label", long((10, 1)), tree))


def test_numeric(tmp_path):
    report = []
    feature = ItemFeature("numeric", long((10, 3.0), (20, 5.0), (40, 10.0), (99, 1e9)))
    (described,) = build_features({"price": feature}, ITEMS, PAIRS, 100, N_USERS, tmp_path, report)
    value = np.load(tmp_path / "feature_price_weight.npy")[:, 0]
    assert np.load(tmp_path / "feature_price_id.npy")[:, 0].tolist() == [0, 1, 1, 0, 1]
    assert value.tolist() == pytest.approx(
        [0, -3 / np.sqrt(26 / 3), -1 / np.sqrt(26 / 3), 0, 4 / np.sqrt(26 / 3)]
    )
    assert described["kind"] == "numeric" and described["cardinality"] == 2
    assert "known for 75.0% of items" in report[0] and not list(tmp_path.glob("bag_*"))


def test_a_constant_numeric_feature_is_known_and_says_nothing(tmp_path):
    report = []
    build_features(
        {"price": ItemFeature("numeric", long((10, 3.0), (20, 3.0)))},
        ITEMS,
        PAIRS,
        100,
        N_USERS,
        tmp_path,
        report,
    )
    assert (
        not np.load(tmp_path / "feature_price_weight.npy").any() and "known for 50.0%" in report[0]
    )


@pytest.mark.parametrize("split", [P1, P3, GLOBAL])
def test_from_a_table_to_the_schema(tmp_path, split):
    """Bags count the items of training pairs only, each once."""
    events = random_events(3)
    genres = {f"i{n}": [f"g{n % 3}", f"g{n % 5}"] for n in range(11)}  # i11 has none
    (tmp_path / "raw").mkdir()
    lines = [f"{item},{'|'.join(values)},{item[1:]}" for item, values in genres.items()]
    (tmp_path / "raw" / "items.csv").write_text("item,genres,price\n" + "\n".join(lines) + "\n")
    columns = {"genres": "multi_label", "price": "numeric"}
    opened = store(
        tmp_path, events, split, features={"file": "items.csv", "item": "item", "columns": columns}
    )
    schema, items, train = opened.schema, names(opened, "item"), listed(opened, opened.train)
    assert set(schema.item_features) == {"genres", "price"} and set(schema.user_features) == {
        "genres"
    }
    feature, bag = schema.item_features["genres"], schema.user_features["genres"]
    vocabulary = dict(
        pl.read_parquet(opened.folder / "feature_genres.parquet").select("id", "value").iter_rows()
    )
    for index, item in enumerate(items):
        assert {vocabulary[i] for i in feature.id_VM[index].tolist() if i} == set(
            genres.get(item, [])
        )
        assert float(feature.weight_VM[index].sum()) == pytest.approx(1 if item in genres else 0)
    assert feature.cardinality == bag.cardinality == 6
    for user, name in enumerate(names(opened, "user")):
        own = range(int(bag.ptr[user]), int(bag.ptr[user + 1]))
        found = {vocabulary[int(bag.id[n])]: float(bag.count[n]) for n in own}
        assert found == Counter(
            g for item in {e.item for e in train[name]} for g in set(genres.get(item, []))
        )


def test_integer_ids_in_one_file_and_texts_in_the_other(tmp_path):
    items = pl.DataFrame({"index": [1, 2], "item": ["10", "20"]})
    report = []
    pairs = {"user": np.array([0]), "item": np.array([2])}
    build_features(
        {"side": ItemFeature("categorical", long((10, "b"), (20, "a")))},
        items,
        pairs,
        1,
        1,
        tmp_path,
        report,
    )
    assert "known for 100.0% of items" in report[0]


def test_another_feature_file_is_another_fingerprint(tmp_path):
    from recexp.data.cache import prepare

    features = {"file": "items.csv", "item": "item", "columns": {"brand": "categorical"}}
    store(tmp_path, random_events(0))
    folders = set()
    for brand in ("x", "y"):
        (tmp_path / "raw" / "items.csv").write_text(f"item,brand\ni1,{brand}\n")
        folders.add(prepare(dataset(tmp_path / "raw", features=features), P3, tmp_path / "cache"))
    assert len(folders) == 2


def test_vectors_are_scaled_by_one_number(tmp_path):
    """So that their mean squared length is 1; those of other items do not count."""
    vectors = {10: [3.0, 4.0], 30: [0.0, 1.0], 99: [50.0, 50.0]}
    frame = pl.DataFrame({"item": list(vectors), "value": list(vectors.values())}).lazy()
    report = []
    (described,) = build_features(
        {"text": ItemFeature("vector", frame)}, ITEMS, PAIRS, 100, N_USERS, tmp_path, report
    )
    assert described == {"name": "text", "kind": "vector", "cardinality": 3, "coverage": 0.5}
    weight_VW = np.load(tmp_path / "feature_text_weight.npy")
    scale = np.sqrt((25 + 1) / 2)
    expected = np.asarray([[0, 0], [3, 4], [0, 0], [0, 1], [0, 0]]) / scale
    assert np.allclose(weight_VW, expected)
    assert np.load(tmp_path / "feature_text_id.npy").ravel().tolist() == [0, 1, 0, 1, 0]
    assert report == ["item feature text (vector): 2 numbers, known for 50.0% of items"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[1.0], [1.0, 2.0]], "vectors of 1, 2 numbers"),
        ([[1.0], [None]], "an entry that is missing or no finite number"),
        ([[1.0], [float("nan")]], "an entry that is missing or no finite number"),
        ([1.0, 2.0], "its column holds Float64"),
    ],
)
def test_faulty_vectors_are_named(tmp_path, values, message):
    frame = pl.DataFrame({"item": [10, 20], "value": values}).lazy()
    with pytest.raises(RecexpError, match=message):
        build_features(
            {"text": ItemFeature("vector", frame)}, ITEMS, PAIRS, 100, N_USERS, tmp_path, []
        )


USERS = pl.DataFrame({"index": [0, 1, 2], "user": ["u", "v", "w"]})


def user_frame(*rows):
    return pl.DataFrame(rows, schema=["user", "value"], orient="row").lazy()


def test_features_of_users(tmp_path):
    raw = {
        "city": UserFeature("categorical", user_frame((" v", "x"), ("w", "y"), ("z", "x"))),
        "age": UserFeature("numeric", user_frame(("u", 10.0), ("w", 30.0))),
    }
    report = []
    described = build_user_features(raw, USERS, {}, tmp_path, report)
    assert [entry["coverage"] for entry in described] == [2 / 3, 2 / 3]
    ids = np.load(tmp_path / "user_feature_city_id.npy")
    names = pl.read_parquet(tmp_path / "user_feature_city.parquet")["value"].to_list()
    assert [names[i - 1] if i else None for i in ids.ravel()] == [None, "x", "y"]
    ages = np.load(tmp_path / "user_feature_age_weight.npy")
    assert ages.ravel().tolist() == [-1, 0, 1]
    assert report[0] == "user feature city (categorical): 2 values, known for 66.7% of users"


def test_user_features_of_no_known_user_and_names_of_bags_are_refused(tmp_path):
    raw = {"city": UserFeature("categorical", user_frame(("nobody", "x")))}
    with pytest.raises(RecexpError, match="User feature city: none of its 1 user ids is that of a"):
        build_user_features(raw, USERS, {}, tmp_path, [])
    with pytest.raises(RecexpError, match="User feature city and item feature city"):
        build_user_features(raw, USERS, {"city": 1}, tmp_path, [])


def test_features_of_events_follow_their_events(tmp_path):
    """Codes and standardized numbers of training and history rows, against the raw table."""
    folder = features.write(tmp_path / "raw")
    found = prepared_table(folder, tmp_path / "cache")
    raw = features.events().filter(pl.col("item").is_not_null())
    rows = {(r["user"], r["item"]): r for r in raw.iter_rows(named=True)}
    users = pl.read_parquet(found.folder / "users.parquet")["user"]
    items = pl.read_parquet(found.folder / "items.parquet")["item"]
    vocabulary = pl.read_parquet(found.folder / "event_feature_device.parquet")["value"]

    def raw_of(events, number):
        user, item = int(events.user[number]), int(events.item[number])
        return rows[users[user], items[item - 1]]

    numbers = [raw_of(found.train, n)["dwell"] for n in range(len(found.train))]
    known = np.asarray([x for x in numbers if x is not None])
    for events in (found.train, found.past):
        for n in range(len(events)):
            expected = raw_of(events, n)
            code = int(events.features["device"][n])
            assert (vocabulary[code - 1] if code else None) == expected["device"]
            dwell = expected["dwell"]
            z = 0.0 if dwell is None else (dwell - known.mean()) / known.std()
            assert float(events.features["dwell"][n]) == pytest.approx(z, abs=1e-6)
    coverage = {entry["name"]: entry["coverage"] for entry in found.meta["event_features"]}
    assert coverage["device"] == 1 - raw["device"].null_count() / len(raw)
    assert coverage["dwell"] == 1 - raw["dwell"].null_count() / len(raw)


def test_merged_events_keep_the_features_of_the_row_that_stays(tmp_path):
    """As their time: that of the last explicit event."""
    frame = pl.DataFrame(
        {
            "user": ["u"] * 5,
            "item": ["a", "a", "a", "b", "c"],
            "timestamp": [1, 2, 3, 4, 5],
            "behavior": ["view", "buy", "view", "view", "view"],
            "device": ["one", "two", "three", "four", "five"],
        }
    )
    (tmp_path / "raw").mkdir()
    frame.write_csv(tmp_path / "raw" / "events.csv")
    settings = {"merge": "pairs"}
    found = prepared_table(
        tmp_path / "raw", tmp_path / "cache", {"events": {"device": "categorical"}}, **settings
    )
    vocabulary = pl.read_parquet(found.folder / "event_feature_device.parquet")["value"]
    names = [vocabulary[int(code) - 1] for code in found.past.features["device"]]
    assert names == ["two", "four", "five"]


def prepared_table(folder, cache, spec=None, **settings):
    """The store of a table data set."""
    source = {
        "_target_": "recexp.data.readers.table.read",
        "_partial_": True,
        "file": "events.csv",
        "behavior": "behavior",
        "features": spec or yaml.safe_load(features.FEATURES),
    }
    data = Dataset(
        name="featured",
        raw_dir=str(folder),
        source=source,
        behaviors=["view", "buy"],
        explicit=["buy"],
        **settings,
    )
    return Store.open(prepare(data, P3, cache))
