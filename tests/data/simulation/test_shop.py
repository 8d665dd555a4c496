"""Simulated data are recognized with every reader and in every folder."""

from __future__ import annotations

import shutil

import numpy as np
import polars as pl
import pytest

from recexp.data.cache import prepare, read_meta
from recexp.data.dataset import Dataset
from recexp.data.simulation.simulator import SETTING_FILE, is_simulated, simulate
from tests.support.events import P3, dataset, random_events, write

BEHAVIORS = ["view", "addtocart", "transaction"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated") / "shop"
    simulate(folder, users=40, items=60, categories=5, sessions=4.0)
    return folder


def prepared(folder, cache, reader="retailrocket", **options):
    source = {"_target_": f"recexp.data.readers.{reader}.read", "_partial_": True} | options
    return read_meta(
        prepare(Dataset("shop", str(folder), source, BEHAVIORS, BEHAVIORS[1:]), P3, cache)
    )


TABLE = {"user": "visitorid", "item": "itemid", "behavior": "event", "time_unit": "ms"}


def test_by_any_reader(shop, tmp_path):
    for options in ({}, {"reader": "table", "file": "events.csv", **TABLE}):
        meta = prepared(shop, tmp_path / "cache", **options)
        assert meta["simulated"] is True
        assert "SIMULATED" in "\n".join(meta["report"])


def test_by_the_setting_file_above_the_events(shop, tmp_path):
    (tmp_path / "raw" / "deep").mkdir(parents=True)
    shutil.copy(shop / SETTING_FILE, tmp_path / "raw")
    frame = pl.read_csv(shop / "events.csv").with_columns(pl.col("timestamp") // 1000)
    frame.write_csv(tmp_path / "raw" / "deep" / "events.csv")
    options = {"reader": "table", "file": "deep/events.csv", **TABLE, "time_unit": "s"}
    assert prepared(tmp_path / "raw", tmp_path / "cache", **options)["simulated"] is True


@pytest.mark.parametrize("name", ["events.csv", "mine.parquet"])
def test_by_their_times_where_the_setting_file_is_gone(shop, tmp_path, name):
    (tmp_path / "raw").mkdir()
    frame = (
        pl.read_csv(shop / "events.csv").sample(fraction=0.5, seed=1).rename({"itemid": "product"})
    )
    (frame.write_parquet if name.endswith("parquet") else frame.write_csv)(tmp_path / "raw" / name)
    options = {"reader": "table", "file": name, **TABLE, "item": "product"}
    assert prepared(tmp_path / "raw", tmp_path / "cache", **options)["simulated"] is True


def test_a_copy_that_cannot_be_recognized_has_another_fingerprint(shop, tmp_path):
    """With times in seconds and without the setting file, the origin of the events cannot be
    recognized.
    """
    frame = pl.read_csv(shop / "events.csv").with_columns(pl.col("timestamp") // 1000)
    metas = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        frame.write_csv(folder / "events.csv")
        if folder.name == "a":
            shutil.copy(shop / SETTING_FILE, folder)
        options = {"reader": "table", "file": "events.csv", **TABLE, "time_unit": "s"}
        metas.append(prepared(folder, tmp_path / "cache", **options))
    assert [m["simulated"] for m in metas] == [True, False]
    assert metas[0]["fingerprint"] != metas[1]["fingerprint"]


def test_real_times_are_not_taken_for_simulated_ones(tmp_path):
    assert (
        read_meta(
            prepare(dataset(write(tmp_path / "raw", random_events(0))), P3, tmp_path / "cache")
        )["simulated"]
        is False
    )
    day, start = 86_400_000, 1_500_000_000_001
    for unit in (1, 1000, 60_000, 3_600_000, day, 7 * day):
        for offset in range(101):
            time = start + offset + unit * np.arange(100)
            assert not is_simulated([], tmp_path, time)
    assert not is_simulated([], tmp_path, np.full(1000, 37))  # all alike
    assert is_simulated([], tmp_path, 37 + 101 * np.arange(30))
