"""What is measured of recommended lists besides whether they hold the target.

A new metric is one function here:

- ``@list_metric``: a value per user, of the first k items of their list;
- ``@list_metric_by_feature``: the same for every item feature, named "<name>.<feature>";
- ``@catalog_metric``: one value of all lists together.

Definitions and sources are in ``docs/guides/beyond_accuracy.md``. Suffixes of shapes: Q lists, K
items of a list, V items and the padding row, M values of an item. Item 0 stands behind the end of a
list that is shorter than K: means are over the items that are there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from recexp.evaluation.registry import registrar

if TYPE_CHECKING:
    from recexp.data.store import Store, Targets
    from recexp.evaluation.kept import TopLists
    from recexp.types import Feature

ELEMENTS_AT_ONCE = 1 << 22  # of a temporary tensor
NO_ID = torch.iinfo(torch.int64).max  # above all ids of values


@dataclass(frozen=True)
class Recommended:
    """The lists of Q users and what metrics may know of the data. All tensors are on the CPU.

    item_QK: int64. number_Q: the n-th users who have targets. candidate_QC: drawn candidates
    without the targets; None: all items are ranked, and where ``removes_seen`` without those of the
    user's history.
    """

    store: Store
    targets: Targets
    item_QK: Tensor
    number_Q: Tensor
    candidate_QC: Tensor | None
    removes_seen: bool

    @classmethod
    def of(
        cls,
        lists: TopLists,
        store: Store,
        targets: Targets,
        candidates: Tensor | None,
        seen: str,
        length: int | None = None,
    ) -> Recommended:
        """candidates: drawn ones of all users, None: all items. seen: ``Candidates.seen``.

        length: what is read of each list; None: all.
        """
        number_Q = torch.from_numpy(lists.number_Q)
        return cls(
            store=store,
            targets=targets,
            item_QK=torch.from_numpy(lists.item_QK[:, :length]).long(),
            number_Q=number_Q,
            candidate_QC=None if candidates is None else candidates[number_Q],
            removes_seen=candidates is None and seen == "removed",
        )

    def are_targets(self, owner: Tensor, item: Tensor) -> Tensor:
        """Is each item a target of its owner, the n-th list? bool in the shape of item."""
        key = self.targets.user[self.row_Q[owner]] * self.store.schema.V + item
        place = torch.searchsorted(self._target_key_T, key).clamp_(max=len(self.targets) - 1)
        return self._target_key_T[place] == key

    @cached_property
    def _target_key_T(self) -> Tensor:
        """user * V + item of the targets, ascending."""
        return (self.targets.user * self.store.schema.V + self.targets.item).sort().values

    @cached_property
    def row_Q(self) -> Tensor:
        """The first target of each user, int64, rows of ``targets``."""
        return self.targets.first(self.number_Q)

    @cached_property
    def n_users_V(self) -> Tensor:
        """How many users have a training event of the item, int64 [V]."""
        return item_popularity(self.store)

    @cached_property
    def n_trained_users(self) -> int:
        """Users with a training event."""
        ptr = self.store.train_pairs.ptr
        return int((ptr[1:] > ptr[:-1]).sum())

    @cached_property
    def popular_QK(self) -> Tensor:
        """The most popular candidates of each user, int64 [Q, K]; 0 where there are fewer than K.

        Popularity is ``n_users_V``; equally popular items are ordered by number. Held-out targets
        are candidates, too, where they are drawn or the protocol leaves out the history.
        """
        n_wanted = self.item_QK.shape[1]
        by_popularity_N = self.n_users_V[1:].argsort(descending=True, stable=True) + 1
        if self.candidate_QC is not None:
            parts = [
                self._popular_drawn(rows, by_popularity_N)
                for rows in _blocks(len(self.row_Q), self.candidate_QC.shape[1])
            ]
            return torch.cat(parts)
        if self.removes_seen:
            longest = int((self.targets.end - self.targets.start).max())
            parts = [
                self._popular_unseen(rows, by_popularity_N)
                for rows in _blocks(len(self.row_Q), n_wanted + longest)
            ]
            return torch.cat(parts)
        first_K = by_popularity_N[:n_wanted]
        return F.pad(first_K, (0, n_wanted - len(first_K))).expand(len(self.row_Q), -1)

    def _popular_unseen(self, rows: slice, by_popularity_N: Tensor) -> Tensor:
        """``popular_QK`` of some users, among the items that are not of their histories."""
        place_V = _places(by_popularity_N)
        row_B = self.row_Q[rows]
        owner_M, item_M = self.store.items_between(
            self.store.past, self.targets.start[row_B], self.targets.end[row_B]
        )
        is_left_out_M = ~self.are_targets(owner_M + rows.start, item_M)
        owner_M = owner_M[is_left_out_M]
        place_M = place_V[item_M[is_left_out_M]]
        # So many of the most popular items hold K candidates, as no user has left out more.
        longest = int(owner_M.bincount(minlength=1).max())
        n_searched = min(len(by_popularity_N), self.item_QK.shape[1] + longest)
        is_candidate_BN = torch.ones(len(row_B), n_searched, dtype=torch.bool)
        is_near_M = place_M < n_searched
        is_candidate_BN[owner_M[is_near_M], place_M[is_near_M]] = False
        place_BN = torch.where(is_candidate_BN, torch.arange(n_searched), len(by_popularity_N))
        return self._first(place_BN, by_popularity_N)

    def _popular_drawn(self, rows: slice, by_popularity_N: Tensor) -> Tensor:
        """``popular_QK`` of some users, among their drawn candidates and their targets."""
        assert self.candidate_QC is not None
        target_BT = self.targets.items_of_users(self.number_Q[rows])
        item_BC = torch.cat([self.candidate_QC[rows].long(), target_BT], dim=1)
        place_BC = _places(by_popularity_N)[item_BC].sort(dim=1).values
        # A user with fewer targets than another has some twice.
        is_repeated_BC = F.pad(place_BC[:, 1:] == place_BC[:, :-1], (1, 0))
        place_BC = place_BC.masked_fill(is_repeated_BC, len(by_popularity_N))
        return self._first(place_BC, by_popularity_N)

    def _first(self, place_BC: Tensor, by_popularity_N: Tensor) -> Tensor:
        """The items of the K first places of each row, [B, K]; 0 for the place after the last."""
        n_wanted = self.item_QK.shape[1]
        first_BK = place_BC.sort(dim=1).values[:, :n_wanted]
        item_BK = F.pad(by_popularity_N, (0, 1))[first_BK]
        return F.pad(item_BK, (0, n_wanted - item_BK.shape[1]))


def _places(by_popularity_N: Tensor) -> Tensor:
    """The place of each item among those by popularity, int64 [V]."""
    place_V = torch.full((len(by_popularity_N) + 1,), len(by_popularity_N))
    place_V[by_popularity_N] = torch.arange(len(by_popularity_N))
    return place_V


def item_popularity(store: Store) -> Tensor:
    """How many users have a training event of the item, int64 [V]."""
    return torch.bincount(store.train_pairs.item.long(), minlength=store.schema.V)


# (lists, k) -> values per user, float64 [Q]; NaN where a list has none
ListMetric = Callable[[Recommended, int], Tensor]
FeatureMetric = Callable[[Recommended, int, "Feature"], Tensor]
CatalogMetric = Callable[[Recommended, int], float]
LIST_METRICS: dict[str, ListMetric] = {}
FEATURE_METRICS: dict[str, FeatureMetric] = {}
CATALOG_METRICS: dict[str, CatalogMetric] = {}


# Registers "<name>@k", a value of each user's list.
list_metric = registrar(LIST_METRICS)

# Registers "<name>.<feature>@k", a value of each user's list by an item feature.
list_metric_by_feature = registrar(FEATURE_METRICS)

# Registers "<name>@k", one value of all lists.
catalog_metric = registrar(CATALOG_METRICS)


def values_per_user(lists: Recommended, ks: Sequence[int]) -> dict[str, Tensor]:
    """Every metric with a value per user, "<name>@k" -> float64 [Q]."""
    values = {}
    for k in ks:
        for name, function in LIST_METRICS.items():
            values[f"{name}@{k}"] = function(lists, k)
        for name, by_feature in FEATURE_METRICS.items():
            for feature_name, feature in lists.store.schema.item_features.items():
                if feature.kind in DISTANCES:
                    values[f"{name}.{feature_name}@{k}"] = by_feature(lists, k, feature)
    return values


def values_of_catalog(lists: Recommended, ks: Sequence[int]) -> dict[str, float]:
    """Every metric with one value of all lists, by "<name>@k"."""
    values = {}
    for k in ks:
        for name, function in CATALOG_METRICS.items():
            values[f"{name}@{k}"] = function(lists, k)
    return values


def mean_of_known(value_Q: Tensor) -> float:
    """Mean of the values that are not NaN, rounded once; NaN where there is none."""
    known = value_Q[~value_Q.isnan()].tolist()
    return math.fsum(known) / len(known) if known else math.nan


# One value of all lists ---------------------------------------------------------------------------


@catalog_metric("coverage")
def coverage(lists: Recommended, k: int) -> float:
    """Share of the catalog's items that are in at least one list.

    Ge, Delgado-Battenfeld and Jannach 2010 (Beyond Accuracy), catalog coverage,
    https://doi.org/10.1145/1864708.1864761
    """
    return float((_exposure(lists, k) > 0).double().mean())


@catalog_metric("gini")
def gini(lists: Recommended, k: int) -> float:
    """Gini index of the exposure of all items: 0 where all are listed equally often, 1: only one.

    Sum over j of (2j - n - 1) p_j / (n - 1), p ascending, the share of places that item j has.
    Castells, Hurley and Vargas 2022 (Novelty and Diversity in Recommender Systems),
    https://doi.org/10.1007/978-1-0716-2197-4_16
    """
    count_N = _exposure(lists, k).double().sort().values
    n = len(count_N)
    total = float(count_N.sum())
    if n < 2 or total == 0:
        return 0.0
    weight_N = 2 * torch.arange(1, n + 1, dtype=torch.float64) - n - 1
    return float((weight_N * count_N).sum() / (total * (n - 1)))


def _exposure(lists: Recommended, k: int) -> Tensor:
    """In how many lists each item is, int64 [items]."""
    return torch.bincount(lists.item_QK[:, :k].flatten(), minlength=lists.store.schema.V)[1:]


# A value of each list -----------------------------------------------------------------------------


@list_metric("popularity")
def popularity(lists: Recommended, k: int) -> Tensor:
    """Mean number of users who have a training event of the listed item.

    Abdollahpouri, Burke and Mobasher 2019 (Managing Popularity Bias), average recommendation
    popularity, arXiv:1901.07555
    """
    item_Qk = lists.item_QK[:, :k]
    return _mean_over_items(lists.n_users_V[item_Qk].double(), item_Qk)


@list_metric("novelty")
def novelty(lists: Recommended, k: int) -> Tensor:
    """Mean self-information of the listed items in bits, -log2 of the share of users who have them.

    Shares are of the users with a training event. An item without one counts as if one user had it.
    Zhou et al. 2010 (Solving the apparent diversity-accuracy dilemma of recommender systems),
    arXiv:0808.2670
    """
    item_Qk = lists.item_QK[:, :k]
    share_V = lists.n_users_V.clamp(min=1).double() / lists.n_trained_users
    return _mean_over_items(-share_V.log2()[item_Qk], item_Qk)


@list_metric("serendipity")
def serendipity(lists: Recommended, k: int) -> Tensor:
    """Share of held-out targets among the listed items that popularity does not recommend.

    Ge, Delgado-Battenfeld and Jannach 2010 (Beyond Accuracy), SRDP,
    https://doi.org/10.1145/1864708.1864761: unexpected are the items of the list that a primitive
    model does not list, which is here the k most popular candidates of the user; useful is the
    target. 0 where no item is unexpected.
    """
    item_Qk = lists.item_QK[:, :k]
    popular_Qk = lists.popular_QK[:, :k]
    number_Qk = torch.arange(len(item_Qk))[:, None].expand_as(item_Qk)
    is_useful_Qk = lists.are_targets(number_Qk, item_Qk)
    value_Q = torch.zeros(len(item_Qk), dtype=torch.float64)
    for rows in _blocks(len(item_Qk), k * k):
        is_popular_Bk = (item_Qk[rows, :, None] == popular_Qk[rows, None, :]).any(2)
        is_unexpected_Bk = (item_Qk[rows] > 0) & ~is_popular_Bk
        n_useful_B = (is_unexpected_Bk & is_useful_Qk[rows]).sum(1)
        value_Q[rows] = n_useful_B.double() / is_unexpected_Bk.sum(1).clamp(min=1)
    return value_Q


@list_metric_by_feature("diversity")
def diversity(lists: Recommended, k: int, feature: Feature) -> Tensor:
    """Intra-list diversity: mean distance of two listed items by a feature.

    Distances are those of ``DISTANCES``. Pairs with an item that has no value do not count; a list
    without a pair that counts has no value. Ziegler et al. 2005 (Improving Recommendation Lists
    Through Topic Diversification), https://doi.org/10.1145/1060745.1060754; as a mean of distances
    in Castells, Hurley and Vargas 2022, https://doi.org/10.1007/978-1-0716-2197-4_16
    """
    item_Qk = lists.item_QK[:, :k]
    distance = DISTANCES[feature.kind]
    is_known_V = (feature.id_VM != 0).any(1)
    upper_kk = torch.ones(item_Qk.shape[1], item_Qk.shape[1], dtype=torch.bool).triu(1)
    value_Q = torch.full((len(item_Qk),), torch.nan, dtype=torch.float64)
    for rows in _blocks(len(item_Qk), k * k * feature.weight_VM.shape[1]):
        is_known_Bk = is_known_V[item_Qk[rows]]
        counts_Bkk = is_known_Bk[:, :, None] & is_known_Bk[:, None, :] & upper_kk
        total_B = torch.where(counts_Bkk, distance(feature, item_Qk[rows]), 0).sum((1, 2))
        value_Q[rows] = total_B / counts_Bkk.sum((1, 2))  # 0 / 0 is NaN
    return value_Q


def jaccard_distance(feature: Feature, item_Bk: Tensor) -> Tensor:
    """1 - |A and B| / |A or B| of the items' labels, float64 [B, k, k]; of one label 0 or 1."""
    id_BkM = feature.id_VM[item_Bk]
    n_lists, k, width = id_BkM.shape
    size_Bk = (id_BkM != 0).sum(2)
    # Look up the labels of every item among those of every other.
    sorted_BkM = torch.where(id_BkM == 0, NO_ID, id_BkM).sort(dim=2).values
    among_BkkM = sorted_BkM[:, None].expand(n_lists, k, k, width).contiguous()
    label_BkkM = id_BkM[:, :, None].expand(n_lists, k, k, width).contiguous()
    place_BkkM = torch.searchsorted(among_BkkM, label_BkkM).clamp_(max=width - 1)
    n_common_Bkk = (among_BkkM.gather(3, place_BkkM) == label_BkkM).sum(3)
    n_either_Bkk = size_Bk[:, :, None] + size_Bk[:, None, :] - n_common_Bkk
    return 1 - n_common_Bkk / n_either_Bkk.clamp(min=1).double()


