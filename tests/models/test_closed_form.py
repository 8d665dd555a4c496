"""Pop, item neighbors, replay and WMF against brute force."""

import copy
from collections import defaultdict
from itertools import pairwise

import numpy as np
import pytest
import torch

from recexp.errors import RecexpError
from recexp.models import item_knn
from recexp.models import wmf as wmf_module
from recexp.models.item_knn import ItemKNN
from recexp.models.pop import Pop
from recexp.models.replay import Replay
from recexp.models.wmf import WMF
from recexp.nn import least_squares
from recexp.testing import toy
from recexp.types import Schema
from tests.models.test_collaborative import QUERY, SCHEMA, STORE, events, random_store


def rows_of(store):
    train = store.train
    return list(zip(train.user.tolist(), train.item.tolist(), train.behavior.tolist(), strict=True))


def test_pop_counts_training_events():
    model = Pop(SCHEMA)
    model.fit_pass(STORE)
    model.fit_pass(STORE)  # sweeping again counts afresh
    items = [i for _, i, _ in rows_of(STORE)]
    assert model.score(QUERY)[2].tolist() == [items.count(i) for i in range(1, SCHEMA.V)]


@pytest.mark.parametrize("choice", [["buy"], "explicit", "strongest"])
def test_pop_of_chosen_behaviors(choice):
    model = Pop(SCHEMA, behaviors=choice)
    model.fit_pass(STORE)
    bought = [i for _, i, b in rows_of(STORE) if b == 2]
    assert model.score(QUERY)[0].tolist() == [bought.count(i) for i in range(1, SCHEMA.V)]


def brute_force_knn(
    rows,
    query,
    *,
    window,
    neighbors,
    max_len,
    decay,
    history_damping,
    item_damping,
    popularity,
    directed,
    codes,
):
    rows = [r for r in rows if r[2] in codes]
    count = defaultdict(int)
    cov = defaultdict(float)
    for _, i, _ in rows:
        count[i] += 1
    for s, (u, i, _) in enumerate(rows):
        for t in range(s + 1, min(s + window + 1, len(rows))):
            v, j, _ = rows[t]
            if u == v and i != j:
                cov[i, j] += 1 / (t - s)
                if not directed:
                    cov[j, i] += 1 / (t - s)
    similar = defaultdict(list)
    for (i, j), c in cov.items():
        similar[i].append((-c / (count[i] ** history_damping * count[j] ** item_damping), j))
    kept = {i: sorted(js)[:neighbors] for i, js in similar.items()}
    most = max(count.values())
    scores = []
    for items, behaviors in zip(query.item_BL.tolist(), query.behavior_BL.tolist(), strict=True):
        s = [popularity * count[c] / most for c in range(SCHEMA.V)]
        window_of_history = list(zip(items, behaviors, strict=True))[-max_len:]
        past = [i for i, b in window_of_history if i != 0 and b in codes]
        for age, h in enumerate(reversed(past)):
            for negative_sim, j in kept.get(h, []):
                s[j] += decay**age * -negative_sim
        scores.append(s[1:])
    return torch.tensor(scores, dtype=torch.float64)


KNOBS = dict(
    window=3,
    neighbors=4,
    max_len=5,
    decay=0.7,
    history_damping=0.4,
    item_damping=0.8,
    popularity=0.01,
    directed=False,
)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"directed": True},
        {"window": 100},
        {"neighbors": 50, "window": 1},
        {"behaviors": ["view"]},
        {"decay": 1.0, "max_len": 2},
    ],
)
@pytest.mark.parametrize("block", [1, 1 << 20])
def test_item_knn_against_loops(changed, block, monkeypatch):
    monkeypatch.setattr(item_knn, "_BLOCK", block)
    store = random_store(n_events=150, seed=3)
    model = ItemKNN(SCHEMA, **{**KNOBS, **changed}).double()
    model.fit_pass(store)
    plain = {k: v for k, v in {**KNOBS, **changed}.items() if k != "behaviors"}
    expected = brute_force_knn(
        rows_of(store), QUERY, codes=[1] if "behaviors" in changed else [1, 2], **plain
    )
    torch.testing.assert_close(model.score(QUERY), expected, rtol=1e-10, atol=1e-12)


def test_item_knn_of_a_single_event():
    model = ItemKNN(SCHEMA)
    model.fit_pass(events([(0, 3, 1)], SCHEMA.n_users))
    assert model.score(QUERY)[0].argmax() == 2  # only popularity decides


