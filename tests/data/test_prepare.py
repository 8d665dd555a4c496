"""Preparation as a whole: what is kept and reported, and a cache that is never wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recexp.data import build as build_module
from recexp.data import prepare as prepare_module
from recexp.data.prepare import prepare, read_meta, verify
from recexp.data.split import Split
from recexp.data.store import Store
from recexp.types import RecexpError
from tests.events import BEHAVIOURS, GLOBAL, P1, P2, P3, Event, dataset, held_out, in_order, listed, merged, names, random_events, store, write


@pytest.fixture
def shop(tmp_path):
    return dataset(write(tmp_path / "raw", random_events(0)))


@pytest.fixture
def builds(monkeypatch):
    """Counts the times that raw files are prepared."""
    calls, real = [], build_module.build
    monkeypatch.setattr(build_module, "build", lambda *args: calls.append(args) or real(*args))
    return calls


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# What is kept


@pytest.mark.parametrize("merge", ["none", "pairs"])
def test_arrays_hold_the_events(tmp_path, merge):
    events = random_events(1)
    opened = store(tmp_path, events, P3, merge=merge)
    own = {user: merged(e) if merge == "pairs" else [(x, {x.behaviour}) for x in e] for user, e in in_order(events).items()}
    assert listed(opened, opened.past) == {user: [e for e, _ in rows] for user, rows in own.items()}
    bits = [sum(1 << BEHAVIOURS.index(b) for b in behaviours) for rows in own.values() for _, behaviours in rows]
    assert opened.past.mask.tolist() == bits
    assert names(opened, "user") == sorted(own) and names(opened, "item")[1:] == sorted({e.item for e in events})
    counts = Counter(e.item for rows in own.values() for e, _ in rows)
    assert opened.item_count.tolist() == [0] + [counts[i] for i in names(opened, "item")[1:]]
    assert (opened.schema.n_users, opened.schema.n_items, opened.schema.behaviours) == (len(own), len(counts), BEHAVIOURS)
    assert opened.schema.explicit == (False, True, True)


@pytest.mark.parametrize("split", [P1, P2, P3, GLOBAL])
def test_pairs_hold_masks_and_counts(tmp_path, split):
    events = random_events(2)
    opened = store(tmp_path, events, split)
    users, items = names(opened, "user"), names(opened, "item")
    everything = [e for own in in_order(events).values() for e in own]
    train = [e for own in listed(opened, opened.train).values() for e in own]
    for pairs, own in ((opened.all_pairs, everything), (opened.train_pairs, train)):
        found = zip(pairs.user.tolist(), pairs.item.tolist(), pairs.mask.tolist(), pairs.count.tolist(), strict=True)
        count = Counter((e.user, e.item) for e in own)
        mask = Counter((u, i, 1 << BEHAVIOURS.index(b)) for u, i, b in {(e.user, e.item, e.behaviour) for e in own})
        expected = sorted((u, i, sum(b for (x, y, b) in mask if (x, y) == (u, i)), n) for (u, i), n in count.items())
        assert [(users[u], items[i], m, n) for u, i, m, n in found] == sorted(expected, key=lambda p: (p[0], items.index(p[1])))


@pytest.mark.parametrize("merge", ["none", "pairs"])
@pytest.mark.parametrize("split", [P1, P2, P3, GLOBAL])
def test_seen_and_audit(tmp_path, split, merge):
    """A target was seen if a weaker behaviour on its item stands before it; a merged pair stands where its last explicit event stood."""
    events = random_events(3, n_times=15)
    opened = store(tmp_path, events, split, merge=merge)
    tests, flags, past = held_out(opened, "test"), opened.test.seen.tolist(), listed(opened, opened.past)
    expected = []
    for user, (target, _) in tests.items():
        own = in_order(events)[user]
        pair = [n for n, e in enumerate(own) if e.item == target.item]
        explicit = [n for n in pair if own[n].behaviour != "view"]
        single = merge == "none" or split is P2
        at = own.index(target) if single else max(explicit or pair)
        expected.append(any(BEHAVIOURS.index(own[n].behaviour) < BEHAVIOURS.index(own[at].behaviour) for n in pair if n < at))
    assert flags == expected and any(flags) and not all(flags)
    audit = opened.meta["audit"]
    assert audit["seen_targets"] == pytest.approx(np.mean(flags))
    tied = [sum(e.time == target.time for e in past[user]) > 1 for user, (target, _) in tests.items()]
    assert audit["tied_targets"] == pytest.approx(np.mean(tied)) and any(tied)
    train = [e for own in listed(opened, opened.train).values() for e in own]
    future = [e.user in tests and e.time > tests[e.user][0].time for e in train]
    assert audit["future_events"] == pytest.approx(np.mean(future))
    assert f"{audit['tied_targets']:.1%} of test targets share their time" in opened.meta["report"][-1]


def test_the_report_accounts_for_every_event(tmp_path, capsys):
    events = [*random_events(4), Event("lonely", "i1", "view", 5)]
    opened = store(tmp_path, events, P1, filters=[{"user_min": 2, "count": "items"}], window={"start": "1970-01-01", "end": "1970-01-01T00:00:50"})
    err = capsys.readouterr().err
    outside = sum(e.time >= 50_000 for e in events)
    assert f"shop: {len(events):,} events read from 1 file(s)" in err
    assert f"window 1970-01-01 to 1970-01-01T00:00:50: {outside:,} events outside dropped" in err
    assert f"filter (user_min=2, count=items): 1 of {len(events) - outside:,} events dropped" in err
    purged = len(events) - outside - 1 - len(opened.past)
    assert purged > 0 and f"{purged:,} events of held-out (user, item) pairs purged from training (purge=pair)" in err
    kept = f"{len(opened.past):,} rows: {len(opened.train):,} to train, {len(opened.val):,} validation and {len(opened.test):,} test targets"
    assert kept in err and len(opened.past) == len(opened.train) + len(opened.val) + len(opened.test)


def test_ratings_as_behaviours(tmp_path):
    events = [Event("u", f"i{n}", "rating", n, value) for n, value in enumerate([5, 0.5, None, 3, 4, 2.9, 3.5])]
    changes = {"value": "value", "value_behaviours": {"liked": 4, "rated": 1, "known": 3}, "explicit": ["liked"]}
    opened = store(tmp_path, events, P3, **changes)
    assert opened.schema.behaviours == ("rated", "known", "liked") and opened.schema.explicit == (False, False, True)
    assert opened.past.behaviour.tolist() == [3, 2, 3, 1, 2]  # 0.5 and the missing one are gone
    assert "2 events dropped: their value is missing or below every threshold" in "\n".join(opened.meta["report"])
    assert opened.meta["levels"] == pytest.approx([2.9, 3, 3.5, 4, 5]) and opened.past.value.tolist() == [5, 2, 4, 1, 3]
    assert opened.schema.n_values == 5


def test_values_have_levels(tmp_path):
    events = [Event("u", f"i{n}", "view", n, value) for n, value in enumerate([3, None, 1, 3, 2])]
    opened = store(tmp_path, events, P3, value="value")
    assert opened.past.value.tolist() == [3, 0, 1, 3, 2] and opened.train.value.tolist() == [3, 0, 1]
    assert store(tmp_path / "without", events, P3).past.value is None
    prices = [Event("u", f"i{n}", "view", n, n / 7) for n in range(1001)]
    assert store(tmp_path / "prices", prices, P3, value="value").schema.n_values == 0


def test_unknown_behaviours(tmp_path):
    events = [*random_events(0), Event("u1", "i1", "wishlist", 1), Event("u1", "i2", "share", 1)]
    with pytest.raises(RecexpError, match=r"events\.csv: unknown behaviour 'wishlist' in event 251 \(user u1, item i1\).*on_bad_rows=drop"):
        store(tmp_path, events)
    opened = store(tmp_path, events, on_bad_rows="drop")
    assert len(opened.past) == 250
    assert "2 events dropped: behaviour among ['share', 'wishlist']" in "\n".join(opened.meta["report"])


def test_bad_rows_are_dropped_and_listed(tmp_path):
    folder = write(tmp_path / "raw", random_events(0))
    with (folder / "events.csv").open("a") as f:
        f.write("u1,i1,view,noon,\n")
    with pytest.raises(RecexpError, match=r"events\.csv.*252.*timestamp"):
        prepare(dataset(folder), P3, tmp_path / "cache")
    meta = read_meta(prepare(dataset(folder, on_bad_rows="drop"), P3, tmp_path / "cache"))
    assert any(line.startswith("1 bad rows dropped") and "252" in line for line in meta["report"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"behaviours": ["purchase"], "explicit": [], "on_bad_rows": "drop"}, "no event has one of the behaviours"),
        ({"window": {"start": "2020-01-01", "end": "2021-01-01"}}, "window left no event: the data run from 1970-01-01T00:00:0"),
        ({"window": {"start": "yesterday", "end": "2021-01-01"}}, "dataset.window.start must be an ISO date"),
        ({"window": {"start": "2020-01-01"}}, "dataset.window.end must be an ISO date"),
        ({"value_behaviours": {"buy": 4, "cart": 0}}, "the events carry no value"),
        ({"value_behaviours": {"buy": 4, "cart": 0}, "value": "value"}, "no event's value reaches a threshold"),
        ({"filters": [{"user_min": 1000}]}, "left no event"),
        ({"behaviours": ["view", "view"], "explicit": []}, "distinct names"),
        ({"behaviours": ["view"]}, "dataset.explicit names"),
        ({"merge": "all"}, "dataset.merge='all'"),
        ({"on_bad_rows": "skip"}, "dataset.on_bad_rows='skip'"),
        ({"name": "my/shop"}, "dataset.name='my/shop'"),
    ],
)
def test_wrong_settings_are_errors(tmp_path, changes, message):
    with pytest.raises(RecexpError, match=message):
        store(tmp_path, random_events(0), **changes)
    assert not list(tmp_path.glob("cache/shop-*"))


# The cache


def test_a_second_run_reads_neither_raw_files_nor_polars(tmp_path, shop, builds, monkeypatch):
    folder = prepare(shop, P3, tmp_path / "cache")
    before = content(folder)
    hashed, real = [], prepare_module.checksum
    monkeypatch.setattr(prepare_module, "checksum", lambda path: hashed.append(path) or real(path))
    assert prepare(shop, P3, tmp_path / "cache") == folder and content(folder) == before and len(builds) == 1
    assert {path.parent for path in hashed} == {folder}
    script = (
        "import sys, json; from recexp.data.prepare import Dataset, prepare; from recexp.data.store import Store;"
        "from recexp.evaluation.protocol import Protocol;"
        "given = json.loads(sys.argv[1]); store = Store.open(prepare(Dataset(**given), Protocol('p3').split, sys.argv[2]));"
        "print(store.folder, 'polars' in sys.modules, 'pyarrow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, json.dumps(vars(shop)), str(tmp_path / "cache")], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(folder), "False", "False"] and "[data]" not in done.stderr


@pytest.mark.parametrize(
    "change",
    [
        {"filters": [{"user_min": 2}]},
        {"merge": "pairs"},
        {"explicit": ["buy"]},
        {"behaviours": BEHAVIOURS[::-1]},
        {"window": {"start": "1970-01-01", "end": "1970-01-02"}},
        {"value": "value"},
        {"name": "other"},
    ],
)
def test_another_setting_is_another_folder(tmp_path, shop, change):
    folder = prepare(shop, P3, tmp_path / "cache")
    other = prepare(dataset(tmp_path / "raw", **change), P3, tmp_path / "cache")
    assert other != folder and read_meta(other)["fingerprint"] != read_meta(folder)["fingerprint"]


@pytest.mark.parametrize("split", [P1, P2, GLOBAL, Split(merge_val=True), Split(fallback="any")])
def test_another_split_is_another_folder(tmp_path, shop, split):
    assert prepare(shop, split, tmp_path / "cache") != prepare(shop, P3, tmp_path / "cache")


def test_another_code_version_is_another_folder(tmp_path, shop, monkeypatch):
    folder = prepare(shop, P3, tmp_path / "cache")
    monkeypatch.setattr(prepare_module, "CODE_VERSION", -1)
    assert prepare(shop, P3, tmp_path / "cache") != folder


def test_changed_raw_files_are_prepared_again(tmp_path, shop, capsys):
    folder = prepare(shop, P3, tmp_path / "cache")
    events = random_events(0)
    write(tmp_path / "raw", [*events[:-1], events[-1]._replace(item="i99")])
    again = prepare(shop, P3, tmp_path / "cache")
    assert again != folder and "raw files changed" in capsys.readouterr().err
    assert "i99" in names(Store.open(again), "item")


def test_touched_raw_files_are_not(tmp_path, shop, builds):
    folder = prepare(shop, P3, tmp_path / "cache")
    os.utime(tmp_path / "raw" / "events.csv", (1, 1))
    assert prepare(shop, P3, tmp_path / "cache") == folder and len(builds) == 1


def test_a_file_put_beside_is_noticed(tmp_path, shop, builds):
    """Optional files, such as item features, may come later; the fingerprint stays as long as nothing else is read."""
    folder = prepare(shop, P3, tmp_path / "cache")
    (tmp_path / "raw" / "more.csv").write_text("item,brand\n")
    assert prepare(shop, P3, tmp_path / "cache") == folder and len(builds) == 2
    prepare(shop, P3, tmp_path / "cache")
    assert len(builds) == 2


def test_the_place_of_the_raw_files_does_not_matter(tmp_path, shop):
    folder = prepare(shop, P3, tmp_path / "cache")
    elsewhere = dataset(write(tmp_path / "elsewhere", random_events(0)))
    assert prepare(elsewhere, P3, tmp_path / "cache") == folder
    assert prepare(elsewhere, P3, tmp_path / "another cache").name == folder.name
    assert content(tmp_path / "another cache" / folder.name) == content(folder)
    stamp = folder.stat().st_ino
    assert prepare(shop, P3, tmp_path / "cache").stat().st_ino == stamp


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def remove(path):
    path.unlink()


@pytest.mark.parametrize("damage", [flip, truncate, remove])
@pytest.mark.parametrize("name", ["train_item.npy", "test_seen.npy", "item_count.npy", "users.parquet", "meta.json"])
def test_damage_is_found_and_mended(tmp_path, shop, builds, damage, name):
    folder = prepare(shop, P3, tmp_path / "cache")
    before = content(folder)
    damage(folder / name)
    assert prepare(shop, P3, tmp_path / "cache") == folder and len(builds) == 2
    assert content(folder) == before


def test_damage_is_named(tmp_path, shop, capsys):
    folder = prepare(shop, P3, tmp_path / "cache")
    flip(folder / "past_time.npy")
    with pytest.raises(RecexpError, match=r"past_time\.npy is missing or damaged"):
        verify(folder)
    prepare(shop, P3, tmp_path / "cache")
    assert "past_time.npy is missing or damaged" in capsys.readouterr().err


@pytest.mark.parametrize("damage", [flip, truncate, remove])
def test_a_damaged_pointer_is_mended(tmp_path, shop, damage):
    folder = prepare(shop, P3, tmp_path / "cache")
    before = content(folder)
    pointer = next((tmp_path / "cache").glob("shop-*.json"))
    damage(pointer)
    assert prepare(shop, P3, tmp_path / "cache") == folder and content(folder) == before
    assert json.loads(pointer.read_text())["folder"] == folder.name


def test_a_missing_raw_file_is_one_clear_error(tmp_path, shop):
    prepare(shop, P3, tmp_path / "cache")
    (tmp_path / "raw" / "events.csv").unlink()
    with pytest.raises(RecexpError, match=r"events\.csv is missing"):
        prepare(shop, P3, tmp_path / "cache")


PREPARE = """
import json, os, sys, time
from recexp.data import prepare as cache
from recexp.data.split import Split

