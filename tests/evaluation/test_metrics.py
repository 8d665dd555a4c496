import math
import pickle

import pytest
import torch
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMRR, RetrievalNormalizedDCG

from recexp.errors import RecexpError
from recexp.evaluation.metrics import RankingMetrics, expected_hr, expected_ndcg, mrr
from recexp.evaluation.ranks import candidate_ranks

POLICIES = {
    "expected": lambda better, tied: range(better + 1, better + tied + 2),
    "optimistic": lambda better, tied: [better + 1],
    "pessimistic": lambda better, tied: [better + tied + 1],
}


def all_ranks(n):
    """Every (better, tied) that n candidates, the target included, can give."""
    pairs = torch.tensor([(g, e) for g in range(n) for e in range(n - g)])
    return pairs[:, 0], pairs[:, 1]


def sample(users, n, seed, values=8):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, values, (users, n), generator=generator).float()
    better, tied = candidate_ranks(scores)
    return (
        torch.randperm(users * 3, generator=generator)[:users],
        better,
        tied,
        torch.full((users,), n),
    )


@pytest.mark.parametrize("ties", POLICIES)
def test_every_rank_against_its_definition(ties):
    n = 14
    better, tied = all_ranks(n)
    ranks = [POLICIES[ties](g, e) for g, e in zip(better.tolist(), tied.tolist(), strict=True)]

    def mean(gain):
        return torch.tensor(
            [sum(gain(r) for r in group) / len(group) for group in ranks], dtype=torch.float64
        )

    exact = {"rtol": 1e-14, "atol": 1e-15}
    for k in (1, 5, 13, 14, 40):
        torch.testing.assert_close(
            expected_hr(better, tied, k, ties), mean(lambda r, k=k: float(r <= k)), **exact
        )
        torch.testing.assert_close(
            expected_ndcg(better, tied, k, ties),
            mean(lambda r, k=k: (r <= k) / math.log2(r + 1)),
            **exact,
        )
    torch.testing.assert_close(mrr(better, tied, n, ties), mean(lambda r: 1 / r), **exact)


def test_ndcg_at_1_is_hr_at_1():
    better, tied = all_ranks(9)
    assert torch.equal(expected_ndcg(better, tied, 1), expected_hr(better, tied, 1))


def test_a_rank_without_ties_loses_no_digit():
    better = torch.tensor([999_999])
    assert mrr(better, torch.tensor([0]), 1_000_000).item() == 1 / 1_000_000


def test_torchmetrics_agrees_where_nothing_ties():
    users, n = 60, 30
    generator = torch.Generator().manual_seed(5)
    scores = torch.rand(users, n, generator=generator)
    assert all(len(row.unique()) == n for row in scores)
    metric = RankingMetrics(ks=(1, 5, 10))
    metric.update(torch.arange(users), *candidate_ranks(scores), torch.full((users,), n))
    ours = metric.compute()
    target = torch.zeros(users, n, dtype=torch.bool)
    target[:, 0] = True
    index = torch.arange(users)[:, None].expand(users, n)
    oracles = {"mrr": RetrievalMRR()}
    for k in (1, 5, 10):
        oracles |= {
            f"hr@{k}": RetrievalHitRate(top_k=k),
            f"ndcg@{k}": RetrievalNormalizedDCG(top_k=k),
        }
    for name, oracle in oracles.items():
        assert ours[name] == pytest.approx(
            oracle(scores.flatten(), target.flatten(), indexes=index.flatten()).item(), abs=1e-6
        )
    assert ours["users"] == users
    assert set(ours) == {*oracles, "users"}


@pytest.mark.parametrize(
    ("ties", "hr"), [("expected", 10 / 101), ("pessimistic", 0.0), ("optimistic", 1.0)]
)
def test_a_constant_scorer_gets_what_the_tie_policy_says(ties, hr):
    metric = RankingMetrics(ks=(10,), ties=ties)
    metric.update(
        torch.arange(7), *candidate_ranks(torch.full((7, 101), 0.3)), torch.full((7,), 101)
    )
    assert metric.compute()["hr@10"] == hr


@pytest.mark.parametrize(("n", "chance"), [(1000, 0.010), (101, 10 / 101), (100, 0.10)])
def test_a_random_scorer_is_at_chance(n, chance):
    users = 5000
    generator = torch.Generator().manual_seed(n)
    metric = RankingMetrics(ks=(10,))
    for first in range(0, users, 1000):
        scores = torch.rand(1000, n, generator=generator)
        metric.update(
            torch.arange(first, first + 1000), *candidate_ranks(scores), torch.full((1000,), n)
        )
    values = metric.compute()
    assert abs(values["hr@10"] - chance) < 3 * math.sqrt(chance * (1 - chance) / users)
    assert values["mrr"] == pytest.approx(sum(1 / r for r in range(1, n + 1)) / n, rel=0.15)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")  # the states are filled by hand
