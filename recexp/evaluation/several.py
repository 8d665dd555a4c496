"""Metrics of users with several targets, from the targets' ranks in one list per user.

All targets of a user stand in one ranked list, together with the candidates that are no targets. A
target's rank is given as in ``recexp.evaluation.metrics``: ``better`` ranked items (other targets
among them) score strictly higher and ``tied`` others score the same.

Items of equal score form a group. A group after ``before`` better items takes the ``width`` ranks
before+1 .. before+width, and ``relevant`` of its items are targets. With ties="expected" a metric
is its mean over all orders of the items within each group, all equally likely. "optimistic" puts
the targets of a group first, "pessimistic" puts them last: either is a group of ``relevant`` ranks
that are all taken by targets.

NumPy only, so that reports read ranks without torch. A new metric is one function here, with
``@metric_of_several_at_k`` or ``@metric_of_several``.

Suffixes of shapes: T targets, L lists (users), G groups that hold targets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from recexp.evaluation.registry import registrar

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TargetLists:
    """The ranked lists of L users, as far as metrics need them.

    n_targets_L: targets of each list, at least 1. n_ranked_L: ranked items, the targets included.
    list_G: the list of each group, ascending; the groups of a list are in the order of its ranks.
    before_G, width_G, relevant_G: see above. above_G: targets of the list in better groups.
    """

    n_targets_L: Ints
    n_ranked_L: Ints
    list_G: Ints
    before_G: Ints
    width_G: Ints
    relevant_G: Ints
    above_G: Ints

    @classmethod
    def of(
        cls, user_T: Ints, better_T: Ints, tied_T: Ints, candidates_T: Ints, ties: str = "expected"
    ) -> TargetLists:
        """user_T: ascending. candidates_T: ranked items of the user's list."""
        is_first_T = np.diff(user_T, prepend=user_T[:1] - 1) != 0
        list_T = np.cumsum(is_first_T) - 1
        n_lists = int(list_T[-1]) + 1 if len(list_T) else 0
        # Targets of one list have the same score where equally many items are better.
        order = np.lexsort((better_T, list_T))
        list_T = list_T[order]
        better_T = better_T[order]
        is_new_T = np.diff(list_T, prepend=-1) != 0
        is_new_T[1:] |= np.diff(better_T) != 0
        first_G = np.flatnonzero(is_new_T)
        relevant_G = np.diff(np.append(first_G, len(order)))
        list_G = list_T[first_G]
        before_G = better_T[first_G]
        width_G = tied_T[order][first_G] + 1
        start_L = np.flatnonzero(is_first_T)
        above_G = first_G - start_L[list_G]
        if ties == "pessimistic":
            before_G = before_G + width_G - relevant_G
        if ties != "expected":
            width_G = relevant_G
        return cls(
            n_targets_L=np.bincount(list_T, minlength=n_lists),
            n_ranked_L=candidates_T[start_L],
            list_G=list_G,
            before_G=before_G,
            width_G=width_G,
            relevant_G=relevant_G,
            above_G=above_G,
        )

    @cached_property
    def first_L(self) -> Ints:
        """The best group of each list."""
        return np.flatnonzero(np.diff(self.list_G, prepend=-1))

    def sum_L(self, value_G: Floats | Ints) -> Floats:
        """Sum of the values of each list's groups."""
        total_L: Floats = np.bincount(
            self.list_G, weights=value_G, minlength=len(self.n_targets_L)
        ).astype(np.float64)
        return total_L

    def within_G(self, k: int) -> Ints:
        """How many ranks of each group are among the first k."""
        within_G: Ints = np.minimum((k - self.before_G).clip(min=0), self.width_G)
        return within_G

    def gain_G(self, gain: Floats) -> Floats:
        """Mean of gain (entry r - 1 for rank r, 0 beyond its end) over the ranks of each group."""
        n = len(gain)
        prefix_sum = np.concatenate([[0.0], gain.cumsum()])
        begin_G = self.before_G.clip(max=n)
        end_G = (self.before_G + self.width_G).clip(max=n)
        over_ties_G = (prefix_sum[end_G] - prefix_sum[begin_G]) / self.width_G
        # The difference of two prefix sums loses digits of a single gain.
        single_G = np.concatenate([gain, [0.0]])[begin_G]
        mean_G: Floats = np.where(self.width_G == 1, single_G, over_ties_G)
        return mean_G


MetricOfSeveralAtK = Callable[[TargetLists, int], Floats]
MetricOfSeveral = Callable[[TargetLists], Floats]
SEVERAL_AT_K: dict[str, MetricOfSeveralAtK] = {}
SEVERAL_WITHOUT_CUTOFF: dict[str, MetricOfSeveral] = {}


# Registers a metric "<name>@k" of lists with several targets; it returns float64 [L].
metric_of_several_at_k = registrar(SEVERAL_AT_K)

# Registers a metric of whole lists with several targets; it returns float64 [L].
metric_of_several = registrar(SEVERAL_WITHOUT_CUTOFF)


