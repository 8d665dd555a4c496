"""Optimizers step by step against numpy, and how a run uses them."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from recexp.config.build import build
from recexp.errors import RecexpError
from recexp.models.bert4rec import BERT4Rec
from recexp.testing import toy
from recexp.training.module import RecModule
from recexp.training.optimizers import BertAdamW, GRU4RecAdagrad
from recexp.training.row_optimizers import RowAdagrad, RowAdam, RowSGD
from tests.config.test_check import composed
from tests.support.running import run_here

SHAPES = ((6, 3), (6,), (3, 3))  # a table, its biases, a matrix
STEPS = 7


def gradients(seed=0):
    """Gradients of ``SHAPES`` per step. Some rows are 0, as those of items not in the batch."""
    rng = np.random.default_rng(seed)
    for step in range(STEPS):
        table, bias, matrix = (
            rng.normal(size=shape) * 10.0 ** rng.integers(-4, 1) for shape in SHAPES
        )
        unused = rng.permutation(6)[: step % 5]
        table[unused] = 0
        bias[unused] = 0
        yield table, bias, matrix


def start():
    rng = np.random.default_rng(1)
    return [torch.nn.Parameter(torch.from_numpy(rng.normal(size=shape))) for shape in SHAPES]


def trained(make, *, as_sparse=False, stop=STEPS, params=None, optimizer=None):
    params = params or start()
    optimizer = optimizer or make(params)
    for grads in list(gradients())[:stop]:
        for p, g in zip(params, grads, strict=True):
            p.grad = torch.from_numpy(g)
        if as_sparse:
            rows = torch.from_numpy(grads[0]).any(1).nonzero().flatten()
            # every row twice, with half its gradient: an item that occurs twice in the batch
            half = torch.from_numpy(grads[0])[rows] / 2
            params[0].grad = torch.sparse_coo_tensor(
                rows.repeat(2)[None], torch.cat([half, half]), SHAPES[0], check_invariants=True
            )
        optimizer.step()
    return [p.detach().numpy() for p in params], optimizer


def adagrad(lr, momentum, eps):
    out = [p.detach().numpy().copy() for p in start()]
    acc, velocity = [np.zeros(s) for s in SHAPES], [np.zeros(s) for s in SHAPES]
    for grads in gradients():
        for p, a, v, g in zip(out, acc, velocity, grads, strict=True):
            for row in range(len(p)):
                if np.any(g[row]):
                    a[row] += g[row] ** 2
                    v[row] = momentum * v[row] - lr * g[row] / np.sqrt(a[row] + eps)
                    p[row] += v[row]
    return out


def bert_adam(lr, b1, b2, eps, decay):
    out = [p.detach().numpy().copy() for p in start()]
    m, v = [np.zeros(s) for s in SHAPES], [np.zeros(s) for s in SHAPES]
    for grads in gradients():
        for i, g in enumerate(grads):
            m[i] = b1 * m[i] + (1 - b1) * g
            v[i] = b2 * v[i] + (1 - b2) * g**2
            out[i] = out[i] - lr * (m[i] / (np.sqrt(v[i]) + eps) + decay * out[i])
    return out


def check(found, expected, tolerance=1e-12):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("momentum", [0.0, 0.4])
@pytest.mark.parametrize("eps", [1e-6, 0.1])
def test_adagrad_has_epsilon_inside_the_root_and_momentum(momentum, eps, fused):
    found, _ = trained(lambda p: GRU4RecAdagrad(p, lr=0.1, momentum=momentum, eps=eps, fused=fused))
    check(found, adagrad(0.1, momentum, eps))
    other, _ = trained(lambda p: torch.optim.Adagrad(p, lr=0.1, eps=eps))
    assert np.abs(other[0] - found[0]).max() > (1e-4 if momentum or eps == 0.1 else 1e-7)


@pytest.mark.parametrize("momentum", [0.0, 0.4])
def test_sparse_gradients_make_the_same_steps(momentum):
    found, _ = trained(lambda p: GRU4RecAdagrad(p, lr=0.1, momentum=momentum), as_sparse=True)
    check(found, adagrad(0.1, momentum, 1e-6))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_bert_adamw_corrects_no_bias(decay, fused):
    found, _ = trained(lambda p: BertAdamW(p, lr=0.01, weight_decay=decay, fused=fused))
    check(found, bert_adam(0.01, 0.9, 0.999, 1e-6, decay))
    corrected, _ = trained(lambda p: torch.optim.AdamW(p, lr=0.01, eps=1e-6, weight_decay=decay))
    assert np.abs(corrected[0] - found[0]).max() > 1e-3


@pytest.mark.parametrize(
    "make",
    [
        lambda p: GRU4RecAdagrad(p, momentum=0.4, fused=True),
        lambda p: GRU4RecAdagrad(p, fused=True),
        lambda p: BertAdamW(p, fused=True),
        RowSGD,
        RowAdagrad,
        RowAdam,
    ],
    ids=["momentum", "adagrad", "adamw", "row_sgd", "row_adagrad", "row_adam"],
)
def test_a_saved_state_goes_on_as_if_never_interrupted(make, tmp_path):
    whole, _ = trained(make)
    params = start()
    _, optimizer = trained(make, stop=3, params=params)
    torch.save(optimizer.state_dict(), tmp_path / "state")
    again = make(params)
    again.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    for grads in list(gradients())[3:]:
        for p, g in zip(params, grads, strict=True):
            p.grad = torch.from_numpy(g)
        again.step()
    check([p.detach().numpy() for p in params], whole, 0)


def test_a_parameter_without_a_gradient_stays():
    for make in (lambda p: GRU4RecAdagrad(p, momentum=0.4), BertAdamW):
        params = start()
        before = copy.deepcopy([p.detach() for p in params])
        params[0].grad = torch.ones_like(params[0])
        make(params).step()
        assert not torch.equal(params[0], before[0])
        assert all(torch.equal(p, b) for p, b in zip(params[1:], before[1:], strict=True))


@pytest.mark.parametrize(
    "wrong", [{"momentum": 1.0}, {"momentum": -0.1}, {"eps": 0.0}, {"lr": -1.0}]
)
def test_wrong_values_are_named(wrong):
    with pytest.raises(RecexpError, match=next(iter(wrong))):
        GRU4RecAdagrad(start(), **wrong)


@pytest.mark.parametrize(("model", "momentum"), [("gru4rec", 0.0), ("gru4rec_plus", 0.0)])
def test_gru4rec_runs_with_the_official_adagrad(model, momentum):
    optimizer = build(composed(f"model={model}", "dataset=table").optimizer)(start())
    assert type(optimizer) is GRU4RecAdagrad
    group = optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["initial_accumulator_value"], group["eps"]) == (
        0.05,
        momentum,
        1e-6,
        0.0,
    )


def test_bert4rec_decays_matrices_alone():
    """Neither biases nor the constants and scales of the layer norms: BERT's exclusions."""
    model = BERT4Rec(toy.schema(side=False), n_factors=8, max_len=5)
    optimizer = build(composed("model=bert4rec", "optimizer=bert_adamw", "dataset=table").optimizer)
    module = SimpleNamespace(
        gradient_free=False, model=model, _optimizer=optimizer, _scheduler=None, _unfused=dict
    )
    made = RecModule.configure_optimizers(module)
    assert type(made) is BertAdamW
    decay = {p: group["weight_decay"] for group in made.param_groups for p in group["params"]}
    assert set(decay) == set(model.parameters())
    for name, parameter in model.named_parameters():
        undecayed = name.endswith("bias") or "norm" in name or name == "token_type"
        assert decay[parameter] == (0.0 if undecayed else 0.01), name
    group = made.param_groups[0]
    assert (group["lr"], tuple(group["betas"]), group["eps"]) == (1e-4, (0.9, 0.999), 1e-6)


def test_caser_decays_every_parameter():
    """Adam's coupled decay is an L2 penalty, which Caser's authors put on biases too."""
    model = torch.nn.Linear(3, 2)
    optimizer = build(composed("model=caser", "dataset=table").optimizer)
    module = SimpleNamespace(
        gradient_free=False, model=model, _optimizer=optimizer, _scheduler=None, _unfused=dict
    )
    made = RecModule.configure_optimizers(module)
    assert [group["weight_decay"] for group in made.param_groups] == [1e-6, 1e-6]


@pytest.mark.parametrize("optimizer", ["adam", "bert_adamw", "gru4rec_adagrad"])
def test_clipping_in_mixed_precision(tmp_path, optimizer):
    """Lightning does not clip for optimizers that update all parameters in one kernel."""
    result = run_here(
        tmp_path / "run",
        "model=bpr_mf",
        f"optimizer={optimizer}",
        "trainer.precision=bf16-mixed",
        "trainer.gradient_clip_val=5.0",
    )
    assert result["updates"] > 0
