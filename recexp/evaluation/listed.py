"""Ranks of targets from lists of scored or ranked items, such as another program writes.

Suffixes of shapes: Q targets, N rows of the lists, C drawn candidates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from recexp.data.store import Store, Targets

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

KEYS_AT_ONCE = 1 << 24  # of candidates in memory


@dataclass(frozen=True)
class Lists:
    """Row n: the user of target ``query_N[n]`` has ``value_N[n]`` for item ``item_N[n]``.

    Sorted by target and item, each pair once. A larger value is better.
    """

    query_N: Ints
    item_N: Ints
    value_N: Floats


@dataclass(frozen=True)
class ListedRanks:
    """Ranks of Q targets among their candidates, as far as the lists show them.

    better_Q: listed candidates with a larger value than the target, int64. Where the target is not
    listed, all listed candidates: at least so many are better.
    tied_Q: listed candidates with the target's value, the target not counted; 0 where it is not
    listed.
    candidates_Q: all candidates, the target included. listed_Q: those of them that are listed.
    has_target_Q: the target is listed. ends_tied_Q: it shares the least value of an incomplete
    list with other items, so that items beyond the end may share it too.
    n_seen: listed items that the protocol leaves out. n_others: listed items that are no drawn
    candidate.
    """

    better_Q: Ints
    tied_Q: Ints
    candidates_Q: Ints
    listed_Q: Ints
    has_target_Q: Flags
    ends_tied_Q: Flags
    n_seen: int
    n_others: int


def listed_ranks(
    lists: Lists, store: Store, targets: Targets, candidates: Tensor | None, seen: str
) -> ListedRanks:
    """The ranks of all targets of a split, with the tie rule of ``recexp.evaluation.ranks``.

    candidates: drawn ones, int32 [Q, C]; None ranks all items. seen: "removed" leaves out the items
    of the history before the target, as ``Protocol.candidates.seen`` does; the target stays.
    """
    parts = []
    width = 1 if candidates is None else 1 + candidates.shape[1]
    for queries in _blocks(len(targets), max(1, KEYS_AT_ONCE // width)):
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
    )


class _Block:
    """The lists of some consecutive targets.

    Pairs of target and item are compared as keys: number of the target in the block * V + item.
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
        item_Q = targets.item[queries.start : queries.stop].numpy()
        self.target_key_Q = np.arange(self.n_queries) * store.schema.V + item_Q
        self.is_ranked_N: Flags = np.ones(len(query_N), dtype=bool)
        self.candidates_Q = np.full(self.n_queries, store.schema.n_items)
        self.n_seen = 0
        self.n_others = 0

    def keep_unseen(self) -> None:
        """Leave out the history of each target, but never the target."""
        bounds = slice(self.queries.start, self.queries.stop)
        row_M, item_M = self.store.items_between(
            self.store.past, self.targets.start[bounds], self.targets.end[bounds]
        )
        seen = np.unique(row_M.numpy() * self.store.schema.V + item_M.numpy())
        seen = seen[~_is_among(seen, self.target_key_Q)]
        self.candidates_Q -= np.bincount(seen // self.store.schema.V, minlength=self.n_queries)
        self.is_ranked_N = ~_is_among(self.key_N, seen)
        self.n_seen = int((~self.is_ranked_N).sum())

    def keep_drawn(self, item_QC: NDArray[np.int32]) -> None:
        """Leave out what is neither a drawn candidate nor the target."""
        key_QC = np.arange(self.n_queries)[:, None] * self.store.schema.V + item_QC
        ranked = np.concatenate([key_QC.ravel(), self.target_key_Q])
        ranked.sort()
        self.candidates_Q = np.full(self.n_queries, 1 + item_QC.shape[1])
        self.is_ranked_N = _is_among(self.key_N, ranked)
        self.n_others = int((~self.is_ranked_N).sum())

    def ranks(self, value_N: Floats) -> ListedRanks:
        at_Q = np.searchsorted(self.key_N, self.target_key_Q)
        has_target_Q = _is_among(self.target_key_Q, self.key_N)
        target_value_Q = np.full(self.n_queries, -np.inf)
        target_value_Q[has_target_Q] = value_N[at_Q[has_target_Q]]

        target_value_N = target_value_Q[self.query_N]
        is_better_N = self.is_ranked_N & (value_N > target_value_N)
        is_tied_N = self.is_ranked_N & (value_N == target_value_N)
        # Items that are not ranked tell, too, that the list goes on below the target.
        is_worse_N = value_N < target_value_N
        listed_Q = self._count(self.is_ranked_N)
        better_Q = self._count(is_better_N)
        tied_Q = self._count(is_tied_N) - has_target_Q
        has_worse_Q = self._count(is_worse_N) > 0
        is_incomplete_Q = listed_Q < self.candidates_Q
        ends_tied_Q = is_incomplete_Q & has_target_Q & (tied_Q > 0) & ~has_worse_Q
        return ListedRanks(
            better_Q=better_Q,
            tied_Q=tied_Q,
            candidates_Q=self.candidates_Q,
            listed_Q=listed_Q,
            has_target_Q=has_target_Q,
            ends_tied_Q=ends_tied_Q,
            n_seen=self.n_seen,
            n_others=self.n_others,
        )

    def _count(self, chosen_N: Flags) -> Ints:
        """Number of chosen rows per target, int64 [Q]."""
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
