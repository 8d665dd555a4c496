"""Statistics between systems: known answers, calibration under the null, planted differences and
variants that must fail.
"""

from __future__ import annotations

import json
import math
import tracemalloc
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from statsmodels.stats.multitest import multipletests

from recexp.errors import RecexpError
from recexp.evaluation.metrics import TIES, RankingMetrics, expected_ndcg
from recexp.report.collect import collect
from recexp.report.comparison import compare, spread, system_name
from recexp.report.ranks import per_user
from recexp.report.significance import (
    bootstrap_interval,
    effect_size,
    holm,
    mean_intervals,
    permutation_test,
)
from recexp.report.tables import systems
from recexp.runs.outputs import save_ranks


def write(
    folder: Path,
    better,
    tied=None,
    *,
    users=None,
    model="pop",
    seed=0,
    protocol_id="aaa",
    ties="expected",
    overrides=(),
) -> Path:
    """A finished run with these ranks among 101 candidates, its metrics computed as a run computes
    them.
    """
    folder.mkdir(parents=True)
    better = torch.as_tensor(np.asarray(better))
    tied = torch.zeros_like(better) if tied is None else torch.as_tensor(np.asarray(tied))
    metric = RankingMetrics((1, 5, 10), ties)
    metric.update(
        torch.arange(len(better)) if users is None else torch.as_tensor(users),
        better,
        tied,
        torch.full_like(better, 101),
    )
    ranks = {k: v.numpy() for k, v in metric.ranks().items()}
    save_ranks(
        folder / "ranks.parquet", {"val": {**ranks, "better": ranks["better"] * 0}, "test": ranks}
    )
    result = {
        "model": model,
        "dataset": "shop",
        "protocol": "p",
        "protocol_id": protocol_id,
        "seed": seed,
        "selection": "val",
        "best_epoch": 0,
        "epochs": 1,
        "stop_reason": "max_epochs reached",
        "overrides": [f"model={model}", f"seed={seed}", *overrides],
        "metrics": {f"test/{k}": v for k, v in metric.compute().items()},
        "data": {},
    }
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def ranks_like(generator, quality_U):
    """Ranks of one system: users of different difficulty, 100 candidates each beating the target
    with the user's probability, some level with it.
    """
    better = generator.binomial(100, quality_U)
    return torch.from_numpy(better), torch.from_numpy(
        np.minimum(generator.poisson(0.2, len(better)), 100 - better)
    )


def ndcg_pair(generator, users, gain=0.0):
    """NDCG@10 per user of two systems; the second's candidates beat the target less often by the
    factor 1 - gain.
    """
    hard_U = generator.beta(0.5, 2.0, users)
    return [
        expected_ndcg(*ranks_like(generator, q), 10).numpy() for q in (hard_U, hard_U * (1 - gain))
    ]


@pytest.mark.parametrize("ties", TIES)
def test_a_recorded_metric_is_the_mean_over_users(tmp_path, ties):
    generator = np.random.default_rng(0)
    folder = write(tmp_path / "a", *ranks_like(generator, generator.beta(0.5, 2.0, 200)), ties=ties)
    recorded = json.loads((folder / "result.json").read_text())["metrics"]
    for metric in ("hr@1", "hr@5", "hr@10", "ndcg@5", "ndcg@10", "mrr"):
        user, value = per_user(folder, metric)
        assert (
            user.dtype == np.int64 and value.dtype == np.float64 and list(user) == list(range(200))
        )
        assert value.mean() == pytest.approx(recorded[f"test/{metric}"], rel=1e-12)
    assert np.array_equal(per_user(folder, "test/mrr")[1], value)


def test_metrics_at_any_k_and_users_in_order(tmp_path):
    folder = write(tmp_path / "a", [0, 2, 5], [0, 1, 0], users=[7, 3, 5])
    user, value = per_user(folder, "hr@3")
    assert user.tolist() == [3, 5, 7] and value.tolist() == [
        0.5,
        0.0,
        1.0,
    ]  # user 3 stands third or fourth
    assert per_user(folder, "ndcg@6")[1].tolist() == pytest.approx(
        [(1 / 2 + 1 / math.log2(5)) / 2, 1 / math.log2(7), 1.0]
    )


def test_what_cannot_be_read_is_named(tmp_path):
    folder = write(tmp_path / "a", [0, 2, 5])
    with pytest.raises(RecexpError, match="recall@10"):
        per_user(folder, "recall@10")
    (write(tmp_path / "b", [1, 2, 6]) / "ranks.parquet").replace(folder / "ranks.parquet")
    with pytest.raises(RecexpError, match="different runs"):
        per_user(folder)
    with pytest.raises(RecexpError, match=r"b: ranks\.parquet is missing"):
        per_user(tmp_path / "b")


