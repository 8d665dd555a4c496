"""Whatever stands in the place of a cached file: it is named and made anew, or is one clear error.

Every JSON file of the cache is replaced by hostile content, and every file and folder by something
of another kind.
"""

import json
import os
import shutil

import pytest

from recexp.data.cache import prepare
from recexp.data.store import Store
from recexp.errors import RecexpError
from recexp.evaluation.candidate_store import stored_candidates
from recexp.evaluation.protocol import Candidates, Protocol
from tests.support.events import P3, dataset, random_events, write
from tests.support.running import command, run_here

PROTOCOL = Protocol("p", P3, Candidates(n=3))
CONTENTS = {
    "empty": b"",
    "list": b"[]",
    "number": b"3",
    "null": b"null",
    "text": b'"text"',
    "object": b"{}",
    "not UTF-8": b'{"folder": "\xff\xfe"}',
    "zeros": b"\0" * 100,
    "half": b'{"folder": "shop-',
    "deep": b"[" * 100_000,
    "NaN": b"NaN",
    "long number": b"9" * 10_000,
    "lists inside": b'{"folder": [], "meta": [], "files": [], "beside": [], "arrays": [], "sha256": []}',  # noqa: E501
    "numbers inside": b'{"folder": 3, "meta": 3, "files": 3, "beside": 3, "arrays": 3, "sha256": 3}',  # noqa: E501
    "null inside": b'{"folder": null, "meta": null, "files": null, "beside": null, "arrays": null, "sha256": null}',  # noqa: E501
    "other keys": b'{"folder": "..", "meta": "x", "files": {"\\u0000": 3}, "beside": {"x": 3}, "arrays": {"..": "x"}}',  # noqa: E501
}


def content(name):
    def put(path):
        path.unlink()
        path.write_bytes(CONTENTS[name])

    return put


def folder_with_a_file(path):
    remove(path)
    path.mkdir()
    (path / "kept").touch()


def dangling_link(path):
    remove(path)
    path.symlink_to(path.parent / "nothing here")


def link_to_itself(path):
    remove(path)
    path.symlink_to(path)


def pipe(path):
    """Opening one for reading waits for ever."""
    remove(path)
    os.mkfifo(path)


def file_of_no_use(path):
    remove(path)
    path.write_bytes(b"x")


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


SHAPES = [folder_with_a_file, dangling_link, link_to_itself, pipe]
DAMAGES = [content(name) for name in CONTENTS] + SHAPES
NAMES = [*CONTENTS, *(shape.__name__ for shape in SHAPES)]
JSON_FILES = {
    "pointer": "shop-*.json",
    "meta.json": "shop-*/meta.json",
    "candidates": "shop-*/candidates-test-*.json",
}
OTHERS = {
    "prepared folder": "shop-*[0-9a-f]",
    "array": "shop-*/train_item.npy",
    "id map": "shop-*/users.parquet",
    "candidates' table": "shop-*/candidates-test-*.npy",
}


@pytest.fixture
def shop(tmp_path):
    return dataset(write(tmp_path / "raw", random_events(0, n_items=40)))


def use(shop, cache):
    """What a run reads of the cache, as bytes by file name."""
    store = Store.open(prepare(shop, P3, cache))
    drawn = stored_candidates(store, PROTOCOL, "test")
    return drawn.tolist(), {path.name: path.read_bytes() for path in store.folder.iterdir()}


def only(cache, pattern):
    (path,) = cache.glob(pattern)
    return path


def test_these_are_all_json_files_of_the_cache(tmp_path, shop):
    use(shop, tmp_path / "cache")
    found = set((tmp_path / "cache").rglob("*.json"))
    assert found == {only(tmp_path / "cache", pattern) for pattern in JSON_FILES.values()}


