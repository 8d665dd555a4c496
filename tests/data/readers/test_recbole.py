"""Atomic files of RecBole, as its documentation shows them."""

import pytest

from recexp.data.cache import prepare
from recexp.data.dataset import Dataset
from recexp.data.readers import recbole
from recexp.data.split import Split
from recexp.data.store import Store
from recexp.errors import RecexpError

# The head of ml-100k, from recbole.io/docs/user_guide/data/atomic_files.html.
INTER = (
    "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    "196\t242\t3\t881250949\n186\t302\t3\t891717742\n22\t377\t1\t878887116\n"
)
ITEM = (
    "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\tscore:float\n"
    "242\tToy Story\t1995\tAnimation Children's Comedy\t7.5\n"
    '302\t"Golden" Eye\t\tAction\t\n'
    "377\tFour Rooms\t1995\t\t-1\n"
)


def write(folder, **files):
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def rows(raw, *columns):
    return raw.events.collect().select(columns or ("user", "item", "value", "timestamp")).rows()


def values(raw, name):
    return raw.item_features[name].frame.collect().select("item", "value").rows()


def test_the_published_layout(tmp_path):
    raw = recbole.read(write(tmp_path, ml__inter=INTER, ml__item=ITEM))
    assert rows(raw) == [
        ("196", "242", 3.0, 881250949000),
        ("186", "302", 3.0, 891717742000),
        ("22", "377", 1.0, 878887116000),
    ]
    assert raw.files == [tmp_path / "ml.inter", tmp_path / "ml.item"]
    assert (raw.decided, raw.has_times) == ({"time_unit": "s"}, True)
    kinds = {name: feature.kind for name, feature in raw.item_features.items()}
    assert kinds == {
        "movie_title": "multi_label",
        "release_year": "categorical",
        "class": "multi_label",
        "score": "numeric",
    }
    assert values(raw, "class") == [
        ("242", "Animation"),
        ("242", "Children's"),
        ("242", "Comedy"),
        ("302", "Action"),
    ]
    assert values(raw, "movie_title")[2:4] == [("302", '"Golden"'), ("302", "Eye")]
    assert values(raw, "release_year") == [("242", "1995"), ("377", "1995")]
    assert values(raw, "score") == [("242", 7.5), ("377", -1.0)]
    chosen = recbole.read(tmp_path, item_features=["class"])
    assert list(chosen.item_features) == ["class"]
    assert recbole.read(tmp_path, items=None).item_features == {}


def test_users_and_vectors(tmp_path):
    """User features as ml-100k has them, and a sequence of numbers as a vector."""
    user = "user_id:token\tage:float\tjob:token\n196\t49\twriter\n22\t25\t\n"
    item = "item_id:token\timage:float_seq\n242\t0.5 -1 2e1\n377\t1 2 3\n302\t\n"
    raw = recbole.read(write(tmp_path, ml__inter=INTER, ml__item=item, ml__user=user))
    assert raw.files == [tmp_path / f"ml.{name}" for name in ("inter", "item", "user")]
    assert raw.item_features["image"].kind == "vector"
    assert values(raw, "image") == [("242", [0.5, -1, 20]), ("377", [1, 2, 3])]
    found = {
        name: (feature.kind, feature.frame.collect().select("user", "value").rows())
        for name, feature in raw.user_features.items()
    }
    assert found == {
        "age": ("numeric", [("196", 49), ("22", 25)]),
        "job": ("categorical", [("196", "writer")]),
    }
    assert list(recbole.read(tmp_path, user_features=["job"]).user_features) == ["job"]
    assert recbole.read(tmp_path, users=None).user_features == {}
    write(tmp_path, ml__item="item_id:token\timage:float_seq\n242\t0.5 x\n")
    with pytest.raises(
        RecexpError, match=r"\*\.item, column 'image:float_seq': '0.5 x' of item 242"
    ):
        recbole.read(tmp_path)


def test_files_without_ratings_times_and_features(tmp_path):
    """The order of rows is that of time, and sessions may be users."""
    text = "session_id:token\tartist_id:token\nb\tx\na\ty\nb\tz\n"
    raw = recbole.read(write(tmp_path, l__inter=text), user="session_id", item="artist_id")
    assert rows(raw, "user", "item", "timestamp") == [("b", "x", 1), ("a", "y", 2), ("b", "z", 3)]
    assert (raw.item_features, raw.has_times, raw.decided) == ({}, False, {})


def test_the_parts_of_a_benchmark_are_one_data_set(tmp_path):
    head, *lines = INTER.splitlines(keepends=True)
    for name, line in zip(("ml.train", "ml.valid", "ml.test"), lines, strict=True):
        write(tmp_path, **{f"{name}__inter": head + line})
    parts = ["ml.train.inter", "ml.valid.inter", "ml.test.inter"]
    ordered = rows(recbole.read(tmp_path, file=parts))
    assert ordered == rows(recbole.read(write(tmp_path, ml__inter=INTER), file="ml.inter"))
    (tmp_path / "ml.inter").unlink()
    assert sorted(rows(recbole.read(tmp_path))) == sorted(ordered)


def test_other_fields_units_and_behaviors(tmp_path):
    text = (
        "u:token\ti:token\tlike:token\tstars:float\tdate:token\n"
        "a\tx\t1\t2.5\t20140515\na\ty\t0\t\t20140516\n"
    )
    names = {"user": "u", "item": "i", "behavior": "like", "value": "stars", "timestamp": "date"}
    raw = recbole.read(write(tmp_path, d__inter=text), **names, time_unit="%Y%m%d")
    assert rows(raw, "user", "behavior", "value", "timestamp") == [
        ("a", "1", 2.5, 1_400_112_000_000),
        ("a", "0", None, 1_400_198_400_000),
    ]


@pytest.mark.parametrize(
    "inter, options, words",
    [
        ("user_id\titem_id:token\n1\t2\n", {}, "line 1: 'user_id' is no field of an atomic file"),
        ("user_id:text\titem_id:token\n1\t2\n", {}, "'user_id:text' is no field of an atomic fil"),
        (INTER, {"user": "uid"}, "field 'uid' is not in the header: user_id, item_id, rating, tim"),
        (INTER, {"timestamp": "time"}, "field 'time' is not in the header"),
        (INTER, {"file": "*.csv"}, r"No file of .* matches '\*\.csv'"),
        (INTER + "1\t2\tx\t5\n", {}, r"ml\.inter, line 5, column 'rating:float': 'x' is not a num"),
        (INTER + "1\t2\t3\t5\t6\n", {}, r"line 5: has 5 fields where 4 are expected"),
        (INTER, {"item_features": ["genre"]}, r"ml\.item, line 1: field 'genre' is not in the he"),
    ],
)
def test_faults_are_named(tmp_path, inter, options, words):
    write(tmp_path, ml__inter=inter, ml__item=ITEM)
    with pytest.raises(RecexpError, match=words):
        recbole.read(tmp_path, **options)


def test_features_that_come_later_are_noticed(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    lines = [f"{n % 5}\t{n % 3}\t3\t{881250949 + n}\n" for n in range(40)]
    write(raw, d__inter=INTER.splitlines(keepends=True)[0] + "".join(lines))
    source = {"_target_": "recexp.data.readers.recbole.read", "_partial_": True}
    given = Dataset("recbole", str(raw), source, ["interaction"], ["interaction"])

    def features():
        return set(Store.open(prepare(given, Split(), tmp_path / "cache")).schema.item_features)

    assert features() == set()
    write(raw, d__item="item_id:token\tgenre:token\n0\tA\n1\tB\n")
    assert features() == {"genre"}
