"""Statistical tests of paired differences: p-values, intervals, effect sizes, Holm's correction.

Arrays in, numbers out; ``comparison`` applies them to runs. Arrays are named by their axes: U
users, S systems, P pairs of systems, n random signs or samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recexp.errors import RecexpError

Floats = NDArray[np.float64]

N_SAMPLES = 10_000
# Of intervals of many means: where users are few, their means are not normally distributed.
MAX_RESAMPLED = 1_000  # users
N_RESAMPLED = 2_000
_BLOCK = 1 << 18  # doubles drawn at a time, so that a block fits the processor's cache
_ROUNDING = 1e-10  # relative to the sum of values: sums nearer than this count as equal


def permutation_test(difference_U: ArrayLike, *, n: int = N_SAMPLES, seed: int = 0) -> float:
    """Two-sided p-value of a mean difference, by flipping the signs of the users' differences.

    If two systems are alike, it is by chance which of them got which of a user's two values. So
    every assignment of signs is as likely as the observed one, and p is the share of assignments
    whose mean lies as far from 0. All assignments of the users that differ are enumerated where
    there are at most n; else n random ones are drawn and p = (1 + extreme) / (1 + n), which is
    never 0 and on average not too small. Sums equal to the observed one up to rounding are extreme.
    Memory does not grow with n.

    Smucker, Allan and Carterette 2007 (A Comparison of Statistical Significance Tests for
    Information Retrieval Evaluation, CIKM) recommend this test; it assumes no distribution.

    Raises RecexpError where there is no difference, or one that is not a finite number.
    """
    difference = _checked(difference_U)
    if can_enumerate(difference, n):
        return enumerated_p_value(difference)
    value_US = np.stack([difference, np.zeros_like(difference)], axis=1)
    return float(sampled_p_values(value_US, [(0, 1)], n, seed)[0])


def bootstrap_interval(
    difference_U: ArrayLike, *, level: float = 0.95, n: int = N_SAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean difference over n samples of users drawn with replacement.

    Efron 1979 (Bootstrap Methods: Another Look at the Jackknife). Memory does not grow with U * n.

    Raises RecexpError as ``permutation_test`` does, or where level lies outside (0, 1).
    """
    means_nS = resampled_means(_checked(difference_U)[:, None], n, seed)
    return percentile_interval(means_nS[:, 0], level)


def mean_intervals(value_US: Floats, *, level: float = 0.95, seed: int = 0) -> Floats:
    """Intervals [S, 2] of the means of S columns, over users.

    At most 1 000 users: percentiles of 2 000 bootstrap samples, which all columns share (Efron
    1979). More users: mean +- z standard errors, which then agrees with the percentiles to about
    a hundredth of the interval's width and costs nothing.

    Raises RecexpError where there is no user, or level lies outside (0, 1).
    """
    n_users = len(value_US)
    if not n_users:
        raise RecexpError("there is no user to take an interval over.")
    if n_users <= MAX_RESAMPLED:
        means_nS = resampled_means(value_US, N_RESAMPLED, seed)
        return np.array([percentile_interval(means_n, level) for means_n in means_nS.T])
    if not 0 < level < 1:
        raise RecexpError(f"level is {level}; it must lie between 0 and 1, e.g. 0.95.")
    mean_S = value_US.mean(0)
    half_S = NormalDist().inv_cdf((1 + level) / 2) * value_US.std(0, ddof=1) / n_users**0.5
    return np.stack([mean_S - half_S, mean_S + half_S], axis=1)


def effect_size(difference_U: ArrayLike) -> float:
    """Cohen's d for paired values, d_z (Cohen 1988): the mean in standard deviations.

    Unlike a p-value it does not depend on the number of users. 0 where no user differs; infinite
    where all differ by the same amount.

    Raises RecexpError as ``permutation_test`` does.
    """
    difference = _checked(difference_U)
    mean = difference.mean()
    sd = difference.std(ddof=1) if len(difference) > 1 else 0.0
    if mean == 0 and sd == 0:
        return 0.0
    if sd <= 1e-12 * abs(mean):
        return float(np.sign(mean) * np.inf)
    return float(mean / sd)