@pytest.mark.parametrize("damage", DAMAGES, ids=NAMES)
@pytest.mark.parametrize("pattern", JSON_FILES.values(), ids=JSON_FILES)
def test_a_hostile_json_file_is_named_in_one_line_and_made_anew(
    tmp_path, shop, capsys, pattern, damage
):
    cache = tmp_path / "cache"
    before = use(shop, cache)
    path = only(cache, pattern)
    damage(path)
    capsys.readouterr()
    assert use(shop, cache) == before
    told = [line for line in capsys.readouterr().err.splitlines() if path.name in line]
    assert len(told) == 1 and told[0].startswith("[data] ") and "again" in told[0]
    assert use(shop, cache) == before and capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "damage", [*SHAPES, file_of_no_use], ids=[s.__name__ for s in [*SHAPES, file_of_no_use]]
)
@pytest.mark.parametrize("pattern", OTHERS.values(), ids=OTHERS)
def test_something_else_in_the_place_of_a_cached_file_is_replaced(
    tmp_path, shop, capsys, pattern, damage
):
    cache = tmp_path / "cache"
    before = use(shop, cache)
    path = only(cache, pattern)
    damage(path)
    capsys.readouterr()
    assert use(shop, cache) == before
    told = [line for line in capsys.readouterr().err.splitlines() if path.name in line]
    assert any("again" in line for line in told)
    assert use(shop, cache) == before and capsys.readouterr().err == ""


def test_what_a_link_leads_to_is_left_alone(tmp_path, shop):
    """A prepared folder may be moved to another disk; a folder of someone else is not emptied."""
    cache = tmp_path / "cache"
    before = use(shop, cache)
    folder = only(cache, OTHERS["prepared folder"])
    folder.rename(tmp_path / "moved")
    folder.symlink_to(tmp_path / "moved")
    assert use(shop, cache) == before and folder.is_symlink()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").touch()
    folder.unlink()
    folder.symlink_to(tmp_path / "mine")
    assert use(shop, cache) == before and (tmp_path / "mine" / "letter").exists()


@pytest.mark.parametrize("damage", [folder_with_a_file, link_to_itself])
def test_a_lock_that_cannot_be_taken_is_one_clear_error(tmp_path, shop, damage):
    cache = tmp_path / "cache"
    use(shop, cache)
    only(cache, JSON_FILES["pointer"]).unlink()
    for lock in cache.glob(".*.lock"):
        damage(lock)
    with pytest.raises(RecexpError, match=r"cannot be prepared in .*\.lock.*cache_dir="):
        use(shop, cache)


def test_left_by_a_killed_process_whatever_it_is(tmp_path, shop):
    cache = tmp_path / "cache"
    use(shop, cache)
    pointer = only(cache, JSON_FILES["pointer"])
    pointer.unlink()
    (cache / f".{pointer.stem}-left").write_bytes(b"x")
    (cache / f".{pointer.stem}-link").symlink_to(tmp_path / "raw")
    use(shop, cache)
    assert not list(cache.glob(f".{pointer.stem}-*")) and (tmp_path / "raw/events.csv").exists()


@pytest.mark.parametrize("damage", DAMAGES, ids=NAMES)
def test_a_hostile_setting_file_of_the_simulator_is_one_clear_error(tmp_path, damage):
    """The shop's other files may be as wrong as its setting: it is not used."""
    from recexp.data.simulation.simulator import simulate

    shop = {"users": 10, "items": 20, "categories": 2}
    simulate(tmp_path / "shop", **shop)
    damage(tmp_path / "shop" / "simulation.json")
    with pytest.raises(RecexpError, match=r"shop.*(simulation\.json|of another setting).*remove"):
        simulate(tmp_path / "shop", **shop)


@pytest.mark.slow  # whole programs; the tests above damage the same files
def test_a_run_over_a_hostile_cache_ends_with_the_same_numbers(tmp_path):
    words = ("model=pop", "logger=none")
    before = run_here(tmp_path / "first", *words)["metrics"]
    for path in [*(tmp_path / "cache").rglob("*.json")]:
        path.write_bytes(b"[]")
    done = command(tmp_path / "second", *words, f"hydra.run.dir={tmp_path}/second")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "second/result.json").read_text())["metrics"] == before
    assert "Traceback" not in done.stderr
