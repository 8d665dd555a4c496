"""Steps without Lightning's hooks train what Lightning's steps train."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch

from recexp.training import module as module_file
from tests.perf.test_work import module_of

WORDS = (
    "model=bpr_mf",
    "model.n_factors=8",
    "batch_size=512",
    "scheduler=linear_warmup",
    "scheduler.warmup=2",
)


class Watcher(pl.Callback):
    def __init__(self) -> None:
        self.seen = 0

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.seen += 1


def trained(folder, *callbacks, **options):
    module, data = module_of(folder, *WORDS, "protocol=full_unseen")
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        limit_train_batches=6,
        limit_val_batches=0,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
        **options,
    )
    trainer.fit(module, data)
    rate = trainer.optimizers[0].param_groups[0]["lr"]
    steps = type(trainer.fit_loop.epoch_loop.automatic_optimization).__name__
    return steps, trainer.global_step, rate, module.train_means(), module.model.state_dict()


def test_plain_steps_train_what_lightning_trains(tmp_path, monkeypatch):
    steps, *found = trained(tmp_path / "run")
    assert steps == "_PlainSteps"
    monkeypatch.setattr(module_file, "step_plainly", lambda trainer: None)
    steps, *expected = trained(tmp_path / "run")
    assert steps == "_AutomaticOptimization"
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_clip_val": 1.0},
        pytest.param({"precision": "bf16-mixed"}, marks=pytest.mark.slow),
        pytest.param({"profiler": "simple"}, marks=pytest.mark.slow),
    ],
)
def test_lightning_takes_the_steps_that_need_it(tmp_path, options):
    steps, *_ = trained(tmp_path / "run", **options)
    assert steps == "_AutomaticOptimization"


def test_callbacks_see_the_parts_of_a_step(tmp_path):
    watcher = Watcher()
    trained(tmp_path / "run", watcher)
    assert watcher.seen == 12


@pytest.mark.slow
def test_gradients_accumulate_as_by_lightning(tmp_path, monkeypatch):
    _, *found = trained(tmp_path / "run", accumulate_grad_batches=3)
    assert found[0] == 4
    monkeypatch.setattr(module_file, "step_plainly", lambda trainer: None)
    _, *expected = trained(tmp_path / "run", accumulate_grad_batches=3)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
