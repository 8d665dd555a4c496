"""Negative samplers: vectorized, on the device of the store, driven by the caller's generator.

``sampler(store, query, n, generator, pool) -> item_Bn`` draws n negatives per row, for
query.user_B. It returns no item that the user has in training; only ``SupportiveOnly`` draws from
these items.

``sampler.draw_shared(store, n, generator, pool) -> item_n`` draws negatives that are common to all
rows of a batch. It knows no user and excludes no item. A row's own target may be among them: the
loss decides whether it counts.

``sampler.log_prob(store, item)`` is the log of the probability that one draw of ``draw_shared`` is
the item, of the shape of ``item``; ids from 1. The law of a row's negatives is the same one,
restricted to the items that the user does not have (``Mixed``: that of each part). Where that
leaves no item with a positive probability, it is uniform over the items that the user does not
have.

pool holds the items that the batch is to predict, of any shape, 0 where there is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from recexp.contracts import NegativeSampler
from recexp.errors import RecexpError
from recexp.types import Query

_NO_SAMPLER = "This objective draws negatives, but sampler=none: choose sampler=uniform or another."
_CHUNK = 2**22  # entries of a table users x items that is made at a time


def unseen(pairs, n_items: int, user: Tensor, rank: Tensor) -> Tensor:
    """The item that stands at ``rank`` (from 0) among the items the user has not in ``pairs``. Any common shape.

    Exact and without rejection: seen item number j (from 0) has ``item - 1 - j`` unseen items before it, ascending in j, so the number of seen items
    before the wanted one is found by one binary search.
    """
    before = torch.searchsorted(pairs.gap_key, (user << 32) + rank, right=True) - pairs.ptr.take(
        user
    )
    return rank + 1 + before


@dataclass
class Uniform:
    """Uniform over all items; for a row, over the items that its user does not have in training."""

    def __call__(
        self, store, query: Query, n: int, generator: torch.Generator, pool: Tensor | None = None
    ) -> Tensor:
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

    def draw_shared(
        self, store, n: int, generator: torch.Generator, pool: Tensor | None = None
    ) -> Tensor:
        device = store.train_pairs.item.device
        return torch.randint(1, store.schema.n_items + 1, (n,), generator=generator, device=device)

    def log_prob(self, store, item: Tensor) -> Tensor:
        return torch.full(item.shape, -math.log(store.schema.n_items), device=item.device)


@dataclass
class Popularity:
    """Proportional to (training events of the item) ** alpha, 0 for an item without any.

    rounds: for a row, draws that hit an item of its user are repeated so often; the rest are drawn
    from the user's law by a search, which takes longer. The law does not depend on it.
    """

    alpha: float = 1.0
    rounds: int = 20

    def __post_init__(self):
        self._cache: tuple[object, Tensor, Tensor] | None = None

    def _table(self, store) -> tuple[Tensor, Tensor]:
        """Cumulated weights, float64 [V], and log-probabilities, float32 [V]."""
        if self._cache is None or self._cache[0] is not store.train:
            count = torch.bincount(store.train.item.long(), minlength=store.schema.V).double()
            weight = torch.where(count > 0, count**self.alpha, 0.0)
            weight[0] = 0
            self._cache = (store.train, weight.cumsum(0), (weight / weight.sum()).log().float())
        return self._cache[1], self._cache[2]

    def __call__(
        self, store, query: Query, n: int, generator: torch.Generator, pool: Tensor | None = None
    ) -> Tensor:
        def draw(size: int) -> Tensor:
            return self.draw_shared(store, size, generator)

        def weights() -> tuple[Tensor, Tensor]:
            log_prob = self._table(store)[1]
            item = log_prob.isfinite().nonzero()[:, 0]
            return item, log_prob[item].double().exp()

        return _without_own(draw, weights, store, query, n, generator, self.rounds)

    def draw_shared(
        self, store, n: int, generator: torch.Generator, pool: Tensor | None = None
    ) -> Tensor:
        cdf = self._table(store)[0]
        x = torch.rand(n, generator=generator, device=cdf.device, dtype=torch.float64) * cdf[-1]
        return torch.searchsorted(cdf, x, right=True).clamp_(max=len(cdf) - 1)

    def log_prob(self, store, item: Tensor) -> Tensor:
        """-inf for an item without training events, which is never drawn."""
        return self._table(store)[1][item]


@dataclass
class InBatch:
    """Proportional to how often the batch is to predict the item; uniform where it predicts none.

    ``log_prob`` is the law over the batches of an epoch whose targets are the training events:
    popularity. Where targets are chosen otherwise (windows=last), it is an approximation. Given
    one batch, the law is the items' shares of ``pool``. A correction of sampled losses needs the
    former: the latter would estimate a sum over the items of the batch, not over the catalogue.

    rounds: as in ``Popularity``.
    """

    rounds: int = 20
    _popularity: Popularity = field(default_factory=Popularity, init=False, repr=False)

    def __call__(
        self, store, query: Query, n: int, generator: torch.Generator, pool: Tensor | None = None
    ) -> Tensor:
        item_P = pool[pool != 0]
        if len(item_P) == 0:
            return Uniform()(store, query, n, generator)

        def draw(size: int) -> Tensor:
            return _choice(item_P, size, generator)

        def weights() -> tuple[Tensor, Tensor]:
            item, count = item_P.unique(return_counts=True)
            return item, count.double()

        return _without_own(draw, weights, store, query, n, generator, self.rounds)

    def draw_shared(
        self, store, n: int, generator: torch.Generator, pool: Tensor | None = None
    ) -> Tensor:
        item_P = pool[pool != 0]
        if len(item_P) == 0:
            return Uniform().draw_shared(store, n, generator)
        return _choice(item_P, n, generator)

    def log_prob(self, store, item: Tensor) -> Tensor:
        return self._popularity.log_prob(store, item)


def _choice(item_P: Tensor, size: int, generator: torch.Generator) -> Tensor:
    place = torch.randint(len(item_P), (size,), generator=generator, device=item_P.device)
    return item_P[place].long()


def _without_own(
    draw: Callable[[int], Tensor],
    weights: Callable[[], tuple[Tensor, Tensor]],
    store,
    query: Query,
    n: int,
    generator: torch.Generator,
    rounds: int,
) -> Tensor:
    """Draws [B, n] by a law restricted to the items that the row's user does not have.

    draw(size) draws from the unrestricted law; draws of a user's own items are rejected and drawn
    again, ``rounds`` times. What is left then is drawn exactly by ``weights()``: the law's items
    [C] and their weights [C].
    """
    pairs = store.train_pairs
    user_M = query.user_B.repeat_interleave(n)
    item_M = draw(len(user_M))
    left = pairs.contain(user_M, item_M).nonzero()[:, 0]
    for _ in range(rounds):
        if len(left) == 0:
            break
        item_M[left] = draw(len(left))
        left = left[pairs.contain(user_M[left], item_M[left])]
    if len(left):
        owner = user_M[left]
        exact = _draw_restricted(pairs, owner, *weights(), generator)
        unseen_item = Uniform._unseen(pairs, store.schema.n_items, owner, generator)
        item_M[left] = torch.where(exact > 0, exact, unseen_item)
    return item_M.view(len(query), n)


def _draw_restricted(
    pairs, user_M: Tensor, item_C: Tensor, weight_C: Tensor, generator: torch.Generator
) -> Tensor:
    """One item [M] per user by the weights of the items that the user does not have.

    0 where the user has all of them.
    """
    owner_R, row_M = user_M.unique(return_inverse=True)
    drawn_M = torch.zeros_like(user_M)
    C = len(item_C)
    chunk = max(1, _CHUNK // C)
    for first in range(0, len(owner_R), chunk):
        user_RC = owner_R[first : first + chunk, None].expand(-1, C)
        own_RC = pairs.contain(user_RC, item_C.expand_as(user_RC))
        # The rows' weights cumulated one after the other: one search serves all rows.
        cdf = torch.where(own_RC, 0.0, weight_C).flatten().cumsum(0)
        end_R = cdf[C - 1 :: C]
        start_R = torch.cat([end_R.new_zeros(1), end_R[:-1]])
        at_m = ((row_M >= first) & (row_M < first + chunk)).nonzero()[:, 0]
        row_m = row_M[at_m] - first
        start_m = start_R[row_m]
        end_m = end_R[row_m]
        random_m = torch.rand(
            len(row_m), generator=generator, device=cdf.device, dtype=torch.float64
        )
        # Rounding must not carry x into the next row.
        x_m = start_m + random_m * (end_m - start_m)
        x_m = torch.minimum(x_m, torch.nextafter(end_m, start_m))
        item_m = item_C[torch.searchsorted(cdf, x_m, right=True) % C].long()
        drawn_M[at_m] = torch.where(end_m > start_m, item_m, 0)
    return drawn_M


@dataclass
class SupportiveOnly:
    """Items the user touched only through behaviours weaker than the target's (S001 §5.2); uniform unseen where there is none."""

    _of: object = field(default=None, init=False, repr=False, compare=False)

    def __call__(
        self, store, query: Query, n: int, generator: torch.Generator, pool: Tensor | None = None
    ) -> Tensor:
        pairs = store.train_pairs
        ptr, item = self._supportive(store)
        have = ptr[query.user_B + 1] - ptr[query.user_B]
        draw = (
            torch.randint(2**62, (len(query), n), generator=generator, device=pairs.item.device)
            % have.clamp(min=1)[:, None]
        )
        at = (ptr[query.user_B][:, None] + draw).clamp_(max=max(0, len(item) - 1))
        own = item[at].long() if len(item) else torch.zeros_like(at)
        return torch.where(have[:, None] > 0, own, Uniform()(store, query, n, generator))

    def _supportive(self, store) -> tuple[Tensor, Tensor]:
        pairs = store.train_pairs
        if self._of is not pairs:
            target = 1 << (len(store.schema.behaviours) - 1)
            keep = (pairs.mask & target) == 0
            counts = torch.zeros(
                len(pairs.ptr) - 1, dtype=torch.int64, device=keep.device
            ).index_add_(0, pairs.user, keep.long())
            self._of, self._item = pairs, pairs.item[keep]
            self._ptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return self._ptr, self._item

    def draw_shared(
        self, store, n: int, generator: torch.Generator, pool: Tensor | None = None
    ) -> Tensor:
        raise RecexpError(
            "sampler=supportive_only draws from a user's own items, and negatives common to a "
            "batch have no user: choose sampler=uniform or popularity."
        )

    def log_prob(self, store, item: Tensor) -> Tensor:
        raise RecexpError(
            "sampler=supportive_only has no proposal probability over items; use uniform or popularity with this loss."
        )


