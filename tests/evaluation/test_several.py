"""Metrics of several targets per user, against all orders of the ties and against torchmetrics."""

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_auroc
from torchmetrics.functional.retrieval import (
    retrieval_average_precision,
    retrieval_hit_rate,
    retrieval_normalized_dcg,
    retrieval_precision,
    retrieval_recall,
    retrieval_reciprocal_rank,
)

from recexp.errors import RecexpError
from recexp.evaluation.metrics import METRICS_AT_K, RankingMetrics, metric_at_k
from recexp.evaluation.ranks import candidate_ranks_of_several, full_ranks_of_several
from recexp.evaluation.several import SEVERAL_AT_K, SEVERAL_WITHOUT_CUTOFF, TargetLists

KS = (1, 2, 3, 5, 10)


def of_order(is_target: list[bool]) -> dict[str, float]:
    """Every metric of one list in its order, from the definitions."""
    ranks = [place + 1 for place, target in enumerate(is_target) if target]
    n_targets = len(ranks)
    others = [place + 1 for place, target in enumerate(is_target) if not target]
    values = {"mrr": 1 / ranks[0], "auc": 0.5}
    if others:
        right = sum(rank < other for rank in ranks for other in others)
        values["auc"] = right / (n_targets * len(others))
    for k in KS:
        found = [rank for rank in ranks if rank <= k]
        ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(n_targets, k) + 1))
        precisions = [(number + 1) / rank for number, rank in enumerate(found)]
        values |= {
            f"hr@{k}": float(bool(found)),
            f"recall@{k}": len(found) / n_targets,
            f"precision@{k}": len(found) / k,
            f"ndcg@{k}": sum(1 / math.log2(rank + 1) for rank in found) / ideal,
            f"map@{k}": sum(precisions) / min(n_targets, k),
        }
    return values


def orders(scores: list[int], is_target: list[bool], ties: str) -> list[list[bool]]:
    """The flags of the items in every order of the list that the tie policy allows."""
    found = []
    for order in permutations(range(len(scores))):
        ranked = [scores[i] for i in order]
        flags = [is_target[i] for i in order]
        if ranked != sorted(ranked, reverse=True):
            continue
        wanted = {"optimistic": 1, "pessimistic": -1}.get(ties, 0)
        keys = [(-score, -wanted * flag) for score, flag in zip(ranked, flags, strict=True)]
        if keys == sorted(keys):
            found.append(flags)
    return found


def lists_of(users: list[tuple[list[int], list[bool]]], ties: str = "expected") -> TargetLists:
    """Ranks as evaluation counts them: better and tied items of the user's whole list."""
    rows = []
    for user, (scores, is_target) in enumerate(users):
        for score, target in zip(scores, is_target, strict=True):
            if target:
                better = sum(other > score for other in scores)
                rows.append((user, better, scores.count(score) - 1, len(scores)))
    return TargetLists.of(*np.array(rows).T, ties)


def computed(lists: TargetLists) -> dict[str, np.ndarray]:
    values = {f"{name}@{k}": f(lists, k) for name, f in SEVERAL_AT_K.items() for k in KS}
    return values | {name: f(lists) for name, f in SEVERAL_WITHOUT_CUTOFF.items()}


@pytest.mark.parametrize("ties", ["expected", "optimistic", "pessimistic"])
def test_metrics_are_the_mean_over_all_orders_of_the_ties(ties):
    generator = np.random.default_rng(0)
    users = []
    for n_items in (1, 3, 5, 6, 6, 6):
        for n_levels in (1, 2, 3, 9):
            is_target = generator.random(n_items) < 0.5
            is_target[generator.integers(n_items)] = True
            users.append((generator.integers(0, n_levels, n_items).tolist(), is_target.tolist()))
    found = computed(lists_of(users, ties))
    for user, (scores, is_target) in enumerate(users):
        cases = [of_order(flags) for flags in orders(scores, is_target, ties)]
        for name, value_L in found.items():
            mean = sum(case[name] for case in cases) / len(cases)
            assert value_L[user] == pytest.approx(mean, abs=1e-12), (name, scores, is_target)


