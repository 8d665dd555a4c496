"""Pairs of a positive and what it should beat, against loops; branches learn only from their
behavior.
"""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from recexp.errors import RecexpError
from recexp.models.mmlp import MMLP
from recexp.objectives.pairwise import Pairwise
from recexp.objectives.samplers import InBatch, SupportiveOnly, Uniform
from recexp.testing import worlds
from tests.support.stub_models import PairScores

BEHAVIORS = dict(behaviors=("click", "cart", "fav", "buy"), explicit=(False, False, True, True))
STORE = worlds.random_store(n_users=14, **BEHAVIORS)
PAIRS = {
    (u, i): m
    for u, i, m in zip(
        STORE.train_pairs.user.tolist(),
        STORE.train_pairs.item.tolist(),
        STORE.train_pairs.mask.tolist(),
        strict=True,
    )
}


def level(user, item, levels=(1, 2, 3, 4)):
    mask = PAIRS.get((user, item), 0)
    return max([levels[t] for t in range(4) if mask >> t & 1], default=0)


def objective(sampler=None, store=STORE, **options):
    task = Pairwise(sampler or Uniform(), **options)
    model = PairScores(store.schema.n_users, store.schema.V)
    task.bind(model, store)
    return task, model


def batch_of(task, store=STORE, rows=None, seed=0):
    return task.batch(
        store, task.rows(store) if rows is None else rows, torch.Generator().manual_seed(seed)
    )


@pytest.mark.parametrize(
    ("positives", "codes"), [("any", {1, 2, 3, 4}), ("explicit", {3, 4}), ("strongest", {4})]
)
def test_positives_are_the_events_of_the_wanted_strength(positives, codes):
    task, _ = objective(positives=positives)
    rows = [r for r, b in enumerate(STORE.train.behavior.tolist()) if b in codes]
    assert task.rows(STORE).tolist() == rows
    assert torch.equal(batch_of(task).positive_B, STORE.train.item[rows].long())


def test_uniform_negatives_are_items_the_user_has_not():
    batch = batch_of(objective(n_negatives=5)[0])
    assert batch.negative_Bn.shape == (len(STORE.train), 5)
    assert all(
        level(u, i) == 0
        for u, row in zip(batch.query.user_B.tolist(), batch.negative_Bn.tolist(), strict=True)
        for i in row
    )


def test_supportive_negatives_were_met_only_through_weaker_behaviors():
    batch = batch_of(objective(SupportiveOnly(), positives="strongest", n_negatives=4)[0])
    for user, row in zip(batch.query.user_B.tolist(), batch.negative_Bn.tolist(), strict=True):
        some = any(u == user and not m >> 3 & 1 for (u, _), m in PAIRS.items())
        assert all((0 < level(user, i) < 4) if some else level(user, i) == 0 for i in row)


def test_in_batch_negatives_are_the_other_rows_positives():
    batch = batch_of(objective(InBatch(), n_negatives=6)[0])
    positives = set(batch.positive_B.tolist())
    for user, row in zip(batch.query.user_B.tolist(), batch.negative_Bn.tolist(), strict=True):
        assert all(i in positives and level(user, i) == 0 for i in row)


@pytest.mark.parametrize("levels", [None, [1, 2, 2, 3]])
def test_level_ordered_pairs_always_rank_a_stronger_pair_above_a_weaker_one(levels):
    task, _ = objective(pairs="levels", levels=levels, n_negatives=8)
    batch = batch_of(task)
    of = levels or (1, 2, 3, 4)
    seen = Counter()
    for user, positive, row in zip(
        batch.query.user_B.tolist(),
        batch.positive_B.tolist(),
        batch.negative_Bn.tolist(),
        strict=True,
    ):
        for item in row:
            assert level(user, item, of) < level(user, positive, of)
            seen[level(user, item, of)] += 1
    assert set(seen) == set(range(max(of)))


