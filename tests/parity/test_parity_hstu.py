import math

import numpy as np
import pytest
import torch

from recexp.models.hstu import HSTU
from recexp.objectives.losses import SampledSoftmax
from recexp.objectives.next_item import NextItem
from recexp.objectives.samplers import Uniform
from recexp.testing import toy, worlds
from tests.config.test_check import composed
from tests.support.numpy_ops import linear, sigmoid, weights

ROWS = [[1, 2, 9, 4, 7, 5, 3], [4], [3, 3, 8], [2, 5, 2, 11]]
SECOND = 1000
# From nothing to a year between two events.
GAPS = [0, SECOND // 2, 90 * SECOND, 3 * 86_400 * SECOND, 365 * 86_400 * SECOND, 7, SECOND]
N, EPS, D = 5, 1e-6, 8


def silu(x):
    return x * sigmoid(x)


def plain_norm(x):
    centered = x - x.mean(-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + EPS)


def bucket(milliseconds):
    return min(128, int(math.log(max(1, milliseconds // 1000)) / 0.301))


def unit(x, times, w, name, heads):
    """One layer of Zhai et al. 2024 (HSTU), arXiv:2402.17152, eq. 1-3, event by event."""
    projected = silu(linear(plain_norm(x), w, f"{name}.uvqk"))
    u, v, q, k = np.split(projected, 4, -1)
    out = np.zeros_like(x)
    size = x.shape[1] // heads
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        for i in range(len(x)):
            for j in range(i + 1):
                bias = w[f"{name}.bias.position"][i - j]
                bias = bias + w[f"{name}.bias.time"][bucket(times[i] - times[j])]
                out[i, part] += silu(q[i, part] @ k[j, part] + bias) / N * v[j, part]
    return x + linear(u * plain_norm(out), w, f"{name}.output")


def state(items, times, w, layers, heads, positions):
    items, times = items[-N:], times[-N:]
    first = N - len(items) if positions == "right" else 0
    x = np.stack(
        [
            math.sqrt(D) * w["item.weight"][v] + w["position.table.weight"][first + t]
            for t, v in enumerate(items)
        ]
    )
    for i in range(layers):
        x = unit(x, times, w, f"layers.{i}", heads)
    return x[-1]


def normed(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def timed(rows):
    """A query of the rows, their events at irregular times."""
    query = toy.query(list(range(len(rows))), rows)
    times = [np.cumsum([10**12, *GAPS])[1 : len(row) + 1].tolist() for row in rows]
    width = query.item_BL.shape[1]
    padded = [[0] * (width - len(row)) + row for row in times]
    query.time_BL = torch.tensor(padded)
    return query, times


@pytest.mark.parametrize("positions", ["left", "right"])
@pytest.mark.parametrize("heads", [1, 2])
def test_scores_follow_the_formulas(heads, positions):
    model = HSTU(
        toy.schema(), n_factors=D, n_layers=2, n_heads=heads, max_len=N, positions=positions
    )
    w = weights(toy.randomise(model))
    query, times = timed(ROWS)
    expected = [
        normed(w["item.weight"][1:]) @ normed(state(row, at, w, 2, heads, positions)) / 0.05
        for row, at in zip(ROWS, times, strict=True)
    ]
    found = model.score(query).detach().numpy()
    assert np.allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n", [3, 20])
def test_loss_of_a_step(n):
    """Every event of a window but the first is predicted from the events before it, against its
    own negatives, by cosines over the temperature.

    With 20 negatives the scores are read from the whole catalog.
    """
    store = worlds.random_store()
    model = toy.randomise(HSTU(store.schema, n_factors=D, max_len=N, dropout=0.0)).train()
    objective = NextItem(Uniform(), SampledSoftmax(), n_negatives=n, shared="position")
    objective.bind(model, store)
    rows = objective.rows(store)
    batch = objective.batch(store, rows, torch.Generator().manual_seed(0))
    w, train = weights(model), store.train
    unit_vectors = normed(w["item.weight"][1:])
    losses = []
    drawn = iter(batch.negative_Nn)
    for end in rows.tolist():
        first = max(int(train.ptr[train.user[end - 1]]), end - N - 1)
        items = train.item[first:end].tolist()
        times = train.time[first:end].tolist()
        for at in range(1, len(items)):
            h = normed(state(items[:at], times[:at], w, 2, 1, "left")) / 0.05
            scores = unit_vectors[[items[at] - 1, *(next(drawn) - 1).tolist()]] @ h
            losses.append(math.log(sum(math.exp(x - scores[0]) for x in scores)))
    assert len(losses) > 40
    found = objective.losses(model, batch)["loss"].item()
    assert found == pytest.approx(np.mean(losses), rel=1e-9)


def test_the_time_between_events_matters_and_not_the_date():
    model = toy.randomise(HSTU(toy.schema(), n_factors=D, max_len=N))
    query, _ = timed(ROWS)
    scores = model.score(query)
    query.time_BL = torch.where(query.mask_BL, query.time_BL + 10**11, 0)
    assert torch.equal(model.score(query), scores)
    query.time_BL = torch.where(query.mask_BL, 1000 * torch.arange(7), 0)
    changed = (model.score(query) != scores).any(1)
    assert changed.tolist() == [True, False, True, True]


def test_the_configuration_is_the_authors():
    cfg = composed("model=hstu", "dataset=table")
    assert (cfg.model.n_factors, cfg.model.n_layers, cfg.model.n_heads) == (50, 2, 1)
    assert (cfg.model.max_len, cfg.model.dropout, cfg.model.temperature) == (200, 0.2, 0.05)
    assert (cfg.objective.n_negatives, cfg.objective.shared) == (128, "position")
    assert cfg.loss._target_.endswith("SampledSoftmax")
    assert (cfg.batch_size, cfg.optimizer.lr, cfg.optimizer.weight_decay) == (128, 1e-3, 0.0)