def test_item_knn_does_not_overflow_large_item_ids():
    # int32 ids multiplied by the number of items pass 2^31 from about 46 000 items on
    big = Schema(2, 100_000, ("view",), (False,))
    model = ItemKNN(big, neighbors=2)
    model.fit_pass(events([(0, 99_998, 1), (0, 99_999, 1), (1, 5, 1)], 2))
    score = model.score(toy.query([0], [[99_999]]))
    assert score[0].argmax() == 99_998 - 1


def test_replay_offers_open_items_latest_first_then_the_popular():
    model = Replay(SCHEMA, max_len=5)
    model.fit_pass(events([(0, i, 1) for i in [9, 9, 9, 8, 8, 2, 1]], SCHEMA.n_users))
    query = toy.query([0], [[10, 1, 2, 3, 2, 4]])  # item 10 lies before the window
    query.behavior_BL = torch.tensor([[1, 1, 1, 1, 1, 1]])
    assert model.score(query)[0].argsort(descending=True)[:6].tolist() == [3, 1, 2, 0, 8, 7]
    query.behavior_BL = torch.tensor(
        [[1, 1, 2, 1, 1, 2]]
    )  # 2 and 4 were bought, 2 before being viewed again
    order = model.score(query)[0].argsort(descending=True)[:5].tolist()
    assert order == [2, 0, 8, 7, 1]


def test_replay_without_a_weaker_behavior_is_popularity():
    one = Schema(toy.N_USERS, toy.N_ITEMS, ("rating",), (True,))
    model, pop = Replay(one), Pop(one)
    query = toy.query([0], [[1, 2, 3]])
    query.behavior_BL = torch.ones_like(query.item_BL)
    for m in (model, pop):
        m.fit_pass(STORE)
    assert torch.equal(
        model.score(query).argsort(stable=True), pop.score(query).argsort(stable=True)
    )


def dense(store, codes=(1, 2)):
    count = np.zeros((SCHEMA.n_users, SCHEMA.V))
    for u, i, b in rows_of(store):
        count[u, i] += b in codes
    return count


def objective(count, x, y, alpha, regularization):
    c, p = 1 + alpha * count, count > 0
    return (c * (p - x @ y.T) ** 2).sum() + regularization * ((x**2).sum() + (y**2).sum())


@pytest.mark.parametrize("block", [1, 12, 1 << 25])
@pytest.mark.parametrize("behaviors", [None, "strongest"])
def test_wmf_solves_the_normal_equations_exactly(block, behaviors, monkeypatch):
    monkeypatch.setattr(least_squares, "BLOCK", block)
    torch.manual_seed(0)
    d, alpha, reg = 3, 5.0, 0.2
    model = WMF(SCHEMA, n_factors=d, alpha=alpha, regularization=reg, behaviors=behaviors).double()
    count = dense(STORE, (2,) if behaviors else (1, 2))
    y = model.item_VD.numpy().copy()
    reported = model.fit_pass(STORE)["objective"]
    x = np.stack(
        [
            np.linalg.solve(
                y.T @ np.diag(1 + alpha * r) @ y + reg * np.eye(d),
                y.T @ ((1 + alpha * r) * (r > 0)),
            )
            for r in count
        ]
    )
    np.testing.assert_allclose(model.user_UD.numpy(), x, rtol=1e-8, atol=1e-10)
    y = np.stack(
        [
            np.linalg.solve(
                x.T @ np.diag(1 + alpha * r) @ x + reg * np.eye(d),
                x.T @ ((1 + alpha * r) * (r > 0)),
            )
            for r in count.T
        ]
    )
    np.testing.assert_allclose(model.item_VD.numpy(), y, rtol=1e-8, atol=1e-10)
    assert reported == pytest.approx(objective(count, x, y, alpha, reg), rel=1e-8)


@pytest.mark.parametrize("solver", ["exact", "cg"])
def test_wmf_objective_falls_with_every_sweep(solver):
    torch.manual_seed(0)
    model = WMF(SCHEMA, n_factors=3, solver=solver).double()
    reached = [model.fit_pass(STORE)["objective"] for _ in range(8)]
    assert all(b <= a + 1e-9 for a, b in pairwise(reached)) and reached[-1] < reached[0]


