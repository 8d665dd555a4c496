"""Missing ids are no user and no item, however they are spelled; blanks around ids do not count."""

import polars as pl
import pytest

from recexp.data.audit import Report
from recexp.data.cache import prepare, read_meta
from recexp.data.dataset import MISSING_IDS
from recexp.data.ids import clean_ids
from recexp.data.store import Store
from recexp.errors import RecexpError
from recexp.evaluation.protocol import Protocol
from tests.support.events import P3, dataset, names, random_events, store, write
from tests.support.running import run_here

SPELLINGS = ["NA", "N/A", "n/a", "<NA>", "NULL", "Null", "None", "NONE", "nan", "NaN", "undefined"]


@pytest.fixture
def events():
    return random_events(0)


def with_missing(events, *texts):
    """Of each text, events of such a user and of such an item."""
    first = events[0]
    users = [first._replace(user=text, time=n) for n in range(4) for text in texts]
    items = [first._replace(item=text, time=n) for n in range(2) for text in texts]
    return [*events, *users, *items]


@pytest.mark.parametrize("spelling", [*SPELLINGS, " NA ", "\tnull"])
def test_a_missing_id_is_no_user(tmp_path, events, spelling):
    clean = store(tmp_path / "clean", events)
    found = store(tmp_path / "found", with_missing(events, spelling))
    for column in ("user", "item"):
        assert names(found, column) == names(clean, column)
    assert len(found.past) == len(events)
    assert found.meta["ids"]["dropped"] == 6
    text = spelling.strip()
    assert found.meta["ids"]["missing"] == {"user": {text: 4}, "item": {text: 2}}
    (line,) = [line for line in found.meta["report"] if "dataset.missing_ids" in line]
    assert line.startswith("6 events dropped") and repr(text) in line


def test_every_spelling_of_the_list_counts(events):
    frame = pl.DataFrame({"user": [*MISSING_IDS, "u"], "item": ["i"] * (len(MISSING_IDS) + 1)})
    kept, done = clean_ids(frame, MISSING_IDS, Report())
    assert kept["user"].to_list() == ["u"] and done["dropped"] == len(MISSING_IDS)


@pytest.mark.parametrize("text", ["NAN1", "Nancy", "nullify", "none.", "N A", "0", "unknown"])
def test_an_id_that_merely_looks_alike_stays(tmp_path, events, text):
    found = store(tmp_path, with_missing(events, text))
    assert text in names(found, "user") and text in names(found, "item")
    assert found.meta["ids"] == {}


def test_a_null_of_a_reader_is_no_id():
    """Of any type: a reader of one's own may return it."""
    for ids in (["a", None, "b"], [1, None, 2]):
        frame = pl.DataFrame({"user": ids, "item": ids[::-1]})
        kept, done = clean_ids(frame, MISSING_IDS, Report())
        assert kept.height == 2 and done["missing"] == {"user": {"": 1}, "item": {"": 1}}
        assert clean_ids(frame, (), Report())[0].height == 2


def test_numbers_are_taken_as_they_are():
    frame = pl.DataFrame({"user": [0, -1, 7], "item": [1, 1, 1]})
    kept, done = clean_ids(frame, ("0", "-1"), Report())
    assert kept.equals(frame) and done == {}


def test_the_list_may_be_changed(tmp_path, events):
    path = write(tmp_path / "raw", with_missing(events, "NA", "anonymous"))
    by_list = {}
    for missing in (None, ["Anonymous"], []):
        folder = prepare(dataset(path, missing_ids=missing), P3, tmp_path / "cache")
        users = names(Store.open(folder), "user")
        by_list[str(missing)] = {"NA", "anonymous"} & set(users)
    assert by_list == {
        "None": {"anonymous"},
        "['Anonymous']": {"NA"},
        "[]": {"NA", "anonymous"},
    }


@pytest.mark.parametrize("wrong", ["NA", [None], [3]])
def test_a_list_of_anything_else_is_refused(tmp_path, wrong):
    with pytest.raises(RecexpError, match=r"dataset\.missing_ids=.* must be a list of texts"):
        dataset(tmp_path, missing_ids=wrong)


def test_without_missing_ids_the_setting_changes_no_fingerprint(tmp_path, events):
    path = write(tmp_path / "raw", events)
    found = set()
    for missing in (None, ["NA"], []):
        shop = dataset(path, missing_ids=missing)
        found.add(prepare(shop, P3, tmp_path / "cache"))
        assert prepare(shop, P3, tmp_path / "cache") in found
    assert len(found) == 1


def test_data_that_were_changed_have_another_protocol_id(tmp_path, events):
    path = write(tmp_path / "raw", with_missing(events, "NA"))
    ids = []
    for missing in (None, []):
        meta = read_meta(prepare(dataset(path, missing_ids=missing), P3, tmp_path / "cache"))
        ids.append(Protocol("p").id(meta))
    assert ids[0] != ids[1]


