import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from recexp.errors import RecexpError
from recexp.evaluation import candidates
from recexp.evaluation.candidates import draw
from recexp.evaluation.metrics import RankingMetrics
from recexp.evaluation.ranks import candidate_ranks

NOTHING = np.zeros(0, np.int64)


def exclusions(users, n_items, per_user, seed):
    rng = np.random.default_rng(seed)
    user = np.repeat(users, per_user)
    return np.unique(user * (n_items + 1) + rng.integers(1, n_items + 1, len(user)))


def zipf(n_items):
    return np.append(
        99.0, 1 / np.arange(1, n_items + 1)
    )  # what stands at the padding's place is ignored


# (items, candidates): all by drawing; drawing, then a race for those with bad luck or many
# exclusions; all by race
SIZES = [(3000, 50), (300, 60), (80, 70)]
EXCLUDED = {3000: 40, 300: 150, 80: 8}


@pytest.mark.parametrize("weights", [None, zipf])
@pytest.mark.parametrize(("n_items", "n"), SIZES)
def test_candidates_are_distinct_allowed_items(n_items, n, weights):
    users = np.arange(5, 105)
    exclude = exclusions(users, n_items, EXCLUDED[n_items], seed=n)
    out = draw(users, exclude, n_items, n, 1, weights and weights(n_items))
    assert out.shape == (100, n)
    assert out.dtype == np.int32
    assert out.min() >= 1
    assert out.max() <= n_items
    assert all(len(set(row)) == n for row in out.tolist())
    assert not np.isin(users[:, None] * (n_items + 1) + out, exclude).any()


