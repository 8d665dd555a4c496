"""Is the difference between two systems real? Paired tests over users, intervals, and the spread over seeds beside them.

Every system ranks the same candidates for the same users, so two systems are compared user by user. Users differ far more from each other
than systems do; a test that forgets which two values belong to one user drowns the difference in that variance.

Tests and intervals speak of users: would the difference be there for other users of this kind? They take the trained models as given.
Whether training again with another seed gives the same figure is another question, answered by ``spread``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from recexp.data.cache import checksum
from recexp.errors import RecexpError
from recexp.evaluation.metrics import TIES, expected_hr, expected_ndcg, mrr

# Overrides that name no setting of a system: what stands elsewhere in a result, the seed, and where things lie or run.
NO_SETTING = re.compile(
    r"(model|dataset|protocol|seed|selection|dataset\.raw_dir|cache_dir|run_dir|ckpt_path|logger([./].*)?|threads|group|tags|hydra[./].*)="
)

_BLOCK = 1 << 18  # doubles drawn at a time: few enough for the processor's cache
_CLOSE = 1e-10  # relative to the sum of values: sums nearer than this are equal but for rounding


@dataclass(frozen=True)
class Comparison:
    """Two systems under one protocol id, left the better one: difference = mean_left - mean_right >= 0.

    low, high: interval of the difference over users, not widened for the number of pairs. effect: Cohen's d_z. p: of this pair alone.
    p_holm: adjusted for all pairs under the protocol id. users: on whom both were measured. seeds_*: runs averaged per system.
    """

    left: str
    right: str
    metric: str
    mean_left: float
    mean_right: float
    difference: float
    low: float
    high: float
    effect: float
    p: float
    p_holm: float
    users: int
    seeds_left: int
    seeds_right: int
    protocol_id: str


@dataclass(frozen=True)
class Spread:
    """One system's runs: mean over them, s.d. over seeds (None for a single one), and the standard error over users of a single run's mean."""

    mean: float
    sd_seeds: float | None
    se_users: float
    seeds: int
    users: int


def system(result: Mapping[str, Any]) -> str:
    """The name two runs share where they differ in nothing but the seed: model, selection where unusual, and settings in alphabetical order."""
    settings = sorted(o for o in result.get("overrides", ()) if not NO_SETTING.match(o.lstrip("+")))
    chosen = result.get("selection", "val")
    return " ".join(
        [
            result["model"],
            *([] if chosen == "val" else [f"selection={chosen.split(' (')[0]}"]),
            *settings,
        ]
    )


def per_user(folder: str | Path, metric: str = "ndcg@10") -> tuple[np.ndarray, np.ndarray]:
    """Users, int64 [U] ascending, and the metric of each, float64 [U], on the test split of a finished run.

    metric: "hr@k" or "ndcg@k" for any k, or "mrr"; "test/" may stand before it. The tie policy is the one that gives the
    MRR of the run's ``result.json``, so a metric recorded there is the mean of what is returned.

    Raises RecexpError where a file is missing, the metric is unknown, or the ranks are not those that ``result.json`` was computed from.
    """
    folder = Path(folder)
    try:
        result = json.loads((folder / "result.json").read_text())
        if (
            "ranks_sha256" in result
            and checksum(folder / "ranks.parquet") != result["ranks_sha256"]
        ):
            raise RecexpError(
                f"{folder / 'ranks.parquet'} is damaged, or of another run: its checksum is not the one in result.json. Run again."
            )
        frame = (
            pl.read_parquet(folder / "ranks.parquet").filter(pl.col("split") == "test").sort("user")
        )
        recorded = result["metrics"]["test/mrr"]
    except FileNotFoundError as error:
        raise RecexpError(
            f"{folder}: {Path(error.filename or 'ranks.parquet').name} is missing, so users cannot be compared."
        ) from None
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise RecexpError(
            f"{folder / 'ranks.parquet'} cannot be read: {str(error).splitlines()[0]}"
        ) from None
    needed = [frame[c] for c in ("user", "better", "tied", "candidates") if c in frame.columns]
    if len(needed) < 4 or not all(
        column.dtype.is_integer() and not column.has_nulls() for column in needed
    ):
        raise RecexpError(
            f"{folder / 'ranks.parquet'} is no run's: user, better, tied and candidates must be whole numbers."
        )
    if not len(frame):
        raise RecexpError(f"{folder / 'ranks.parquet'} has no user of the test split.")
    better, tied = (
        torch.from_numpy(frame[c].to_numpy().astype(np.int64)) for c in ("better", "tied")
    )
    longest = int(frame["candidates"].max())
    for ties in TIES:
        if abs(float(mrr(better, tied, longest, ties).mean()) - recorded) < 1e-9:
            return frame["user"].to_numpy().astype(np.int64), _metric(
                metric, better, tied, longest, ties
            ).numpy()
    raise RecexpError(
        f"{folder}: the ranks do not give the MRR {recorded:.6f} of result.json under any tie policy. They are of different runs."
    )


def _metric(
    name: str, better: torch.Tensor, tied: torch.Tensor, longest: int, ties: str
) -> torch.Tensor:
    name = name.removeprefix("test/")
    if name == "mrr":
        return mrr(better, tied, longest, ties)
    at = re.fullmatch(r"(hr|ndcg)@([1-9]\d*)", name)
    if not at:
        raise RecexpError(f"metric {name!r} is unknown: choose hr@k, ndcg@k (any k from 1) or mrr.")
    return (expected_hr if at[1] == "hr" else expected_ndcg)(better, tied, int(at[2]), ties)


def permutation_test(difference_U: np.ndarray, *, n: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of a mean difference, by flipping the signs of the users' differences.

    If two systems are alike, it is by chance which of them got which of a user's two values; so every assignment of signs is as likely as the
    one seen, and p is the share of assignments whose mean lies as far from 0. All assignments of the users that differ are taken where there
    are at most n; else n random ones, p = (1 + extreme) / (1 + n), which is never 0 and never too small on average. Sums equal to the one seen
    but for rounding are extreme. Memory does not grow with n.

    Smucker, Allan and Carterette (CIKM 2007) compare tests for retrieval systems and recommend this one; it assumes no distribution.

    Raises RecexpError where there is no difference, or one that is not a finite number.
    """
    difference_U = _checked(difference_U)
    differs = difference_U[difference_U != 0]
    if 2 ** min(len(differs), 63) <= n:
        return _exact(differs)
    return float(
        _sampled(np.stack([difference_U, np.zeros_like(difference_U)], axis=1), [(0, 1)], n, seed)[
            0
        ]
    )


