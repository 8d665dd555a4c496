"""Whether the difference between two systems is real: paired tests over users, spread over seeds.

Every system ranks the same candidates for the same users, so two systems are compared user by user.
Users differ far more from each other than systems do; a test that ignores which two values belong
to one user loses the difference in that variance.

Tests and intervals answer whether other users of this kind would show the difference. They take the
trained models as given. How far another seed would move a figure is answered by ``spread``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from recexp.errors import RecexpError
from recexp.report.ranks import Floats, Integers, per_user
from recexp.report.significance import (
    N_SAMPLES,
    can_enumerate,
    effect_size,
    enumerated_p_value,
    holm,
    percentile_interval,
    resampled_means,
    sampled_p_values,
)
from recexp.report.tables import identity, settings

# Signs drawn per pair, so that the least p-value survives Holm's factor at 5 %.
SIGNS_PER_PAIR = 200

Labeler = Callable[[Mapping[str, Any]], str]
Runs = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Comparison:
    """Two systems under one protocol id, the better one left: difference >= 0.

    difference: mean_left - mean_right. low, high: interval of the difference over users, not
    widened for the number of pairs. effect: Cohen's d_z. p: of this pair alone. p_holm: adjusted
    for all pairs under the protocol id. users: number of users. seeds_*: runs averaged per system.
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
    """One system's runs. mean: over runs; sd_seeds: over seeds, None for one run; se_users: the
    standard error over users of a single run's mean."""

    mean: float
    sd_seeds: float | None
    se_users: float
    seeds: int
    users: int


def system_name(result: Mapping[str, Any]) -> str:
    """The name that runs share which differ in nothing but the seed.

    It is the model, the selection where unusual, and the settings in alphabetical order. Where two
    configs have one name, ``compare`` and ``spread`` number them: what a system is, ``identity``
    of ``recexp.report.tables`` says.
    """
    words = [result["model"]]
    selection = result.get("selection", "val")
    if selection != "val":
        words.append(f"selection={selection.split(' (')[0]}")
    return " ".join(words + sorted(settings(result)))


def spread(results: Runs, metric: str = "ndcg@10", *, label: Labeler = system_name) -> Spread:
    """How far the metric of one system moves with the seed, and with the users it is measured on.

    results: dicts as ``collect`` returns them. Raises RecexpError where they are of several systems
    or protocol ids, or a seed stands twice.
    """
    groups = _by_system(results, label)
    if len(groups) != 1 or len({r["protocol_id"] for r in results}) != 1:
        raise RecexpError(
            "spread is over the seeds of one system under one protocol id; these are "
            f"{sorted(groups)}."
        )
    values = []  # float64 [U] of each run
    for result in results:
        value_U = per_user(result["folder"], metric)[1]
        values.append(value_U[np.isfinite(value_U)])
    means = np.array([value_U.mean() for value_U in values])
    return Spread(
        mean=float(means.mean()),
        sd_seeds=float(means.std(ddof=1)) if len(means) > 1 else None,
        se_users=float(np.mean([_standard_error(value_U) for value_U in values])),
        seeds=len(means),
        users=len(values[0]),
    )


