"""Programs of two versions on one cache: each has its own data and replaces no other."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from recexp.data import cache as cache_module
from recexp.data.cache import prepare, read_meta, verify
from tests.support.events import P3, dataset, random_events, write

# Prepares argv[1] in argv[2] as a program with the versions of argv[3] would, and then reads.
OTHER = """
import json, sys
import recexp.data.cache as cache
from recexp.data.dataset import Dataset
from recexp.data.split import Split
from recexp.data.store import Store

vars(cache).update(json.loads(sys.argv[3]))
folder = cache.prepare(Dataset(**json.loads(sys.argv[1])), Split(), sys.argv[2])
Store.open(folder)
print(folder)
"""
# The other program has other numbers; where META_VERSION differs, its meta.json has, too.
VERSIONS = [{"CODE_VERSION": 9}, {"META_VERSION": 9}, {"CODE_VERSION": 9, "META_VERSION": 9}]


@pytest.mark.parametrize("versions", VERSIONS, ids=lambda versions: "+".join(versions))
def test_two_versions_in_turn_prepare_once_each(tmp_path, monkeypatch, versions):
    shop, cache = dataset(write(tmp_path / "raw", random_events(0))), tmp_path / "cache"

    def prepared(changes) -> tuple[str, bool]:
        """The folder, and whether it was prepared anew."""
        with monkeypatch.context() as m:
            made = []
            make = cache_module._make
            m.setattr(cache_module, "_make", lambda *a: made.append(1) or make(*a))
            identity = cache_module._identity
            if "META_VERSION" in changes:
                m.setattr(cache_module, "_identity", lambda *a, **k: identity(*a, **k) | {"new": 1})
            for name, value in changes.items():
                m.setattr(cache_module, name, value)
            return str(prepare(shop, P3, cache)), bool(made)

    folders = [prepared(changes) for _ in range(3) for changes in ({}, versions)]
    assert [was_made for _, was_made in folders] == [True, True, False, False, False, False]
    ours, others = folders[0][0], folders[1][0]
    assert ours != others and {folder for folder, _ in folders} == {ours, others}
    for folder in cache.glob("shop-*/"):
        verify(folder)
    same_arrays = read_meta(cache / ours)["fingerprint"] == read_meta(cache / others)["fingerprint"]
    assert same_arrays == (versions == {"META_VERSION": 9}), "protocol ids stay with the arrays"


@pytest.mark.slow  # two programs beside each other; the tests above take their turns
def test_two_versions_at_once(tmp_path):
    shop, cache = dataset(write(tmp_path / "raw", random_events(0))), tmp_path / "cache"
    processes = []
    for versions in ({}, *VERSIONS):
        line = [sys.executable, "-c", OTHER, json.dumps(vars(shop)), str(cache)]
        line.append(json.dumps(versions))
        processes.append(subprocess.Popen(line, stdout=subprocess.PIPE, text=True))
    folders = [process.communicate(timeout=300)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4 and len(set(folders)) == 4
    for folder in cache.glob("shop-*/"):
        verify(folder)


def test_damage_is_mended_in_the_folder_of_ones_own_version(tmp_path, monkeypatch):
    shop, cache = dataset(write(tmp_path / "raw", random_events(0))), tmp_path / "cache"
    ours = prepare(shop, P3, cache)
    with monkeypatch.context() as m:
        m.setattr(cache_module, "META_VERSION", 9)
        others = prepare(shop, P3, cache)
        (others / "train_item.npy").write_bytes(b"damaged")
    before = {path.name: path.read_bytes() for path in others.iterdir()}
    (ours / "train_item.npy").write_bytes(b"damaged")
    assert prepare(shop, P3, cache) == ours
    verify(ours)
    assert {path.name: path.read_bytes() for path in others.iterdir()} == before
