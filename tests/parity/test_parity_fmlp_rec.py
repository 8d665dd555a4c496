import cmath
import math

import numpy as np
import pytest
import torch

from recexp.models.fmlp_rec import FMLPRec
from recexp.objectives.losses import BCE
from recexp.objectives.next_item import NextItem
from recexp.objectives.samplers import Uniform
from recexp.testing import toy, worlds
from tests.config.test_check import composed
from tests.support.numpy_ops import gelu, layer_norm, linear, sigmoid, weights

ROWS = [[1, 2, 9, 4, 7, 5, 3, 6], [4], [3, 3, 8], []]
EPS = 1e-12


def filtered(x, filter_):
    """The inverse transform of the product of filter and transform, term by term.

    The coefficients of a real sequence are conjugates of each other about the middle, so the filter
    of a frequency past it is the conjugate of that of its mirror image.
    """
    n, width = x.shape
    out = np.zeros_like(x)
    for column in range(width):
        spectrum = []
        for f in range(n):
            mirror = min(f, n - f)
            w = complex(*filter_[mirror, column])
            if f == 0 or 2 * f == n:
                w = complex(w.real, 0.0)  # a real sequence has no imaginary part there
            elif f != mirror:
                w = w.conjugate()
            coefficient = sum(
                x[t, column] * cmath.exp(-2j * math.pi * f * t / n) for t in range(n)
            ) / math.sqrt(n)
            spectrum.append(w * coefficient)
        for t in range(n):
            total = sum(spectrum[f] * cmath.exp(2j * math.pi * f * t / n) for f in range(n))
            assert abs(total.imag) < 1e-9
            out[t, column] = total.real / math.sqrt(n)
    return out


def state(items, w, layers, n):
    """Zhou et al. 2022 (FMLP-Rec), arXiv:2202.13556, section 3, with padding as in the code."""
    items = [0] * (n - len(items)) + items[-n:]
    x = w["item.weight"][items] + w["position.table.weight"]
    x = layer_norm(x, w, "norm", EPS)
    for i in range(layers):
        layer = f"layers.{i}"
        x = layer_norm(x + filtered(x, w[f"{layer}.filter"]), w, f"{layer}.norm1", EPS)
        inner = gelu(linear(x, w, f"{layer}.inner"))
        x = layer_norm(x + linear(inner, w, f"{layer}.outer"), w, f"{layer}.norm2", EPS)
    return x[-1]


@pytest.mark.parametrize("n", [5, 6])
def test_scores_follow_the_formulas(n):
    model = FMLPRec(toy.schema(), n_factors=4, n_layers=2, max_len=n)
    w = weights(toy.randomise(model))
    expected = [w["item.weight"][1:] @ state(row, w, 2, n) for row in ROWS]
    found = model.score(toy.query([0, 1, 2, 3], ROWS)).detach().numpy()
    assert np.allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_loss_of_a_step():
    """Each of a user's newest events is predicted from all before it, against one negative."""
    store = worlds.random_store()
    n = 5
    model = toy.randomise(FMLPRec(store.schema, n_factors=4, max_len=n, dropout=0.0)).train()
    objective = NextItem(Uniform(), BCE(), windows="prefixes", targets=1)
    objective.bind(model, store)
    rows = objective.rows(store)
    batch = objective.batch(store, rows, torch.Generator().manual_seed(0))
    w, train = weights(model), store.train
    vectors = w["item.weight"]
    losses, number = [], 0
    for user in range(store.schema.n_users):
        items = train.item[int(train.ptr[user]) : int(train.ptr[user + 1])].tolist()
        for at in range(max(1, len(items) - n), len(items)):
            h = state(items[:at], w, 2, n)
            negative = int(batch.negative_Nn[number])
            likely = sigmoid(vectors[items[at]] @ h) * (1 - sigmoid(vectors[negative] @ h))
            losses.append(-math.log(likely))
            number += 1
    assert number == len(rows) > 30
    found = objective.losses(model, batch)["loss"].item()
    assert found == pytest.approx(np.mean(losses), rel=1e-9)


def test_the_configuration_is_the_authors():
    cfg = composed("model=fmlp_rec", "dataset=table")
    assert (cfg.model.n_factors, cfg.model.n_layers, cfg.model.max_len) == (64, 2, 50)
    assert (cfg.model.dropout, cfg.batch_size, cfg.optimizer.lr) == (0.5, 256, 1e-3)
    assert (cfg.objective.windows, cfg.objective.targets) == ("prefixes", 1)
    assert cfg.loss._target_.endswith("BCE") and cfg.objective.n_negatives == 1
