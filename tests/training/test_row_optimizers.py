"""Row-wise optimizers: against torch's on dense gradients, and in runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recexp.training.row_optimizers import RowAdagrad, RowAdam, RowSGD
from tests.support.running import run_here
from tests.training.test_optimizers import SHAPES, check, gradients, start, trained

MADE = {
    "sgd": (lambda p: RowSGD(p, lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1)),
    "adagrad": (lambda p: RowAdagrad(p, lr=0.1), lambda p: torch.optim.Adagrad(p, lr=0.1)),
}


@pytest.mark.parametrize("as_sparse", [False, True])
@pytest.mark.parametrize("name", list(MADE))
def test_steps_are_those_of_torch(name, as_sparse):
    make, torch_make = MADE[name]
    found, _ = trained(make, as_sparse=as_sparse)
    expected, _ = trained(torch_make)
    check(found, expected)


def lazy_adam(lr, b1, b2, eps):
    """Adam whose moments move only where their row has a gradient."""
    out = [p.detach().numpy().copy() for p in start()]
    m, v = [np.zeros(s) for s in SHAPES], [np.zeros(s) for s in SHAPES]
    for step, grads in enumerate(gradients(), start=1):
        for i, g in enumerate(grads):
            for row in range(len(g)):
                if not np.any(g[row]):
                    continue
                m[i][row] = b1 * m[i][row] + (1 - b1) * g[row]
                v[i][row] = b2 * v[i][row] + (1 - b2) * g[row] ** 2
                root = np.sqrt(v[i][row] / (1 - b2**step)) + eps
                out[i][row] -= lr * m[i][row] / (1 - b1**step) / root
    return out


@pytest.mark.parametrize("as_sparse", [False, True])
def test_adam_keeps_the_moments_of_rows_without_a_gradient(as_sparse):
    found, _ = trained(lambda p: RowAdam(p, lr=0.1), as_sparse=as_sparse)
    check(found, lazy_adam(0.1, 0.9, 0.999, 1e-8))
    dense, _ = trained(lambda p: torch.optim.Adam(p, lr=0.1))
    assert np.abs(dense[0] - found[0]).max() > 1e-3


def test_adam_equals_torchs_sparse_adam():
    params = start()[:1]
    expected = [p.detach().clone() for p in params]
    # The two add epsilon before and after the bias correction.
    reference = torch.optim.SparseAdam(expected, lr=0.1, eps=1e-30)
    optimizer = RowAdam(params, lr=0.1, eps=1e-30)
    for table, _, _ in gradients():
        gradient = torch.from_numpy(table)
        params[0].grad = gradient
        expected[0].grad = gradient.to_sparse(1)
        optimizer.step()
        reference.step()
    torch.testing.assert_close(params[0].detach(), expected[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("sgd", "bpr_mf"),
        ("adagrad", "neumf"),
        pytest.param("sgd", "neumf", marks=pytest.mark.slow),
        pytest.param("adagrad", "fpmc", marks=pytest.mark.slow),
        # Adam makes whole steps of gradients that are 0 but for rounding, as NeuMF's tower has.
        pytest.param("adam", "fpmc", marks=pytest.mark.slow),
        pytest.param("adam", "bpr_mf", marks=pytest.mark.slow),
    ],
)
def test_runs_train_alike_with_sparse_and_dense_gradients(tmp_path, name, model):
    """A clipping value makes gradients dense; this one is never reached."""
    words = [
        f"model={model}",
        f"optimizer=row_{name}",
        "optimizer.lr=0.005",
        "model.n_factors=8",
        "trainer.max_epochs=2",
        "protocol=full_unseen",
    ]
    sparse = run_here(tmp_path / "sparse", *words)
    dense = run_here(tmp_path / "dense", *words, "trainer.gradient_clip_val=1e6")
    for key, value in sparse["metrics"].items():
        assert value == pytest.approx(dense["metrics"][key], abs=1e-3), key
    assert sparse["metrics"] != {}


def test_a_step_does_not_touch_rows_outside_the_batch():
    table = torch.nn.Parameter(torch.ones(1000, 4))
    optimizer = RowAdam([table], lr=0.1)
    rows = torch.tensor([[3, 500]])
    table.grad = torch.sparse_coo_tensor(rows, torch.ones(2, 4), (1000, 4), check_invariants=True)
    optimizer.step()
    changed = (table != 1).any(1).nonzero().flatten().tolist()
    assert changed == [3, 500]
