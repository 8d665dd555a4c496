"""Data that come split: files or a column, through preparation."""

from __future__ import annotations

import pytest

from recexp.data.cache import prepare
from recexp.data.dataset import Dataset
from recexp.data.split import Split
from recexp.data.store import Store
from recexp.errors import RecexpError
from tests.data.test_several_targets import lists
from tests.support.events import BEHAVIORS, listed

GIVEN = Split(kind="given")
HEAD = "user,item,behavior,timestamp\n"
TRAIN = HEAD + "u,a,view,1\nu,b,buy,2\nv,c,view,1\nv,b,buy,3\nw,a,view,2\nu,c,view,4\n"


def opened(tmp_path, files, split=GIVEN, merge="none", **source) -> Store:
    folder = tmp_path / "raw"
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    options = {"file": "train.csv", "behavior": "behavior", "time_unit": "ms", **source}
    reader = {"_target_": "recexp.data.readers.given.read", "_partial_": True, **options}
    data = Dataset("shop", str(folder), reader, BEHAVIORS, BEHAVIORS[2:], merge=merge)
    return Store.open(prepare(data, split, tmp_path / "cache"))


def shown(found) -> dict[str, tuple[str, str]]:
    """User -> their history and their targets, as texts."""

    def say(events):
        return " ".join(f"{e.behavior}:{e.item}" for e in events)

    return {user: (say(history), say(targets)) for user, (history, targets) in found.items()}


def trained(store) -> dict[str, str]:
    return {
        user: " ".join(f"{e.behavior}:{e.item}" for e in own)
        for user, own in listed(store, store.train).items()
    }


# x has no training event, u repeats b and a view of c, v has an item twice.
TEST = "user,item\nu,d\nu,b\nu,c\nv,a\nv,a\nx,a\n"
TIMELESS = {"file": "test.csv", "timestamp": None, "as_behavior": "buy"}


def test_a_test_file_without_times_and_behaviors(tmp_path):
    store = opened(tmp_path, {"train.csv": TRAIN, "test.csv": TEST}, test=TIMELESS)
    test = shown(lists(store, "test"))
    assert test == {
        "u": ("view:a buy:b view:c", "buy:d buy:b buy:c"),
        "v": ("view:c buy:b", "buy:a"),
    }
    # The last training events validate, since no file does.
    assert shown(lists(store, "val")) == {
        "u": ("view:a buy:b", "view:c"),
        "v": ("view:c", "buy:b"),
    }
    assert trained(store) == {"u": "view:a buy:b", "v": "view:c", "w": "view:a", "x": ""}
    targets = store.test
    assert targets.repeat.tolist() == [False, True, False, False]
    assert targets.seen.tolist() == [False, False, True, False]
    assert targets.cold.tolist() == [True, False, False, False]
    assert store.meta["audit"]["repeat_targets"] == 1 / 4
    assert store.meta["left_out"]["not tested: no event of another part"] == 1


def test_events_to_validate_on_are_given_too(tmp_path):
    files = {"train.csv": TRAIN, "val.csv": HEAD + "u,a,buy,5\nw,b,buy,5\n"}
    files["test.csv"] = HEAD + "u,d,buy,6\nv,a,buy,7\n"
    store = opened(tmp_path, files, validation="val.csv", test="test.csv")
    assert shown(lists(store, "val")) == {
        "u": ("view:a buy:b view:c", "buy:a"),
        "w": ("view:a", "buy:b"),
    }
    test = {"u": ("view:a buy:b view:c buy:a", "buy:d"), "v": ("view:c buy:b", "buy:a")}
    assert shown(lists(store, "test")) == test
    assert store.test.time.tolist() == [6, 7]
    second = opened(
        tmp_path,
        files,
        Split(kind="given", merge_val=True),
        validation="val.csv",
        test="test.csv",
    )
    assert shown(lists(second, "test")) == test
    assert trained(second)["u"] == "view:a buy:b view:c buy:a"


@pytest.mark.parametrize("behavior", ["behavior", None])
def test_a_column_names_the_parts(tmp_path, behavior):
    rows = [*TRAIN.split()[1:], "u,d,buy,9", "v,a,view,9", "w,b,buy,8"]
    parts = ["train"] * 6 + ["Test", "test", "valid"]
    lines = [f"{row},{part}" for row, part in zip(rows, parts, strict=True)]
    if behavior is None:
        lines = [line.replace("view", "buy") for line in lines]
    text = "\n".join(["user,item,behavior,timestamp,split", *lines]) + "\n"
    files = {"train.csv": text}
    if behavior is None:
        data = {"behaviors": ["interaction"], "explicit": ["interaction"]}
        folder = tmp_path / "raw"
        folder.mkdir()
        (folder / "train.csv").write_text(text)
        reader = {
            "_target_": "recexp.data.readers.given.read",
            "_partial_": True,
            "file": "train.csv",
            "part": "split",
            "time_unit": "ms",
        }
        shop = Dataset("shop", str(folder), reader, **data)
        store = Store.open(prepare(shop, GIVEN, tmp_path / "cache"))
        assert len(store.test) == 2
        assert len(store.train) == 6
        return
    store = opened(tmp_path, files, part="split")
    assert shown(lists(store, "test")) == {
        "u": ("view:a buy:b view:c", "buy:d"),
        "v": ("view:c buy:b", "view:a"),
    }
    assert shown(lists(store, "val")) == {"w": ("view:a", "buy:b")}


def test_pairs_are_merged_within_a_part(tmp_path):
    text = TRAIN + "u,b,view,5\nv,a,view,1\n"
    store = opened(tmp_path, {"train.csv": text, "test.csv": TEST}, test=TIMELESS, merge="pairs")
    assert shown(lists(store, "test")) == {
        "u": ("view:a buy:b view:c", "buy:d buy:b buy:c"),
        "v": ("view:c view:a buy:b", "buy:a"),
    }


def test_other_protocols_take_the_parts_as_events(tmp_path):
    store = opened(tmp_path, {"train.csv": TRAIN, "test.csv": TEST}, Split(), test=TIMELESS)
    assert len(store.past) == 12


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, "name one of them"),
        ({"part": "split", "test": "test.csv"}, "name one of them"),
        ({"part": "behavior"}, "column 'behavior' holds 'view'"),
        ({"part": "split"}, "'split' is not in the header"),
        ({"test": "test.csv"}, "'behavior' is not in the header"),
        ({"test": {"file": "test.csv", "behavior": None}}, "as_behavior: buy"),
        ({"test": {"timestamp": None}}, "dataset.source.test has no file"),
    ],
)
def test_errors_say_what_to_do(tmp_path, source, message):
    with pytest.raises(RecexpError, match=message):
        opened(tmp_path, {"train.csv": TRAIN, "test.csv": TEST}, **source)


def test_data_without_parts_are_an_error(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "events.csv").write_text(TRAIN)
    reader = {"_target_": "recexp.data.readers.table.read", "_partial_": True}
    reader |= {"file": "events.csv", "behavior": "behavior", "time_unit": "ms"}
    shop = Dataset("shop", str(folder), reader, BEHAVIORS, BEHAVIORS[2:])
    with pytest.raises(RecexpError, match="read them by dataset=given"):
        prepare(shop, GIVEN, tmp_path / "cache")