def gower_distance(feature: Feature, item_Bk: Tensor) -> Tensor:
    """Distance of two numbers in parts of the range of all items' numbers, float64 [B, k, k].

    Gower 1971 (A General Coefficient of Similarity), https://doi.org/10.2307/2528823
    """
    value_V = feature.weight_VM[:, 0].double()
    known = value_V[feature.id_VM[:, 0] != 0]
    width = float(known.max() - known.min()) if len(known) else 0.0
    value_Bk = value_V[item_Bk]
    difference_Bkk = (value_Bk[:, :, None] - value_Bk[:, None, :]).abs()
    return difference_Bkk / width if width > 0 else difference_Bkk


def cosine_distance(feature: Feature, item_Bk: Tensor) -> Tensor:
    """1 - the cosine of two vectors, float64 [B, k, k]; that of a vector of zeros is 0."""
    direction_BkM = F.normalize(feature.weight_VM[item_Bk].double(), dim=2)
    return 1 - direction_BkM @ direction_BkM.transpose(1, 2)


# Distances of the items of B lists by a feature, float64 [B, k, k], by the feature's kind.
DISTANCES: dict[str, Callable[[Feature, Tensor], Tensor]] = {
    "categorical": jaccard_distance,
    "multi_label": jaccard_distance,
    "numeric": gower_distance,
    "vector": cosine_distance,
}


def _mean_over_items(value_Qk: Tensor, item_Qk: Tensor) -> Tensor:
    """Mean over the items that are there, float64 [Q]; NaN for an empty list."""
    is_item_Qk = item_Qk > 0
    return torch.where(is_item_Qk, value_Qk, 0).sum(1) / is_item_Qk.sum(1)


def _blocks(n: int, size: int) -> Iterator[slice]:
    """Rows in parts whose temporary tensors, of ``size`` elements a row, stay small."""
    step = max(1, ELEMENTS_AT_ONCE // max(1, size))
    for start in range(0, n, step):
        yield slice(start, start + step)
