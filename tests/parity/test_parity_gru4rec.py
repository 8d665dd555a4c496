import numpy as np
import pytest

from recexp.models.gru4rec import GRU4Rec
from recexp.testing import toy
from tests.support.numpy_ops import sigmoid, weights

ROWS, D = [[1, 2, 9, 4, 7], [4], [3, 3, 8], []], 4


def official(items, w, table):
    """Hidasi et al. 2016 (GRU4Rec), arXiv:1511.06939, section 3, step by step."""
    hidden = [np.zeros(D), np.zeros(D)]
    for v in items:
        x = w["input.weight"][v] if table != "constrained" else w["item.weight"][v]
        for i in range(2):
            one_hot = i == 0 and table == "one_hot"
            a = (x if one_hot else w[f"layers.{i}.input.weight"] @ x) + w[f"layers.{i}.bias"]
            U, C, h = w[f"layers.{i}.gates.weight"], w[f"layers.{i}.candidate.weight"], hidden[i]
            r, z = sigmoid(a[:D] + U[:D] @ h), sigmoid(a[D : 2 * D] + U[D:] @ h)
            x = hidden[i] = (1 - z) * h + z * np.tanh(a[2 * D :] + C @ (r * h))
    return hidden[1]


def torch_like(items, w):
    """The other reset gate: after the matrix product."""
    h = np.zeros(D)
    for v in items:
        a = w["gru.weight_ih_l0"] @ w["item.weight"][v] + w["gru.bias_ih_l0"]
        b = w["gru.weight_hh_l0"] @ h + w["gru.bias_hh_l0"]
        r, z = sigmoid(a[:D] + b[:D]), sigmoid(a[D : 2 * D] + b[D : 2 * D])
        h = (1 - z) * np.tanh(a[2 * D :] + r * b[2 * D :]) + z * h
    return h


@pytest.mark.parametrize("table", ["one_hot", "separate", "constrained"])
def test_official_scores_follow_the_formulas(table):
    model = GRU4Rec(toy.schema(), n_factors=D, n_layers=2, input_table=table)
    w = weights(toy.randomise(model))
    expected = [w["item.weight"][1:] @ official(row, w, table) + w["item_bias"][1:] for row in ROWS]
    assert np.allclose(
        model.score(toy.query([0, 1, 2, 3], ROWS)).detach().numpy(), expected, rtol=1e-9, atol=1e-9
    )


def test_torch_scores_follow_the_formulas():
    model = GRU4Rec(toy.schema(), n_factors=D, cell="torch", input_table="constrained")
    w = weights(toy.randomise(model))
    expected = [w["item.weight"][1:] @ torch_like(row, w) + w["item_bias"][1:] for row in ROWS]
    assert np.allclose(
        model.score(toy.query([0, 1, 2, 3], ROWS)).detach().numpy(), expected, rtol=1e-9, atol=1e-9
    )
