"""Candidate items to rank a held-out item against, drawn per user without replacement.

Random numbers are counter-based: number c of user u under a seed is a hash of (seed, u, c). A
user's candidates therefore depend only on the seed, their id, their exclusions, and the items with
their weights: not on batches, on the number of processes, or on which other users are evaluated.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recexp.errors import RecexpError

Ints = NDArray[np.int64]
Bits = NDArray[np.uint64]
Floats = NDArray[np.float64]

# The increment, multipliers and shifts of splitmix64 (Steele, Lea and Flood 2014, "Fast splittable
# pseudorandom number generators", doi:10.1145/2660193.2660195).
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))
# Counters from here on belong to the exponential race, those below to the draws.
_RACE = np.uint64(1 << 40)
_MASK64 = 0xFFFFFFFFFFFFFFFF
_TO_UNIT = 2.0**-53  # from 53 random bits to [0, 1)


def draw(
    users: Ints,
    exclude: Ints,
    n_items: int,
    n: int,
    seed: int,
    weights: Floats | None = None,
    chunk: int = 1 << 18,
) -> NDArray[np.int32]:
    """Draw n distinct items of 1..n_items for every user, in the order they were drawn.

    Returns int32 [len(users), n].

    users: ids, in any order. exclude: sorted keys ``user * (n_items + 1) + item`` of the items that
    are no candidates of a user, the target included. weights: None draws uniformly; otherwise
    float [n_items + 1] (entry 0 ignored), and every next item is drawn with probability
    proportional to its weight among those left (successive sampling). chunk: how many numbers are
    worked on at once; it bounds the memory and changes no result.

    Drawing with replacement and rejecting repeats and exclusions is successive sampling. Users who
    still lack items after a fixed number of draws get the rest by an exponential race over the
    items left: those with the smallest E_i / w_i, E_i standard exponential, are a successive sample
    too (Efraimidis and Spirakis 2006, doi:10.1016/j.ipl.2005.11.003).

    Raises RecexpError if a user has fewer than n items to draw from (items of weight 0 cannot be
    drawn), or if exclude is not sorted or weights are malformed.
    """
    n_items = int(n_items)  # numpy's integers have other overflow and no bit_length
    n = int(n)
    seed = int(seed)
    if n < 1:
        raise RecexpError(
            f"protocol.candidates.n is {n}; draw at least 1 candidate, or rank all items"
        )
    users, inverse = np.unique(np.asarray(users, np.int64), return_inverse=True)
    exclude = _unique_sorted(np.asarray(exclude, np.int64))
    task = _Task(users, exclude, n_items, n, seed, _checked_weights(weights, n_items))
    task.check()

    out = np.zeros((len(users), n), np.int32)
    pending = np.arange(len(users))
    n_first = task.draws_needed()
    for n_draws in (n_first, 4 * n_first, 16 * n_first):
        if n_draws > n_items:  # then a race is cheaper
            break
        lacking = [task.reject(rows, n_draws, out) for rows in _pieces(pending, chunk // n_draws)]
        pending = np.concatenate([pending[:0], *lacking])
    for rows in _pieces(pending, chunk // (n_items + 1)):
        task.race(rows, out)
    return out[inverse]


class _Task:
    """One call of ``draw``; users are sorted and unique, rows are indices into them.

    stream: the start of each user's random numbers. start, stop: each user's part of exclude.
    """

    def __init__(
        self, users: Ints, exclude: Ints, n_items: int, n: int, seed: int, weights: Floats | None
    ) -> None:
        self.users = users
        self.exclude = exclude
        self.n_items = n_items
        self.n = n
        self.weights = weights
        seed_bits = np.array([seed & _MASK64], np.uint64)
        self.stream = _mix(_mix(seed_bits) + users.astype(np.uint64))
        self.start = np.searchsorted(exclude, users * (n_items + 1))
        self.stop = np.searchsorted(exclude, (users + 1) * (n_items + 1))
        self.drawable = np.arange(n_items + 1) > 0 if weights is None else weights > 0
        if weights is not None:
            self._build_guide(weights)

    def _build_guide(self, weights: Floats) -> None:
        """A guide table for the inverse of the cumulative weights.

        Entry b is the item at the lower edge of bucket b of [0, 1).
        """
        self.cdf = np.cumsum(weights)
        self.n_buckets = 16 * (1 << self.n_items.bit_length())  # a power of 2: edges are exact
        edge = np.arange(self.n_buckets + 1) / self.n_buckets
        guide = np.searchsorted(self.cdf, edge * self.cdf[-1], side="right").astype(np.int32)
        # The last edge is the total, which lies beyond the last item that can be drawn.
        self.guide = np.minimum(guide, np.flatnonzero(self.drawable)[-1])

    def check(self) -> None:
        """Raise RecexpError unless every user has n items to draw from."""
        excluded_before = np.append(0, np.cumsum(self.drawable[self.exclude % (self.n_items + 1)]))
        n_excluded = excluded_before[self.stop] - excluded_before[self.start]
        n_available = self.drawable.sum() - n_excluded
        short = np.flatnonzero(n_available < self.n)
        if len(short):
            worst = short[np.argmin(n_available[short])]
            raise RecexpError(
                f"user {self.users[worst]} has {n_available[worst]} items to draw candidates from, "
                f"and {self.n} are asked for ({len(short)} of {len(self.users)} users have too "
                f"few; {self.drawable.sum()} of {self.n_items} items can be drawn at all): lower "
                f"protocol.candidates.n to at most {n_available[worst]}, or rank all items"
            )

    def draws_needed(self) -> int:
        """How many draws give most users n distinct items: a function of n and the weights."""
        if self.weights is None:
            p = np.full(self.n_items, 1 / self.n_items)
        else:
            p = self.weights / self.weights.sum()
        n_draws = self.n
        while n_draws <= self.n_items:
            n_distinct = (1 - (1 - p) ** n_draws).sum()  # expected
            if n_distinct >= 1.05 * self.n + 8:
                break
            n_draws += n_draws // 8 + 1
        return n_draws

    def reject(self, rows: Ints, n_draws: int, out: NDArray[np.int32]) -> Ints:
        """Rejection sampling: fill out with the first n distinct, allowed items among n_draws.

        Returns the rows that still lack items. Below, R are the rows and K the draws.
        """
        counter_K = np.arange(n_draws, dtype=np.uint64)
        bits_RK = _mix(self.stream[rows, None] + counter_K * _GAMMA)
        item = self._item((bits_RK >> np.uint64(11)) * _TO_UNIT)
        # Sorting by (item, position) brings repeats together, the earliest first.
        shift = int(n_draws - 1).bit_length()
        order = np.sort((item << shift) | np.arange(n_draws), axis=1)
        position = order & ((1 << shift) - 1)
        item = order >> shift
        keep = np.ones(item.shape, bool)
        keep[:, 1:] = item[:, 1:] != item[:, :-1]
        # The keys are sorted over all rows, so one search finds all exclusions among them.
        key = (item + np.arange(len(rows))[:, None] * (self.n_items + 1)).ravel()
        row, excluded = self._excluded(rows)
        excluded += row * (self.n_items + 1)
        at = np.minimum(np.searchsorted(key, excluded), len(key) - 1)
        hit = at[key[at] == excluded]
        keep.ravel()[hit] = False

        # Back in the order of drawing, 0 where rejected.
        drawn = np.zeros(item.shape, np.int64)
        np.put_along_axis(drawn, position, np.where(keep, item, 0), axis=1)
        row, column = np.nonzero(drawn)
        n_found = np.bincount(row, minlength=len(rows))
        place = np.arange(len(row)) - np.repeat(np.cumsum(n_found) - n_found, n_found)
        wanted = place < self.n
        out[rows[row[wanted]], place[wanted]] = drawn[row[wanted], column[wanted]]
        return rows[n_found < self.n]

    def race(self, rows: Ints, out: NDArray[np.int32]) -> None:
        """Fill what rows still lack in out, by an exponential race over all items left."""
        counter = np.arange(self.n_items + 1, dtype=np.uint64) + _RACE
        bits = _mix(self.stream[rows, None] + counter * _GAMMA)  # [R, n_items + 1]
        # From (0, 1], because the logarithm of 0 is infinite.
        time = -np.log(((bits >> np.uint64(11)) + np.uint64(1)) * _TO_UNIT)
        if self.weights is not None:
            time /= np.where(self.drawable, self.weights, 1)
        time[:, ~self.drawable] = np.inf
        time[self._excluded(rows)] = np.inf
        have = out[rows]  # 0 where a place is empty, and item 0 is never drawn
        np.put_along_axis(time, have.astype(np.int64), np.inf, axis=1)
        winner = np.argpartition(time, self.n - 1, axis=1)[:, : self.n]
        by_time = np.argsort(np.take_along_axis(time, winner, axis=1), axis=1)
        winner = np.take_along_axis(winner, by_time, axis=1)
        nth = np.arange(self.n) - (have > 0).sum(1, keepdims=True)
        out[rows] = np.where(nth < 0, have, np.take_along_axis(winner, np.maximum(nth, 0), axis=1))

    def _item(self, uniform: NDArray[np.floating]) -> Ints:
        """The items that these numbers in [0, 1) stand for."""
        if self.weights is None:
            return (uniform * self.n_items).astype(np.int64) + 1
        bucket = (uniform * self.n_buckets).astype(np.int64)
        item: Ints = self.guide[bucket].astype(np.int64)
        # Few buckets hold an edge between two items; only there the weights have to be searched.
        split = np.nonzero(self.guide[bucket + 1] != item)
        item[split] = np.minimum(
            np.searchsorted(self.cdf, uniform[split] * self.cdf[-1], side="right"), self.guide[-1]
        )
        return item

    def _excluded(self, rows: Ints) -> tuple[Ints, Ints]:
        """Excluded items of these users as (index into rows, item), ascending."""
        count = self.stop[rows] - self.start[rows]
        offset = self.start[rows] - (np.cumsum(count) - count)
        index = np.arange(count.sum()) + np.repeat(offset, count)
        return np.repeat(np.arange(len(rows)), count), self.exclude[index] % (self.n_items + 1)


def _mix(x: Bits) -> Bits:
    """The output function of splitmix64: a bijection of 64 bits that mixes all of them."""
    x = x ^ (x >> _SHIFTS[0])
    x *= _MULTIPLIERS[0]
    x ^= x >> _SHIFTS[1]
    x *= _MULTIPLIERS[1]
    x ^= x >> _SHIFTS[2]
    return x


def _unique_sorted(keys: Ints) -> Ints:
    """The keys without repeats. Raises RecexpError unless they are sorted."""
    step = np.diff(keys)
    if (step < 0).any():
        raise RecexpError(
            f"exclude is not sorted: key {np.argmax(step < 0) + 1} is smaller than the one before; "
            "sort it"
        )
    is_new = np.append(True, step > 0)[: len(keys)]
    unique: Ints = keys[is_new]
    return unique


def _checked_weights(weights: Floats | None, n_items: int) -> Floats | None:
    """A copy whose entry 0 is 0. Raises RecexpError where weights are malformed."""
    if weights is None:
        return None
    weights = np.array(weights, np.float64)
    if weights.shape != (n_items + 1,):
        raise RecexpError(
            f"weights have shape {weights.shape}; give one per item and one for the padding: "
            f"({n_items + 1},)"
        )
    weights[0] = 0
    wrong = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(wrong):
        raise RecexpError(
            f"weight {weights[wrong[0]]} of item {wrong[0]}: weights are finite and not negative"
        )
    if not weights.any():
        raise RecexpError("all weights are 0: no item can be drawn")
    return weights


def _pieces(rows: Ints, size: int) -> list[Ints]:
    """The rows in pieces of this size."""
    size = max(1, size)
    return [rows[i : i + size] for i in range(0, len(rows), size)]
