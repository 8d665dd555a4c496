import numpy as np

from recexp.models.caser import Caser
from recexp.testing import toy
from tests.support.numpy_ops import linear, weights

ROWS, USERS, L = [[1, 2, 9, 4, 7], [4], [3, 3, 8], []], [0, 3, 6, 5], 3


def test_scores_follow_the_formulas():
    """Tang and Wang 2018 (Caser), arXiv:1809.07426, section 3, filter by filter."""
    model = Caser(toy.schema(), n_factors=4, max_len=L, n_horizontal=3, n_vertical=2)
    w = weights(toy.randomise(model))
    expected = []
    for user, row in zip(USERS, ROWS, strict=True):
        items = ([0] * L + row)[-L:]
        E = np.stack([w["item.weight"][v] for v in items])
        o = [
            sum(f[t] * E[t] for t in range(L)) + b
            for f, b in zip(w["vertical.weight"], w["vertical.bias"], strict=True)
        ]
        for height in range(1, L + 1):
            kernel, bias = w[f"horizontal.{height - 1}.weight"], w[f"horizontal.{height - 1}.bias"]
            for k in range(3):
                at = [
                    (kernel[k].T * E[t : t + height]).sum() + bias[k] for t in range(L - height + 1)
                ]
                o.append(np.array([max(0.0, *at)]))
        z = np.maximum(linear(np.concatenate(o), w, "inner"), 0)
        x = np.concatenate([z, w["user.weight"][user]])
        expected.append(w["output.weight"][1:] @ x + w["output_bias"][1:])
    assert np.allclose(
        model.score(toy.query(USERS, ROWS)).detach().numpy(), expected, rtol=1e-9, atol=1e-9
    )
