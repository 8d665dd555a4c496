"""Candidate items to rank a held-out item against, drawn per user without replacement.

Random numbers come from a counter: number c of user u under a seed is a hash of (seed, u, c). A user's candidates therefore
depend on nothing but the seed, his id, his exclusions, and the catalogue with its weights: not on batches, on the number of
processes, or on who else is evaluated.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recexp.errors import RecexpError

_GAMMA = np.uint64(
    0x9E3779B97F4A7C15
)  # the increment and multipliers of splitmix64 (Steele, Lea, Flood 2014)
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))
_RACE = np.uint64(1 << 40)  # counters from here on belong to the race, those below to the draws


def draw(
    users: NDArray[np.int64],
    exclude: NDArray[np.int64],
    n_items: int,
    n: int,
    seed: int,
    weights: NDArray[np.floating] | None = None,
    chunk: int = 1 << 18,
) -> NDArray[np.int32]:
    """Draw n distinct items of 1..n_items for every user, in the order they were drawn: int32 [len(users), n].

    users: ids, in any order. exclude: sorted keys ``user * (n_items + 1) + item`` of what a user must not be given, his target
    included. weights: None draws uniformly; otherwise a float [n_items + 1] (entry 0 ignored), and every next item is drawn
    with probability proportional to weight among those left (successive sampling; §1.5 with weights = counts).
    chunk: how many numbers to work on at once; it bounds memory and changes no result.

    Drawing with replacement and dropping repeats and exclusions is successive sampling. Users who still lack items
    after a fixed number of draws get the rest by an exponential race over the items left: the smallest E_i / w_i, with E_i
    standard exponential, are a successive sample too.

    Raises RecexpError if a user has fewer than n items to draw from (items of weight 0 cannot be drawn), or if exclude is not
    sorted or weights are malformed.
    """
    n_items, n, seed = int(n_items), int(n), int(seed)
    if n < 1:
        raise RecexpError(
            f"protocol.candidates.n is {n}; draw at least 1 candidate, or rank the full catalogue"
        )
    users, inverse = np.unique(np.asarray(users, np.int64), return_inverse=True)
    exclude = np.asarray(exclude, np.int64)
    step = np.diff(exclude)
    if (step < 0).any():
        raise RecexpError(
            f"exclude is not sorted: key {np.argmax(step < 0) + 1} is smaller than the one before; sort it"
        )
    exclude = exclude[np.append(True, step > 0)[: len(exclude)]]
    weights = _weights(weights, n_items)
    task = _Task(users, exclude, n_items, n, seed, weights)
    task.check()

    out = np.zeros((len(users), n), np.int32)
    pending = np.arange(len(users))
    first = task.draws_needed()
    for draws in (first, 4 * first, 16 * first):
        if draws > n_items:  # beyond that a race is cheaper
            break
        pending = np.concatenate(
            [
                pending[:0],
                *(task.reject(rows, draws, out) for rows in _pieces(pending, chunk // draws)),
            ]
        )
    for rows in _pieces(pending, chunk // (n_items + 1)):
        task.race(rows, out)
    return out[inverse]


class _Task:
    """One call of draw; users are sorted and unique, rows index them."""

    def __init__(
        self,
        users: NDArray,
        exclude: NDArray,
        n_items: int,
        n: int,
        seed: int,
        weights: NDArray | None,
    ) -> None:
        self.users, self.exclude, self.n_items, self.n, self.weights = (
            users,
            exclude,
            n_items,
            n,
            weights,
        )
        self.stream = _mix(
            _mix(np.array([seed & 0xFFFFFFFFFFFFFFFF], np.uint64)) + users.astype(np.uint64)
        )
        self.start = np.searchsorted(exclude, users * (n_items + 1))
        self.stop = np.searchsorted(exclude, (users + 1) * (n_items + 1))
        self.drawable = np.arange(n_items + 1) > 0 if weights is None else weights > 0
        if weights is not None:
            self.cdf = np.cumsum(weights)
            self.buckets = 16 * (1 << n_items.bit_length())  # a power of 2: bucket edges are exact
            edge = np.arange(self.buckets + 1) / self.buckets
            self.guide = np.searchsorted(self.cdf, edge * self.cdf[-1], side="right").astype(
                np.int32
            )
            self.guide = np.minimum(
                self.guide, np.flatnonzero(self.drawable)[-1]
            )  # an edge may be the total

    def check(self) -> None:
        """Every user must have n items to draw from."""
        lost = np.append(0, np.cumsum(self.drawable[self.exclude % (self.n_items + 1)]))
        available = self.drawable.sum() - (lost[self.stop] - lost[self.start])
        short = np.flatnonzero(available < self.n)
        if len(short):
            worst = short[np.argmin(available[short])]
            raise RecexpError(
                f"user {self.users[worst]} has {available[worst]} items to draw candidates from, and {self.n} are asked for "
                f"({len(short)} of {len(self.users)} users have too few; {self.drawable.sum()} of {self.n_items} items can be "
                f"drawn at all): lower protocol.candidates.n to at most {available[worst]}, or rank the full catalogue"
            )

    def draws_needed(self) -> int:
        """How many draws give most users n distinct items; a function of n and the catalogue alone."""
        p = (
            np.full(self.n_items, 1 / self.n_items)
            if self.weights is None
            else self.weights / self.weights.sum()
        )
        draws = self.n
        while draws <= self.n_items and (1 - (1 - p) ** draws).sum() < 1.05 * self.n + 8:
            draws += draws // 8 + 1
        return draws

    def reject(self, rows: NDArray, draws: int, out: NDArray) -> NDArray:
        """Fill out with the first n distinct, allowed items among that many draws; return the rows that still lack some."""
        bits = _mix(self.stream[rows, None] + np.arange(draws, dtype=np.uint64) * _GAMMA)
        item = self._item((bits >> np.uint64(11)) * 2.0**-53)
        # Sorting by (item, position) brings repeats together, the earliest first.
        shift = int(draws - 1).bit_length()
        order = np.sort((item << shift) | np.arange(draws), axis=1)
        position, item = order & ((1 << shift) - 1), order >> shift
        keep = np.ones(item.shape, bool)
        keep[:, 1:] = item[:, 1:] != item[:, :-1]
        key = (item + np.arange(len(rows))[:, None] * (self.n_items + 1)).ravel()
        row, excluded = self._excluded(rows)
        excluded += row * (self.n_items + 1)
        at = np.minimum(np.searchsorted(key, excluded), len(key) - 1)
        hit = at[key[at] == excluded]
        keep.ravel()[hit] = False

        drawn = np.zeros(item.shape, np.int64)  # back to the order of drawing, 0 where dropped
        np.put_along_axis(drawn, position, np.where(keep, item, 0), axis=1)
        row, column = np.nonzero(drawn)
        found = np.bincount(row, minlength=len(rows))
        rank = np.arange(len(row)) - np.repeat(np.cumsum(found) - found, found)
        wanted = rank < self.n
        out[rows[row[wanted]], rank[wanted]] = drawn[row[wanted], column[wanted]]
        return rows[found < self.n]

    def race(self, rows: NDArray, out: NDArray) -> None:
        """Fill what rows still lack in out, by an exponential race over all items left."""
        bits = _mix(
            self.stream[rows, None]
            + (np.arange(self.n_items + 1, dtype=np.uint64) + _RACE) * _GAMMA
        )
        time = -np.log(((bits >> np.uint64(11)) + np.uint64(1)) * 2.0**-53)
        if self.weights is not None:
            time /= np.where(self.drawable, self.weights, 1)
        time[:, ~self.drawable] = np.inf
        time[self._excluded(rows)] = np.inf
        have = out[rows]
        np.put_along_axis(
            time, have.astype(np.int64), np.inf, axis=1
        )  # an empty place says 0, which never runs
        winner = np.argpartition(time, self.n - 1, axis=1)[:, : self.n]
        winner = np.take_along_axis(
            winner, np.argsort(np.take_along_axis(time, winner, axis=1), axis=1), axis=1
        )
        nth = np.arange(self.n) - (have > 0).sum(1, keepdims=True)
        out[rows] = np.where(nth < 0, have, np.take_along_axis(winner, np.maximum(nth, 0), axis=1))

    def _item(self, uniform: NDArray) -> NDArray[np.int64]:
        if self.weights is None:
            return (uniform * self.n_items).astype(np.int64) + 1
        bucket = (uniform * self.buckets).astype(np.int64)
        item = self.guide[bucket].astype(np.int64)
        # Few buckets hold an edge between two items; only there the inverse cdf has to be searched.
        split = np.nonzero(self.guide[bucket + 1] != item)
        item[split] = np.minimum(
            np.searchsorted(self.cdf, uniform[split] * self.cdf[-1], side="right"), self.guide[-1]
        )
        return item

    def _excluded(self, rows: NDArray) -> tuple[NDArray, NDArray]:
        """Excluded items of these users as (index into rows, item), ascending."""
        count = self.stop[rows] - self.start[rows]
        index = np.arange(count.sum()) + np.repeat(
            self.start[rows] - (np.cumsum(count) - count), count
        )
        return np.repeat(np.arange(len(rows)), count), self.exclude[index] % (self.n_items + 1)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of splitmix64: a bijection of 64 bits in which every input bit moves every output bit."""
    x = x ^ (x >> _SHIFTS[0])
    x *= _MULTIPLIERS[0]
    x ^= x >> _SHIFTS[1]
    x *= _MULTIPLIERS[1]
    x ^= x >> _SHIFTS[2]
    return x


def _weights(weights: NDArray | None, n_items: int) -> NDArray[np.float64] | None:
    if weights is None:
        return None
    weights = np.array(weights, np.float64)
    if weights.shape != (n_items + 1,):
        raise RecexpError(
            f"weights have shape {weights.shape}; give one per item and one for the padding: ({n_items + 1},)"
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


def _pieces(rows: NDArray, size: int) -> list[NDArray]:
    size = max(1, size)
    return [rows[i : i + size] for i in range(0, len(rows), size)]