@metric_of_several_at_k("hr")
def hit(lists: TargetLists, k: int) -> Floats:
    """Probability that at least one target is among the first k."""
    # Where the best group with a target ends within the first k, there is one for certain; where
    # it does not, all other groups lie below k.
    width_L = lists.width_G[lists.first_L]
    relevant_L = lists.relevant_G[lists.first_L]
    within_L = lists.within_G(k)[lists.first_L]
    # No target is among the `within` ranks: C(width - within, relevant) / C(width, relevant).
    missed_L = np.ones(len(width_L))
    for j in range(int(relevant_L.max(initial=0))):
        factor_L = (width_L - within_L - j).clip(min=0) / (width_L - j).clip(min=1)
        missed_L *= np.where(j < relevant_L, factor_L, 1.0)
    # With a single target the quotient itself is exact.
    hit_L: Floats = np.where(relevant_L == 1, within_L / width_L, 1 - missed_L)
    return hit_L


@metric_of_several_at_k("recall")
def recall(lists: TargetLists, k: int) -> Floats:
    """Share of the targets that are among the first k."""
    return _found(lists, k) / lists.n_targets_L


@metric_of_several_at_k("precision")
def precision(lists: TargetLists, k: int) -> Floats:
    """Share of the first k places that targets take. A list shorter than k counts as filled up."""
    return _found(lists, k) / k


@metric_of_several_at_k("ndcg")
def ndcg(lists: TargetLists, k: int) -> Floats:
    """Sum of 1 / log2(rank + 1) over targets among the first k, divided by that of an ideal list.

    The ideal list begins with the targets (Järvelin and Kekäläinen 2002,
    doi:10.1145/582415.582418).
    """
    gain = 1 / np.log2(np.arange(2, k + 2, dtype=np.float64))
    ideal: Floats = gain.cumsum()[np.minimum(lists.n_targets_L, k) - 1]
    return lists.sum_L(lists.relevant_G * lists.gain_G(gain)) / ideal


@metric_of_several_at_k("map")
def mean_average_precision(lists: TargetLists, k: int) -> Floats:
    """Average precision: mean of the precision at the rank of each target among the first k.

    The sum of these precisions is divided by min(k, number of targets), so that an ideal list has
    1. The mean over users is MAP.
    """
    # A target at rank r = before + j of its group has above + 1 targets up to it for certain, and
    # each of the other relevant - 1 stands before it with probability (j - 1) / (width - 1). The
    # expected precision at r is slope + (above + 1 - slope * (before + 1)) / r.
    slope_G = (lists.relevant_G - 1) / (lists.width_G - 1).clip(min=1)
    over_rank_G = lists.above_G + 1 - slope_G * (lists.before_G + 1)
    inverse_G = lists.gain_G(1 / np.arange(1, k + 1, dtype=np.float64))
    share_G = lists.within_G(k) / lists.width_G
    value_G = lists.relevant_G * (slope_G * share_G + over_rank_G * inverse_G)
    return lists.sum_L(value_G) / np.minimum(lists.n_targets_L, k)


@metric_of_several("mrr")
def reciprocal_rank(lists: TargetLists) -> Floats:
    """Reciprocal of the best rank of a target."""
    best_L = lists.first_L
    columns = (lists.before_G[best_L], lists.width_G[best_L], lists.relevant_G[best_L])
    # Few lists differ in these three numbers.
    case_C3, case_L = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)
    mean_C = np.array([_mean_reciprocal(*map(int, case)) for case in case_C3])
    return mean_C[case_L.ravel()] if len(mean_C) else np.zeros(0)


@metric_of_several("auc")
def auc(lists: TargetLists) -> Floats:
    """Probability that a target is ranked above an item that is no target; a tie counts half.

    0.5 where all ranked items are targets.
    """
    n_others_L = lists.n_ranked_L - lists.n_targets_L
    others_tied_G = lists.width_G - lists.relevant_G
    others_above_G = lists.before_G - lists.above_G
    n_wrong_L = lists.sum_L(lists.relevant_G * (others_above_G + 0.5 * others_tied_G))
    wrong_L = n_wrong_L / (lists.n_targets_L * n_others_L.clip(min=1))
    value_L: Floats = np.where(n_others_L > 0, 1 - wrong_L, 0.5)
    return value_L


def _found(lists: TargetLists, k: int) -> Floats:
    """Expected number of targets among the first k, float64 [L]."""
    return lists.sum_L(lists.relevant_G * (lists.within_G(k) / lists.width_G))


def _mean_reciprocal(before: int, width: int, relevant: int) -> float:
    """Mean of 1 / rank of the first target of a group over all orders of the group."""
    if width == relevant:
        return 1 / (before + 1)
    # The first target is at place j + 1 of the group, j from 0, with probability
    # C(width - 1 - j, relevant - 1) / C(width, relevant): one is at the first place with
    # probability relevant / width, and each later place follows from the one before.
    place = np.arange(width - relevant, dtype=np.float64)
    ratio = (width - relevant - place) / (width - 1 - place)
    probability = relevant / width * np.concatenate([[1.0], ratio.cumprod()])
    rank = before + 1 + np.arange(len(probability))
    return float((probability / rank).sum())