def compare(
    results: Runs,
    *,
    metric: str = "ndcg@10",
    label: Labeler = system_name,
    n: int | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> list[Comparison]:
    """All pairs of systems under the same protocol id, best systems first.

    Runs with the same label are seeds of one system; a user's value is the mean over them. All
    pairs share the same random signs and samples, so many systems cost little more than two. n:
    signs drawn for p; None takes 10 000, or more where the smallest p possible could not survive
    Holm's factor.

    Raises RecexpError where two runs of one protocol id have other users, or a system has the same
    seed twice.
    """
    found: list[Comparison] = []
    for protocol_id in dict.fromkeys(r["protocol_id"] for r in results):
        groups = _by_system([r for r in results if r["protocol_id"] == protocol_id], label)
        if len(groups) > 1:
            found += _compare_pairs(protocol_id, groups, metric, n, level, seed)
    return found


def _by_system(results: Runs, label: Labeler) -> dict[str, list[Mapping[str, Any]]]:
    if label is system_name:
        label = _distinct_names(results)
    groups: dict[str, list[Mapping[str, Any]]] = {}
    folders: dict[tuple[str, str, int], str] = {}
    for result in results:
        name = label(result)
        run = (result["protocol_id"], name, result["seed"])
        if run in folders:
            raise RecexpError(
                f"{folders[run]} and {result['folder']} are the same system ({name}) with the same "
                f"seed {result['seed']}, which would count twice: leave one of them out, or give a "
                "label that tells them apart."
            )
        folders[run] = result["folder"]
        groups.setdefault(name, []).append(result)
    return groups


def _distinct_names(results: Runs) -> Labeler:
    """``system_name``, numbered where systems of different configs share it."""
    names: dict[tuple[Any, ...], str] = {}
    for result in results:
        name = system_name(result)
        namesakes = sum(
            known == name or known.startswith(f"{name} (")
            for key, known in names.items()
            if key != identity(result)
        )
        names.setdefault(identity(result), f"{name} ({namesakes + 1})" if namesakes else name)
    return lambda result: names[identity(result)]


def _compare_pairs(
    protocol_id: str,
    groups: Mapping[str, Runs],
    metric: str,
    n: int | None,
    level: float,
    seed: int,
) -> list[Comparison]:
    means = _of_known_users(_mean_over_seeds(groups, metric))
    names = sorted(means, key=lambda name: (-means[name].mean(), name))
    value_US = np.stack([means[name] for name in names], axis=1)
    mean_S = value_US.mean(0)
    pairs = list(combinations(range(len(names)), 2))
    n = n or max(N_SAMPLES, SIGNS_PER_PAIR * len(pairs))

    p_P = sampled_p_values(value_US, pairs, n, seed)
    for i, (a, b) in enumerate(pairs):
        difference_U = value_US[:, a] - value_US[:, b]
        if can_enumerate(difference_U, n):
            p_P[i] = enumerated_p_value(difference_U)
    means_nS = resampled_means(value_US, N_SAMPLES, seed)

    made = []
    for (a, b), p, p_holm in zip(pairs, p_P, holm(p_P), strict=True):
        difference_U = value_US[:, a] - value_US[:, b]
        low, high = percentile_interval(means_nS[:, a] - means_nS[:, b], level)
        pair = Comparison(
            left=names[a],
            right=names[b],
            metric=metric,
            mean_left=float(mean_S[a]),
            mean_right=float(mean_S[b]),
            difference=float(difference_U.mean()),
            low=low,
            high=high,
            effect=effect_size(difference_U),
            p=float(p),
            p_holm=float(p_holm),
            users=len(value_US),
            seeds_left=len(groups[names[a]]),
            seeds_right=len(groups[names[b]]),
            protocol_id=protocol_id,
        )
        made.append(pair)
    return made


def _of_known_users(means: Mapping[str, Floats]) -> dict[str, Floats]:
    """The values of those users who have one in every system."""
    is_known_U = np.all([np.isfinite(value_U) for value_U in means.values()], axis=0)
    if not is_known_U.any():
        raise RecexpError("no user has a value of the metric in every system.")
    return {name: value_U[is_known_U] for name, value_U in means.items()}


def _mean_over_seeds(groups: Mapping[str, Runs], metric: str) -> dict[str, Floats]:
    """Per system the metric of each user, float64 [U]; NaN where a user has none in some run.

    All runs must have the same users; RecexpError where they do not.
    """
    means: dict[str, Floats] = {}
    users: Integers | None = None
    first_folder = ""
    for name, runs in groups.items():
        total: Floats | float = 0.0
        for run in runs:
            user_U, value_U = per_user(run["folder"], metric)
            if users is None:
                users = user_U
                first_folder = run["folder"]
            if not np.array_equal(user_U, users):
                raise RecexpError(
                    f"{first_folder} and {run['folder']} were not measured on the same users and "
                    "cannot be compared: leave one of them out."
                )
            total = total + value_U
        means[name] = np.asarray(total / len(runs), dtype=np.float64)
    return means


def _standard_error(value_U: Floats) -> float:
    n_users = len(value_U)
    return float(value_U.std(ddof=1) / n_users**0.5) if n_users > 1 else 0.0
