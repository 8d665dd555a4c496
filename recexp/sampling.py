"""Negative samplers: vectorised, on the device of the store, driven by the caller's generator.

``sampler(store, query, n, generator, pool) -> item_Bn`` draws n negatives per row, for query.user_B; pool holds the items that the batch is to
predict, of any shape, 0 where there is none. ``log_prob(store, items)`` is the log of the proposal's probability, for corrections of sampled losses.
No sampler but supportive_only ever returns an item the user has in training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from recexp.types import Query, RecexpError


class NegativeSampler(Protocol):
    """See the module's docstring."""

    def __call__(self, store, query: Query, n: int, generator: torch.Generator, pool: Tensor | None = None) -> Tensor: ...

    def log_prob(self, store, item: Tensor) -> Tensor: ...


def unseen(pairs, n_items: int, user: Tensor, rank: Tensor) -> Tensor:
    """The item that stands at ``rank`` (from 0) among the items the user has not in ``pairs``. Any common shape.

    Exact and without rejection: seen item number j (from 0) has ``item - 1 - j`` unseen items before it, ascending in j, so the number of seen items
    before the wanted one is found by one binary search.
    """
    before = torch.searchsorted(pairs.gap_key, (user << 32) + rank, right=True) - pairs.ptr.take(user)
    return rank + 1 + before


@dataclass
class Uniform:
    """Uniform over the items the user has not in training."""

    def __call__(self, store, query: Query, n: int, generator: torch.Generator, pool: Tensor | None = None) -> Tensor:
        pairs, V1, shape = store.train_pairs, store.schema.n_items, (len(query), n)
        user = query.user_B[:, None].expand(shape)
        if pairs.bits is None:
            return self._unseen(pairs, V1, user, generator)
        # Any item, drawn again where the user has it, and then exactly one of his unseen ones: each uniform, and few need the search.
        item = torch.randint(1, V1 + 1, shape, generator=generator)
        row, column = pairs.contain(user, item).nonzero().unbind(1)
        again = torch.randint(1, V1 + 1, row.shape, generator=generator)
        owner = query.user_B[row]
        at = pairs.contain(owner, again).nonzero()[:, 0]
        again[at] = self._unseen(pairs, V1, owner[at], generator)
        item[row, column] = again
        return item

    @staticmethod
    def _unseen(pairs, n_items: int, user: Tensor, generator: torch.Generator) -> Tensor:
        available = n_items - (pairs.ptr.take(user + 1) - pairs.ptr.take(user))
        # 2^62 mod available: the bias is below 2^-30 for any catalogue.
        draw = torch.randint(2**62, user.shape, generator=generator, device=user.device)
        return unseen(pairs, n_items, user, draw % available.clamp(min=1))

    def log_prob(self, store, item: Tensor) -> Tensor:
        """Shape of ``item``; the users' own items are neglected."""
        return torch.full(item.shape, -float(torch.log(torch.tensor(float(store.schema.n_items)))), device=item.device)


@dataclass
class Popularity:
    """Proportional to (training events of the item) ** alpha, items the user has rejected (after ``rounds`` draws: uniform over his unseen)."""

    alpha: float = 1.0
    rounds: int = 20

    def __post_init__(self):
        self._cache: tuple[object, Tensor, Tensor] | None = None

    def _table(self, store) -> tuple[Tensor, Tensor]:
        if self._cache is None or self._cache[0] is not store.train:
            count = torch.bincount(store.train.item.long(), minlength=store.schema.V).double()
            weight = torch.where(count > 0, count**self.alpha, 0.0)
            weight[0] = 0
            self._cache = (store.train, weight.cumsum(0), (weight / weight.sum()).log().float())
        return self._cache[1], self._cache[2]

    def __call__(self, store, query: Query, n: int, generator: torch.Generator, pool: Tensor | None = None) -> Tensor:
        cdf, _ = self._table(store)

        def draw(shape: tuple[int, ...]) -> Tensor:
            x = torch.rand(shape, generator=generator, device=cdf.device, dtype=torch.float64) * cdf[-1]
            return torch.searchsorted(cdf, x, right=True).clamp_(max=len(cdf) - 1)

        return _rejecting(draw, store, query, n, generator, self.rounds)

    def log_prob(self, store, item: Tensor) -> Tensor:
        return self._table(store)[1][item]


