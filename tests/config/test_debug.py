"""The debug choices: each does what its header says."""

from __future__ import annotations

import csv

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from recexp.config.presets import compose_config
from recexp.config.summary import summary
from recexp.runs.run import run
from tests.support.running import run_here

SASREC = ("model=sasrec_softmax", "dataset=simulated_shop")


def started(*words):
    """The config as Hydra passes it to a run."""
    cfg = compose_config(words)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def test_fast_takes_one_batch_of_each_loop(tmp_path):
    words = [*SASREC, "debug=fast", "batch_size=16", "eval_batch_size=16"]
    result = run_here(tmp_path, *words, "trainer.max_epochs=1")
    assert (result["epochs"], result["updates"]) == (1, 1)


def test_fast_wins_over_the_epochs_of_a_preset():
    cfg = compose_config(["model=ite", "dataset=simulated_shop", "preset=tuned", "debug=fast"])
    assert (cfg.trainer.max_epochs, cfg.trainer.limit_train_batches) == (1, 1)


@pytest.mark.slow  # hundreds of epochs
def test_overfit_brings_the_training_loss_near_zero(tmp_path):
    words = ["model=sasrec_softmax", "dataset=ml_1m", "protocol=full", "debug=overfit"]
    words += ["model.dropout=0", "model.max_len=20", "optimizer.lr=0.01", "batch_size=64"]
    words += [f"dataset.raw_dir={tmp_path}/raw", f"cache_dir={tmp_path}/cache"]
    result = run(started(*words, f"run_dir={tmp_path}"))
    assert result["data"]["simulated"] and result["data"]["users"] <= 50
    with (tmp_path / "metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file)]
    assert len(losses) == 200 and losses[-1] < 0.1 * losses[0]


def test_profile_writes_where_the_time_goes(tmp_path):
    run_here(tmp_path, *SASREC, "debug=profile", "trainer.max_epochs=1")
    text = "".join(path.read_text() for path in tmp_path.glob("*profile*.txt"))
    assert "run_training_epoch" in text


@pytest.mark.parametrize("debug", ["fast", "overfit", "profile"])
def test_a_summary_names_what_will_run(debug):
    cfg = started("model=sasrec", "dataset=ml_1m", f"debug={debug}", "run_dir=here")
    lines = "\n".join(summary(cfg))
    for text in ("model:     sasrec (SASRec)", "preset:    none", "bce", "uniform", "here"):
        assert text in lines


def test_the_quickstart_says_first_how_it_differs_from_the_paper():
    cfg = started("experiment=quickstart", "run_dir=here")
    assert summary(cfg)[0].startswith("quickstart: BERT-ITE-Si on SIMULATED data. Unlike the ITE")


def test_a_summary_says_what_limits_the_training():
    cfg = started("model=sasrec", "dataset=ml_1m", "trainer.max_steps=40000", "run_dir=here")
    assert "at most 40,000 steps or 30 epochs" in "\n".join(summary(cfg))
    cfg.trainer.max_steps, cfg.trainer.max_epochs = -1, -1
    assert "no limit" in "\n".join(summary(cfg))