def test_users_whose_items_are_all_missing_are_counted(tmp_path, events):
    lost = [events[0]._replace(user="lost", item="NA", time=n) for n in range(3)]
    found = store(tmp_path, [*events, *lost])
    assert found.meta["left_out"]["removed by dataset.missing_ids"] == 1
    assert "lost" not in names(found, "user")


def test_nothing_but_missing_ids_is_one_clear_error(tmp_path, events):
    with pytest.raises(RecexpError, match=r"No event has both a user and an item.*missing_ids"):
        store(tmp_path, [event._replace(user="null") for event in events])


def test_blanks_around_ids_do_not_count(tmp_path, events):
    blanks = {0: "{}", 1: " {}", 2: "{}\t", 3: "  {} "}
    padded = [
        event._replace(
            user=blanks[n % 4].format(event.user), item=blanks[n // 4 % 4].format(event.item)
        )
        for n, event in enumerate(events)
    ]
    found = store(tmp_path / "padded", padded)
    clean = store(tmp_path / "clean", events)
    assert clean.meta["ids"] == {}
    assert found.meta["ids"]["stripped"].keys() == {"user", "item"}
    assert found.meta["fingerprint"] != clean.meta["fingerprint"]
    assert [line for line in found.meta["report"] if line.startswith("blanks around")]
    for name in (
        "users.parquet",
        "items.parquet",
        "past_item.npy",
        "past_ptr.npy",
        "test_item.npy",
    ):
        assert (found.folder / name).read_bytes() == (clean.folder / name).read_bytes()
    as_they_stand = dataset(tmp_path / "padded/raw", missing_ids=[])
    found = Store.open(prepare(as_they_stand, P3, tmp_path / "cache"))
    assert len(names(found, "item")) > len(names(clean, "item"))


FEATURES = {"file": "items.csv", "item": "item", "columns": {"brand": "categorical"}}


def with_features(folder, events, ids):
    write(folder / "raw", events)
    rows = [f'"{id_}",b{n % 3}' for n, id_ in enumerate(ids)]
    (folder / "raw/items.csv").write_text("\n".join(["item,brand", *rows]) + "\n")
    return dataset(folder / "raw", features=FEATURES)


@pytest.mark.parametrize("form", ["{}.0", "0000{}", "item {}"])
def test_a_feature_table_that_matches_no_item_is_an_error(tmp_path, events, form):
    events = [event._replace(item=event.item[1:]) for event in events]
    shop = with_features(tmp_path, events, [form.format(n) for n in range(12)])
    wanted = f"feature brand: none of its 12 item ids .* has '{form.format(0)}'.*have '0', '1'"
    with pytest.raises(RecexpError, match=wanted):
        prepare(shop, P3, tmp_path / "cache")


def test_blanks_around_the_ids_of_features_do_not_count(tmp_path, events):
    shop = with_features(tmp_path, events, [f" i{n} " for n in range(12)])
    (feature,) = read_meta(prepare(shop, P3, tmp_path / "cache"))["features"]
    assert feature["coverage"] == 1


def test_items_that_the_filters_removed_are_no_mismatch(tmp_path, events):
    rare = [events[0]._replace(item="rare", user=f"u{n}") for n in range(2)]
    shop = with_features(tmp_path, [*events, *rare], ["rare"])
    shop.filters = [{"item_min": 3}]
    (feature,) = read_meta(prepare(shop, P3, tmp_path / "cache"))["features"]
    assert feature["coverage"] == 0


def test_a_result_tells_coverage_and_missing_ids(tmp_path):
    """Half of the items have a brand, and twelve events have no user."""
    events = [
        (f"u{u}", f"i{(u + n * n) % 10}", 50 * u + n) for u in range(20) for n in range(6)
    ] + [("NA", "i1", n) for n in range(12)]
    (tmp_path / "raw").mkdir()
    rows = [",".join(map(str, event)) for event in events]
    (tmp_path / "raw/events.csv").write_text("\n".join(["user,item,timestamp", *rows]) + "\n")
    items = [f"i{n},b{n}" for n in range(5)]
    (tmp_path / "raw/items.csv").write_text("\n".join(["item,brand", *items]) + "\n")
    words = (
        "dataset=table",
        "dataset.source.features={file: items.csv, item: item, columns: {brand: categorical}}",
        "protocol=full",
        "model=pop",
        "logger=none",
        "threads=1",
    )
    result = run_here(tmp_path / "run", *words, small=())
    assert result["data"]["feature_coverage"] == {"brand": 0.5}
    assert result["data"]["ids"] == {"dropped": 12, "missing": {"user": {"NA": 12}}}
    assert result["data"]["users"] == 20
    kept = run_here(tmp_path / "kept", *words, "dataset.missing_ids=[]", small=())
    assert kept["data"]["users"] == 21 and "ids" not in kept["data"]
    assert kept["protocol_id"] != result["protocol_id"]