@dataclass
class InBatch:
    """Items that the batch is to predict, so in proportion to popularity; those the user has rejected as in ``Popularity``."""

    rounds: int = 20
    _popularity: Popularity = field(default_factory=Popularity, init=False, repr=False)

    def __call__(self, store, query: Query, n: int, generator: torch.Generator, pool: Tensor | None = None) -> Tensor:
        item = pool[pool != 0]

        def draw(shape: tuple[int, ...]) -> Tensor:
            return item[torch.randint(len(item), shape, generator=generator, device=item.device)]

        return _rejecting(draw, store, query, n, generator, self.rounds) if len(item) else Uniform()(store, query, n, generator)

    def log_prob(self, store, item: Tensor) -> Tensor:
        return self._popularity.log_prob(store, item)


def _rejecting(draw: Callable, store, query: Query, n: int, generator: torch.Generator, rounds: int) -> Tensor:
    """Draws [B, n], drawn anew up to ``rounds`` times where the user has the item, then uniform over those he has not."""
    user = query.user_B[:, None].expand(-1, n)
    item = draw(user.shape)
    seen = store.train_pairs.contain(user, item)
    for _ in range(rounds):
        if not seen.any():
            return item
        item = torch.where(seen, draw(user.shape), item)
        seen = store.train_pairs.contain(user, item)
    return torch.where(seen, Uniform()(store, query, n, generator), item)


@dataclass
class SupportiveOnly:
    """Items the user touched only through behaviours weaker than the target's (S001 §5.2); uniform unseen where there is none."""

    def __call__(self, store, query: Query, n: int, generator: torch.Generator, pool: Tensor | None = None) -> Tensor:
        pairs = store.train_pairs
        ptr, item = self._supportive(store)
        have = ptr[query.user_B + 1] - ptr[query.user_B]
        draw = torch.randint(2**62, (len(query), n), generator=generator, device=pairs.item.device) % have.clamp(min=1)[:, None]
        at = (ptr[query.user_B][:, None] + draw).clamp_(max=max(0, len(item) - 1))
        own = item[at].long() if len(item) else torch.zeros_like(at)
        return torch.where(have[:, None] > 0, own, Uniform()(store, query, n, generator))

    def _supportive(self, store) -> tuple[Tensor, Tensor]:
        pairs = store.train_pairs
        if getattr(self, "_of", None) is not pairs:
            target = 1 << (len(store.schema.behaviours) - 1)
            keep = (pairs.mask & target) == 0
            counts = torch.zeros(len(pairs.ptr) - 1, dtype=torch.int64, device=keep.device).index_add_(0, pairs.user, keep.long())
            self._of, self._item = pairs, pairs.item[keep]
            self._ptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return self._ptr, self._item

    def log_prob(self, store, item: Tensor) -> Tensor:
        raise RecexpError("sampler=supportive_only has no proposal probability over items; use uniform or popularity with this loss.")


@dataclass
class Mixed:
    """Each negative from ``first`` with probability ``share``, else from ``second``."""

    first: NegativeSampler
    second: NegativeSampler
    share: float = 0.5

    def __call__(self, store, query: Query, n: int, generator: torch.Generator, pool: Tensor | None = None) -> Tensor:
        a, b = self.first(store, query, n, generator, pool), self.second(store, query, n, generator, pool)
        return torch.where(torch.rand(a.shape, generator=generator, device=a.device) < self.share, a, b)

    def log_prob(self, store, item: Tensor) -> Tensor:
        a, b = self.first.log_prob(store, item), self.second.log_prob(store, item)
        return torch.logaddexp(a + torch.log(torch.tensor(self.share)), b + torch.log(torch.tensor(1 - self.share)))


class NoSampler:
    """Where an objective needs no negatives. Drawing from it says which setting is wrong."""

    def __call__(self, store, query: Query, n: int, generator: torch.Generator, pool: Tensor | None = None) -> Tensor:
        raise RecexpError("This objective draws negatives, but sampler=none: choose sampler=uniform or another.")

    def log_prob(self, store, item: Tensor) -> Tensor:
        raise RecexpError("This loss needs a sampler's probabilities, but sampler=none: choose sampler=uniform or popularity.")


def hash_uniform(key: Tensor) -> Tensor:
    """A number in [0, 1) per int64 key, the same for ever: double rounds of xor, shift and multiply that let every bit move every other."""
    x = key
    for multiplier in (0x2127599BF4325C37, 0x369DEA0F31A53F85):
        x = (x ^ ((x >> 32) & 0xFFFFFFFF)) * multiplier
    return ((x ^ ((x >> 32) & 0xFFFFFFFF)) & 0xFFFFFF).float() / 2**24
