"""The cache of prepared data: every change of the input is noticed, and damage is repaired."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from recexp.data import build as build_module
from recexp.data import cache as prepare_module
from recexp.data.cache import prepare, read_meta, verify
from recexp.data.dataset import Dataset
from recexp.data.readers import table
from recexp.data.split import Split
from recexp.data.store import Store
from recexp.errors import RecexpError
from tests.support.events import (
    BEHAVIORS,
    GLOBAL,
    P1,
    P2,
    P2_LATER,
    P3,
    dataset,
    names,
    random_events,
    write,
)


@pytest.fixture
def shop(tmp_path):
    return dataset(write(tmp_path / "raw", random_events(0)))


@pytest.fixture
def builds(monkeypatch):
    """One entry for every time that raw files are prepared."""
    calls, real = [], build_module.build
    monkeypatch.setattr(build_module, "build", lambda *args: calls.append(args) or real(*args))
    return calls


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_second_run_reads_neither_raw_files_nor_polars(tmp_path, shop, builds, monkeypatch):
    folder = prepare(shop, P3, tmp_path / "cache")
    before = content(folder)
    hashed, real = [], prepare_module.checksum
    monkeypatch.setattr(prepare_module, "checksum", lambda path: hashed.append(path) or real(path))
    assert (
        prepare(shop, P3, tmp_path / "cache") == folder
        and content(folder) == before
        and len(builds) == 1
    )
    assert {path.parent for path in hashed} == {folder}
    script = (
        "import sys, json; from recexp.data.cache import prepare;"
        "from recexp.data.dataset import Dataset; from recexp.data.store import Store;"
        "from recexp.evaluation.protocol import Protocol;"
        "given = json.loads(sys.argv[1]);"
        "store = Store.open(prepare(Dataset(**given), Protocol('p3').split, sys.argv[2]));"
        "print(store.folder, 'polars' in sys.modules, 'pyarrow' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(vars(shop)), str(tmp_path / "cache")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [str(folder), "False", "False"] and "[data]" not in done.stderr


@pytest.mark.parametrize(
    "change",
    [
        {"filters": [{"user_min": 2}]},
        {"merge": "pairs"},
        {"explicit": ["buy"]},
        {"behaviors": BEHAVIORS[::-1]},
        {"window": {"start": "1970-01-01", "end": "1970-01-02"}},
        {"value": "value"},
        {"name": "other"},
    ],
)
def test_another_setting_is_another_folder(tmp_path, shop, change):
    folder = prepare(shop, P3, tmp_path / "cache")
    other = prepare(dataset(tmp_path / "raw", **change), P3, tmp_path / "cache")
    assert other != folder and read_meta(other)["fingerprint"] != read_meta(folder)["fingerprint"]


@pytest.mark.parametrize(
    "split", [P1, P2, P2_LATER, GLOBAL, Split(merge_val=True), Split(fallback="any")]
)
def test_another_split_is_another_folder(tmp_path, shop, split):
    assert prepare(shop, split, tmp_path / "cache") != prepare(shop, P3, tmp_path / "cache")


def test_another_code_version_is_another_folder(tmp_path, shop, monkeypatch):
    folder = prepare(shop, P3, tmp_path / "cache")
    monkeypatch.setattr(prepare_module, "CODE_VERSION", -1)
    assert prepare(shop, P3, tmp_path / "cache") != folder


def test_moving_a_readers_module_changes_no_fingerprint(tmp_path, shop):
    """The fingerprint of version 2 of the code, from before the readers moved."""
    meta = read_meta(prepare(shop, P3, tmp_path / "cache"))
    assert meta["settings"]["dataset"]["source"]["_target_"] == "recexp.data.sources.table.read"
    assert meta["fingerprint"] == "a62336be419ab4e3"


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


def test_a_file_that_the_reader_does_not_read_changes_nothing(tmp_path, shop, builds):
    folder = prepare(shop, P3, tmp_path / "cache")
    (tmp_path / "raw" / "more.csv").write_text("item,brand\n")
    (tmp_path / "raw" / "sub").mkdir()
    assert prepare(shop, P3, tmp_path / "cache") == folder and len(builds) == 1
    (tmp_path / "raw" / "more.csv").unlink()
    assert prepare(shop, P3, tmp_path / "cache") == folder and len(builds) == 1


def test_a_file_that_the_reader_looks_for_is_noticed(tmp_path, builds):
    """The item features of Amazon's data are optional, and may come later."""
    (tmp_path / "raw").mkdir()
    lines = [f"u{n % 5},i{n % 3},5.0,{1_400_000_000 + n}\n" for n in range(40)]
    (tmp_path / "raw" / "ratings_Beauty.csv").write_text("".join(lines))
    source = {"_target_": "recexp.data.readers.amazon.read", "_partial_": True}
    given = Dataset("amazon", str(tmp_path / "raw"), source, ["rating"], ["rating"])
    folder = prepare(given, P3, tmp_path / "cache")
    features = tmp_path / "raw" / "meta_Beauty.json.gz"
    features.write_text('{"asin": "i1", "categories": [["Beauty"]]}\n')
    with_features = prepare(given, P3, tmp_path / "cache")
    assert with_features != folder and len(builds) == 2
    assert "category" in Store.open(with_features).schema.item_features
    assert prepare(given, P3, tmp_path / "cache") == with_features and len(builds) == 2
    features.unlink()
    assert prepare(given, P3, tmp_path / "cache") == folder and len(builds) == 3