@pytest.mark.parametrize(
    ("difference", "p"),
    [
        ([1, 1, 1], 2 / 8),
        ([3, 2, 1], 2 / 8),
        ([3, -1, -1], 1.0),  # |sum| 1 is the least there is
        ([1, 1, 1, 1, 1, -1], 14 / 64),
        ([0.1, 0.2, -0.3], 1.0),  # 0 but for rounding
        ([1], 1.0),
        ([0, 0, 0], 1.0),
    ],
)
def test_few_users_are_enumerated(difference, p):
    assert permutation_test(difference) == p
    assert (
        permutation_test([*difference, *[0] * 50]) == p
    )  # a user without a difference changes nothing


def test_random_signs_agree_with_enumeration_and_with_the_binomial():
    difference = np.random.default_rng(0).normal(0.5, 1, 14)
    exact, n = permutation_test(difference, n=2**14), 2**14 - 1
    assert 0.01 < exact < 0.5
    assert permutation_test(difference, n=n) == pytest.approx(
        exact, abs=4 * (exact * (1 - exact) / n) ** 0.5
    )

    wins = np.array([1.0] * 25 + [-1.0] * 15)  # HR: many sums are equal to the one seen
    exact = stats.binomtest(25, 40).pvalue
    p = permutation_test(wins)
    assert p == pytest.approx(exact, abs=4 * (exact * (1 - exact) / 10_000) ** 0.5)
    thirds = wins / 3 + np.tile([0.1, -0.1], 20)
    assert p == permutation_test(wins * 0.1) == permutation_test(-wins)
    assert permutation_test(thirds) == permutation_test(thirds * 7)
    assert permutation_test(wins) != permutation_test(wins, seed=1)


def mean(difference_U, axis):
    return np.mean(difference_U, axis=axis)


@pytest.mark.parametrize("seed", range(6))
def test_enumeration_equals_that_of_scipy(seed):
    difference = np.random.default_rng(seed).normal(0.4, 1, 9).round(1)
    expected = stats.permutation_test(
        (difference,), mean, permutation_type="samples", n_resamples=np.inf, vectorized=True
    )
    assert permutation_test(difference) == pytest.approx(expected.pvalue)


def test_random_signs_agree_with_those_of_scipy_and_with_the_t_test():
    """With 200 normal differences the sign test of the mean and the paired t-test are alike."""
    generator = np.random.default_rng(8)
    left = generator.normal(0.0, 1.0, 200)
    right = left + generator.normal(0.12, 1.0, 200)
    p = permutation_test(right - left, n=20_000)
    sampled = stats.permutation_test(
        (right - left,), mean, permutation_type="samples", n_resamples=20_000, rng=0
    )
    assert 0.01 < p < 0.5
    assert p == pytest.approx(sampled.pvalue, abs=6 * (p * (1 - p) / 20_000) ** 0.5)
    assert p == pytest.approx(stats.ttest_rel(right, left).pvalue, abs=0.02)


def test_intervals_agree_with_those_of_scipy():
    difference = np.random.default_rng(9).exponential(1.0, 150) - 0.8
    low, high = bootstrap_interval(difference, n=10_000)
    expected = stats.bootstrap((difference,), np.mean, method="percentile", rng=0)
    width = high - low
    assert low == pytest.approx(expected.confidence_interval.low, abs=0.03 * width)
    assert high == pytest.approx(expected.confidence_interval.high, abs=0.03 * width)


def test_the_effect_size_is_the_t_statistic_per_root_of_users():
    difference = np.random.default_rng(10).normal(0.1, 1, 70)
    t = stats.ttest_1samp(difference, 0.0).statistic
    assert effect_size(difference) == pytest.approx(t / math.sqrt(70), rel=1e-12)


def test_the_smallest_p_is_never_zero():
    assert permutation_test(np.ones(50), n=999) == 1 / 1000


@pytest.mark.parametrize("wrong", [[], [1.0, float("nan")], [[1.0, 2.0]]])
def test_differences_that_are_none(wrong):
    for statistic in (permutation_test, bootstrap_interval, effect_size):
        with pytest.raises(RecexpError, match="one per user"):
            statistic(wrong)