def test_any_split_into_batches_and_processes_gives_the_same_digits():
    users, n = 997, 50
    columns = sample(users, n, seed=6)
    group = torch.arange(users) % 3 == 0
    whole = RankingMetrics()
    whole.update(*columns, group)
    shards = []
    for part in (torch.arange(0, users, 2), torch.arange(1, users, 2)):
        shards.append(RankingMetrics())
        for rows in part.split(100):
            shards[-1].update(*(column[rows] for column in columns), group[rows])
    merged = RankingMetrics()
    for shard in reversed(shards):
        for state in merged.metric_state:
            getattr(merged, state).extend(getattr(shard, state))
    assert merged.compute() == whole.compute()
    for name, value in whole.ranks().items():
        assert torch.equal(merged.ranks()[name], value)


def test_gathering_from_a_process_without_users():
    columns = sample(20, 10, seed=7)
    alone = RankingMetrics()
    alone.update(*columns)

    def gather(mine, group=None):
        assert (
            mine.dtype == torch.int64
        )  # processes must agree on it, also one whose shard is empty
        return [next(others), mine]

    empty = RankingMetrics(dist_sync_fn=gather, distributed_available_fn=lambda: True)
    others = iter([*columns, torch.full((20,), -1)])
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        assert empty.compute() == alone.compute()
    others = iter([*columns, torch.full((20,), -1)])
    assert torch.equal(empty.ranks()["better"], alone.ranks()["better"])


def test_groups_are_metrics_of_their_members():
    columns = sample(200, 40, seed=8)
    seen = torch.arange(200) < 50
    metric = RankingMetrics(ks=(10,))
    metric.update(*columns, seen)
    values = metric.compute()
    assert (values["users"], values["users/seen"], values["users/new"]) == (200, 50, 150)
    for name, members in (("seen", seen), ("new", ~seen)):
        part = RankingMetrics(ks=(10,))
        part.update(*(column[members] for column in columns))
        for key, value in part.compute().items():
            assert values[f"{key}/{name}"] == value
    none = RankingMetrics(ks=(10,))
    none.update(*columns, torch.zeros(200, dtype=torch.bool))
    assert none.compute()["users/seen"] == 0
    assert "hr@10/seen" not in none.compute()


def test_kinds_of_targets_are_metrics_of_their_members():
    columns = sample(200, 40, seed=8)
    place = torch.arange(200)
    kinds = {"repeat": place < 30, "seen": (place >= 30) & (place < 80), "cold": place % 3 == 0}
    members = kinds | {"new": place >= 80, "warm": place % 3 != 0}
    metric = RankingMetrics(ks=(10,))
    metric.update(*columns, **kinds)
    values = metric.compute()
    for name, flags in members.items():
        part = RankingMetrics(ks=(10,))
        part.update(*(column[flags] for column in columns))
        for key, value in part.compute().items():
            assert values[f"{key}/{name}"] == value
    of_users = [values[f"users/{kind}"] for kind in ("repeat", "seen", "new")]
    assert sum(of_users) == values["users/cold"] + values["users/warm"] == 200


def test_kinds_that_do_not_occur_have_no_metrics():
    columns = sample(20, 40, seed=8)
    none = torch.zeros(20, dtype=torch.bool)
    metric = RankingMetrics(ks=(10,))
    metric.update(*columns, none, none, none)
    found = {name.partition("/")[2] for name in metric.compute()}
    assert found == {"", "seen", "new"}  # of "seen" the number of users, 0


def test_ranks_are_sorted_by_user_and_keep_their_types():
    user, better, tied, candidates = sample(30, 12, seed=9)
    metric = RankingMetrics()
    metric.update(user, better, tied, candidates)
    ranks = metric.ranks()
    assert list(ranks) == ["user", "better", "tied", "candidates"]
    assert torch.equal(ranks["user"], user.sort().values)
    assert torch.equal(ranks["better"], better[user.argsort()])
    metric.update(user + 1000, better, tied, candidates)  # reading does not disturb what follows
    assert metric.compute()["users"] == 60
    metric.reset()
    metric.update(user, better, tied, candidates, better > 3)
    assert metric.ranks()["group"].dtype == torch.bool
    assert torch.equal(
        pickle.loads(pickle.dumps(metric)).ranks()["group"], (better > 3)[user.argsort()]
    )


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_errors_for_people():
    metric = RankingMetrics()
    with pytest.raises(RecexpError, match="no user was evaluated"):
        metric.compute()
    one = (torch.tensor([0]), torch.tensor([0]), torch.tensor([3]))
    metric.update(torch.tensor([4]), *one)
    metric.update(torch.tensor([4]), *one)
    with pytest.raises(RecexpError, match="user 4 was evaluated more than once"):
        metric.compute()
    metric.reset()
    metric.update(torch.tensor([4]), *one)
    metric.update(torch.tensor([6]), *one, torch.tensor([True]))
    with pytest.raises(RecexpError, match="user 4 has no group"):
        metric.compute()
    metric.reset()
    metric.update(torch.tensor([4]), torch.tensor([2]), torch.tensor([1]), torch.tensor([3]))
    with pytest.raises(RecexpError, match="user 4 has 2 better and 1 tied among 3"):
        metric.compute()
    with pytest.raises(
        RecexpError, match=r"random.*choose one of expected, pessimistic, optimistic"
    ):
        RankingMetrics(ties="random")
    with pytest.raises(RecexpError, match="cut-offs"):
        RankingMetrics(ks=(0, 10))