def test_a_file_that_matches_the_pattern_is_noticed(tmp_path, builds):
    events = random_events(0)
    write(tmp_path / "raw", events[:100], "part-1.csv")
    write(tmp_path / "raw", events[100:], "part-2.csv")
    given = dataset(tmp_path / "raw")
    given.source = {**given.source, "file": "part-*.csv"}
    folder = prepare(given, P3, tmp_path / "cache")
    assert prepare(given, P3, tmp_path / "cache") == folder and len(builds) == 1
    write(tmp_path / "raw", [events[0]._replace(item="new")], "part-3.csv")
    more = prepare(given, P3, tmp_path / "cache")
    assert more != folder and "new" in names(Store.open(more), "item")
    (tmp_path / "raw" / "part-3.csv").unlink()
    assert prepare(given, P3, tmp_path / "cache") == folder


def test_a_simulation_marker_that_comes_later_is_noticed(tmp_path, shop):
    folder = prepare(shop, P3, tmp_path / "cache")
    (tmp_path / "raw" / "simulation.json").write_text("{}")
    marked = prepare(shop, P3, tmp_path / "cache")
    assert read_meta(marked)["simulated"] and not read_meta(folder)["simulated"]


def test_beside_the_files_of_a_reader_that_does_not_tell_any_file_counts(
    tmp_path, shop, builds, monkeypatch
):
    """Optional files, such as item features, may come later; the fingerprint stays as long as
    nothing else is read.
    """
    read = table.read

    def silent(*args, **options):
        raw = read(*args, **options)
        raw.files = list(raw.files)
        return raw

    monkeypatch.setattr(table, "read", silent)
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
@pytest.mark.parametrize(
    "name", ["train_item.npy", "test_seen.npy", "item_count.npy", "users.parquet", "meta.json"]
)
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
from recexp.data import cache
from recexp.data.dataset import Dataset
from recexp.data.split import Split

def work():
    from recexp.data import build as module  # after forking: polars has threads
    real = module.build

    def slow(dataset, split, out):
        done = real(dataset, split, out)
        time.sleep(float(sys.argv[4]))
        return done

    module.build = slow
    folder = cache.prepare(Dataset(**json.loads(sys.argv[1])), Split(), sys.argv[2])
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
    """Processes that prepare the shop at the same time, each waiting ``sleep`` seconds after it has
    written the arrays.
    """
    command = [
        sys.executable,
        "-c",
        PREPARE,
        json.dumps(vars(shop)),
        str(cache),
        str(processes),
        str(sleep),
    ]
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
    while (
        not list((tmp_path / "cache").glob(".shop-*/test_end.npy")) and time.monotonic() < deadline
    ):
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    process.communicate(timeout=300)
    cache = tmp_path / "cache"
    assert len(list(cache.glob(".shop-*/"))) == 1 and not list(cache.glob("shop-*"))
    folder = prepare(shop, P3, cache)
    verify(folder)
    assert [path for path in cache.iterdir() if path.is_dir()] == [
        folder
    ]  # the remains of the killed process are removed


def test_killed_between_folder_and_pointer(tmp_path, shop):
    folder = prepare(shop, P3, tmp_path / "cache")
    before, inode = content(folder), folder.stat().st_ino
    next((tmp_path / "cache").glob("shop-*.json")).unlink()
    assert prepare(shop, P3, tmp_path / "cache") == folder
    assert (
        content(folder) == before and folder.stat().st_ino == inode
    )  # the folder is complete and may be in use


def test_an_error_leaves_nothing(tmp_path, shop, monkeypatch):
    monkeypatch.setattr(build_module, "audit_leaks", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare(shop, P3, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_a_cache_that_cannot_be_written_is_one_clear_error(tmp_path, shop, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(RecexpError, match=r"cannot be prepared in .*file.*cache_dir="):
        prepare(shop, P3, tmp_path / "file")

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied", "cache")

    monkeypatch.setattr(prepare_module, "new_folder", refuse)
    with pytest.raises(RecexpError, match="Permission denied"):
        prepare(shop, P3, tmp_path / "cache")