def work():
    from recexp.data import build as module  # after forking: polars has threads
    real = module.build

    def slow(dataset, split, out):
        done = real(dataset, split, out)
        time.sleep(float(sys.argv[4]))
        return done

    module.build = slow
    folder = cache.prepare(cache.Dataset(**json.loads(sys.argv[1])), Split(), sys.argv[2])
    cache.verify(folder)
    os.write(1, f"{folder}\\n".encode())

children = []
for _ in range(int(sys.argv[3])):
    if (child := os.fork()) == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    children.append(child)
print(*children, flush=True)
sys.exit(max(os.waitpid(child, 0)[1] for child in children))
"""


def start(shop, cache, processes, sleep):
    """Processes that prepare the shop at the same time, each taking ``sleep`` seconds more after the arrays are written."""
    command = [sys.executable, "-c", PREPARE, json.dumps(vars(shop)), str(cache), str(processes), str(sleep)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_four_processes_at_once_prepare_once(tmp_path, shop):
    out, err = (process := start(shop, tmp_path / "cache", 4, 0.5)).communicate(timeout=300)
    assert process.returncode == 0, err
    _, *folders = out.splitlines()
    assert len(folders) == 4 and len(set(folders)) == 1
    assert err.count("events read from") == 1
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 1


def test_a_killed_preparation_leaves_nothing_that_counts(tmp_path, shop):
    process = start(shop, tmp_path / "cache", 1, 600)
    child = int(process.stdout.readline())
    deadline = time.monotonic() + 120
    while not list((tmp_path / "cache").glob(".shop-*/test_end.npy")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    process.communicate(timeout=60)
    cache = tmp_path / "cache"
    assert len(list(cache.glob(".shop-*/"))) == 1 and not list(cache.glob("shop-*"))
    folder = prepare(shop, P3, cache)
    verify(folder)
    assert [path for path in cache.iterdir() if path.is_dir()] == [folder]  # what the dead process left is gone too


def test_killed_between_folder_and_pointer(tmp_path, shop):
    folder = prepare(shop, P3, tmp_path / "cache")
    before, inode = content(folder), folder.stat().st_ino
    next((tmp_path / "cache").glob("shop-*.json")).unlink()
    assert prepare(shop, P3, tmp_path / "cache") == folder
    assert content(folder) == before and folder.stat().st_ino == inode  # whole: others may be reading it


def test_an_error_leaves_nothing(tmp_path, shop, monkeypatch):
    monkeypatch.setattr(build_module, "_audit", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare(shop, P3, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_a_cache_that_cannot_be_written_is_one_clear_error(tmp_path, shop, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(RecexpError, match=r"cannot be prepared in .*file.*cache_dir="):
        prepare(shop, P3, tmp_path / "file")

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied", "cache")

    monkeypatch.setattr(prepare_module.tempfile, "mkdtemp", refuse)
    with pytest.raises(RecexpError, match="Permission denied"):
        prepare(shop, P3, tmp_path / "cache")


# Real data


DATA = Path(os.environ.get("RECEXP_DATA", ""))
real_data = pytest.mark.skipif("RECEXP_DATA" not in os.environ, reason="RECEXP_DATA is not set: no real data")
CONF = Path(__file__).parents[2] / "conf" / "dataset"
FINGERPRINTS = {  # models.md §2.1
    "ml_1m": ("ml-1m", {}, (6_040, 3_416, 999_611)),
    "ml_1m, all items": ("ml-1m", {"filters": []}, (6_040, 3_706, 1_000_209)),
    "ml_100k": ("ml-100k", {}, (943, 1_349, 99_287)),
    "sequence_file": ("amazon-beauty-bert4rec", {"source": {"file": "beauty.txt"}}, (40_226, 54_542, 353_962)),
    "amazon_beauty_5core": ("amazon-beauty-5core", {}, (22_363, 12_101, 198_502)),
}


def real_dataset(name, **changes):
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    folder, settings, _ = FINGERPRINTS[name]
    config = OmegaConf.merge(OmegaConf.load(CONF / f"{name.split(',')[0]}.yaml"), settings, {"raw_dir": str(DATA / folder)}, changes)
    return instantiate(config, _recursive_=False)


@real_data
@pytest.mark.parametrize("name", FINGERPRINTS)
def test_fingerprints(tmp_path, name):
    meta = read_meta(prepare(real_dataset(name), P3, tmp_path))
    users, items, interactions = FINGERPRINTS[name][2]
    assert (meta["users"], meta["items"], meta["interactions"]) == (users, items, interactions)
    assert meta["train"] == interactions - 2 * users  # everybody has at least 5


@real_data
def test_movielens_1m_has_the_order_of_sasrec(tmp_path):
    """For all 6 040 users: ties in time stand in the order of the file."""
    opened = Store.open(prepare(real_dataset("ml_1m"), P3, tmp_path))
    folder = DATA / "ml-1m-sasrec-order"

    def table(name):
        return pl.read_csv(folder / name, separator=" ", has_header=False, new_columns=["user", "item"])

    published = table("ml-1m.txt")
    for column in ("user", "item"):
        original = table(f"sas_to_original_{column}s.txt")
        published = published.with_columns(pl.col(column).replace_strict(original["user"], original["item"]))
    published = published.sort("user", maintain_order=True)
    user, item = (pl.read_parquet(opened.folder / f"{c}s.parquet")[c].to_numpy() for c in ("user", "item"))
    assert len(user) == 6_040
    assert np.array_equal(user[opened.past.user.numpy()], published["user"].to_numpy())
    assert np.array_equal(item[opened.past.item.numpy() - 1], published["item"].to_numpy())