def bootstrap_interval(
    difference_U: np.ndarray, *, level: float = 0.95, n: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean difference: users are drawn anew with replacement, n times (Efron 1979). Memory does not grow with U * n.

    Raises RecexpError as ``permutation_test`` does, or where level lies outside (0, 1).
    """
    means_nS = _resampled(_checked(difference_U)[:, None], n, seed)
    return _interval(means_nS[:, 0], level)


def effect_size(difference_U: np.ndarray) -> float:
    """Cohen's d for paired values, d_z (Cohen 1988): the mean difference in standard deviations of the differences.

    It does not grow with the number of users, as evidence does. 0 where no user differs; infinite where all differ by the same amount.

    Raises RecexpError as ``permutation_test`` does.
    """
    difference_U = _checked(difference_U)
    mean = difference_U.mean()
    sd = difference_U.std(ddof=1) if len(difference_U) > 1 else 0.0
    if sd <= 1e-12 * abs(mean):
        return float(np.sign(mean) * np.inf) if mean else 0.0
    return float(mean / sd)


def holm(p: Sequence[float]) -> np.ndarray:
    """Adjusted p-values, float64 in the order given (Holm 1979): reject where at most alpha, and the chance of any false rejection is alpha.

    The smallest of m values is multiplied by m, the next by m - 1, and so on; none falls below one before it, none exceeds 1.
    """
    p = np.asarray(p, dtype=np.float64)
    order = p.argsort(kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return adjusted


def spread(
    results: Sequence[Mapping[str, Any]],
    metric: str = "ndcg@10",
    *,
    label: Callable[[Mapping[str, Any]], str] = system,
) -> Spread:
    """How far the metric of one system moves with the seed, and apart from that with the users it is measured on.

    results: dicts as ``collect`` returns them. Raises RecexpError where they are of several systems or protocol ids, or a seed stands twice.
    """
    groups = _systems(results, label)
    if len(groups) != 1 or len({r["protocol_id"] for r in results}) != 1:
        raise RecexpError(
            f"spread is over the seeds of one system under one protocol id; these are {sorted(groups)}."
        )
    value_RU = [per_user(r["folder"], metric)[1] for r in results]
    means = np.array([v.mean() for v in value_RU])
    errors = [v.std(ddof=1) / len(v) ** 0.5 if len(v) > 1 else 0.0 for v in value_RU]
    sd = float(means.std(ddof=1)) if len(means) > 1 else None
    return Spread(float(means.mean()), sd, float(np.mean(errors)), len(means), len(value_RU[0]))


def compare(
    results: Sequence[Mapping[str, Any]],
    *,
    metric: str = "ndcg@10",
    label: Callable[[Mapping[str, Any]], str] = system,
    n: int | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> list[Comparison]:
    """All pairs of systems under the same protocol id, best systems first. Runs with the same label are seeds of one system.

    A user's value is the mean over the system's seeds. All pairs share the same random signs and draws, so that many systems cost little
    more than two. n: signs drawn for p; None takes 10 000, or more where the smallest p possible could not survive Holm's factor.

    Raises RecexpError where two runs of one protocol id have other users, or a system has the same seed twice.
    """
    found = []
    for protocol_id in dict.fromkeys(r["protocol_id"] for r in results):
        groups = _systems([r for r in results if r["protocol_id"] == protocol_id], label)
        if len(groups) > 1:
            found += _pairs(protocol_id, groups, metric, n, level, seed)
    return found


def _systems(
    results: Sequence[Mapping[str, Any]], label: Callable[[Mapping[str, Any]], str]
) -> dict[str, list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    runs: dict[tuple, str] = {}
    for r in results:
        run = (r["protocol_id"], label(r), r["seed"])
        if run in runs:
            raise RecexpError(
                f"{runs[run]} and {r['folder']} are the same system ({run[1]}) with the same seed {r['seed']}, which would count twice: "
                "leave one of them out, or give a label that tells them apart."
            )
        runs[run] = r["folder"]
        groups.setdefault(label(r), []).append(r)
    return groups


def _pairs(
    protocol_id: str,
    groups: dict[str, list[Mapping[str, Any]]],
    metric: str,
    n: int | None,
    level: float,
    seed: int,
) -> list[Comparison]:
    users, first, columns = None, None, {}
    for name, runs in groups.items():
        total = 0.0
        for run in runs:
            user, value = per_user(run["folder"], metric)
            if users is None:
                users, first = user, run["folder"]
            if not np.array_equal(user, users):
                raise RecexpError(
                    f"{first} and {run['folder']} were not measured on the same users and cannot be compared: leave one of them out."
                )
            total = total + value
        columns[name] = total / len(runs)
    names = sorted(columns, key=lambda s: (-columns[s].mean(), s))
    value_US = np.stack([columns[s] for s in names], axis=1)
    pairs = list(combinations(range(len(names)), 2))
    n = n or max(10_000, 200 * len(pairs))
    p = _sampled(value_US, pairs, n, seed)
    means_nS = _resampled(value_US, 10_000, seed)
    rows = []
    for i, (a, b) in enumerate(pairs):
        difference = value_US[:, a] - value_US[:, b]
        differs = difference[difference != 0]
        if 2 ** min(len(differs), 63) <= n:
            p[i] = _exact(differs)
        rows.append(
            (
                a,
                b,
                float(difference.mean()),
                *_interval(means_nS[:, a] - means_nS[:, b], level),
                effect_size(difference),
            )
        )
    means = value_US.mean(0)
    return [
        Comparison(
            names[a], names[b], metric, float(means[a]), float(means[b]), difference, low, high, effect, float(p[i]), float(adjusted),
            len(users), len(groups[names[a]]), len(groups[names[b]]), protocol_id,
        )
        for i, ((a, b, difference, low, high, effect), adjusted) in enumerate(zip(rows, holm(p), strict=True))
    ]  # fmt: skip


def _checked(difference_U: np.ndarray) -> np.ndarray:
    difference_U = np.asarray(difference_U, dtype=np.float64)
    if difference_U.ndim != 1 or not len(difference_U) or not np.isfinite(difference_U).all():
        raise RecexpError(
            f"differences must be a list of finite numbers, one per user; got shape {difference_U.shape}."
        )
    return difference_U


def _exact(difference_U: np.ndarray) -> float:
    """The share of all 2^U sign assignments whose sum is as far from 0 as the sum given."""
    U, extreme = len(difference_U), 0
    observed, close = abs(difference_U.sum()), _CLOSE * np.abs(difference_U).sum()
    step = max(1, _BLOCK // max(U, 1))
    for at in range(0, 2**U, step):
        code = np.arange(at, min(at + step, 2**U))
        plus = (code[:, None] >> np.arange(U)) & 1
        extreme += int(
            (np.abs(2 * (plus @ difference_U) - difference_U.sum()) >= observed - close).sum()
        )
    return extreme / 2**U


def _sampled(
    value_US: np.ndarray, pairs: Sequence[tuple[int, int]], n: int, seed: int
) -> np.ndarray:
    """p-values [pairs] of the differences between columns, from n random sign assignments.

    The signed sum of a difference is the difference of the signed sums: one product per system serves all its pairs.
    """
    left, right = np.array(pairs).T
    sums_S, size_S = value_US.sum(0), np.abs(value_US).sum(0)
    least_P = np.abs(sums_S[left] - sums_S[right]) - _CLOSE * (size_S[left] + size_S[right])
    extreme_P = np.zeros(len(pairs), dtype=np.int64)
    for plus_cU in _coins(n, len(value_US), seed):
        signed_cS = 2 * (plus_cU @ value_US) - sums_S
        extreme_P += (np.abs(signed_cS[:, left] - signed_cS[:, right]) >= least_P).sum(0)
    return (1 + extreme_P) / (1 + n)


def _coins(n: int, U: int, seed: int) -> Iterator[np.ndarray]:
    """n rows of U fair coins as 0.0 and 1.0, a block of rows at a time."""
    generator = np.random.default_rng(seed)
    step, width = max(1, _BLOCK // U), -(-U // 8)
    for at in range(0, n, step):
        rows = min(step, n - at)
        bits = np.frombuffer(generator.bytes(rows * width), dtype=np.uint8).reshape(rows, width)
        yield np.unpackbits(bits, axis=1, count=U).astype(np.float64)


def _resampled(value_US: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Means [n, S] of the columns over n samples of U users drawn with replacement."""
    U = len(value_US)
    generator = np.random.default_rng(seed)
    means_nS = np.empty((n, value_US.shape[1]))
    step = max(1, _BLOCK // U)
    for at in range(0, n, step):
        rows = min(step, n - at)
        times_cU = np.stack(
            [np.bincount(generator.integers(0, U, U), minlength=U) for _ in range(rows)]
        )
        means_nS[at : at + rows] = times_cU.astype(np.float64) @ value_US / U
    return means_nS


def _interval(means_n: np.ndarray, level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise RecexpError(f"level is {level}; it must lie between 0 and 1, e.g. 0.95.")
    low, high = np.quantile(means_n, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
