"""Exported splits hold what a run trains on and is evaluated against."""

from __future__ import annotations

import json

import polars as pl
import pytest
import torch

from recexp.errors import RecexpError
from recexp.evaluation.candidate_store import stored_candidates
from recexp.runs import split_files
from recexp.runs.composed import composed_data
from recexp.runs.predictions import evaluate_predictions
from recexp.runs.split_files import export_split, main
from tests.runs.test_predictions import of_test, trained, words

PROTOCOLS = ("full_unseen", "p1_uniform999", "p2_uniform99_later", "p3_popular100", "global_time")


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return tmp_path_factory.mktemp("shop")


@pytest.fixture(params=PROTOCOLS)
def data(request, shop):
    return composed_data(words(shop, request.param))


def read(folder, name):
    return pl.read_parquet(folder / f"{name}.parquet")


def numbers(frame, users, items):
    """Users and items of a frame as numbers in the prepared data."""
    user = {raw: n for n, raw in enumerate(users["user"])}
    item = {raw: n for n, raw in enumerate(items["item"], start=1)}
    return [user[raw] for raw in frame["user"]], [item[raw] for raw in frame["item"]]


def test_the_files_hold_the_split(data, tmp_path, monkeypatch):
    monkeypatch.setattr(split_files, "ROWS_AT_ONCE", 64)  # so that tables have several pieces
    out = tmp_path / "out"
    manifest = export_split(data, out)
    store = data.store
    users, items = read(out, "users"), read(out, "items")

    train = read(out, "train")
    user, item = numbers(train, users, items)
    assert user == store.train.user.tolist()
    assert item == store.train.item.tolist()
    assert train["timestamp"].to_list() == store.train.time.tolist()
    names = [store.schema.behaviors[code - 1] for code in store.train.behavior.tolist()]
    assert train["behavior"].to_list() == names

    for split, word in (("val", "validation"), ("test", "test")):
        targets = store.targets(split)
        frame = read(out, word)
        user, item = numbers(frame, users, items)
        assert user == targets.user.tolist()
        assert item == targets.item.tolist()
        assert frame["timestamp"].to_list() == targets.time.tolist()
        assert frame["cold"].to_list() == targets.cold.tolist()
        behaviors = [store.schema.behaviors[code - 1] for code in targets.behavior.tolist()]
        assert frame["behavior"].to_list() == behaviors
        row, item_M = store.items_between(store.past, targets.start, targets.end)
        user, item = numbers(read(out, f"history_{word}"), users, items)
        assert user == targets.user[row].tolist()
        assert item == item_M.tolist()

        drawn = stored_candidates(store, data.protocol, split)
        if drawn is None:
            assert not (out / f"candidates_{word}.parquet").exists()
            continue
        frame = read(out, f"candidates_{word}")
        user, item = numbers(frame, users, items)
        ranked = torch.cat([targets.item[:, None], drawn.long()], 1)
        assert item == ranked.flatten().tolist()
        assert user == targets.user.repeat_interleave(ranked.shape[1]).tolist()
        first = torch.arange(ranked.shape[1]) == 0
        assert frame["is_target"].to_list() == first.repeat(len(targets)).tolist()

    assert manifest == json.loads((out / "manifest.json").read_text())
    assert manifest["protocol_id"] == data.protocol.id(store.meta)
    assert manifest["fingerprint"] == store.meta["fingerprint"]
    assert set(manifest["files"]) == {path.name for path in out.glob("*.parquet")}
    for name, about in manifest["files"].items():
        assert about["rows"] == len(pl.read_parquet(out / name))
        assert about["meaning"]


def test_item_features_have_their_labels(shop, tmp_path):
    data = composed_data(words(shop))
    export_split(data, tmp_path / "out")
    assert data.store.schema.item_features
    for name, feature in data.store.schema.item_features.items():
        frame = read(tmp_path / "out", f"item_feature_{name}")
        assert len(frame) == int((feature.id_VM > 0).sum())
        if feature.kind != "numeric":
            assert frame["value"].n_unique() == feature.cardinality - 1


def test_values_are_the_raw_ones(tmp_path):
    rows = [f"{u},{i},{1 + (u * i) % 5},{100 * u + i}" for u in range(30) for i in range(12)]
    (tmp_path / "events.csv").write_text("\n".join(["user,item,rating,timestamp", *rows]))
    data = composed_data(
        [
            "dataset=table",
            "dataset.name=own",
            f"dataset.raw_dir={tmp_path}",
            "dataset.source.file=events.csv",
            "+dataset.source.value=rating",
            f"cache_dir={tmp_path}/cache",
            "protocol=full",
        ]
    )
    export_split(data, tmp_path / "out")
    frames = [read(tmp_path / "out", name) for name in ("train", "validation", "test")]
    found = pl.concat([frame.select("user", "item", "value") for frame in frames])
    assert len(found) == len(rows)
    user, item = found["user"].cast(pl.Int64), found["item"].cast(pl.Int64)  # texts in a table
    assert (found["value"] == 1 + (user * item) % 5).all()


def test_predictions_made_from_the_files_alone_rank_as_our_model(shop, tmp_path):
    """Popularity, counted by another program in the exported files."""
    main([*words(shop, "p3_popular100"), "--out", str(tmp_path / "out"), "--format", "csv"])
    train = pl.read_csv(tmp_path / "out" / "train.csv")
    candidates = pl.read_csv(tmp_path / "out" / "candidates_test.csv")
    count = train.group_by("item").agg(score=pl.len())
    scores = candidates.join(count, on="item", how="left").with_columns(
        pl.col("score").fill_null(0)
    )
    scores.select("user", "item", "score").write_csv(tmp_path / "scores.csv")
    result = evaluate_predictions(tmp_path / "scores.csv", words(shop, "p3_popular100"))
    assert result["metrics"] == of_test(trained(shop, "pop", "p3_popular100").result.metrics)


def test_a_folder_that_is_taken_is_refused(shop, tmp_path):
    data = composed_data(words(shop))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("")
    with pytest.raises(RecexpError, match="exists already"):
        export_split(data, tmp_path / "taken")
    with pytest.raises(SystemExit, match="exists already"):
        main([*words(shop), "--out", str(tmp_path / "taken")])
    (tmp_path / "empty").mkdir()
    export_split(data, tmp_path / "empty")
    assert (tmp_path / "empty" / "manifest.json").is_file()


def test_a_failure_leaves_nothing_behind(shop, tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(split_files, "write_json", fail)
    with pytest.raises(RecexpError, match="No space left"):
        export_split(composed_data(words(shop)), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
