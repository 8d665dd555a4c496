"""Sparse gradients of embedding tables: where runs take them, and that they change no result."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch

from recexp.nn.lookup import Embedding
from recexp.training import module as module_file
from tests.perf.test_work import module_of
from tests.support.fitting import fit

PLUS = ("model=gru4rec_plus", "model.n_factors=8", "objective.n_negatives=16", "batch_size=16")
ONE_HOT = ("model=gru4rec", "model.n_factors=8", "batch_size=16")


class Kinds(pl.Callback):
    """For every table, whether each step's gradient was sparse."""

    def __init__(self) -> None:
        self.sparse: set[bool] = set()

    def on_before_optimizer_step(self, trainer, module, optimizer):
        tables = [m for m in module.model.modules() if isinstance(m, Embedding)]
        self.sparse |= {table.weight.grad.is_sparse for table in tables}


def trained(folder, *words: str, **options):
    """The parameters after 12 steps, and whether gradients were sparse in them."""
    module, data = module_of(folder, "protocol=full_unseen", *words)
    kinds = Kinds()
    options = {"max_epochs": 1, "limit_train_batches": 12, "callbacks": [kinds], **options}
    fit(module, data, folder, **options)
    return dict(module.model.named_parameters()), kinds.sparse


class Nothing:
    """What no optimizer is."""


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("momentum", [0.0, 0.3])
@pytest.mark.parametrize("model", [PLUS, ONE_HOT], ids=["constrained", "one_hot"])
def test_sparse_gradients_train_the_same_parameters(
    tmp_path, monkeypatch, model, momentum, accumulate
):
    words = (*model, f"optimizer.momentum={momentum}")
    options = {"accumulate_grad_batches": accumulate}
    found, sparse = trained(tmp_path / "run", *words, **options)
    assert sparse == {True}
    monkeypatch.setattr(module_file, "TakesSparseGradients", Nothing)
    expected, sparse = trained(tmp_path / "run", *words, **options)
    assert sparse == {False}
    for name, parameter in expected.items():
        torch.testing.assert_close(found[name], parameter, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "words",
    [
        ("optimizer=adam",),
        ("optimizer=adagrad",),
        ("optimizer=sgd",),
    ],
)
def test_other_optimizers_get_dense_gradients(tmp_path, words):
    _, sparse = trained(tmp_path / "run", *PLUS, *words)
    assert sparse == {False}


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clipping_gets_dense_gradients(tmp_path, algorithm):
    options = {"gradient_clip_val": 0.1, "gradient_clip_algorithm": algorithm}
    _, sparse = trained(tmp_path / "run", *PLUS, **options)
    assert sparse == {False}


def test_processes_exchange_dense_gradients(tmp_path, monkeypatch):
    monkeypatch.setattr(pl.Trainer, "world_size", property(lambda self: 2))
    _, sparse = trained(tmp_path / "run", *PLUS)
    assert sparse == {False}


def test_under_autocast_gradients_are_sparse_and_training_goes_on(tmp_path):
    found, sparse = trained(tmp_path / "run", *PLUS, precision="bf16-mixed")
    assert sparse == {True}
    assert all(parameter.isfinite().all() for parameter in found.values())
