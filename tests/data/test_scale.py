"""Preparing large files: the same arrays whichever way they are read, and memory in proportion to
the events, with a small factor.
"""

from __future__ import annotations

import os
import subprocess
import sys

import polars as pl
import pytest

from recexp.data import index, rows
from recexp.data.cache import prepare, read_meta
from recexp.data.dataset import Dataset
from recexp.data.raw import scanning
from recexp.data.readers import taobao
from recexp.data.split import Split
from recexp.errors import RecexpError
from tests.perf.make_taobao import make

SOURCE = {"_target_": "recexp.data.readers.taobao.read", "_partial_": True}


def prepared(raw, cache, **options):
    settings = {"behaviors": ["pv", "fav", "cart", "buy"], "explicit": ["buy"]} | options
    split = Split(target="strongest", purge="later", fallback="any")
    return read_meta(prepare(Dataset("taobao", str(raw), SOURCE, **settings), split, cache))[
        "arrays"
    ]


@pytest.mark.parametrize(
    "options",
    [{}, {"merge": "pairs", "filters": [{"user_min": 3, "count": "items"}]}],
    ids=["events", "pairs"],
)
def test_streaming_in_blocks_gives_the_same_arrays(tmp_path, monkeypatch, options):
    make(tmp_path / "raw", 20_000)
    whole = prepared(tmp_path / "raw", tmp_path / "a", **options)
    monkeypatch.setattr(scanning, "LARGE", 0)
    monkeypatch.setattr(rows.blocks, "__defaults__", (100,))
    monkeypatch.setattr(index, "BLOCK", 100)
    assert prepared(tmp_path / "raw", tmp_path / "b", **options) == whole


def test_a_block_cuts_no_user_in_two():
    owner = pl.Series([0] * 7 + [1] * 2 + [3] * 1 + [4] * 12).to_numpy()
    for size in range(1, 25):
        found = list(rows.blocks(owner, size))
        assert [i for block in found for i in range(block.start, block.stop)] == list(
            range(len(owner))
        )
        assert not any(owner[block.start] == owner[block.start - 1] for block in found[1:])


@pytest.mark.parametrize(
    "bad",
    [
        "1,2,3,pv,never",
        "1,2,3,look,1511539200",
        "1,,3,pv,1511539200",
        "1,2,3,pv",
        "1,2,3,pv,1511539200,6",
        '"1,2,3,pv,1',
    ],
)
def test_a_bad_row_is_named_where_the_file_is_streamed(tmp_path, monkeypatch, bad):
    monkeypatch.setattr(scanning, "LARGE", 0)
    path = make(tmp_path, 1000)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:500], bad, *lines[500:]]) + "\n")
    with pytest.raises(RecexpError, match=r"UserBehavior\.csv, line 501"):
        taobao.read(tmp_path)


def test_items_keep_the_category_of_their_last_row(tmp_path, monkeypatch):
    path = make(tmp_path, 5000)
    names = ["user", "item", "category", "behavior", "timestamp"]
    frame = pl.read_csv(path, has_header=False, new_columns=names).with_columns(
        category=pl.int_range(pl.len()) % 7
    )
    frame.write_csv(path, include_header=False)
    expected = dict(frame.select("item", "category").iter_rows())
    monkeypatch.setattr(scanning, "LARGE", 0)
    category = taobao.read(tmp_path).item_features["category"].frame.collect(engine="streaming")
    assert dict(category.select("item", "value").iter_rows()) == expected


MEASURE = """
import resource, sys
from pathlib import Path
from recexp.data.raw import scanning
from tests.data.test_scale import prepared
scanning.LARGE = 0
prepared(Path(sys.argv[1]), Path(sys.argv[1]) / "cache")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
def test_memory_grows_by_few_bytes_per_event(tmp_path):
    """100 million events must fit into 8 GB, 80 bytes each. Measured: 60; before streaming: 290."""

    def peak(events: int) -> int:
        make(tmp_path / str(events), events)
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(tmp_path / str(events))],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1"},
            cwd=os.getcwd(),
        )
        return int(done.stdout.split()[-1])

    small, large = 1_000_000, 4_000_000
    assert (peak(large) - peak(small)) / (large - small) < 120