def test_p_is_uniform_where_systems_are_alike_and_small_where_they_are_not():
    """With the users of the second system permuted, the test is wrong in both cases: it needs
    pairs.
    """
    generator = np.random.default_rng(1)
    paired, unpaired, found, found_unpaired = [], [], [], []
    for seed in range(400):
        left, right = ndcg_pair(generator, 150)
        paired.append(permutation_test(left - right, n=499, seed=seed))
        unpaired.append(permutation_test(left - generator.permutation(right), n=499, seed=seed))
        left, right = ndcg_pair(generator, 150, gain=0.35)
        found.append(permutation_test(left - right, n=499, seed=seed))
        found_unpaired.append(
            permutation_test(left - generator.permutation(right), n=499, seed=seed)
        )
    assert stats.kstest(paired, "uniform").pvalue > 0.01
    assert stats.kstest(unpaired, "uniform").pvalue < 1e-6
    power, without = np.mean(np.array(found) < 0.05), np.mean(np.array(found_unpaired) < 0.05)
    assert power > 0.9
    assert without < power / 2


def test_intervals_cover_the_true_difference_as_often_as_they_say():
    generator = np.random.default_rng(2)
    covered = 0
    for seed in range(250):
        low, high = bootstrap_interval(
            generator.exponential(1.0, 80) - 0.7, n=300, level=0.9, seed=seed
        )
        covered += low <= 0.3 <= high
    assert 0.84 < covered / 250 < 0.95


def test_intervals_of_known_width():
    difference = np.random.default_rng(3).normal(0.1, 2.0, 1000)
    low, high = bootstrap_interval(difference, n=4000)
    assert high - low == pytest.approx(2 * 1.96 * difference.std() / 1000**0.5, rel=0.06)
    assert (low + high) / 2 == pytest.approx(difference.mean(), abs=0.1 * (high - low))
    wider = bootstrap_interval(difference, n=4000, level=0.99)
    assert wider[0] < low and high < wider[1]
    assert bootstrap_interval(np.full(20, 0.25)) == (0.25, 0.25)
    with pytest.raises(RecexpError, match="level"):
        bootstrap_interval(difference, level=95)


def test_memory_does_not_grow_with_users_times_draws():
    difference = np.random.default_rng(4).normal(size=20_000)
    for statistic in (permutation_test, bootstrap_interval):
        tracemalloc.start()
        statistic(difference, n=500)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 16e6  # all 500 x 20 000 at once would be 80e6


def test_effect_size_does_not_depend_on_the_number_of_users():
    assert effect_size([1, 2, 3]) == 2.0
    assert effect_size([-1, -2, -3]) == -2.0
    assert effect_size([0, 0]) == 0.0
    assert effect_size([0.1] * 7) == math.inf and effect_size([-0.1]) == -math.inf
    difference = np.random.default_rng(5).normal(0.1, 1, 100)
    many = np.tile(difference, 50)
    assert effect_size(many) == pytest.approx(effect_size(difference), rel=0.01)
    assert permutation_test(many) < 0.001 < 0.05 < permutation_test(difference)


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]).tolist() == [1.0, 1.0]
    assert holm([0.02]).tolist() == [0.02] and holm([]).tolist() == []
    generator = np.random.default_rng(6)
    for p in generator.random((20, 9)) ** 3:
        adjusted, order = holm(p), generator.permutation(9)
        assert (
            (adjusted >= p).all()
            and (adjusted <= 1).all()
            and (np.diff(adjusted[p.argsort()]) >= 0).all()
        )
        assert np.array_equal(holm(p[order]), adjusted[order])
    families = generator.random((2000, 10))  # nothing to be found in any of them
    assert np.mean([holm(p).min() <= 0.05 for p in families]) < 0.065
    assert np.mean(families.min(1) <= 0.05) > 0.3


def test_holm_is_bonferroni_on_every_subset():
    """Closed testing: a hypothesis falls where every subset of hypotheses that holds it falls to
    Bonferroni's test.
    """
    for p in np.random.default_rng(11).random((30, 6)) ** 3:
        subsets = [list(s) for size in range(1, 7) for s in combinations(range(6), size)]
        closed = [max(min(1.0, len(s) * p[s].min()) for s in subsets if i in s) for i in range(6)]
        assert holm(p).tolist() == pytest.approx(closed)


def test_holm_equals_that_of_statsmodels():
    for p in np.random.default_rng(7).random((3, 200)) ** 4:  # each call runs gc.collect()
        assert np.allclose(holm(p), multipletests(p, method="holm")[1], rtol=1e-12)


