"""Steps without Lightning's hooks train what Lightning's steps train."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch

from recexp.training import module as module_file
from tests.perf.test_work import module_of
from tests.support.fitting import fit

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


# Tables that one step looks up several times, by fewer ids than they have rows; that of sasrec is
# also multiplied as a whole.
FEW_IDS = ("model.n_factors=8", "batch_size=40", "optimizer=sgd", "optimizer.lr=0.5")
SEVERAL_LOOKUPS = {
    "ite": ("model=ite", *FEW_IDS),
    "mtmf": ("model=mtmf", *FEW_IDS),
    "mfpr": ("model=mfpr", *FEW_IDS, "batch_size=3"),
    "sasrec": (
        "model=sasrec_softmax",
        "model.max_len=5",
        "model.dropout=0",
        "~optimizer.betas",
        *FEW_IDS,
        "batch_size=4",
    ),
}


def trained(folder, *callbacks, words=WORDS, **options):
    module, data = module_of(folder, *words, "protocol=full_unseen")
    options = {"max_epochs": 2, "limit_train_batches": 6, "callbacks": list(callbacks), **options}
    trainer = fit(module, data, folder, **options)
    rate = trainer.optimizers[0].param_groups[0]["lr"]
    steps = type(trainer.fit_loop.epoch_loop.automatic_optimization).__name__
    return steps, trainer.global_step, rate, module.train_means(), module.model.state_dict()


def test_plain_steps_train_what_lightning_trains(tmp_path, monkeypatch):
    steps, *found = trained(tmp_path / "run")
    assert steps == "_PlainSteps"
    monkeypatch.setattr(module_file, "step_plainly", lambda trainer: False)
    steps, *expected = trained(tmp_path / "run")
    assert steps == "_AutomaticOptimization"
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("model", SEVERAL_LOOKUPS)
def test_gradients_of_looked_up_rows_add_up_to_those_of_whole_tables(tmp_path, monkeypatch, model):
    words = SEVERAL_LOOKUPS[model]
    found_steps, *found = trained(tmp_path / "run", words=words)
    monkeypatch.setattr(module_file, "step_plainly", lambda trainer: False)
    expected_steps, *expected = trained(tmp_path / "run", words=words)
    assert (found_steps, expected_steps) == ("_PlainSteps", "_AutomaticOptimization")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_clip_val": 1.0},
        {"accumulate_grad_batches": 3},
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