def test_torchmetrics_agrees_where_nothing_ties():
    generator = torch.Generator().manual_seed(1)
    n_users, n_items = 20, 40
    scores = torch.rand(n_users, n_items, generator=generator)
    is_target = torch.rand(n_users, n_items, generator=generator) < 0.15
    is_target[:, 3] = True
    row_M, column_M = is_target.nonzero(as_tuple=True)
    better, tied, candidates = full_ranks_of_several(scores, row_M, column_M + 1)
    lists = TargetLists.of(*(x.numpy() for x in (row_M, better, tied, candidates)))
    found = computed(lists)
    assert int(lists.n_targets_L.max()) > 5
    for user, (score, target) in enumerate(zip(scores, is_target, strict=True)):
        expected = {
            "mrr": retrieval_reciprocal_rank(score, target),
            "auc": binary_auroc(score, target.long()),
        }
        for k in KS:
            expected |= {
                f"hr@{k}": retrieval_hit_rate(score, target, top_k=k),
                f"recall@{k}": retrieval_recall(score, target, top_k=k),
                f"precision@{k}": retrieval_precision(score, target, top_k=k),
                f"ndcg@{k}": retrieval_normalized_dcg(score, target, top_k=k),
            }
            # torchmetrics divides by the targets found; ours by those that k places could hold.
            n_found = float(found[f"recall@{k}"][user] * target.sum())
            precision = retrieval_average_precision(score, target, top_k=k) * n_found
            expected[f"map@{k}"] = precision / min(k, int(target.sum()))
        for name, value in expected.items():
            assert found[name][user] == pytest.approx(float(value), abs=1e-6), name


def plain_ranks(score: torch.Tensor, items: list[int], ranked: list[int]) -> list[tuple[int, ...]]:
    """(better, tied, candidates) of each target among the ranked items of one row."""
    listed = sorted({*items, *ranked})
    return [
        (
            sum(bool(score[i - 1] > score[item - 1]) for i in listed),
            sum(bool(score[i - 1] == score[item - 1]) for i in listed) - 1,
            len(listed),
        )
        for item in items
    ]


@pytest.mark.parametrize("removes_seen", [False, True])
def test_full_ranks_of_several_against_counts(removes_seen):
    generator = torch.Generator().manual_seed(2)
    scores = torch.randint(0, 9, (7, 30), generator=generator).float()
    before = scores.clone()
    targets = [(torch.randperm(30, generator=generator)[: 1 + 3 * row % 8] + 1) for row in range(7)]
    row_M = torch.cat([torch.full((len(t),), row) for row, t in enumerate(targets)])
    seen = [torch.randint(1, 31, (6,), generator=generator).tolist() for _ in range(7)]
    seen[2].append(int(targets[2][0]))  # a target of the history is ranked all the same
    flat = None
    if removes_seen:
        rows = torch.cat([torch.full((len(s),), row) for row, s in enumerate(seen)])
        flat = rows, torch.tensor([item for s in seen for item in s])
    found = full_ranks_of_several(scores, row_M, torch.cat(targets), flat)
    expected = []
    for row, items in enumerate(targets):
        ranked = [i for i in range(1, 31) if not (removes_seen and i in seen[row])]
        expected += plain_ranks(scores[row], items.tolist(), ranked)
    assert torch.stack(found, 1).tolist() == [list(x) for x in expected]
    assert torch.equal(scores, before)


def test_candidate_ranks_of_several_against_counts():
    generator = torch.Generator().manual_seed(3)
    n_targets = torch.tensor([1, 4, 2, 4, 3])
    scores = torch.randint(0, 6, (5, 4 + 9), generator=generator).float()
    better, tied = candidate_ranks_of_several(scores, n_targets, 4)
    expected = []
    for score, n in zip(scores, n_targets.tolist(), strict=True):
        ranked = [*range(1, n + 1), *range(5, 14)]
        expected += [x[:2] for x in plain_ranks(score, list(range(1, n + 1)), ranked)]
    assert list(zip(better.tolist(), tied.tolist(), strict=True)) == expected


