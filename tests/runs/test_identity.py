"""Which settings decide whether two runs are the same run."""

from __future__ import annotations

import pytest

from recexp.runs.identity import (
    differences,
    is_material,
    key_of,
    material,
    material_overrides,
    same_run,
)

CONFIG = {
    "seed": 0,
    "store_on": "auto",
    "eval_batch_size": 256,
    "threads": None,
    "ckpt_path": None,
    "dataset": {"name": "shop", "raw_dir": "here"},
    "callbacks": {"checkpoint": {"dirpath": "runs/1", "monitor": "val/ndcg@10"}},
    "logger": {"wandb": {"mode": "offline"}},
}


@pytest.mark.parametrize(
    "change",
    [
        {"eval_batch_size": 7},
        {"threads": 2},
        {"ckpt_path": "last.ckpt"},
        {"logger": {}},
        {"dataset": {"name": "shop", "raw_dir": "here", "download": {"name": "shop"}}},
        {"callbacks": {"checkpoint": {"dirpath": "runs/2", "monitor": "val/ndcg@10"}}},
    ],
    ids=str,
)
def test_what_changes_no_number_is_the_same_run(change):
    assert same_run(CONFIG, CONFIG | change)
    assert differences(CONFIG, CONFIG | change) == []


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"seed": 1}, "seed"),
        ({"store_on": "host"}, "store_on"),  # other random streams on a GPU
        ({"dataset": {"name": "shop", "raw_dir": "there"}}, "dataset.raw_dir"),
        (
            {"callbacks": {"checkpoint": {"dirpath": "runs/1", "monitor": "val/mrr"}}},
            "callbacks.checkpoint.monitor",
        ),
    ],
    ids=str,
)
def test_what_may_change_a_number_is_another_run(change, key):
    assert not same_run(CONFIG, CONFIG | change)
    assert differences(CONFIG, CONFIG | change) == [key]


def test_known_data_may_lie_anywhere():
    moved = CONFIG | {"dataset": {"name": "shop", "raw_dir": "there"}}
    assert same_run(CONFIG, moved, data_known=True)


def test_an_experiment_is_a_choice_of_values_and_not_a_setting():
    """The composed config has no such key; the words of a command line keep it."""
    assert "experiment" not in material(CONFIG)
    words = ["experiment=real/shop", "threads=2", "+logger.wandb.mode=online", "hydra/launcher=x"]
    assert material_overrides(words) == ("experiment=real/shop",)


def test_an_override_is_known_by_its_key():
    assert key_of("+trainer.limit_train_batches=1") == "trainer.limit_train_batches"
    assert key_of("~scheduler") == "scheduler"
    assert key_of("experiment=real/shop") == "experiment"
    assert key_of("dataset@other=shop") == "dataset"
    assert not is_material("hydra.run.dir") and is_material("model.group")