def test_spread_over_seeds_apart_from_spread_over_users(tmp_path):
    for seed, better in enumerate([[0, 1, 3, 99], [0, 1, 1, 99], [0, 0, 1, 99]]):
        write(tmp_path / str(seed), better, seed=seed)
    runs, _ = collect([tmp_path])
    s = spread(runs, "hr@1")
    assert (s.mean, s.seeds, s.users) == (pytest.approx(1 / 3), 3, 4)
    assert s.sd_seeds == pytest.approx(np.std([0.25, 0.25, 0.5], ddof=1))
    assert s.se_users == pytest.approx(
        (2 * 0.25 + np.sqrt(1 / 12)) / 3
    )  # standard errors of 1 and of 2 hits in 4
    assert spread(runs[:1]).sd_seeds is None
    alike, _ = collect([write(tmp_path / "again", [0, 1, 3, 99], seed=3), tmp_path / "0"])
    assert spread(alike).sd_seeds == 0 < spread(alike).se_users
    with pytest.raises(RecexpError, match=r"0.*again.*twice"):
        spread([runs[0], {**alike[0], "seed": 0}])
    with pytest.raises(RecexpError, match="one system"):
        spread([runs[0], {**runs[1], "model": "ite"}])


def test_systems_are_told_apart_by_settings_alone():
    run = {
        "model": "ite",
        "seed": 0,
        "selection": "val",
        "overrides": ["model=ite", "seed=0", "threads=1", "model.n_factors=8", "batch_size=64"],
    }
    same = {
        **run,
        "seed": 1,
        "overrides": [
            "batch_size=64",
            "seed=1",
            "dataset.raw_dir=x",
            "logger.wandb.name=y",
            "model.n_factors=8",
        ],
    }
    assert system_name(run) == system_name(same) == "ite batch_size=64 model.n_factors=8"
    assert system_name({**run, "overrides": []}) == "ite"
    assert system_name(
        {**run, "selection": "test_peek (epoch chosen on the TEST set: optimistic)"}
    ) != system_name(run)
    assert system_name(
        {**run, "overrides": [*run["overrides"], "seeds_of_model=3"]}
    ) != system_name(run)


def test_experiments_only_choose_values_and_the_config_decides(tmp_path):
    """As in the tables: runs of one config are seeds of one system, whatever chose its values."""
    generator = np.random.default_rng(8)
    runs = []
    chosen = [("experiment=a", 8), ("experiment=b", 8), ("experiment=b", 16)]
    for seed, (word, width) in enumerate(chosen):
        better, tied = ranks_like(generator, np.full(40, 0.2))
        folder = write(tmp_path / f"{seed}", better, tied, model="ite", seed=seed, overrides=[word])
        result = json.loads((folder / "result.json").read_text())
        runs.append({**result, "folder": str(folder), "config": {"model": {"n_factors": width}}})
    assert spread(runs[:2]).seeds == 2
    with pytest.raises(RecexpError, match="one system"):
        spread(runs)
    (pair,) = compare(runs)
    assert {pair.left, pair.right} == {"ite", "ite (2)"}
    assert len(systems(runs)) == 2


def test_compare_finds_the_planted_difference_and_no_other(tmp_path):
    generator = np.random.default_rng(8)
    hard_U = generator.beta(0.5, 2.0, 300)
    for model, gain in (("low", 0.0), ("alike", 0.0), ("high", 0.35)):
        for seed in range(2):
            write(
                tmp_path / f"{model}{seed}",
                *ranks_like(generator, hard_U * (1 - gain)),
                model=model,
                seed=seed,
            )
    write(tmp_path / "elsewhere0", [0] * 300, model="elsewhere", protocol_id="bbb")
    runs, _ = collect([tmp_path])
    found = compare(runs)
    assert len(found) == 3 and {c.protocol_id for c in found} == {
        "aaa"
    }  # one system alone has nothing to be compared with
    assert all(
        (c.users, c.seeds_left, c.seeds_right, c.metric) == (300, 2, 2, "ndcg@10") for c in found
    )
    assert np.allclose([c.p_holm for c in found], holm([c.p for c in found]))
    for c in found:
        assert (c.p_holm < 0.01) == (c.left == "high") == (c.low > 0)
        assert (
            c.low < c.difference < c.high
            and c.difference == pytest.approx(c.mean_left - c.mean_right)
            and c.difference >= 0
        )
        values = [
            np.mean([per_user(tmp_path / f"{m}{seed}")[1] for seed in range(2)], axis=0)
            for m in (c.left, c.right)
        ]
        difference = values[0] - values[1]
        assert c.p == permutation_test(difference) and c.effect == effect_size(difference)
        assert (c.low, c.high) == pytest.approx(bootstrap_interval(difference))
    means = {
        r["model"]: np.mean(
            [q["metrics"]["test/ndcg@10"] for q in runs if q["model"] == r["model"]]
        )
        for r in runs
    }
    assert all(
        c.mean_left == pytest.approx(means[c.left])
        and c.mean_right == pytest.approx(means[c.right])
        for c in found
    )

    by_run = compare(runs, label=lambda r: r["folder"], metric="hr@10")
    assert len(by_run) == 15 and {c.seeds_left for c in by_run} == {1}


