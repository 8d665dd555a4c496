"""Linear item-item models, item neighbors and iALS against plain numpy on the same data."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from recexp.errors import RecexpError
from recexp.models import slim
from recexp.models.ease import EASE
from recexp.models.ials import IALS
from recexp.models.item_knn import ItemKNN
from recexp.models.slim import SLIM
from recexp.models.wmf import WMF
from recexp.nn import co_occurrence
from recexp.testing import toy, worlds
from tests.support.pretend import DEVICE, pretend, values

STORE = worlds.random_store(30, 14, seed=4)
SCHEMA = STORE.schema
V = SCHEMA.V
HISTORIES = [[1, 2, 5], [], [3, 3, 9, 2, 12, 4], [7]]
QUERY = toy.query([0, 1, 4, 3], HISTORIES)


def counts(codes=(1, 2)):
    """Events of each user and item, [U, V]."""
    train = STORE.train
    chosen = np.isin(train.behavior.numpy(), codes)
    found = np.zeros((SCHEMA.n_users, V))
    np.add.at(found, (train.user.numpy()[chosen], train.item.numpy()[chosen]), 1)
    return found


def scores(weight, decay=1.0, length=None):
    """Each distinct item of a history counts once, by the age of its latest event."""
    rows = np.zeros((len(HISTORIES), V))
    for row, history in zip(rows, HISTORIES, strict=True):
        newest = history[-length:] if length else history
        for age, item in enumerate(reversed(newest)):
            row[item] = max(row[item], decay**age)
    return (rows @ weight)[:, 1:]


def fitted(model):
    model = model.double().eval()
    model.fit_pass(STORE)
    return model


def check(model, expected):
    np.testing.assert_allclose(model.score(QUERY).numpy(), expected, rtol=1e-8, atol=1e-10)
    some = torch.tensor([[1, 3]] * len(HISTORIES))
    np.testing.assert_array_equal(model.score(QUERY, some), model.score(QUERY)[:, [0, 2]])


@pytest.mark.parametrize("options", [{}, {"decay": 0.5, "max_len": 4}, {"behaviors": "strongest"}])
def test_ease_is_the_constrained_least_squares_solution(options, monkeypatch):
    monkeypatch.setattr(co_occurrence, "BLOCK", 4 * V)  # the products come in four ranges of rows
    model = fitted(EASE(SCHEMA, regularization=0.7, **options))
    x = (counts((2,) if "behaviors" in options else (1, 2)) > 0).astype(float)
    expected = np.zeros((V, V))
    for target in range(1, V):
        others = [j for j in range(1, V) if j != target]
        a = x[:, others]
        matrix = a.T @ a + 0.7 * np.eye(len(others))
        expected[others, target] = np.linalg.solve(matrix, a.T @ x[:, target])
    np.testing.assert_allclose(model.weight_VV.numpy(), expected, rtol=1e-8, atol=1e-12)
    if "behaviors" not in options:
        check(model, scores(expected, options.get("decay", 1.0), options.get("max_len")))


def test_ease_in_single_precision_is_that_of_double():
    single = EASE(SCHEMA, regularization=1.0)
    single.fit_pass(STORE)
    double = fitted(EASE(SCHEMA, regularization=1.0))
    np.testing.assert_allclose(single.weight_VV, double.weight_VV, atol=1e-5)


def test_ease_says_when_its_matrix_cannot_be_inverted(monkeypatch):
    def singular(matrix, out):
        raise torch.linalg.LinAlgError("not positive-definite")

    monkeypatch.setattr(torch.linalg, "cholesky", singular)
    with pytest.raises(RecexpError, match=r"model\.regularization=1e-30 is too small"):
        EASE(SCHEMA, regularization=1e-30).fit_pass(STORE)


def plain_elastic_net(x, target, l1, l2):
    """One column of W by coordinate descent on residuals, until it stands still."""
    w = np.zeros(x.shape[1])
    before = np.ones_like(w)
    rest = x[:, target].copy()
    while abs(w - before).max() > 1e-11:
        before = w.copy()
        for j in range(1, x.shape[1]):
            if j == target:
                continue
            rest += x[:, j] * w[j]
            w[j] = max(0.0, (x[:, j] @ rest - l1) / (x[:, j] @ x[:, j] + l2))
            rest -= x[:, j] * w[j]
    return w


@pytest.mark.parametrize("columns", [2, 1000])
def test_slim_solves_the_elastic_net_of_every_item(columns, monkeypatch):
    monkeypatch.setattr(slim, "BLOCK", columns * V)
    monkeypatch.setattr(slim, "COORDINATES", 4)
    options = {"l1": 0.3, "l2": 0.5, "tolerance": 1e-12, "max_sweeps": 3000}
    model = fitted(SLIM(SCHEMA, **options))
    x = (counts() > 0).astype(float)
    expected = np.zeros((V, V))
    for target in range(1, V):
        expected[:, target] = plain_elastic_net(x, target, 0.3, 0.5)
    assert 0 < (expected > 0).mean() < 0.5
    check(model, scores(expected))


def test_slim_keeps_the_largest_weights():
    options = {"l1": 0.0, "l2": 0.5, "tolerance": 1e-10, "max_sweeps": 2000}
    whole, kept = (fitted(SLIM(SCHEMA, neighbors=n, **options)) for n in (V, 3))
    assert ((whole.weight_Vn[1:] > 0).sum(1) > 3).any()
    best = whole.weight_Vn.sort(dim=1, descending=True).values[:, :3]
    assert torch.equal(kept.weight_Vn.sort(dim=1, descending=True).values, best)


def plain_values(similarity, k1, b):
    """x_iu, [V, U]."""
    n = counts().T
    if similarity not in ("tf_idf", "bm25"):
        return (n > 0).astype(float)
    idf = np.log(SCHEMA.n_items / (1 + (n > 0).sum(0)))
    if similarity == "tf_idf":
        return np.sqrt(n) * idf
    mean = n.sum() / SCHEMA.n_items
    length = n.sum(1, keepdims=True) / mean
    return n * (k1 + 1) / (n + k1 * (1 - b + b * length)) * idf


def plain_similarity(similarity, alpha, shrink, normalize):
    x = plain_values(similarity, 1.7, 0.4)
    sim = np.zeros((V, V))
    for i in range(1, V):
        for j in range(1, V):
            both = x[i] @ x[j]
            if i == j or both == 0:
                continue
            square_i, square_j = x[i] @ x[i], x[j] @ x[j]
            below = 1.0
            if similarity == "jaccard":
                below = square_i + square_j - both + shrink
            elif similarity == "asymmetric":
                below = square_i**alpha * square_j ** (1 - alpha) + shrink
            elif similarity != "bm25" and normalize:
                below = np.sqrt(square_i * square_j) + shrink
            sim[i, j] = both / below
    return sim


def nearest(sim, k):
    """Only the k largest of every row, of equal ones those of the lower items."""
    kept = np.zeros_like(sim)
    for i, row in enumerate(sim):
        best = sorted(range(V), key=lambda j: (-row[j], j))[:k]
        kept[i, best] = row[best]
    return kept


CASES = [
    {"similarity": "cosine"},
    {"similarity": "cosine", "shrink": 2.0},
    {"similarity": "cosine", "normalize": False},
    {"similarity": "asymmetric", "alpha": 0.8, "shrink": 0.5},
    {"similarity": "jaccard"},
    {"similarity": "tf_idf"},
    {"similarity": "bm25"},
]


@pytest.mark.parametrize("options", CASES, ids=str)
def test_item_similarities(options, monkeypatch):
    monkeypatch.setattr(co_occurrence, "BLOCK", 4 * V)
    more = {"neighbors": 5, "decay": 0.6, "popularity": 0.0, "bm25_k1": 1.7, "bm25_b": 0.4}
    model = fitted(ItemKNN(SCHEMA, **more, **options))
    sim = plain_similarity(**{"alpha": 0.5, "shrink": 0.0, "normalize": True, **options})
    kept = nearest(sim, 5)
    expected = np.zeros((len(HISTORIES), V))
    for row, history in zip(expected, HISTORIES, strict=True):
        for age, item in enumerate(reversed(history)):
            row += 0.6**age * kept[item]
    check(model, expected[:, 1:])


def test_similarities_of_a_model_on_a_device_are_those_of_the_cpu():
    near, far = (ItemKNN(SCHEMA, similarity="tf_idf", neighbors=5) for _ in range(2))
    near.fit_pass(STORE)
    with pretend():
        far = far.to(DEVICE)
        far.fit_pass(STORE.to(DEVICE))
        torch.testing.assert_close(values(far.similarity_Vn), near.similarity_Vn)


def test_events_are_counted_where_values_depend_on_them():
    repeated = Counter(zip(STORE.train.user.tolist(), STORE.train.item.tolist(), strict=True))
    assert max(repeated.values()) > 1


def ials_objective(x, y, weight, regularization, exponent):
    seen = counts() > 0
    s = x @ y.T
    loss = ((s - 1) ** 2 * seen).sum() + weight * (s**2)[:, 1:].sum()
    r_user = regularization * (seen.sum(1) + weight * SCHEMA.n_items) ** exponent
    r_item = regularization * (seen.sum(0) + weight * SCHEMA.n_users) ** exponent
    return loss + r_user @ (x**2).sum(1) + r_item @ (y**2).sum(1)


def ials_rows(fixed, seen, weight, penalty):
    """The best vectors of all rows."""
    rows = []
    for row, r in zip(seen, penalty, strict=True):
        matrix = weight * fixed.T @ fixed + (fixed[row].T @ fixed[row]) + r * np.eye(fixed.shape[1])
        rows.append(np.linalg.solve(matrix, fixed[row].sum(0)))
    return np.stack(rows)


@pytest.mark.parametrize("n_factors", [2, 20])  # rows with more, and with fewer pairs than factors
@pytest.mark.parametrize("exponent", [0.0, 1.0])
@pytest.mark.parametrize("double", [False, True])
def test_ials_solves_its_normal_equations(n_factors, exponent, double):
    torch.manual_seed(0)
    weight, regularization = 0.3, 0.02
    options = {"unobserved_weight": weight, "regularization": regularization}
    model = IALS(
        SCHEMA, n_factors=n_factors, frequency_exponent=exponent, solver="exact", **options
    )
    model = model.double() if double else model
    y = model.item_VD.double().numpy().copy()
    reported = model.fit_pass(STORE)["objective"]
    seen = counts() > 0
    penalty = regularization * (seen.sum(1) + weight * SCHEMA.n_items) ** exponent
    x = ials_rows(y, seen, weight, penalty)
    penalty = regularization * (seen.sum(0) + weight * SCHEMA.n_users) ** exponent
    y = ials_rows(x, seen.T, weight, penalty)
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if double else {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(model.user_UD.numpy(), x, **tolerance)
    np.testing.assert_allclose(model.item_VD.numpy(), y, **tolerance)
    reached = ials_objective(x, y, weight, regularization, exponent)
    assert reported == pytest.approx(reached, rel=1e-9 if double else 1e-5)


def test_ials_by_conjugate_gradient_reaches_the_exact_solution():
    reached = {}
    for solver, steps in (("exact", 1), ("cg", 30)):
        torch.manual_seed(0)
        model = IALS(SCHEMA, n_factors=6, solver=solver, cg_steps=steps).double()
        reached[solver] = [model.fit_pass(STORE)["objective"] for _ in range(3)]
    assert reached["cg"] == pytest.approx(reached["exact"], rel=1e-8)


def test_ials_without_frequencies_is_wmf():
    """With alpha = 1 / w, regularization r (1 + w) / w, and scores that are larger by 1 + w."""
    w, r = 0.25, 0.1
    options = {"unobserved_weight": w, "regularization": r, "frequency_exponent": 0.0}
    ials = IALS(SCHEMA, n_factors=4, **options).double()
    wmf = WMF(SCHEMA, n_factors=4, alpha=1 / w, regularization=r * (1 + w) / w).double()
    wmf.counts_events = False
    wmf.item_VD.copy_(ials.item_VD * (1 + w) ** 0.5)
    for _ in range(3):
        ials.fit_pass(STORE)
        wmf.fit_pass(STORE)
    torch.testing.assert_close(wmf.score(QUERY), (1 + w) * ials.score(QUERY), rtol=1e-9, atol=1e-9)
