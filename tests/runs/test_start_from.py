"""Runs that start from the weights of a finished one (``init_from``)."""

from __future__ import annotations

import json
import shutil

import polars as pl
import pytest
import torch

import recexp
from recexp.errors import RecexpError
from recexp.runs.finished import open_run
from recexp.training.checkpoints import read_checkpoint
from tests.support.running import run_here

COMMON = ["trainer.max_epochs=1", "protocol=full_unseen", "batch_size=64", "threads=1"]
SMALL = ["model.n_factors=8"]


def events(n_users=43, n_items=33, *, first_user=0, first_item=0, seed=0):
    """Ten events of each user over the items, a frame with an item feature's two files."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for user in range(first_user, first_user + n_users):
        items = torch.randperm(n_items, generator=generator)[:10] + first_item
        rows += [(f"u{user}", f"i{int(item)}", 100 * at) for at, item in enumerate(items)]
    return pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two versions of a data set: the second lacks some users and items and has new ones."""
    folder = tmp_path_factory.mktemp("data")
    for name, frame in {
        "old": events(),
        "new": events(43, 33, first_user=10, first_item=5, seed=1),
    }.items():
        (folder / name).mkdir()
        frame.write_csv(folder / name / "events.csv")
    return folder


def trained_in(run_dir, *words):
    return run_here(run_dir, *words, small=("logger=none",))


def words(folder, name, model):
    return [
        "dataset=table",
        f"dataset.raw_dir={folder / name}",
        f"cache_dir={folder / 'cache'}",
        f"model={model}",
        *(SMALL if model != "item_knn" else []),
        *COMMON,
    ]


def weights(run_dir):
    run = open_run(run_dir)
    state = read_checkpoint(run.checkpoint)["state_dict"]
    return {name.removeprefix("model."): x for name, x in state.items()}


def started(tmp_path, folder, model, *more):
    """A run on the old data, and one on the new data from it that trains in steps of size 0."""
    trained_in(tmp_path / "old", *words(folder, "old", model))
    result = trained_in(
        tmp_path / "new",
        *words(folder, "new", model),
        f"init_from={tmp_path / 'old'}",
        "optimizer.lr=0",
        *more,
    )
    return result


def rows(run_dir, folder, name):
    """Raw ids of a run's data by kind, in the order of their rows."""
    result = json.loads((run_dir / "result.json").read_text())
    cache = next((folder / "cache").glob(f"*-{result['data']['fingerprint']}"))
    return pl.read_parquet(cache / f"{name}s.parquet")[name].to_list()


def test_known_users_and_items_keep_their_rows_and_new_ones_are_fresh(tmp_path, folder):
    result = started(tmp_path, folder, "bpr_mf")
    old, new = weights(tmp_path / "old"), weights(tmp_path / "new")
    for kind, table, padding in (("user", "user.weight", 0), ("item", "item.weight", 1)):
        before = rows(tmp_path / "old", folder, kind)
        now = rows(tmp_path / "new", folder, kind)
        known = [name for name in now if name in before]
        assert 0 < len(known) < len(now)
        for at, name in enumerate(now):
            row = new[table][at + padding]
            if name in before:
                assert torch.equal(row, old[table][before.index(name) + padding])
            else:
                assert not (old[table] == row).all(1).any()
                assert 0 < row.abs().max() < 0.1  # N(0, 0.01^2), as the model initializes it
        counts = result["init_from"]["ids"][f"{kind}s"]
        assert counts == {
            "known": len(known),
            "new": len(now) - len(known),
            "lost": len(before) - len(known),
        }


@pytest.mark.parametrize(
    "model",
    [
        "sasrec",
        "neumf",
        *(pytest.param(m, marks=pytest.mark.slow) for m in ("bert4rec", "gru4rec", "caser")),
    ],
)
def test_other_weights_are_copied_whole(tmp_path, folder, model):
    more = ["model.n_heads=1"] if model in ("sasrec", "bert4rec") else []
    trained_in(tmp_path / "old", *words(folder, "old", model), *more)
    trained_in(
        tmp_path / "new",
        *words(folder, "new", model),
        f"init_from={tmp_path / 'old'}",
        "optimizer.lr=0",
        *more,
    )
    old, new = weights(tmp_path / "old"), weights(tmp_path / "new")
    before, now = (rows(tmp_path / name, folder, "item") for name in ("old", "new"))
    pairs = [(now.index(name) + 1, before.index(name) + 1) for name in now if name in before]
    n_whole = 0
    for name, value in new.items():
        if not value.is_floating_point() or 43 in value.shape:  # users
            continue
        if value.shape[0] not in (34, 35):  # items, padding and mask
            assert torch.equal(value, old[name]), name
            n_whole += 1
            continue
        for at, earlier in pairs:
            assert torch.equal(value[at], old[name][earlier]), name
        if len(value) == 35:
            assert torch.equal(value[34], old[name][34]), name
    assert n_whole > 0


