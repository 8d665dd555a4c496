import numpy as np
import pytest

from recexp.models.sasrec import SASRec
from recexp.testing import toy
from tests.support.numpy_ops import attention, layer_norm, linear, weights

ROWS = [[1, 2, 9, 4, 7, 5, 3], [4], [3, 3, 8]]
N, EPS = 5, 1e-8


def state(items, w, layers, heads, residual):
    """Kang and McAuley 2018 (SASRec), arXiv:1808.09781, section III, last position of one
    history.
    """
    items = items[-N:]
    d = w["item.weight"].shape[1]
    x = np.stack(
        [
            np.sqrt(d) * w["item.weight"][v] + w["position.table.weight"][N - len(items) + t]
            for t, v in enumerate(items)
        ]
    )
    for i in range(layers):
        q = layer_norm(x, w, f"layers.{i}.norm1", EPS)
        if residual == "normed":
            y = attention(q, x, x, w, f"layers.{i}.attention", heads, causal=True) + q
        else:
            y = attention(q, q, q, w, f"layers.{i}.attention", heads, causal=True) + x
        z = layer_norm(y, w, f"layers.{i}.norm2", EPS)
        f = linear(np.maximum(linear(z, w, f"layers.{i}.inner"), 0), w, f"layers.{i}.outer")
        x = f + (z if residual == "normed" else y)
    return layer_norm(x, w, "norm", EPS)[-1]


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("residual", ["normed", "plain"])
def test_scores_follow_the_formulas(residual, heads):
    model = SASRec(
        toy.schema(), n_factors=8, n_layers=2, n_heads=heads, max_len=N, residual=residual
    )
    w = weights(toy.randomise(model))
    expected = np.stack([w["item.weight"][1:] @ state(row, w, 2, heads, residual) for row in ROWS])
    assert np.allclose(
        model.score(toy.query([0, 1, 2], ROWS)).detach().numpy(), expected, rtol=1e-9, atol=1e-9
    )
