"""HR@k, NDCG@k and MRR for one relevant item per user, from ranks.

A rank is given as ``better`` (G, candidates scored strictly higher) and ``tied`` (E, candidates
scored the same), both int64 [B]. Ties: "expected" averages a metric over the ranks G+1 .. G+1+E, so
a model that scores all items equal gets exactly chance level; "optimistic" takes rank G+1 and
"pessimistic" rank G+1+E.

A new metric is one function here, with ``@metric_at_k`` or ``@metric_without_cutoff``. Protocols
with several targets per user have the metrics of ``recexp.evaluation.several``; one that is only
registered here is there the mean over a user's targets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from recexp.errors import RecexpError
from recexp.evaluation.registry import registrar
from recexp.evaluation.several import SEVERAL_AT_K, SEVERAL_WITHOUT_CUTOFF, TargetLists

TIES = ("expected", "pessimistic", "optimistic")
STATES = ("user", "better", "tied", "candidates", "group")
NO_GROUP = -1
# Bits of a group: how the user had met the target, and whether its item was trained on.
SEEN, REPEAT, COLD = 1, 2, 4

# (better, tied, k or length of the longest ranked list, ties) -> values per user, float64 [B]
MetricFunction = Callable[[Tensor, Tensor, int, str], Tensor]
METRICS_AT_K: dict[str, MetricFunction] = {}
METRICS_WITHOUT_CUTOFF: dict[str, MetricFunction] = {}


# Registers a metric "<name>@k", computed for every cut-off of a protocol.
metric_at_k = registrar(METRICS_AT_K)

# Registers a metric of the whole ranked list.
metric_without_cutoff = registrar(METRICS_WITHOUT_CUTOFF)


@metric_at_k("hr")
def expected_hr(better: Tensor, tied: Tensor, k: int, ties: str = "expected") -> Tensor:
    """Hit ratio at k per user, float64: 1[rank <= k], averaged over ties."""
    first, width = _span(better, tied, ties)
    return torch.minimum((k - first).clamp(min=0), width).double() / width


@metric_at_k("ndcg")
def expected_ndcg(better: Tensor, tied: Tensor, k: int, ties: str = "expected") -> Tensor:
    """NDCG at k per user, float64: 1[rank <= k] / log2(rank + 1), averaged over ties."""
    rank = torch.arange(1, k + 1, dtype=torch.float64, device=better.device)
    return _mean_gain(1 / torch.log2(rank + 1), better, tied, ties)


@metric_without_cutoff("mrr")
def mrr(better: Tensor, tied: Tensor, n: int, ties: str = "expected") -> Tensor:
    """Reciprocal rank per user without cut-off, float64, averaged over ties.

    n: length of the longest ranked list.
    """
    rank = torch.arange(1, n + 1, dtype=torch.float64, device=better.device)
    return _mean_gain(1 / rank, better, tied, ties)


def _span(better: Tensor, tied: Tensor, ties: str) -> tuple[Tensor, Tensor]:
    """The ranks to average over, as the number of ranks before them and how many there are."""
    _check_ties(ties)
    if ties == "expected":
        return better, tied + 1
    before = better if ties == "optimistic" else better + tied
    return before, torch.ones_like(tied)


def _check_ties(ties: str) -> None:
    if ties not in TIES:
        raise RecexpError(f"ties is {ties!r}; choose one of {', '.join(TIES)}")


def _mean_gain(gain: Tensor, better: Tensor, tied: Tensor, ties: str) -> Tensor:
    """Mean of gain (entry r-1 for rank r, 0 beyond its end) over the ranks a target may take."""
    n_before, width = _span(better, tied, ties)
    first = n_before.clamp(max=len(gain))
    last = (n_before + width).clamp(max=len(gain))
    sum_before = torch.cat([gain.new_zeros(1), gain.cumsum(0)])
    mean_over_ties = (sum_before[last] - sum_before[first]) / width
    # The difference of two prefix sums loses digits where a single gain is meant.
    single = torch.cat([gain, gain.new_zeros(1)])[first]
    return torch.where(width == 1, single, mean_over_ties)


class RankingMetrics(Metric):
    """The registered metrics over users, from their ranks, for any number of processes.

    Keeps every user's rank, so that the means are taken over all users in one exactly rounded
    float64 sum: the digits do not depend on the number of processes.

    ks: cut-offs. ties: see above. several: a user may have several targets, which stand in one
    list; each is added as a row of its own. kwargs: those of torchmetrics (``process_group``, ...).
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    user: list[Tensor]
    better: list[Tensor]
    tied: list[Tensor]
    candidates: list[Tensor]
    group: list[Tensor]

    def __init__(
        self,
        ks: Iterable[int] = (5, 10),
        ties: str = "expected",
        several: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.ks = tuple(ks)
        self.ties = ties
        self.several = several
        if any(k != int(k) or k < 1 for k in self.ks):
            raise RecexpError(f"ks is {list(self.ks)}; cut-offs are whole numbers from 1")
        _check_ties(ties)
        for state in STATES:
            self.add_state(state, default=[], dist_reduce_fx="cat")
        # A process without users sends an empty tensor of this type. A type of another size than
        # that of the other processes would corrupt the gather.
        self.set_dtype(torch.int64)

    def update(
        self,
        user: Tensor,
        better: Tensor,
        tied: Tensor,
        candidates: Tensor,
        seen: Tensor | None = None,
        repeat: Tensor | None = None,
        cold: Tensor | None = None,
    ) -> None:
        """Add users: ids, ranks, and numbers of candidates (the target included), all int64 [B].

        With several targets a row is a target, and all targets of a user are added in one call.
        seen, repeat, cold: kinds of targets as in ``store.Targets``, bool [B]. seen must be given
        always or never; without repeat or cold there are none.
        """
        self.user.append(user)
        self.better.append(better)
        self.tied.append(tied)
        self.candidates.append(candidates)
        if seen is None:
            self.group.append(torch.full_like(user, NO_GROUP))
            return
        group = SEEN * seen.long()
        if repeat is not None:
            group = group + REPEAT * repeat.long()
        if cold is not None:
            group = group + COLD * cold.long()
        self.group.append(group)

    def compute(self) -> dict[str, float]:
        """Means over users: "hr@k" and "ndcg@k" for every k, "mrr", and the number of "users".

        With kinds of targets also each of these under "<name>/<kind>":
        - "seen": the user had met the item, through weaker behaviors only;
        - "repeat": they had met it through an equal or a stronger behavior;
        - "new": neither;
        - "cold": the item has no training event; "warm": it has one.
        Where no target repeats, there is no "repeat"; where none is cold, neither "cold" nor
        "warm". An empty "seen" or "new" has only "users/<kind>": 0.

        With several targets the metrics are those of ``recexp.evaluation.several``, and "targets"
        is their number. Under "<name>/<kind>" only targets of that kind count as such; a user's
        other targets are other items of the same list, and the mean is over users with a target of
        that kind.

        Raises RecexpError if there are no users, a user counts twice, a rank lies outside its list,
        or groups are incomplete.
        """
        ranks = self._by_user()
        everyone = torch.ones_like(ranks["user"], dtype=torch.bool)
        return self.by_group(ranks, {"": everyone, **_kinds(ranks)})

    def by_group(self, ranks: dict[str, Tensor], groups: dict[str, Tensor]) -> dict[str, float]:
        """Means over the targets of each group, "<name>/<group>" -> value, as of ``compute``.

        ranks: of all targets, as ``ranks`` gives them. groups: by name, "" without "/", which rows
        are of it, bool [rows].
        """
        per_row = self._of_rows(ranks)
        values: dict[str, float] = {}
        for group, members in groups.items():
            suffix = f"/{group}" if group else ""
            if self.several:
                values |= self._means_of_several(ranks, per_row, members, suffix)
            else:
                values |= _means(per_row, members, suffix)
        return values

    def _of_rows(self, ranks: dict[str, Tensor]) -> dict[str, Tensor]:
        """The registered metrics of each row by itself; those of several targets left out."""
        better = ranks["better"]
        tied = ranks["tied"]
        n_longest = int(ranks["candidates"].max())
        per_row = {}
        for name, at_k in METRICS_AT_K.items():
            if not (self.several and name in SEVERAL_AT_K):
                for k in self.ks:
                    per_row[f"{name}@{k}"] = at_k(better, tied, k, self.ties)
        for name, function in METRICS_WITHOUT_CUTOFF.items():
            if not (self.several and name in SEVERAL_WITHOUT_CUTOFF):
                per_row[name] = function(better, tied, n_longest, self.ties)
        return per_row

    def _means_of_several(
        self,
        ranks: dict[str, Tensor],
        per_row: dict[str, Tensor],
        members: Tensor,
        suffix: str,
    ) -> dict[str, float]:
        """Means over the users of the chosen targets, and how many users and targets there are.

        per_row: metrics of which a user has the mean over their targets.
        """
        user, better, tied, candidates = (ranks[name][members].numpy() for name in STATES[:4])
        lists = TargetLists.of(user, better, tied, candidates, self.ties)
        per_user = {
            f"{name}@{k}": at_k(lists, k) for name, at_k in SEVERAL_AT_K.items() for k in self.ks
        }
        per_user |= {name: function(lists) for name, function in SEVERAL_WITHOUT_CUTOFF.items()}
        owner = np.repeat(np.arange(len(lists.n_targets_L)), lists.n_targets_L)
        for name, value in per_row.items():
            sum_L = np.bincount(owner, weights=value[members].numpy())
            per_user[name] = sum_L / lists.n_targets_L
        as_tensors = {name: torch.from_numpy(value) for name, value in per_user.items()}
        everyone = torch.ones(len(lists.n_targets_L), dtype=torch.bool)
        means = _means(as_tensors, everyone, suffix)
        means[f"targets{suffix}"] = float(members.sum())
        return means

    def ranks(self) -> dict[str, Tensor]:
        """What was added, sorted by user, on the CPU.

        user, better, tied, candidates (int64) and, where given, group (that is, seen), repeat and
        cold (bool). Gathers from all
        processes: every one of them must call it. Raises as ``compute`` does.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            return self._by_user()

    def _by_user(self) -> dict[str, Tensor]:
        # A list of tensors, or after a gather one tensor.
        if not len(self.user) or not len(dim_zero_cat(self.user)):
            raise RecexpError(
                "no user was evaluated: the evaluation split is empty. Check the dataset's filters "
                "and split."
            )
        # Stable: the targets of a user stay in their order.
        order = dim_zero_cat(self.user).cpu().argsort(stable=True)
        ranks = {state: dim_zero_cat(getattr(self, state)).cpu()[order] for state in STATES}
        if not self.several:
            _check_users(ranks["user"])
        _check_ranks(ranks)
        if self.several:
            _check_groups(ranks)
        group = ranks.pop("group")
        if (group != NO_GROUP).any():
            without = ranks["user"][group == NO_GROUP]
            if len(without):
                raise RecexpError(
                    f"user {int(without[0])} has no group while others do: give seen always or "
                    "never."
                )
            ranks["group"] = (group & SEEN) != 0
            ranks["repeat"] = (group & REPEAT) != 0
            ranks["cold"] = (group & COLD) != 0
        return ranks


def _check_users(user: Tensor) -> None:
    """Raise RecexpError unless every id of these sorted ones occurs once."""
    repeated = user[1:][user[1:] == user[:-1]]
    if len(repeated):
        raise RecexpError(
            f"user {int(repeated[0])} was evaluated more than once ({len(repeated)} repeats in "
            "all). Every user counts once: keep Lightning from padding shards "
            "(trainer.use_distributed_sampler=false) and reset the metric between runs."
        )


def _check_ranks(ranks: dict[str, Tensor]) -> None:
    """Raise RecexpError where a rank lies outside its list."""
    better = ranks["better"]
    tied = ranks["tied"]
    is_outside = (better < 0) | (tied < 0) | (better + tied >= ranks["candidates"])
    if is_outside.any():
        first = {name: int(value[is_outside][0]) for name, value in ranks.items()}
        raise RecexpError(
            f"user {first['user']} has {first['better']} better and {first['tied']} tied among "
            f"{first['candidates']} candidates, the target included: count the target among the "
            "candidates."
        )


def _check_groups(ranks: dict[str, Tensor]) -> None:
    """Raise RecexpError where more targets of a user have one score than items have it."""
    key = ranks["user"] * int(ranks["candidates"].max()) + ranks["better"]
    _, group, n_targets = key.unique(return_inverse=True, return_counts=True)
    is_wrong = n_targets[group] > ranks["tied"] + 1
    if is_wrong.any():
        user = int(ranks["user"][is_wrong][0])
        raise RecexpError(
            f"user {user} has more targets of one score than their list has items of it: every "
            "target counts once, so keep Lightning from padding shards "
            "(trainer.use_distributed_sampler=false) and reset the metric between runs."
        )


def _kinds(ranks: dict[str, Tensor]) -> dict[str, Tensor]:
    """The kinds of targets that ``RankingMetrics.compute`` tells apart, and which rows they are."""
    if "group" not in ranks:
        return {}
    seen = ranks["group"]
    repeat = ranks["repeat"]
    cold = ranks["cold"]
    kinds = {"seen": seen, "new": ~(seen | repeat)}
    if repeat.any():
        kinds["repeat"] = repeat
    if cold.any():
        kinds |= {"cold": cold, "warm": ~cold}
    return kinds


def _means(per_user: dict[str, Tensor], members: Tensor, suffix: str) -> dict[str, float]:
    """Mean of every metric over the members, and how many they are.

    ``fsum`` rounds once, so neither the number of threads nor the machine changes a digit.
    """
    n_users = int(members.sum())
    means = {}
    if n_users:
        for name, value in per_user.items():
            means[f"{name}{suffix}"] = math.fsum(value[members].tolist()) / n_users
    means[f"users{suffix}"] = float(n_users)
    return means
