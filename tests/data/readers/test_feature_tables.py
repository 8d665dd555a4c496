"""Features of items, users and events as the table reader takes them."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from recexp.data.readers import table
from recexp.errors import RecexpError

IDS = ["a", "b", "c"]
VECTORS = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "events.csv").write_text(
        "user,item,timestamp,device,dwell\nu,a,1,phone,1.5\nv,b,2,,\nu,c,3,web,2\n"
    )
    return tmp_path


def read(folder, features):
    return table.read(folder, file="events.csv", features=features)


def item_values(folder, spec):
    """The pairs of item and value of the only feature."""
    raw = read(folder, {"items": spec})
    (feature,) = raw.item_features.values()
    return feature.frame.collect().select("item", "value").rows()


def test_tables_of_items_and_users_and_columns_of_events(folder):
    (folder / "items.csv").write_text("id,tags,price\na,x|y,1\nb,,2\n")
    (folder / "users.csv").write_text("who,age\nu,30\nv,\n")
    raw = read(
        folder,
        {
            "items": {
                "file": "items.csv",
                "item": "id",
                "columns": {"tags": "multi_label", "price": "numeric"},
            },
            "users": {"file": "users.csv", "user": "who", "columns": {"age": "numeric"}},
            "events": {"device": "categorical", "dwell": "numeric"},
        },
    )
    assert raw.item_features["tags"].frame.collect().rows() == [("a", "x"), ("a", "y")]
    assert raw.item_features["price"].frame.collect().rows() == [("a", 1.0), ("b", 2.0)]
    assert raw.user_features["age"].frame.collect().rows() == [("u", 30.0)]
    assert raw.event_features == {"device": "categorical", "dwell": "numeric"}
    events = raw.events.collect()
    assert events["feature:device"].to_list() == ["phone", None, "web"]
    assert events["feature:dwell"].to_list() == [1.5, None, 2.0]
    assert {path.name for path in raw.files} == {"events.csv", "items.csv", "users.csv"}


def test_the_short_form_is_a_table_of_items(folder):
    (folder / "items.csv").write_text("id,tag\na,x\n")
    spec = {"file": "items.csv", "item": "id", "columns": {"tag": "categorical"}}
    short = read(folder, spec).item_features["tag"].frame.collect()
    assert short.equals(read(folder, {"items": [spec]}).item_features["tag"].frame.collect())


@pytest.mark.parametrize(
    "form", ["lists", "arrays", "texts", "printed lists", "npy with ids", "npy in order"]
)
def test_vectors_are_the_same_in_every_form(folder, form):
    spec = {"file": "v.parquet", "item": "id", "columns": {"text": "vector"}}
    frame = pl.DataFrame({"id": IDS, "text": VECTORS})
    if form == "lists":
        frame.write_parquet(folder / "v.parquet")
    elif form == "arrays":
        as_array = frame.with_columns(pl.col("text").list.to_array(2))
        as_array.write_parquet(folder / "v.parquet")
    elif form == "texts":
        (folder / "v.csv").write_text("id,text\na,1 2\nb,3 4\nc,5 6.0\n")
        spec |= {"file": "v.csv", "label_separator": " "}
    elif form == "printed lists":
        (folder / "v.csv").write_text('id,text\na,"[1, 2]"\nb,"[3, 4]"\nc,"[5.0, 6.0]"\n')
        spec |= {"file": "v.csv", "label_separator": ","}
    else:
        np.save(folder / "v.npy", np.asarray(VECTORS))
        spec["file"] = "v.npy"
        if form == "npy with ids":
            np.save(folder / "ids.npy", np.asarray(IDS))
            spec["item"] = "ids.npy"
        else:
            (folder / "items.csv").write_text("name\na\nb\nc\n")
            spec["item"] = {"file": "items.csv", "item": "name"}
    assert item_values(folder, spec) == list(zip(IDS, VECTORS, strict=True))


def test_a_table_may_lie_in_several_files(folder):
    for number, (name, vector) in enumerate(zip(IDS, VECTORS, strict=True)):
        frame = pl.DataFrame({"id": [name], "text": [vector], "tag": [name * 2]})
        frame.write_parquet(folder / f"part-{number}.parquet")
    spec = {"file": "part-*.parquet", "item": "id", "columns": {"text": "vector"}}
    assert item_values(folder, spec) == list(zip(IDS, VECTORS, strict=True))
    spec["columns"] = {"tag": "categorical"}
    assert item_values(folder, spec) == [("a", "aa"), ("b", "bb"), ("c", "cc")]


def test_labels_may_be_lists(folder):
    frame = pl.DataFrame({"id": IDS, "tags": [["x", "y"], [], None]})
    frame.write_parquet(folder / "t.parquet")
    spec = {"file": "t.parquet", "item": "id", "columns": {"tags": "multi_label"}}
    assert item_values(folder, spec) == [("a", "x"), ("a", "y")]


def of_items(**changes):
    return {"items": {"file": "i.csv", "item": "id", "columns": {"x": "numeric"}} | changes}


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"user": {}, "items": {}}, "features.user is not known; choose items, users or events"),
        ({"items": {"file": "i.csv"}}, "features.items needs the keys file, item and columns"),
        ({"users": "u.csv"}, "features.users='u.csv' must be a table: {file, user, columns}"),
        (of_items(columns={"x": "picture"}), "choose categorical, multi_label, numeric, vector"),
        (of_items(columns=["x"]), "features.items.columns=['x'] must be columns with their kinds"),
        (of_items(columns={"a/b": "numeric"}), "a/b: the name becomes a file's"),
        ({"events": {"device": "multi_label"}}, "choose categorical, numeric"),
        ({"events": {"value": "numeric"}}, "features.events.value: the name is taken"),
        (of_items() | {"events": {"x": "numeric"}}, "'x' is a column of items and of events"),
        ({"items": [of_items()["items"]] * 2}, "items have two columns 'x'"),
        ({"events": {"colour": "categorical"}}, "colour"),
    ],
)
def test_wrong_settings_are_named(folder, features, message):
    (folder / "i.csv").write_text("id,x\na,1\n")
    with pytest.raises(RecexpError) as error:
        read(folder, features)
    assert message in str(error.value)


def vectors_of(folder, array, ids="a\nb\n", **changes):
    np.save(folder / "v.npy", array)
    (folder / "ids.txt").write_text(ids)
    spec = {"file": "v.npy", "item": "ids.txt", "columns": {"text": "vector"}}
    return read(folder, {"items": spec | changes})


@pytest.mark.parametrize(
    ("array", "changes", "message"),
    [
        (np.zeros((3, 2)), {}, "has 3 rows, and features.items.item names 2 ids"),
        (np.zeros(2), {}, "it must hold numbers, a row per vector"),
        (np.asarray([["x"], ["y"]]), {}, "it must hold numbers, a row per vector"),
        (np.zeros((2, 2)), {"columns": {"text": "numeric"}}, "holds one feature"),
        (np.zeros((2, 2)), {"item": {"file": "ids.txt"}}, "needs the keys file and item"),
        (np.asarray([None, "x"]), {}, "cannot be read as .npy"),
    ],
)
def test_wrong_arrays_are_named(folder, array, changes, message):
    with pytest.raises(RecexpError) as error:
        vectors_of(folder, array, **changes)
    assert message in str(error.value)


def test_texts_that_are_no_vectors_are_named(folder):
    (folder / "v.csv").write_text("id,text\na,1|2\nb,1|two\n")
    spec = {"file": "v.csv", "item": "id", "columns": {"text": "vector"}}
    with pytest.raises(RecexpError, match=r"'1\|two' of item b is no vector"):
        read(folder, {"items": spec})


def test_lists_are_no_numbers(folder):
    pl.DataFrame({"id": IDS, "x": VECTORS}).write_parquet(folder / "v.parquet")
    spec = {"file": "v.parquet", "item": "id", "columns": {"x": "numeric"}}
    with pytest.raises(RecexpError, match="which is multi_label or vector, not numeric"):
        read(folder, {"items": spec})
