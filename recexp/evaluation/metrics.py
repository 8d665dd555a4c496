"""HR@k, NDCG@k and MRR for one relevant item per user, from ranks (models.md §1.1).

A rank is given as ``better`` (G, candidates scored strictly higher) and ``tied`` (E, candidates scored the same). Ties:
"expected" averages a metric over ranks G+1 .. G+1+E, so a constant scorer gets exactly chance; "optimistic" takes rank G+1
and "pessimistic" rank G+1+E.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from recexp.errors import RecexpError

TIES = ("expected", "pessimistic", "optimistic")


def expected_hr(better: Tensor, tied: Tensor, k: int, ties: str = "expected") -> Tensor:
    """Hit ratio at k per user, float64: 1[rank <= k], averaged over ties."""
    first, width = _span(better, tied, ties)
    return torch.minimum((k - first).clamp(min=0), width).double() / width


def expected_ndcg(better: Tensor, tied: Tensor, k: int, ties: str = "expected") -> Tensor:
    """NDCG at k per user, float64: 1[rank <= k] / log2(rank + 1), averaged over ties."""
    rank = torch.arange(1, k + 1, dtype=torch.float64, device=better.device)
    return _mean_gain(1 / torch.log2(rank + 1), better, tied, ties)


def mrr(better: Tensor, tied: Tensor, n: int, ties: str = "expected") -> Tensor:
    """Reciprocal rank per user without cut-off, float64, averaged over ties; n is the length of the longest ranked list."""
    return _mean_gain(
        1 / torch.arange(1, n + 1, dtype=torch.float64, device=better.device), better, tied, ties
    )


def _span(better: Tensor, tied: Tensor, ties: str) -> tuple[Tensor, Tensor]:
    """The ranks to average over, as the number of ranks before them and how many there are."""
    if ties not in TIES:
        raise RecexpError(f"ties is {ties!r}; choose one of {', '.join(TIES)}")
    if ties == "expected":
        return better, tied + 1
    return (better if ties == "optimistic" else better + tied), torch.ones_like(tied)


def _mean_gain(gain: Tensor, better: Tensor, tied: Tensor, ties: str) -> Tensor:
    """Mean of gain (entry r-1 for rank r, 0 beyond its end) over the ranks a target may take."""
    first, width = _span(better, tied, ties)
    upto = torch.cat([gain.new_zeros(1), gain.cumsum(0)])
    over_ties = (
        upto[(first + width).clamp(max=len(gain))] - upto[first.clamp(max=len(gain))]
    ) / width
    # The difference of two prefix sums loses digits where a single gain is meant.
    alone = torch.cat([gain, gain.new_zeros(1)])[first.clamp(max=len(gain))]
    return torch.where(width == 1, alone, over_ties)


class RankingMetrics(Metric):
    """HR@k, NDCG@k and MRR over users, from their ranks, however many processes share the users.

    Keeps every user's rank, so that the means are taken over all users in one exactly rounded float64 sum: the digits do not
    depend on the number of processes. ``kwargs`` are torchmetrics' own (``process_group``, ``dist_sync_fn``, ...).
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
        self, ks: Iterable[int] = (5, 10), ties: str = "expected", **kwargs: object
    ) -> None:
        super().__init__(**kwargs)
        self.ks = tuple(ks)
        self.ties = ties
        if any(k != int(k) or k < 1 for k in self.ks):
            raise RecexpError(f"ks is {list(self.ks)}; cut-offs are whole numbers from 1")
        if ties not in TIES:
            raise RecexpError(f"ties is {ties!r}; choose one of {', '.join(TIES)}")
        for state in ("user", "better", "tied", "candidates", "group"):
            self.add_state(state, default=[], dist_reduce_fx="cat")
        # A process without users sends an empty tensor of this type; another width than the others' would corrupt the gather.
        self.set_dtype(torch.int64)

    def update(
        self,
        user: Tensor,
        better: Tensor,
        tied: Tensor,
        candidates: Tensor,
        group: Tensor | None = None,
    ) -> None:
        """Add users: ids, ranks, and how many candidates they were ranked among (the target included), all int64 [B].

        group (bool [B]) says whether the user had met the target through a weaker behaviour; give it always or never.
        """
        self.user.append(user)
        self.better.append(better)
        self.tied.append(tied)
        self.candidates.append(candidates)
        self.group.append(torch.full_like(user, -1) if group is None else group.long())

    def compute(self) -> dict[str, float]:
        """Means over users: "hr@k" and "ndcg@k" for every k, "mrr", and the number of "users".

        With groups also each of these under "<name>/seen" and "<name>/new"; an empty group has only "users/<group>": 0.

        Raises RecexpError if there are no users, a user counts twice, a rank lies outside its list, or groups are incomplete.
        """
        ranks = self._by_user()
        better, tied, n = ranks["better"], ranks["tied"], int(ranks["candidates"].max())
        per_user = {}
        for k in self.ks:
            per_user[f"hr@{k}"] = expected_hr(better, tied, k, self.ties)
            per_user[f"ndcg@{k}"] = expected_ndcg(better, tied, k, self.ties)
        per_user["mrr"] = mrr(better, tied, n, self.ties)
        values = _means(per_user, torch.ones_like(better, dtype=torch.bool), "")
        if "group" in ranks:
            values |= _means(per_user, ranks["group"], "/seen") | _means(
                per_user, ~ranks["group"], "/new"
            )
        return values

    def ranks(self) -> dict[str, Tensor]:
        """What was added, sorted by user, on the CPU: user, better, tied, candidates (int64) and, where given, group (bool).

        Gathers from all processes: every one of them must call it. Raises as ``compute`` does.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            return self._by_user()

    def _by_user(self) -> dict[str, Tensor]:
        if not len(self.user) or not len(user := dim_zero_cat(self.user).cpu()):
            raise RecexpError(
                "no user was evaluated: the evaluation split is empty. Check the dataset's filters and split."
            )
        user, order = user.sort()
        ranks = {"user": user}
        for state in ("better", "tied", "candidates", "group"):
            ranks[state] = dim_zero_cat(getattr(self, state)).cpu()[order]
        twice = user[1:][user[1:] == user[:-1]]
        if len(twice):
            raise RecexpError(
                f"user {int(twice[0])} was evaluated more than once ({len(twice)} repeats in all). Every user counts once: "
                "keep Lightning from padding shards (trainer.use_distributed_sampler=false) and reset the metric between runs."
            )
        better, tied, candidates = ranks["better"], ranks["tied"], ranks["candidates"]
        outside = ((better < 0) | (tied < 0) | (better + tied >= candidates)).nonzero()
        if len(outside):
            worst = {name: int(value[outside[0, 0]]) for name, value in ranks.items()}
            raise RecexpError(
                f"user {worst['user']} has {worst['better']} better and {worst['tied']} tied among {worst['candidates']} "
                "candidates, the target included: count the target among the candidates."
            )
        group = ranks.pop("group")
        if (group >= 0).any():
            if (group < 0).any():
                raise RecexpError(
                    f"user {int(user[group < 0][0])} has no group while others do: give group always or never."
                )
            ranks["group"] = group.bool()
        return ranks


def _means(per_user: dict[str, Tensor], members: Tensor, suffix: str) -> dict[str, float]:
    """Mean of every metric over the members; fsum rounds once, so neither threads nor machine change a digit."""
    users = int(members.sum())
    means = (
        {
            f"{name}{suffix}": math.fsum(value[members].tolist()) / users
            for name, value in per_user.items()
        }
        if users
        else {}
    )
    return means | {f"users{suffix}": float(users)}