def test_wmf_in_single_precision_survives_large_confidence():
    torch.manual_seed(0)
    model = WMF(SCHEMA, n_factors=8, alpha=1e4, regularization=1e-3)
    for _ in range(5):
        model.fit_pass(STORE)
    assert model.score(QUERY).isfinite().all()
    best = model.score(toy.query([0], [[]])).argsort(descending=True)[0].tolist()
    liked = {i - 1 for u, i, _ in rows_of(STORE) if u == 0}
    assert set(best[: len(liked)]) == liked


WIDE = Schema(60, 50, ("view", "buy"), (False, True))


def wide_store(n_events=900):
    """Users with fewer and with more items than factors, pairs with several events, and a user
    and an item without any.
    """
    g = torch.Generator().manual_seed(5)
    user = (59 * torch.rand(n_events, generator=g) ** 2).long()
    item = 1 + (49 * torch.rand(n_events, generator=g) ** 2).long()
    return events(torch.stack([user, item, torch.ones_like(user)], 1).tolist(), WIDE.n_users)


def wide_count(store):
    count = np.zeros((WIDE.n_users, WIDE.V))
    np.add.at(count, (store.train.user.numpy(), store.train.item.numpy()), 1)
    lengths = (count > 0).sum(1)
    assert lengths.min() == 0 and np.sort(lengths)[1] < 16 < lengths.max() and count.max() > 1
    return count


def normal_equations(y, count_S, alpha, regularization):
    """Matrix, right-hand side and the part of the matrix that all rows share."""
    shared = y.T @ y + regularization * np.eye(y.shape[1])
    matrix = shared + (y.T * (alpha * count_S)) @ y
    return matrix, y.T @ ((1 + alpha * count_S) * (count_S > 0)), shared


@pytest.mark.parametrize("n_factors", [4, 16])
@pytest.mark.parametrize("alpha", [0.5, 40.0, 1e7])
def test_wmf_in_single_precision_equals_a_plain_solve_in_double(n_factors, alpha):
    torch.manual_seed(1)
    store = wide_store()
    model = WMF(WIDE, n_factors=n_factors, alpha=alpha, solver="exact")
    y = model.item_VD.double().numpy().copy()
    reported = model.fit_pass(store)["objective"]
    count = wide_count(store)
    x = np.stack([np.linalg.solve(*normal_equations(y, row, alpha, 0.1)[:2]) for row in count])
    error = np.linalg.norm(model.user_UD.double().numpy() - x, axis=1)
    assert (error <= 1e-5 * np.linalg.norm(x, axis=1)).all()
    assert (x[count.sum(1) == 0] == 0).all()
    reached = objective(
        count, model.user_UD.double().numpy(), model.item_VD.double().numpy(), alpha, 0.1
    )
    assert reported == pytest.approx(reached, rel=1e-4 if alpha == 1e7 else 1e-6)


