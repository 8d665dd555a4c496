import math

import numpy as np
import pytest
import torch

from recexp.models.bert4rec import BERT4Rec
from recexp.nn.dropout import Dropout
from recexp.testing import toy
from tests.config.test_check import composed
from tests.support.numpy_ops import attention, bert_layer, gelu, layer_norm, linear, weights

ROWS = [[1, 2, 9, 4, 7, 5, 3], [4], [3, 3, 8], []]
SCHEMA, N, EPS = toy.schema(), 5, 1e-12


def inputs(items, w, positions):
    """The last N - 1 items and [MASK]."""
    items = [*items[-(N - 1) :], SCHEMA.V]
    first = 0 if positions == "left" else N - len(items)
    return np.stack(
        [w["item.weight"][v] + w["position.table.weight"][first + t] for t, v in enumerate(items)]
    )


@pytest.mark.parametrize("positions", ["left", "right"])
def test_scores_follow_the_formulas(positions):
    model = BERT4Rec(SCHEMA, n_factors=8, n_layers=2, n_heads=2, max_len=N, positions=positions)
    w = weights(toy.randomise(model))
    expected = []
    for row in ROWS:
        h = layer_norm(inputs(row, w, positions) + w["token_type"], w, "input_norm", EPS)
        for i in range(2):
            h = bert_layer(h, w, f"layers.{i}", 2)
        out = layer_norm(gelu(linear(h[-1], w, "projection")), w, "head_norm", EPS)
        expected.append(w["item.weight"][1:-1] @ out + w["output_bias"][1:])
    assert np.allclose(
        model.score(toy.query([0, 1, 2, 3], ROWS)).detach().numpy(), expected, rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("asked", ["view", "buy"])
def test_bert4rec_b_adds_the_vector_of_the_asked_behavior_to_that_of_mask(asked):
    options = {"event_side": ["behavior"], "asked_behavior": asked}
    model = BERT4Rec(SCHEMA, n_factors=8, n_layers=2, n_heads=2, max_len=N, **options)
    w = weights(toy.randomise(model))
    code = 1 + SCHEMA.behaviors.index(asked)
    expected = []
    for row in ROWS:
        codes = [*(1 + v % 2 for v in row[-(N - 1) :]), code]  # as toy.query makes them up
        h = inputs(row, w, "left") + w["event_sides.sides.0.table.weight"][codes]
        h = layer_norm(h + w["token_type"], w, "input_norm", EPS)
        for i in range(2):
            h = bert_layer(h, w, f"layers.{i}", 2)
        out = layer_norm(gelu(linear(h[-1], w, "projection")), w, "head_norm", EPS)
        expected.append(w["item.weight"][1:-1] @ out + w["output_bias"][1:])
    found = model.score(toy.query([0, 1, 2, 3], ROWS)).detach().numpy()
    assert np.allclose(found, expected, rtol=1e-9, atol=1e-9)


PORT = dict(
    norm="pre",
    embedding_norm=False,
    token_type=False,
    projection=False,
    tied=False,
    positions="right",
    layer_norm="std",
    activation="gelu_tanh",
    more_dropout=True,
    init="torch",
)


def std_norm(x, w, name):
    """The port's layer norm: the unbiased deviation, epsilon added to it."""
    std = x.std(-1, ddof=1, keepdims=True)
    return (x - x.mean(-1, keepdims=True)) / (std + 1e-6) * w[f"{name}.weight"] + w[f"{name}.bias"]


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def port(items, w, heads, drop):
    """BERT4Rec-VAE-Pytorch. drop stands at every place where the port has a dropout."""
    h = drop(inputs(items, w, "right"))
    for i in range(2):
        z = std_norm(h, w, f"layers.{i}.norm1")
        h = h + drop(attention(z, z, z, w, f"layers.{i}.attention", heads))
        z = std_norm(h, w, f"layers.{i}.norm2")
        z = linear(drop(gelu_tanh(linear(z, w, f"layers.{i}.inner"))), w, f"layers.{i}.outer")
        h = drop(h + drop(z))
    return w["output.weight"][1:] @ h[-1] + w["output_bias"][1:]


@pytest.mark.parametrize("factor", [1.0, 0.7])
def test_the_port_follows_the_formulas(factor, monkeypatch):
    """With a factor for every dropout: they are where the port has them."""
    monkeypatch.setattr(Dropout, "forward", lambda self, x: factor * x)
    model = BERT4Rec(SCHEMA, n_factors=8, n_layers=2, n_heads=4, max_len=N, **PORT)
    w = weights(toy.randomise(model))
    expected = [port(row, w, 4, lambda x: factor * x) for row in ROWS]
    assert np.allclose(
        model.score(toy.query([0, 1, 2, 3], ROWS)).detach().numpy(), expected, rtol=1e-9, atol=1e-9
    )


def test_the_configuration_of_the_port_sets_all_of_it():
    cfg = composed("model=bert4rec_vae", "dataset=table")
    assert {key: cfg.model[key] for key in PORT} == PORT
    assert (cfg.batch_size, cfg.optimizer.lr, cfg.optimizer.weight_decay) == (128, 1e-3, 0.0)
    assert (cfg.objective.mask_prob, cfg.objective.last_prob) == (0.15, 0.0)
    assert list(cfg.objective.replace) == [0.8, 0.1, 0.1]
    assert (cfg.model.max_len, cfg.model.n_layers, cfg.model.n_heads) == (100, 2, 4)
    assert cfg.model.dropout == cfg.model.attention_dropout == 0.1


def test_the_port_starts_from_torchs_values():
    torch.manual_seed(0)
    D = 64
    model = BERT4Rec(toy.schema(n_items=400, side=False), n_factors=D, **PORT)
    for table in (model.item.weight[1:], model.position.table.weight):
        assert abs(float(table.detach().std()) - 1) < 0.03 and not model.item.weight[0].any()
    for name, p in model.named_parameters():
        fan_in = 4 * D if name.endswith("outer.weight") or name.endswith("outer.bias") else D
        if "norm" not in name and name not in ("item.weight", "position.table.weight"):
            bound = fan_in**-0.5
            assert 0.9 * bound < float(p.detach().abs().max()) <= bound, name
    assert not model.output.weight[0].any()