@dataclass
class Mixed:
    """Each negative from ``first`` with probability ``share``, else from ``second``.

    The law of a row's negatives is the mixture of the restricted laws.
    """

    first: NegativeSampler
    second: NegativeSampler
    share: float = 0.5

    def __call__(
        self, store, query: Query, n: int, generator: torch.Generator, pool: Tensor | None = None
    ) -> Tensor:
        a, b = (
            self.first(store, query, n, generator, pool),
            self.second(store, query, n, generator, pool),
        )
        return self._either(a, b, generator)

    def draw_shared(
        self, store, n: int, generator: torch.Generator, pool: Tensor | None = None
    ) -> Tensor:
        a = self.first.draw_shared(store, n, generator, pool)
        b = self.second.draw_shared(store, n, generator, pool)
        return self._either(a, b, generator)

    def _either(self, a: Tensor, b: Tensor, generator: torch.Generator) -> Tensor:
        return torch.where(
            torch.rand(a.shape, generator=generator, device=a.device) < self.share, a, b
        )

    def log_prob(self, store, item: Tensor) -> Tensor:
        a, b = self.first.log_prob(store, item), self.second.log_prob(store, item)
        return torch.logaddexp(
            a + torch.log(torch.tensor(self.share)), b + torch.log(torch.tensor(1 - self.share))
        )


class NoSampler:
    """Where an objective needs no negatives. Drawing from it says which setting is wrong."""

    def __call__(
        self, store, query: Query, n: int, generator: torch.Generator, pool: Tensor | None = None
    ) -> Tensor:
        raise RecexpError(_NO_SAMPLER)

    def draw_shared(
        self, store, n: int, generator: torch.Generator, pool: Tensor | None = None
    ) -> Tensor:
        raise RecexpError(_NO_SAMPLER)

    def log_prob(self, store, item: Tensor) -> Tensor:
        raise RecexpError(
            "This loss needs a sampler's probabilities, but sampler=none: choose sampler=uniform or popularity."
        )


def hash_uniform(key: Tensor) -> Tensor:
    """A number in [0, 1) per int64 key, the same for ever: double rounds of xor, shift and multiply that let every bit move every other."""
    x = key
    for multiplier in (0x2127599BF4325C37, 0x369DEA0F31A53F85):
        x = (x ^ ((x >> 32) & 0xFFFFFFFF)) * multiplier
    return ((x ^ ((x >> 32) & 0xFFFFFFFF)) & 0xFFFFFF).float() / 2**24