def test_wmf_solves_in_double_where_single_precision_has_no_bound(monkeypatch):
    """At alpha=1e7 the bound asks for double precision; without it the vectors are wrong."""
    torch.manual_seed(1)
    store = wide_store()
    models = [WMF(WIDE, n_factors=16, alpha=1e7, solver="exact") for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    models[0].fit_pass(store)
    monkeypatch.setattr(least_squares, "MAX_SINGLE", float("inf"))
    models[1].fit_pass(store)
    apart = (models[0].user_UD - models[1].user_UD).norm() / models[0].user_UD.norm()
    assert apart > 1e-3


@pytest.mark.parametrize("n_threads", [2, 3])
def test_wmf_does_not_depend_on_the_number_of_threads(n_threads, monkeypatch):
    monkeypatch.setattr(least_squares, "BLOCK", 1 << 10)  # many batches
    torch.manual_seed(1)
    models = [WMF(WIDE, n_factors=16, solver="exact") for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    reached = [models[0].fit_pass(wide_store())]
    torch.set_num_threads(n_threads)
    try:
        reached.append(models[1].fit_pass(wide_store()))
        assert torch.get_num_threads() == n_threads
    finally:
        torch.set_num_threads(1)
    assert reached[0] == reached[1]
    assert torch.equal(models[0].user_UD, models[1].user_UD)
    assert torch.equal(models[0].item_VD, models[1].item_VD)


def test_wmf_stays_finite_where_no_factorization_by_cholesky_exists(monkeypatch):
    """Confidence so large that 1 is lost beside it, even in double precision."""
    failures = []
    factorize = torch.linalg.cholesky_ex

    def observed(matrix):
        lower, failed = factorize(matrix)
        failures.append(bool(failed.any()))
        return lower, failed

    monkeypatch.setattr(torch.linalg, "cholesky_ex", observed)
    torch.manual_seed(1)
    model = WMF(WIDE, n_factors=16, alpha=1e20, solver="exact")
    model.fit_pass(wide_store())
    assert any(failures)
    assert model.user_UD.isfinite().all() and model.item_VD.isfinite().all()


def plain_conjugate_gradient(matrix, right, preconditioner, x, n_steps):
    """Shewchuk 1994, "An introduction to the conjugate gradient method", B3."""
    residual = right - matrix @ x
    direction = np.linalg.solve(preconditioner, residual)
    delta = residual @ direction
    for _ in range(n_steps):
        image = matrix @ direction
        size = delta / (direction @ image)
        x = x + size * direction
        residual = residual - size * image
        improved = np.linalg.solve(preconditioner, residual)
        before, delta = delta, residual @ improved
        direction = improved + delta / before * direction
    return x


@pytest.mark.parametrize("block", [1, 200, 1 << 22])
def test_wmf_takes_the_steps_of_a_plain_conjugate_gradient(block, monkeypatch):
    monkeypatch.setattr(least_squares, "CG_BLOCK", block)
    torch.manual_seed(2)
    store, alpha = wide_store(), 3.0
    model = WMF(WIDE, n_factors=8, alpha=alpha, solver="cg", cg_steps=2).double()
    count = wide_count(store)
    for _ in range(2):  # the second pass starts from the first one's vectors
        x, y = model.user_UD.numpy().copy(), model.item_VD.numpy().copy()
        reported = model.fit_pass(store)["objective"]
        for fixed, moved, found, counts in (
            (y, x, model.user_UD.numpy(), count),
            (model.user_UD.numpy(), y, model.item_VD.numpy(), count.T),
        ):
            for row in np.flatnonzero(counts.sum(1)):
                matrix, right, shared = normal_equations(fixed, counts[row], alpha, 0.1)
                expected = plain_conjugate_gradient(matrix, right, shared, moved[row], 2)
                np.testing.assert_allclose(found[row], expected, rtol=1e-8, atol=1e-10)
            assert (found[counts.sum(1) == 0] == 0).all()
    reached = objective(count, model.user_UD.numpy(), model.item_VD.numpy(), alpha, 0.1)
    assert reported == pytest.approx(reached, rel=1e-8)


def test_wmf_by_conjugate_gradient_reaches_the_objective_of_the_exact_solver():
    reached = {}
    for solver in ("exact", "cg"):
        torch.manual_seed(3)
        model = WMF(WIDE, n_factors=16, solver=solver)
        reached[solver] = [model.fit_pass(wide_store())["objective"] for _ in range(12)]
    assert reached["cg"][-1] == pytest.approx(reached["exact"][-1], rel=0.01)
    assert reached["cg"] != reached["exact"]


def test_wmf_chooses_conjugate_gradient_for_passes_above_the_limit(monkeypatch):
    def first_pass(solver):
        torch.manual_seed(3)
        return WMF(WIDE, n_factors=16, solver=solver).fit_pass(store)["objective"]

    store = wide_store()
    assert first_pass("auto") == first_pass("exact") != first_pass("cg")
    n_pairs = int((wide_count(store) > 0).sum())
    flops = 4 * n_pairs * 16**2 + (60 + 51) * 2 * 16**3 / 3
    monkeypatch.setattr(wmf_module, "MAX_EXACT_FLOPS", flops)
    assert first_pass("auto") == first_pass("exact")
    monkeypatch.setattr(wmf_module, "MAX_EXACT_FLOPS", flops - 1)
    assert first_pass("auto") == first_pass("cg")


def test_wmf_names_the_solvers():
    with pytest.raises(RecexpError, match="solver='lu' is not one of auto, exact, cg"):
        WMF(SCHEMA, solver="lu")
    with pytest.raises(RecexpError, match="cg_steps"):
        WMF(SCHEMA, cg_steps=0)


def test_wmf_takes_the_pairs_of_each_store_it_is_fitted_to():
    stores = wide_store(), wide_store(300)
    torch.manual_seed(4)
    model = WMF(WIDE, n_factors=4)
    start = copy.deepcopy(model)
    for store in (*stores, stores[0]):
        again = copy.deepcopy(start)
        model.load_state_dict(start.state_dict())
        assert model.fit_pass(store) == again.fit_pass(store)
