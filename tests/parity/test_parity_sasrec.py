import numpy as np
import pytest
import torch

from recexp.models.sasrec import SASRec
from recexp.objectives.losses import BCE, GBCE
from recexp.objectives.next_item import NextItem
from recexp.objectives.samplers import Uniform
from recexp.testing import toy, worlds
from tests.config.test_check import composed
from tests.support.numpy_ops import attention, layer_norm, linear, sigmoid, weights

ROWS = [[1, 2, 9, 4, 7, 5, 3], [4], [3, 3, 8]]
N, EPS = 5, 1e-8


def states(items, w, layers, heads, residual, behaviors=None):
    """Kang and McAuley 2018 (SASRec), arXiv:1808.09781, section III, all positions.

    behaviors: codes whose vectors are added to those of the items.
    """
    items = items[-N:]
    side = np.zeros_like(w["item.weight"][: len(items)])
    if behaviors is not None:
        side = w["event_sides.sides.0.table.weight"][behaviors[-N:]]
    d = w["item.weight"].shape[1]
    x = np.stack(
        [
            np.sqrt(d) * (w["item.weight"][v] + side[t])
            + w["position.table.weight"][N - len(items) + t]
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
    return layer_norm(x, w, "norm", EPS)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("residual", ["normed", "plain"])
def test_scores_follow_the_formulas(residual, heads):
    model = SASRec(
        toy.schema(), n_factors=8, n_layers=2, n_heads=heads, max_len=N, residual=residual
    )
    w = weights(toy.randomise(model))
    expected = [w["item.weight"][1:] @ states(row, w, 2, heads, residual)[-1] for row in ROWS]
    assert np.allclose(
        model.score(toy.query([0, 1, 2], ROWS)).detach().numpy(), expected, rtol=1e-9, atol=1e-9
    )


def test_sasrec_b_reads_behaviors_and_is_trained_where_the_next_event_is_explicit():
    store = worlds.random_store()
    task = NextItem(Uniform(), BCE(), positives="explicit")
    options = {"n_factors": 8, "n_layers": 2, "max_len": N, "event_side": ["behavior"]}
    model = toy.randomise(SASRec(store.schema, **options), scale=0.2)
    task.bind(model, store)
    rows = task.rows(store)
    batch = task.batch(store, rows, torch.Generator().manual_seed(0))
    w = weights(model)
    table = w["item.weight"]
    losses = []
    drawn = iter(batch.negative_Nn[:, 0].tolist())
    for end in rows.tolist():
        start = int(store.train.ptr[store.train.user[end - 1]])
        read = slice(max(start, end - 1 - N), end - 1)
        codes = store.train.behavior[read].tolist()
        h_LD = states(store.train.item[read].tolist(), w, 2, 1, "normed", codes)
        for t, at in enumerate(range(read.start + 1, end)):
            if store.train.behavior[at] == 2:
                losses.append(
                    -np.log(sigmoid(table[store.train.item[at]] @ h_LD[t]))
                    - np.log(1 - sigmoid(table[next(drawn)] @ h_LD[t]))
                )
    assert len(losses) > 10
    assert task.losses(model, batch)["loss"].item() == pytest.approx(np.mean(losses), rel=1e-9)
    query = toy.query([0, 1, 2], ROWS)
    expected = [
        table[1:] @ states(row, w, 2, 1, "normed", [1 + v % 2 for v in row])[-1] for row in ROWS
    ]
    assert np.allclose(model.score(query).detach().numpy(), expected, rtol=1e-9, atol=1e-9)


def test_gsasrec_trains_a_table_of_its_own_by_the_authors_loss():
    """Petrov and Macdonald 2023 (gSASRec), arXiv:2308.07192, eq. 12, in the form of their code:
    binary cross-entropy with the positive score s replaced by log(1 / (sigma(s)^-beta - 1)).
    """
    store = worlds.random_store()
    task = NextItem(Uniform(), GBCE(t=0.75), n_negatives=20)
    model = toy.randomise(
        SASRec(store.schema, n_factors=8, n_layers=2, max_len=N, tied=False), scale=0.2
    )
    task.bind(model, store)
    batch = task.batch(store, task.rows(store), torch.Generator().manual_seed(0))
    w = weights(model)
    table = w["output.id.weight"]
    alpha = 20 / (store.schema.n_items - 1)
    beta = alpha * ((1 - 1 / alpha) * 0.75 + 1 / alpha)
    losses = []
    drawn = iter(batch.negative_Nn.tolist())
    for items, targets in zip(batch.query.item_BL.tolist(), batch.target_BL.tolist(), strict=True):
        real = [v for v in items if v]
        h_LD = states(real, w, 2, 1, "normed")
        for h, target in zip(h_LD, targets[-len(real) :], strict=True):
            positive = np.log(1 / (sigmoid(table[target] @ h) ** -beta - 1))
            others = table[next(drawn)] @ h
            terms = [-np.log(sigmoid(positive)), *-np.log(1 - sigmoid(others))]
            losses.append(np.mean(terms))
    assert task.losses(model, batch)["loss"].item() == pytest.approx(np.mean(losses), rel=1e-9)
    expected = [table[1:] @ states(row, w, 2, 1, "normed")[-1] for row in ROWS]
    found = model.score(toy.query([0, 1, 2], ROWS)).detach().numpy()
    assert np.allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_the_configuration_of_gsasrec_is_the_authors():
    cfg = composed("model=gsasrec", "dataset=table")
    assert (cfg.model.n_factors, cfg.model.n_layers, cfg.model.n_heads) == (128, 2, 1)
    assert (cfg.model.max_len, cfg.model.dropout, cfg.model.tied) == (200, 0.5, False)
    assert (cfg.objective.n_negatives, cfg.objective.shared) == (256, "position")
    assert cfg.loss._target_.endswith("GBCE") and cfg.loss.t == 0.75
    assert (cfg.batch_size, cfg.optimizer.lr, list(cfg.optimizer.betas)) == (
        128,
        1e-3,
        [0.9, 0.999],
    )
