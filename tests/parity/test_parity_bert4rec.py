import numpy as np
import pytest

from recexp.models.bert4rec import BERT4Rec
from tests import toy
from tests.parity.numpy_ops import attention, bert_layer, gelu, layer_norm, linear, weights

ROWS = [[1, 2, 9, 4, 7, 5, 3], [4], [3, 3, 8], []]
SCHEMA, N, EPS = toy.schema(), 5, 1e-12


def inputs(items, w, positions):
    """The last N - 1 items and [MASK]."""
    items = [*items[-(N - 1) :], SCHEMA.V]
    first = 0 if positions == "left" else N - len(items)
    return np.stack([w["item.weight"][v] + w["position.table.weight"][first + t] for t, v in enumerate(items)])


@pytest.mark.parametrize("positions", ["left", "right"])
def test_scores_follow_the_formulas(positions):
    model = BERT4Rec(SCHEMA, num_factors=8, num_layers=2, num_heads=2, max_len=N, positions=positions)
    w = weights(toy.randomise(model))
    expected = []
    for row in ROWS:
        h = layer_norm(inputs(row, w, positions) + w["token_type"], w, "input_norm", EPS)
        for i in range(2):
            h = bert_layer(h, w, f"layers.{i}", 2)
        out = layer_norm(gelu(linear(h[-1], w, "projection")), w, "head_norm", EPS)
        expected.append(w["item.weight"][1:-1] @ out + w["output_bias"][1:])
    assert np.allclose(model.score(toy.query([0, 1, 2, 3], ROWS)).detach().numpy(), expected, rtol=1e-9, atol=1e-9)


def test_the_port_with_an_output_table_follows_the_formulas():
    """Spec 6.8: pre-norm, no head, its own output layer."""
    options = dict(norm="pre", embedding_norm=False, token_type=False, projection=False, tied=False, positions="right")
    model = BERT4Rec(SCHEMA, num_factors=8, num_layers=2, num_heads=4, max_len=N, **options)
    w = weights(toy.randomise(model))
    expected = []
    for row in ROWS:
        h = inputs(row, w, "right")
        for i in range(2):
            z = layer_norm(h, w, f"layers.{i}.norm1", EPS)
            h = h + attention(z, z, z, w, f"layers.{i}.attention", 4)
            z = layer_norm(h, w, f"layers.{i}.norm2", EPS)
            h = h + linear(gelu(linear(z, w, f"layers.{i}.inner")), w, f"layers.{i}.outer")
        expected.append(w["output.weight"][1:] @ h[-1] + w["output_bias"][1:])
    assert np.allclose(model.score(toy.query([0, 1, 2, 3], ROWS)).detach().numpy(), expected, rtol=1e-9, atol=1e-9)
