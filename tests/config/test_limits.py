"""Limits with which a result could not be true are refused by name; the others end with the
truth.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from recexp.config.check import check_config
from recexp.errors import RecexpError
from recexp.runs.run import run
from recexp.training.callbacks import EpochTable
from tests.runs.test_resume import TINY, only_training  # noqa: F401, a fixture
from tests.support.running import composed

MODEL = ("model=bpr_mf", "model.n_factors=4", "batch_size=400")  # three steps an epoch


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("limits")


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("trainer.max_steps=0", "trainer.max_steps=0"),
        ("trainer.max_steps=-2", "trainer.max_steps=-2"),
        ("trainer.max_epochs=-1", "trainer.max_epochs=-1"),
        ("trainer.max_epochs=0", "trainer.max_epochs=0"),
        ("+trainer.max_time={seconds:0}", "trainer.max_time"),
        ("+trainer.max_time='00:00:00:00'", "trainer.max_time"),
        ("+trainer.fast_dev_run=true", "trainer.fast_dev_run"),
        ("+trainer.overfit_batches=1", "trainer.overfit_batches=1"),
        ("+trainer.overfit_batches=0.5", "trainer.overfit_batches=0.5"),
        ("+trainer.enable_checkpointing=false", "trainer.enable_checkpointing"),
        ("+trainer.limit_train_batches=0", "trainer.limit_train_batches=0"),
        ("trainer.limit_val_batches=0", "trainer.limit_val_batches=0"),
        ("+trainer.limit_test_batches=0", "trainer.limit_test_batches=0"),
        ("callbacks.checkpoint.mode=min", "callbacks.checkpoint.mode=min"),
        ("callbacks.early_stopping.mode=min", "callbacks.early_stopping.mode=min"),
        ("callbacks.checkpoint=null", "callbacks.checkpoint is missing"),
        ("callbacks.checkpoint.filename=other", "callbacks.checkpoint.filename=other"),
        ("callbacks.checkpoint.dirpath=elsewhere", "callbacks.checkpoint.dirpath=elsewhere"),
        ("+callbacks.checkpoint.save_top_k=0", "callbacks.checkpoint.save_top_k=0"),
        ("+callbacks.checkpoint.save_top_k=2", "callbacks.checkpoint.save_top_k=2"),
        ("+callbacks.checkpoint.every_n_epochs=2", "callbacks.checkpoint.every_n_epochs=2"),
        ("+callbacks.last.save_weights_only=true", "callbacks.last.save_weights_only=True"),
        ("callbacks.last.dirpath=elsewhere", "callbacks.last.dirpath=elsewhere"),
    ],
)
def test_what_leaves_no_true_result_is_refused_by_name_before_any_work(shop, word, key):
    with pytest.raises(RecexpError) as refused:
        check_config(composed(shop / "x", *MODEL, word, small=TINY))
    assert key in str(refused.value)


@pytest.mark.parametrize(
    "words",
    [
        ("trainer.max_steps=-1",),
        ("callbacks.last=null",),
        ("callbacks.early_stopping=null",),
        ("selection=refit", "callbacks.checkpoint=null"),
        ("+trainer.max_time={minutes:5}",),
        ("+trainer.overfit_batches=0",),
    ],
)
def test_what_harms_no_result_passes(shop, words):
    check_config(composed(shop / "x", *MODEL, *words, small=TINY))


@pytest.mark.parametrize(
    ("words", "reason", "epochs", "updates"),
    [
        (("trainer.max_steps=-1",), "max_epochs reached", 2, 6),
        (("trainer.max_steps=4",), "max_steps reached", 2, 4),
        (("+trainer.min_epochs=5",), "max_epochs reached", 2, 6),
        (("+trainer.limit_train_batches=2",), "max_epochs reached", 2, 4),
        # Patience is exhausted before the minimum is, and the minimum never.
        (
            (
                "trainer.max_epochs=6",
                "+trainer.min_steps=30",
                "callbacks.early_stopping.patience=0",
                "callbacks.early_stopping.min_steps=0",
            ),
            "max_epochs reached",
            6,
            18,
        ),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else None,
)
def test_a_limit_that_is_let_through_ends_with_the_truth(
    shop, tmp_path, words, reason, epochs, updates
):
    cfg = composed(shop / "x", *MODEL, *words, small=TINY)
    cfg.run_dir = str(tmp_path)
    result = run(cfg)
    said = result["stop_reason"], result["epochs"], result["updates"]
    assert said == (reason, epochs, updates)


def test_a_second_training_that_a_limit_cuts_short_says_so(shop, tmp_path):
    words = ("selection=refit", "trainer.max_steps=2")
    cfg = composed(shop / "x", *MODEL, *words, small=TINY)
    cfg.run_dir = str(tmp_path)
    refit = run(cfg)["refit"]
    said = {key: refit[key] for key in ("epochs", "updates", "stop_reason")}
    assert said == {"epochs": 1, "updates": 2, "stop_reason": "max_steps reached"}


def test_a_share_of_batches_below_one_is_one_sentence(shop, tmp_path):
    cfg = composed(shop / "x", *MODEL, "+trainer.limit_train_batches=0.01", small=TINY)
    cfg.run_dir = str(tmp_path)
    with pytest.raises(RecexpError, match=r"^trainer: .*limit_train_batches"):
        run(cfg)


def test_best_weights_of_another_epoch_are_not_tested(shop, tmp_path, monkeypatch):
    path = tmp_path / "checkpoints" / "best.ckpt"

    def other_epoch(self, trainer, module):
        content = torch.load(path, weights_only=True)
        torch.save(content | {"epoch": 7}, path)

    monkeypatch.setattr(EpochTable, "on_fit_end", other_epoch, raising=False)
    cfg = composed(shop / "x", *MODEL, small=TINY)
    cfg.run_dir = str(tmp_path)
    with pytest.raises(RecexpError, match=r"epoch 7 .*best validation was in epoch"):
        run(cfg)
    assert not (tmp_path / "result.json").exists()