def holm(p_values: Sequence[float] | Floats) -> Floats:
    """Adjusted p-values, float64 in the order given (Holm 1979).

    Rejecting where the adjusted value is at most alpha keeps the chance of any false rejection at
    alpha. The smallest of m values is multiplied by m, the next by m - 1, and so on; none falls
    below one before it, none exceeds 1.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = p.argsort(kind="stable")
    factors = np.arange(len(p), 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return adjusted


# Building blocks that serve many pairs at once ----------------------------------------------------


def can_enumerate(difference_U: Floats, n: int) -> bool:
    """Whether the users that differ have at most n assignments of signs."""
    n_differing = int(np.count_nonzero(difference_U))
    return bool(2 ** min(n_differing, 63) <= n)


def enumerated_p_value(difference_U: Floats) -> float:
    """The share of all sign assignments whose sum is as far from 0 as the sum given."""
    differing = difference_U[difference_U != 0]
    n_users = len(differing)
    total = differing.sum()
    threshold = abs(total) - _ROUNDING * np.abs(differing).sum()
    n_extreme = 0
    step = max(1, _BLOCK // max(n_users, 1))
    for start in range(0, 2**n_users, step):
        code = np.arange(start, min(start + step, 2**n_users))
        plus = (code[:, None] >> np.arange(n_users)) & 1  # [assignments, users]
        signed_sum = 2 * (plus @ differing) - total
        n_extreme += int((np.abs(signed_sum) >= threshold).sum())
    return float(n_extreme / 2**n_users)


def sampled_p_values(
    value_US: Floats, pairs: Sequence[tuple[int, int]], n: int, seed: int
) -> Floats:
    """p-values [P] of the differences between columns, from n random sign assignments.

    The signed sum of a difference is the difference of the signed sums, so one product per system
    serves all its pairs.
    """
    left_P, right_P = np.array(pairs).T
    sum_S = value_US.sum(0)
    size_S = np.abs(value_US).sum(0)
    observed_P = np.abs(sum_S[left_P] - sum_S[right_P])
    threshold_P = observed_P - _ROUNDING * (size_S[left_P] + size_S[right_P])
    n_extreme_P = np.zeros(len(pairs), dtype=np.int64)
    for plus_cU in _random_signs(n, len(value_US), seed):
        signed_cS = 2 * (plus_cU @ value_US) - sum_S
        distance_cP = np.abs(signed_cS[:, left_P] - signed_cS[:, right_P])
        n_extreme_P += (distance_cP >= threshold_P).sum(0)
    return (1 + n_extreme_P) / (1 + n)


def resampled_means(value_US: Floats, n: int, seed: int) -> Floats:
    """Means [n, S] of the columns over n samples of U users drawn with replacement."""
    n_users, n_systems = value_US.shape
    generator = np.random.default_rng(seed)
    means_nS = np.empty((n, n_systems))
    step = max(1, _BLOCK // n_users)
    for start in range(0, n, step):
        n_rows = min(step, n - start)
        counts = []
        for _ in range(n_rows):
            drawn = generator.integers(0, n_users, n_users)
            counts.append(np.bincount(drawn, minlength=n_users))
        counts_cU = np.stack(counts).astype(np.float64)
        means_nS[start : start + n_rows] = counts_cU @ value_US / n_users
    return means_nS


def percentile_interval(means_n: Floats, level: float) -> tuple[float, float]:
    """Raises RecexpError where level lies outside (0, 1)."""
    if not 0 < level < 1:
        raise RecexpError(f"level is {level}; it must lie between 0 and 1, e.g. 0.95.")
    low, high = np.quantile(means_n, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _checked(difference_U: ArrayLike) -> Floats:
    difference = np.asarray(difference_U, dtype=np.float64)
    if difference.ndim != 1 or not len(difference) or not np.isfinite(difference).all():
        raise RecexpError(
            f"differences must be a list of finite numbers, one per user; got shape "
            f"{difference.shape}."
        )
    return difference


def _random_signs(n: int, n_users: int, seed: int) -> Iterator[Floats]:
    """n rows of fair coins, 1.0 for plus and 0.0 for minus, in blocks [rows, n_users]."""
    generator = np.random.default_rng(seed)
    step = max(1, _BLOCK // n_users)
    n_bytes = -(-n_users // 8)
    for start in range(0, n, step):
        n_rows = min(step, n - start)
        drawn = np.frombuffer(generator.bytes(n_rows * n_bytes), dtype=np.uint8)
        bits = drawn.reshape(n_rows, n_bytes)
        yield np.unpackbits(bits, axis=1, count=n_users).astype(np.float64)