def test_training_goes_on_better_than_from_scratch(tmp_path, folder):
    started_words = [*words(folder, "old", "bpr_mf"), "trainer.max_epochs=20", "optimizer.lr=0.05"]
    trained_in(tmp_path / "old", *started_words)
    loss = {}
    for name, more in {"scratch": [], "started": [f"init_from={tmp_path / 'old'}"]}.items():
        trained_in(tmp_path / name, *words(folder, "old", "bpr_mf"), *more)
        loss[name] = pl.read_csv(tmp_path / name / "metrics.csv")["train/loss"][0]
    assert loss["started"] < 0.95 * loss["scratch"]


def test_values_of_item_features_keep_their_rows(tmp_path):
    """The new shop has other categories, two of which the old one lacks."""
    side = ["model=nova_bert", "model.n_factors=8", "model.n_heads=1"]
    line = [*side, "model.n_layers=1", "protocol=full_unseen", "trainer.max_epochs=1"]
    run_here(tmp_path / "old", *line, "dataset.source.categories=8")
    start = f"init_from={tmp_path / 'old'}"
    result = run_here(
        tmp_path / "new", *line, "dataset.source.categories=10", start, "optimizer.lr=0"
    )
    names = {}
    for name in ("old", "new"):
        fingerprint = json.loads((tmp_path / name / "result.json").read_text())["data"][
            "fingerprint"
        ]
        cache = next((tmp_path / "cache").glob(f"*-{fingerprint}"))
        names[name] = pl.read_parquet(cache / "feature_category.parquet")["value"].to_list()
    known = [value for value in names["new"] if value in names["old"]]
    assert 0 < len(known) < len(names["new"])
    count = result["init_from"]["ids"]["values of category"]
    assert (count["known"], count["new"]) == (len(known), len(names["new"]) - len(known))
    old, new = (
        read_checkpoint(tmp_path / name / "checkpoints" / "best.ckpt")["state_dict"]
        for name in ("old", "new")
    )
    n_rows = {name: len(values) + 1 for name, values in names.items()}
    # Two rows more than values and padding: unknown and [MASK].
    sizes = (n_rows["old"] + 2, n_rows["new"] + 2)
    tables = [
        key
        for key, value in new.items()
        if value.dim() == 2 and (len(old[key]), len(value)) == sizes
    ]
    assert tables
    for key in tables:
        for value in known:
            at, before = names["new"].index(value) + 1, names["old"].index(value) + 1
            assert torch.equal(new[key][at], old[key][before]), (key, value)
        assert torch.equal(new[key][-2:], old[key][-2:]), key


def test_targets_that_the_earlier_run_was_trained_on_are_counted(tmp_path, folder, caplog):
    """A refit trains on the validation targets."""
    old = words(folder, "old", "bpr_mf")
    trained_in(tmp_path / "old", *old, "selection=refit")
    result = trained_in(tmp_path / "new", *old, f"init_from={tmp_path / 'old'}")
    assert result["init_from"]["trained_targets"] == {"val": 43, "test": 0}
    assert "43 of 43 val targets were training events" in caplog.text
    trained_in(tmp_path / "honest", *old)
    result = trained_in(tmp_path / "newer", *old, f"init_from={tmp_path / 'honest'}")
    assert result["init_from"]["trained_targets"] == {"val": 0, "test": 0}


def test_a_refit_starts_from_the_same_weights(tmp_path, folder):
    started(tmp_path, folder, "bpr_mf", "selection=refit")
    old, new = weights(tmp_path / "old"), weights(tmp_path / "new")
    before, now = (rows(tmp_path / name, folder, "item") for name in ("old", "new"))
    item = next(name for name in now if name in before)
    assert torch.equal(
        new["item.weight"][now.index(item) + 1], old["item.weight"][before.index(item) + 1]
    )


def test_a_run_that_started_from_another_can_be_loaded_without_it(tmp_path, folder):
    started(tmp_path, folder, "bpr_mf")
    shutil.rmtree(tmp_path / "old")
    trained = recexp.load(tmp_path / "new", cache_dir=str(folder / "cache"))
    assert len(trained.recommend(k=3)) > 0


@pytest.mark.parametrize(
    ("model", "more", "message"),
    [
        ("bpr_mf", ["model.n_factors=16"], "user.weight.*model settings"),
        ("fpmc", [], "trained recexp.models.mf.MF"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, folder, model, more, message):
    trained_in(tmp_path / "old", *words(folder, "old", "bpr_mf"))
    with pytest.raises(RecexpError, match=message):
        trained_in(
            tmp_path / "new",
            *words(folder, "new", model),
            *more,
            f"init_from={tmp_path / 'old'}",
        )
    assert not (tmp_path / "new" / "result.json").exists()


def test_models_of_one_pass_a_missing_run_and_the_own_directory_are_refused(tmp_path, folder):
    trained_in(tmp_path / "old", *words(folder, "old", "item_knn"))
    line = words(folder, "new", "item_knn")
    with pytest.raises(RecexpError, match="nothing to start from"):
        trained_in(tmp_path / "new", *line, f"init_from={tmp_path / 'old'}")
    with pytest.raises(RecexpError, match="init_from: "):
        trained_in(tmp_path / "new", *line, f"init_from={tmp_path / 'nowhere'}")
    with pytest.raises(RecexpError, match="own directory"):
        trained_in(tmp_path / "old", *line, f"init_from={tmp_path / 'old'}")
    assert (tmp_path / "old" / "result.json").exists()
