"""Ranks of targets from lists of scored or ranked items, such as another program writes.

Suffixes of shapes: Q targets, U users with targets, N rows of the lists, C drawn candidates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from recexp.evaluation.kept import TopLists

if TYPE_CHECKING:
    from recexp.data.store import Store, Targets

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

KEYS_AT_ONCE = 1 << 24  # of candidates in memory


@dataclass(frozen=True)
class Lists:
    """Row n: the ``query_N[n]``-th user with targets has ``value_N[n]`` for item ``item_N[n]``.

    Sorted by user and item, each pair once. A larger value is better.
    """

    query_N: Ints
    item_N: Ints
    value_N: Floats


@dataclass(frozen=True)
class ListedRanks:
    """Ranks of Q targets among their candidates, as far as the lists show them.

    better_Q: listed candidates with a larger value than the target, int64. Where the target is not
    listed, all listed candidates and earlier such targets of the user: at least so many are better.
    tied_Q: listed candidates with the target's value, the target not counted; 0 where it is not
    listed.
    candidates_Q: all candidates, the targets included. listed_Q: those of them that are listed.
    has_target_Q: the target is listed. ends_tied_Q: it shares the least value of an incomplete
    list with other items, so that items beyond the end may share it too.
    n_seen: listed items that the protocol leaves out. n_others: listed items that are no drawn
    candidate. is_ranked_N: which rows of the lists are candidates.
    """

    better_Q: Ints
    tied_Q: Ints
    candidates_Q: Ints
    listed_Q: Ints
    has_target_Q: Flags
    ends_tied_Q: Flags
    n_seen: int
    n_others: int
    is_ranked_N: Flags


def listed_ranks(
    lists: Lists, store: Store, targets: Targets, candidates: Tensor | None, seen: str
) -> ListedRanks:
    """The ranks of all targets of a split, with the tie rule of ``recexp.evaluation.ranks``.

    candidates: drawn ones, int32 [U, C]; None ranks all items. seen: "removed" leaves out the items
    of the history before the targets, as ``Protocol.candidates.seen`` does; targets stay.
    """
    parts = []
    width = 1 if candidates is None else 1 + candidates.shape[1]
    for queries in _blocks(targets.n_users, max(1, KEYS_AT_ONCE // width)):
        low, high = np.searchsorted(lists.query_N, [queries.start, queries.stop])
        rows = slice(int(low), int(high))
        block = _Block(store, targets, queries, lists.query_N[rows], lists.item_N[rows])
        if candidates is not None:
            block.keep_drawn(candidates[queries.start : queries.stop].numpy())
        elif seen == "removed":
            block.keep_unseen()
        parts.append(block.ranks(lists.value_N[rows]))
    return ListedRanks(
        better_Q=np.concatenate([part.better_Q for part in parts]),
        tied_Q=np.concatenate([part.tied_Q for part in parts]),
        candidates_Q=np.concatenate([part.candidates_Q for part in parts]),
        listed_Q=np.concatenate([part.listed_Q for part in parts]),
        has_target_Q=np.concatenate([part.has_target_Q for part in parts]),
        ends_tied_Q=np.concatenate([part.ends_tied_Q for part in parts]),
        n_seen=sum(part.n_seen for part in parts),
        n_others=sum(part.n_others for part in parts),
        is_ranked_N=np.concatenate([part.is_ranked_N for part in parts]),
    )


def top_lists(lists: Lists, found: ListedRanks, n_users: int, k: int) -> TopLists:
    """The k best candidates of every user with targets; equal values are ordered by item number.

    found: of ``listed_ranks`` on the same lists. n_users: with targets.
    """
    query_N = lists.query_N[found.is_ranked_N]
    item_N = lists.item_N[found.is_ranked_N]
    value_N = lists.value_N[found.is_ranked_N]
    order = np.lexsort((item_N, -value_N, query_N))
    n_listed_U = np.bincount(query_N, minlength=n_users)
    start_U = np.cumsum(n_listed_U) - n_listed_U
    query_N = query_N[order]
    place_N = np.arange(len(order)) - start_U[query_N]
    is_kept_N = place_N < k
    at = query_N[is_kept_N], place_N[is_kept_N]
    item_UK = np.zeros((n_users, k), dtype=np.int32)
    score_UK = np.full((n_users, k), -np.inf, dtype=np.float32)
    item_UK[at] = item_N[order][is_kept_N]
    score_UK[at] = value_N[order][is_kept_N]
    return TopLists(np.arange(n_users), item_UK, score_UK)


class _Block:
    """The lists of some consecutive users with targets.

    Pairs of user and item are compared as keys: number of the user in the block * V + item.
    """

    def __init__(
        self, store: Store, targets: Targets, queries: range, query_N: Ints, item_N: Ints
    ) -> None:
        self.store = store
        self.targets = targets
        self.queries = queries
        self.n_queries = len(queries)
        self.query_N = query_N - queries.start
        self.key_N = self.query_N * store.schema.V + item_N
        ptr_U = targets.ptr[queries.start : queries.stop + 1].numpy()
        self.first_U = ptr_U[:-1]
        self.n_targets_U = np.diff(ptr_U)
        self.owner_Q = np.repeat(np.arange(self.n_queries), self.n_targets_U)
        item_Q = targets.item[ptr_U[0] : ptr_U[-1]].numpy()
        self.target_key_Q = self.owner_Q * store.schema.V + item_Q
        self.is_ranked_N: Flags = np.ones(len(query_N), dtype=bool)
        self.candidates_U = np.full(self.n_queries, store.schema.n_items)
        self.n_seen = 0
        self.n_others = 0

    def keep_unseen(self) -> None:
        """Leave out the history of each user, but never a target."""
        row_M, item_M = self.store.items_between(
            self.store.past, self.targets.start[self.first_U], self.targets.end[self.first_U]
        )
        seen = np.unique(row_M.numpy() * self.store.schema.V + item_M.numpy())
        seen = seen[~_is_among(seen, np.sort(self.target_key_Q))]
        self.candidates_U -= np.bincount(seen // self.store.schema.V, minlength=self.n_queries)
        self.is_ranked_N = ~_is_among(self.key_N, seen)
        self.n_seen = int((~self.is_ranked_N).sum())

    def keep_drawn(self, item_QC: NDArray[np.int32]) -> None:
        """Leave out what is neither a drawn candidate nor a target."""
        key_QC = np.arange(self.n_queries)[:, None] * self.store.schema.V + item_QC
        ranked = np.concatenate([key_QC.ravel(), self.target_key_Q])
        ranked.sort()
        self.candidates_U = self.n_targets_U + item_QC.shape[1]
        self.is_ranked_N = _is_among(self.key_N, ranked)
        self.n_others = int((~self.is_ranked_N).sum())

    def ranks(self, value_N: Floats) -> ListedRanks:
        at_Q = np.searchsorted(self.key_N, self.target_key_Q)
        has_target_Q = _is_among(self.target_key_Q, self.key_N)
        target_value_Q = np.full(len(at_Q), -np.inf)
        target_value_Q[has_target_Q] = value_N[at_Q[has_target_Q]]

        listed_U = self._count(self.is_ranked_N)
        is_incomplete_U = listed_U < self.candidates_U
        better_Q = np.zeros(len(at_Q), dtype=np.int64)
        tied_Q = np.zeros_like(better_Q)
        ends_tied_Q = np.zeros(len(at_Q), dtype=bool)
        # A pass for the first target of each user, one for the second, and so on.
        for ordinal in range(int(self.n_targets_U.max(initial=0))):
            has_one_U = self.n_targets_U > ordinal
            of_pass = (self.first_U - self.first_U[0] + ordinal)[has_one_U]
            value_U = np.full(self.n_queries, np.nan)
            value_U[has_one_U] = target_value_Q[of_pass]
            target_value_N = value_U[self.query_N]
            better_U = self._count(self.is_ranked_N & (value_N > target_value_N))
            tied_U = self._count(self.is_ranked_N & (value_N == target_value_N))
            # Items that are not ranked tell, too, that the list goes on below the target.
            has_worse_U = self._count(value_N < target_value_N) > 0
            better_Q[of_pass] = better_U[has_one_U]
            tied_Q[of_pass] = tied_U[has_one_U] - has_target_Q[of_pass]
            ends_tied_Q[of_pass] = (is_incomplete_U & ~has_worse_U)[has_one_U]
        ends_tied_Q &= has_target_Q & (tied_Q > 0)
        return ListedRanks(
            better_Q=better_Q + self._unlisted_before(has_target_Q),
            tied_Q=tied_Q,
            candidates_Q=self.candidates_U[self.owner_Q],
            listed_Q=listed_U[self.owner_Q],
            has_target_Q=has_target_Q,
            ends_tied_Q=ends_tied_Q,
            n_seen=self.n_seen,
            n_others=self.n_others,
            is_ranked_N=self.is_ranked_N,
        )

    def _unlisted_before(self, has_target_Q: Flags) -> Ints:
        """For targets that are not listed: how many earlier ones of their user are not either.

        Such targets follow each other after the list at best; no two have the same rank.
        """
        is_unlisted_Q = ~has_target_Q
        n_before_Q: Ints = np.cumsum(is_unlisted_Q) - is_unlisted_Q
        first_Q = self.first_U[self.owner_Q] - self.first_U[0]
        return np.where(is_unlisted_Q, n_before_Q - n_before_Q[first_Q], 0)

    def _count(self, chosen_N: Flags) -> Ints:
        """Number of chosen rows per user, int64 [U]."""
        return np.bincount(self.query_N[chosen_N], minlength=self.n_queries)


def _blocks(n: int, size: int) -> Iterator[range]:
    for start in range(0, n, size):
        yield range(start, min(start + size, n))


def _is_among(key_N: Ints, sorted_M: Ints) -> Flags:
    """Is each key among the sorted ones?"""
    if not len(sorted_M):
        return np.zeros(len(key_N), dtype=bool)
    at_N = np.minimum(np.searchsorted(sorted_M, key_N), len(sorted_M) - 1)
    found: Flags = sorted_M[at_N] == key_N
    return found