@pytest.mark.parametrize("weights", [None, zipf])
@pytest.mark.parametrize(("n_items", "n"), SIZES)
def test_a_users_candidates_depend_on_no_other_user(n_items, n, weights):
    users = np.arange(60) * 7
    weights = weights and weights(n_items)
    exclude = exclusions(users, n_items, EXCLUDED[n_items], seed=n)
    out = draw(users, exclude, n_items, n, 3, weights)
    assert np.array_equal(draw(users, exclude, n_items, n, 3, weights), out)
    assert np.array_equal(draw(users, exclude, n_items, n, 3, weights, chunk=1), out)
    order = np.random.default_rng(0).permutation(60)
    assert np.array_equal(
        draw(users[order], exclude, n_items, n, 3, weights, chunk=1000), out[order]
    )
    assert np.array_equal(
        draw(np.array([70, 14, 70]), exclude, n_items, n, 3, weights), out[[10, 2, 10]]
    )
    own = exclude[exclude // (n_items + 1) == 70]
    assert np.array_equal(draw(np.array([70]), own, n_items, n, 3, weights)[0], out[10])
    assert not np.array_equal(draw(users, exclude, n_items, n, 4, weights), out)
    assert len(np.unique(out, axis=0)) == 60


def test_the_draws_never_change():
    """All recorded metrics with sampled candidates depend on them: after a change, new results
    cannot be compared with old ones.
    """
    assert draw(np.array([0, 1, 10**12]), NOTHING, 1000, 5, 2024).tolist() == [
        [258, 943, 4, 328, 841],
        [937, 302, 558, 823, 440],
        [800, 418, 368, 443, 178],
    ]
    assert draw(np.array([0, 1]), NOTHING, 1000, 5, 2024, zipf(1000)).tolist() == [
        [4, 650, 1, 7, 303],
        [624, 5, 36, 264, 15],
    ]
    assert draw(np.array([0, 1]), NOTHING, 6, 5, 2024).tolist() == [
        [1, 3, 2, 5, 6],
        [5, 3, 1, 4, 6],
    ]
    assert draw(NOTHING, NOTHING, 1000, 5, 2024).shape == (0, 5)


@pytest.mark.parametrize(("n_items", "n"), [(100, 3), (12, 9)])  # by drawing, by race
def test_without_weights_every_item_is_as_likely_in_every_place(n_items, n):
    users = np.arange(20_000)
    out = draw(users, NOTHING, n_items, n, 11)
    for column in (0, n - 1):
        count = np.bincount(out[:, column], minlength=n_items + 1)[1:]
        assert 1e-4 < stats.chisquare(count).pvalue < 1 - 1e-4


def successive(weights, excluded=()):
    """Probability of every ordered pair under successive sampling, [items, items]."""
    w = weights[1:].copy()
    w[[i - 1 for i in excluded]] = 0
    p = w / w.sum()
    pair = p[:, None] * w[None, :] / (w.sum() - w)[:, None]
    np.fill_diagonal(pair, 0)
    return pair


def test_weighted_draws_are_successive_sampling():
    users = np.arange(40_000)
    n_items = 60
    weights = zipf(n_items)
    exclude = users * (n_items + 1) + 2
    out = draw(users, exclude, n_items, 2, 5, weights)
    pair = successive(weights, excluded=[2])
    first = np.bincount(out[:, 0], minlength=n_items + 1)[1:] / len(users)
    np.testing.assert_array_less(
        np.abs(first - pair.sum(1)), 4.5 * np.sqrt(pair.sum(1) / len(users)) + 1e-12
    )
    second = np.bincount(out[:, 1], minlength=n_items + 1)[1:] / len(users)
    np.testing.assert_array_less(
        np.abs(second - pair.sum(0)), 4.5 * np.sqrt(pair.sum(0) / len(users)) + 1e-12
    )


def test_a_race_is_successive_sampling_too():
    users = np.arange(40_000)
    weights = np.array([0.0, 8, 4, 2, 1, 0])
    out = draw(users, NOTHING, 5, 4, 6, weights)
    pair = successive(weights)
    seen = np.zeros((5, 5))
    np.add.at(seen, (out[:, 0] - 1, out[:, 1] - 1), 1 / len(users))
    np.testing.assert_array_less(np.abs(seen - pair), 4.5 * np.sqrt(pair / len(users)) + 1e-12)


def test_draws_followed_by_a_race_are_successive_sampling(monkeypatch):
    """Five items are left, with a hundredth of the weight: the draws give most users some of three,
    and the race the rest.
    """
    missing = []
    race = candidates._Task.race

    def counting(task, rows, out):
        missing.extend((out[rows] == 0).sum(1))
        race(task, rows, out)

    monkeypatch.setattr(candidates._Task, "race", counting)
    users = np.arange(5000)
    n_items = 400
    weights = np.append([0.0, 8, 4, 2, 1, 1], np.full(n_items - 5, 4.0))
    exclude = (users[:, None] * (n_items + 1) + np.arange(6, n_items + 1)).ravel()
    out = draw(users, exclude, n_items, 3, 7, weights)
    by_race = np.bincount(missing, minlength=4) / len(users)
    assert (by_race[1:3] > 0.1).all()
    assert sum(by_race) < 0.95
    pair = successive(weights[:6])
    seen = np.zeros((5, 5))
    np.add.at(seen, (out[:, 0] - 1, out[:, 1] - 1), 1 / len(users))
    np.testing.assert_array_less(np.abs(seen - pair), 4.5 * np.sqrt(pair / len(users)) + 1e-12)
    w = weights[1:6]
    third = sum(
        pair[i, j] * np.where(np.isin(np.arange(5), [i, j]), 0, w) / (w.sum() - w[i] - w[j])
        for i in range(5)
        for j in range(5)
        if i != j
    )
    np.testing.assert_allclose(
        np.bincount(out[:, 2] - 1, minlength=5) / len(users),
        third,
        atol=4.5 * np.sqrt(0.25 / len(users)),
    )


@pytest.mark.parametrize("weights", [None, zipf])
def test_a_small_catalogue_is_used_up_exactly(weights):
    n_items = 20
    users = np.arange(300)
    exclude = users * (n_items + 1) + users % n_items + 1
    out = draw(users, exclude, n_items, n_items - 1, 2, weights and weights(n_items))
    for user, row in zip(users, out, strict=True):
        assert set(row.tolist()) == set(range(1, n_items + 1)) - {user % n_items + 1}


def test_items_without_weight_are_never_drawn():
    weights = np.tile([0.0, 1.0], 26)[:51]  # odd items only
    out = draw(np.arange(200), NOTHING, 50, 25, 0, weights)
    assert np.array_equal(np.sort(out, axis=1), np.tile(np.arange(1, 51, 2), (200, 1)))
    few = draw(np.arange(200), NOTHING, 50, 2, 0, weights)
    assert (few % 2 == 1).all()


def test_too_few_items_name_the_user_and_the_remedy():
    users = np.array([3, 8, 9])
    exclude = np.sort(np.concatenate([8 * 11 + np.arange(1, 8), 9 * 11 + np.arange(1, 6)]))
    with pytest.raises(
        RecexpError,
        match=r"user 8 has 3 items .* 6 are .*"
        r"\(2 of 3 users.*lower protocol.candidates.n to at most 3",
    ):
        draw(users, exclude, 10, 6, 0)
    with pytest.raises(RecexpError, match=r"user 8 has 2 items .*9 of 10 items can be drawn"):
        draw(users, exclude, 10, 3, 0, np.append(np.ones(10), 0))
    draw(users, exclude, 10, 3, 0)


def test_malformed_arguments_are_named():
    with pytest.raises(RecexpError, match="exclude is not sorted: key 2"):
        draw(np.array([1]), np.array([12, 15, 13]), 10, 2, 0)
    with pytest.raises(RecexpError, match=r"shape \(10,\).*\(11,\)"):
        draw(np.array([1]), NOTHING, 10, 2, 0, np.ones(10))
    with pytest.raises(RecexpError, match="weight nan of item 4"):
        draw(np.array([1]), NOTHING, 10, 2, 0, np.where(np.arange(11) == 4, np.nan, 1))
    with pytest.raises(RecexpError, match="all weights are 0"):
        draw(np.array([1]), NOTHING, 10, 2, 0, np.eye(11)[0])
    with pytest.raises(RecexpError, match=r"candidates\.n is 0"):
        draw(np.array([1]), NOTHING, 10, 0, 0)


def test_repeated_exclusions_and_padding_count_once_and_not_at_all():
    exclude = np.array([11, 12, 12, 12, 13])  # user 1: padding, item 1 three times, item 2
    out = draw(np.array([1, 2]), exclude, 10, 8, 0)
    assert set(out[0].tolist()) == set(range(3, 11))


@pytest.mark.skipif(
    "RECEXP_DATA" not in os.environ, reason="RECEXP_DATA does not name a folder with MovieLens 1M"
)
def test_popularity_on_movielens_lands_where_it_was_published():
    """POP under P3 has HR@10 .139 and NDCG@10 .063 in the BERT4Rec paper (arXiv:1904.06690),
    table 2. With uniform negatives HR@10 would be near .45.
    """
    user, item = np.loadtxt(
        Path(os.environ["RECEXP_DATA"]) / "ml-1m-sasrec-order" / "ml-1m.txt", dtype=np.int64
    ).T
    n_items = item.max()
    popularity = np.bincount(item, minlength=n_items + 1)
    last = np.append(user[1:] != user[:-1], True)
    negatives = draw(
        user[last],
        np.sort(user * (n_items + 1) + item),
        n_items,
        100,
        12345,
        popularity.astype(float),
    )
    ranked = np.column_stack([item[last], negatives])
    validation = np.append(last[1:], False)
    trained = np.bincount(item[~last & ~validation], minlength=n_items + 1)
    metric = RankingMetrics(ks=(10,))
    scores = torch.from_numpy(trained[ranked])
    metric.update(
        torch.from_numpy(user[last]), *candidate_ranks(scores), torch.full((len(scores),), 101)
    )
    values = metric.compute()
    assert values["users"] == 6040
    assert values["hr@10"] == pytest.approx(0.139, abs=0.012)
    assert values["ndcg@10"] == pytest.approx(0.063, abs=0.012)
