import numpy as np
import pytest
import torch

from recexp.models.sasrec import SASRec
from recexp.objectives.losses import SampledSoftmax
from recexp.objectives.next_item import NextItem
from recexp.objectives.samplers import Uniform
from recexp.testing import toy, worlds
from tests.config.test_check import composed
from tests.support.numpy_ops import attention, layer_norm, linear, sigmoid, weights

ROWS = [[1, 2, 9, 4, 7, 5, 3], [4], [3, 3, 8]]
N, EPS = 5, 1e-5


def swiglu(x, w, name):
    """Shazeer 2020, arXiv:2002.05202, eq. 6."""
    gate = linear(x, w, f"{name}.gate")
    return linear(gate * sigmoid(gate) * linear(x, w, f"{name}.inner"), w, f"{name}.outer")


def states(items, w, layers, heads):
    """LiGR layers (Borisyuk et al. 2025, arXiv:2502.03417) at all positions."""
    items = items[-N:]
    x = np.stack(
        [
            w["item.weight"][v] + w["position.table.weight"][N - len(items) + t]
            for t, v in enumerate(items)
        ]
    )
    for i in range(layers):
        layer = f"layers.{i}"
        z = layer_norm(x, w, f"{layer}.norm1", EPS)
        attended = attention(z, z, z, w, f"{layer}.attention", heads, causal=True)
        x = x + sigmoid(linear(x, w, f"{layer}.gate1")) * attended
        change = swiglu(layer_norm(x, w, f"{layer}.norm2", EPS), w, f"{layer}.feed_forward")
        x = x + sigmoid(linear(x, w, f"{layer}.gate2")) * change
    return x


def plain_loss(batch, w, heads):
    """The mean over positions of a softmax over the target and its negatives."""
    losses = []
    drawn = iter(batch.negative_Nn.tolist())
    for items, targets in zip(batch.query.item_BL.tolist(), batch.target_BL.tolist(), strict=True):
        real = [v for v in items if v]
        for h, target in zip(states(real, w, 2, heads), targets[-len(real) :], strict=True):
            z = w["item.weight"][[target, *next(drawn)]] @ h
            losses.append(np.log(np.exp(z - z[0]).sum()))
    assert len(losses) == len(batch.negative_Nn)
    return np.mean(losses)


def fresh(schema, heads=2):
    options = {"n_factors": 8, "n_layers": 2, "n_inner": 12, "max_len": N}
    model = SASRec(schema, **options, n_heads=heads, residual="gated", scale_inputs=False)
    return toy.randomise(model)


@pytest.mark.parametrize("heads", [1, 2])
def test_scores_follow_the_formulas(heads):
    model = fresh(toy.schema(), heads)
    w = weights(model)
    expected = [w["item.weight"][1:] @ states(row, w, 2, heads)[-1] for row in ROWS]
    found = model.score(toy.query([0, 1, 2], ROWS)).detach().numpy()
    assert np.allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_the_loss_is_a_softmax_over_the_target_and_its_negatives():
    """So many negatives are scored by the vectors of the whole catalog."""
    store = worlds.random_store()
    task = NextItem(Uniform(), SampledSoftmax(), n_negatives=25)
    model = fresh(store.schema)
    task.bind(model, store)
    batch = task.batch(store, task.rows(store), torch.Generator().manual_seed(0))
    w = weights(model)
    expected = plain_loss(batch, w, heads=2)
    assert task.losses(model, batch)["loss"].item() == pytest.approx(expected, rel=1e-9)


def test_item_dropout_drops_the_same_entries_for_histories_and_candidates():
    store = worlds.random_store()
    task = NextItem(Uniform(), SampledSoftmax(), n_negatives=25)
    options = {"n_factors": 8, "n_layers": 2, "n_inner": 12, "max_len": N, "dropout": 0.0}
    rates = {"attention_dropout": 0.0, "item_dropout": 0.5}
    model = SASRec(store.schema, **options, **rates, residual="gated", scale_inputs=False)
    task.bind(toy.randomise(model).train(), store)
    batch = task.batch(store, task.rows(store), torch.Generator().manual_seed(0))
    found = task.losses(model, batch)["loss"].item()

    kept_VD = model.kept_VD.numpy()
    assert set(np.unique(kept_VD)) == {0.0, 2.0}
    w = weights(model)
    w["item.weight"] = w["item.weight"] * kept_VD
    assert found == pytest.approx(plain_loss(batch, w, heads=1), rel=1e-9)

    whole = model.eval().score(toy.query([0, 1, 2], ROWS)).detach().numpy()
    expected = [
        weights(model)["item.weight"][1:] @ states(row, weights(model), 2, 1)[-1] for row in ROWS
    ]
    assert np.allclose(whole, expected, rtol=1e-9, atol=1e-9)


def test_the_configuration_is_the_authors():
    cfg = composed("model=esasrec", "dataset=table")
    assert cfg.model.residual == "gated" and cfg.model.n_inner is None
    assert cfg.model.scale_inputs is False
    assert cfg.model.item_dropout == cfg.model.dropout
    assert (cfg.model.n_factors, cfg.model.n_layers, cfg.model.n_heads) == (64, 2, 1)
    assert (cfg.model.max_len, cfg.model.dropout) == (200, 0.1)
    assert (cfg.objective.n_negatives, cfg.objective.shared) == (256, "position")
    assert cfg.loss._target_.endswith("SampledSoftmax") and not cfg.loss.log_q
    assert (cfg.batch_size, cfg.optimizer.lr, list(cfg.optimizer.betas)) == (
        128,
        1e-3,
        [0.9, 0.98],
    )