def test_one_target_per_user_gives_the_single_target_metrics():
    generator = torch.Generator().manual_seed(4)
    better = torch.randint(0, 30, (200,), generator=generator)
    tied = torch.randint(0, 10, (200,), generator=generator)
    columns = (torch.arange(200), better, tied, torch.full((200,), 50))
    for ties in ("expected", "optimistic", "pessimistic"):
        single, several = (RankingMetrics(KS, ties, flag) for flag in (False, True))
        single.update(*columns)
        several.update(*columns)
        found = several.compute()
        for name, value in single.compute().items():
            assert found[name] == pytest.approx(value, rel=1e-14), name


def several_ranks(seed: int) -> tuple[torch.Tensor, ...]:
    """user, better, tied and candidates of 40 users with 1 to 6 targets of 25 ranked items."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 7, (40, 25), generator=generator).float()
    counts = torch.randint(1, 7, (40,), generator=generator)
    row = torch.repeat_interleave(torch.arange(40), counts)
    item = torch.cat([torch.randperm(25, generator=generator)[:n] + 1 for n in counts.tolist()])
    return row, *full_ranks_of_several(scores, row, item)


def test_kinds_count_their_targets_alone_in_the_same_lists():
    columns = several_ranks(5)
    kind = torch.arange(len(columns[0]))
    repeat, seen, cold = kind % 5 == 0, kind % 5 == 1, kind % 2 == 0
    metric = RankingMetrics((10,), several=True)
    metric.update(*columns, seen=seen, repeat=repeat, cold=cold)
    values = metric.compute()
    members = {"repeat": repeat, "seen": seen, "cold": cold, "warm": ~cold}
    members["new"] = ~(seen | repeat)
    for name, flags in members.items():
        part = RankingMetrics((10,), several=True)
        part.update(*(column[flags] for column in columns))
        for key, value in part.compute().items():
            assert values[f"{key}/{name}"] == value
    assert values["targets"] == len(kind)
    assert values["targets/cold"] + values["targets/warm"] == len(kind)
    assert values["users"] == 40


@pytest.mark.filterwarnings("ignore:The ``compute`` method")  # the states are filled by hand
def test_any_split_into_processes_gives_the_same_digits():
    columns = several_ranks(6)
    whole = RankingMetrics(several=True)
    whole.update(*columns)
    merged = RankingMetrics(several=True)
    for remainder in (1, 0):
        part = RankingMetrics(several=True)
        for user in range(remainder, 40, 2):
            rows = columns[0] == user
            part.update(*(column[rows] for column in columns))
        for state in merged.metric_state:
            getattr(merged, state).extend(getattr(part, state))
    assert merged.compute() == whole.compute()
    for name, value in whole.ranks().items():
        assert torch.equal(merged.ranks()[name], value)


def test_a_metric_of_single_targets_is_the_mean_over_a_users_targets(monkeypatch):
    monkeypatch.setitem(METRICS_AT_K, "own", None)  # removed again after the test
    from recexp.evaluation import metrics

    @metric_at_k("own")
    def own(better, tied, k, ties="expected"):
        return metrics.expected_hr(better, tied, k, ties)

    metric = RankingMetrics((1, 10), several=True)
    metric.update(*several_ranks(7))
    values = metric.compute()
    assert values["own@10"] == pytest.approx(values["recall@10"], rel=1e-14)
    assert 0 < values["own@1"] == pytest.approx(values["recall@1"], rel=1e-14)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_a_user_who_counts_twice_is_an_error():
    columns = (torch.tensor([4, 4]), torch.tensor([0, 2]), torch.tensor([0, 0]))
    metric = RankingMetrics(several=True)
    for _ in range(2):
        metric.update(*columns, torch.tensor([9, 9]))
    with pytest.raises(RecexpError, match="user 4 has more targets of one score"):
        metric.compute()