def test_families_are_those_of_one_protocol_id(tmp_path):
    generator = np.random.default_rng(9)
    for protocol_id, models in (("aaa", "xy"), ("bbb", "xyz")):
        for model in models:
            write(
                tmp_path / f"{protocol_id}{model}",
                generator.binomial(100, 0.05, 40),
                model=model,
                protocol_id=protocol_id,
            )
    runs, _ = collect([tmp_path])
    found = compare(runs)
    assert [c.protocol_id for c in found] == ["aaa"] + ["bbb"] * 3
    assert found[0].p_holm == found[0].p  # a family of one
    assert compare([r for r in runs if r["protocol_id"] == "bbb"]) == found[1:]


def test_few_users_that_differ_are_enumerated_in_a_comparison_too(tmp_path):
    write(tmp_path / "a", [0, 0, 0, 50, 50], model="a")
    write(tmp_path / "b", [1, 1, 1, 50, 50], model="b")
    (only,) = compare(collect([tmp_path])[0], metric="hr@1")
    assert only.p == 0.25 and only.effect == pytest.approx(0.6 / np.sqrt(0.3))


def test_runs_that_cannot_be_compared_are_named(tmp_path):
    write(tmp_path / "a", [0, 1, 2], model="a")
    write(tmp_path / "b", [0, 1, 2], model="b", users=[0, 1, 5])
    write(tmp_path / "c", [0, 1, 2], model="a")
    runs = {r["folder"][-1]: r for r in collect([tmp_path])[0]}
    with pytest.raises(RecexpError, match=r"/a and .*/b were not measured on the same users"):
        compare([runs["a"], runs["b"]])
    with pytest.raises(RecexpError, match=r"/a and .*/c are the same system"):
        compare([runs["a"], runs["c"]])


def test_many_pairs_do_not_put_significance_out_of_reach(tmp_path):
    generator = np.random.default_rng(10)
    for system_number in range(34):
        write(
            tmp_path / f"m{system_number}",
            generator.integers(0, 2, 60) * (system_number > 0),
            model=f"m{system_number}",
        )
    runs, _ = collect([tmp_path])
    least = {n: min(c.p_holm for c in compare(runs, metric="hr@1", n=n)) for n in (None, 10_000)}
    assert (
        least[None] < 0.05 < least[10_000]
    )  # 561 pairs: 561 / 10 001 is the least that 10 000 signs could give


@pytest.mark.parametrize("n_users", [1_000, 1_001])
def test_intervals_of_many_means_cover_as_often_as_they_say(n_users):
    """Of few users by resampling, of many by the normal distribution; both near its formula."""
    generator = np.random.default_rng(0)
    value_US = generator.gamma(0.5, 1.0, (n_users, 40))
    low_S, high_S = mean_intervals(value_US).T
    half_S = 1.959964 * value_US.std(0, ddof=1) / n_users**0.5
    assert np.allclose(low_S, value_US.mean(0) - half_S, atol=0.15 * half_S.max())
    assert np.allclose(high_S, value_US.mean(0) + half_S, atol=0.15 * half_S.max())
    n_covered = ((low_S < 0.5) & (high_S > 0.5)).sum()  # the true mean
    assert 34 <= n_covered <= 40
    narrower = mean_intervals(value_US, level=0.5)
    assert (narrower[:, 0] > low_S).all() and (narrower[:, 1] < high_S).all()


def test_intervals_of_few_users_stay_within_the_values():
    low, high = mean_intervals(np.array([[0.0], [0.0], [0.0], [1.0]]))[0]
    assert 0 <= low < 0.25 < high <= 1  # the normal distribution would go below 0
    with pytest.raises(RecexpError, match="no user"):
        mean_intervals(np.zeros((0, 1)))
    for n_users in (10, 2_000):
        with pytest.raises(RecexpError, match="level is 1"):
            mean_intervals(np.zeros((n_users, 1)), level=1)