def test_lower_levels_that_the_user_has_are_equally_likely():
    rows = [
        (0, 1, 4),
        (0, 2, 1),
        (0, 3, 1),
        (0, 4, 1),
        (0, 5, 3),
    ]  # bought 1; clicked 2, 3, 4; favorite 5
    store = worlds.store(rows, n_users=1, n_items=40, **BEHAVIORS)
    task, _ = objective(store=store, pairs="levels", n_negatives=6000)
    count = Counter(batch_of(task, store, rows=torch.tensor([0])).negative_Bn[0].tolist())
    for share in (
        count[5],
        count[2] + count[3] + count[4],
        sum(n for i, n in count.items() if i > 5),
    ):
        assert share == pytest.approx(2000, abs=150)  # four standard deviations
    assert count[2] == pytest.approx(667, abs=100)


def test_loss_is_the_mean_of_log_sigmoids():
    task, model = objective(n_negatives=3, l2=0.1)
    batch = batch_of(task)
    terms = []
    for user, positive, row in zip(
        batch.query.user_B.tolist(),
        batch.positive_B.tolist(),
        batch.negative_Bn.tolist(),
        strict=True,
    ):
        terms += [
            -F.logsigmoid(model.table[user, positive, 0] - model.table[user, i, 0]) for i in row
        ]
    looked_up = torch.cat([batch.positive_B[:, None], batch.negative_Bn], 1)
    expected = torch.stack(terms).mean() + 0.1 * model.penalty(batch.query, looked_up)
    assert task.losses(model, batch)["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("pairs", ["sampler", "levels"])
def test_shuffled_targets_say_nothing_about_the_user(pairs):
    task, plain = (
        objective(pairs=pairs, shuffle_targets=x, n_negatives=6)[0] for x in (True, False)
    )
    batch = batch_of(task)
    assert torch.equal(batch.query.user_B, batch_of(plain).query.user_B)
    users = batch.query.user_B.tolist()
    own_positive = [level(u, i) > 0 for u, i in zip(users, batch.positive_B.tolist(), strict=True)]
    own_negative = [
        level(u, i) > 0
        for u, row in zip(users, batch.negative_Bn.tolist(), strict=True)
        for i in row
    ]
    assert sum(own_positive) < 0.6 * len(own_positive)
    assert sum(own_negative) > 0.1 * len(own_negative)


def test_branches_learn_only_where_the_user_showed_their_behavior():
    torch.manual_seed(0)
    model = MMLP(STORE.schema, init_std=0.5).double()
    task = Pairwise(SupportiveOnly(), positives="strongest", n_negatives=2)
    task.bind(model, STORE)
    batch = batch_of(task)
    items = torch.cat([batch.positive_B[:, None], batch.negative_Bn], 1)
    for user, row, did in zip(
        batch.query.user_B.tolist(), items.tolist(), batch.did_BCT.tolist(), strict=True
    ):
        assert did == [[bool(PAIRS.get((user, i), 0) >> t & 1) for t in range(4)] for i in row]
    score = model.score(batch.query, items)
    assert task.losses(model, batch)["loss"].item() == pytest.approx(
        -F.logsigmoid(score[:, :1] - score[:, 1:]).mean().item(), rel=1e-9
    )
    met = sum(
        PAIRS.get((user, i), 0) > 0
        for user, row in zip(batch.query.user_B.tolist(), batch.negative_Bn.tolist(), strict=True)
        for i in row
    )
    assert float(task.losses(model, batch)["negatives_met"]) == pytest.approx(
        met / batch.negative_Bn.numel()
    )
    batch.did_BCT[..., 1] = False
    task.losses(model, batch)["loss"].backward()
    grads = [
        sum(float(p.grad.abs().sum()) for p in branch.parameters()) for branch in model.branches
    ]
    assert grads[1] == 0 and min(grads[0], grads[2], grads[3]) > 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (dict(positives="best"), "positives"),
        (dict(pairs="ordered"), "pairs"),
        (dict(n_negatives=0), "n_negatives"),
        (dict(pairs="levels", levels=[1, 2]), "objective.levels"),
    ],
)
def test_wrong_options_are_named(options, text):
    with pytest.raises(RecexpError, match=text):
        objective(**options)


def test_no_event_of_the_wanted_strength_is_an_error():
    store = worlds.random_store(behaviors=("click",), explicit=(False,))
    with pytest.raises(RecexpError, match="positives=explicit"):
        objective(store=store, positives="explicit")
