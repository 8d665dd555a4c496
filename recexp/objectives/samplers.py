"""Negative samplers: vectorized, on the store's device, driven by the caller's generator.

``sampler(store, query, n, generator, pool)`` draws negatives [B, n] for ``query.user_B``. None of
them is an item that the user has in training, except with ``SupportiveOnly``, which draws from
these items.

``sampler.draw_shared(store, n, generator, pool)`` draws negatives [n] that are common to all rows
of a batch. It knows no user and excludes no item. A row's own target may be among them: the loss
decides whether it counts.

``sampler.log_prob(store, item)`` is the log-probability of each item in one draw of
``draw_shared``, of the shape of ``item``; ids from 1. A row's negatives follow the same
distribution, restricted to the items that the user does not have (``Mixed``: that of each part).
Where that leaves no item of positive probability, they are uniform over the items that the user
does not have.

pool holds the items that the batch is to predict, of any shape, 0 where there is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from recexp.contracts import NegativeSampler
from recexp.data.store import Events, Pairs, Store, elements
from recexp.errors import RecexpError
from recexp.types import Query

NO_SAMPLER = "This objective draws negatives, but sampler=none: choose sampler=uniform or another."
_CHUNK_SIZE = 2**22  # entries of a user x item table that exist at a time
_LARGE = 2**62  # range of integers that are reduced modulo a per-row bound


def unseen(pairs: Pairs, n_items: int, user: Tensor, rank: Tensor) -> Tensor:
    """The item at ``rank`` (from 0) among the items that the user does not have in ``pairs``.

    user and rank are int64 of any common shape. Exact, without rejection: the user's item number
    j (from 0) has ``item - 1 - j`` unseen items before it, ascending in j, so one binary search
    finds how many of the user's items precede the wanted one.
    """
    before = torch.searchsorted(pairs.gap_key, (user << 32) + rank, right=True)
    before = before - elements(pairs.ptr, user)
    return rank + 1 + before


def draw_unseen(pairs: Pairs, n_items: int, user: Tensor, generator: torch.Generator) -> Tensor:
    """One item per user, uniform over those that the user does not have; of the shape of user."""
    n_unseen = n_items - (elements(pairs.ptr, user + 1) - elements(pairs.ptr, user))
    # The bias of the modulo is below 2^-30 for any catalog.
    draw = torch.randint(_LARGE, user.shape, generator=generator, device=user.device)
    return unseen(pairs, n_items, user, draw % n_unseen.clamp(min=1))


@dataclass
class Uniform:
    """Uniform over all items; for a row, over the items that its user does not have in training."""

    def __call__(
        self,
        store: Store,
        query: Query,
        n: int,
        generator: torch.Generator,
        pool: Tensor | None = None,
    ) -> Tensor:
        pairs = store.train_pairs
        n_items = store.schema.n_items
        user_Bn = query.user_B[:, None].expand(len(query), n)
        if pairs.bits is None:
            return draw_unseen(pairs, n_items, user_Bn, generator)

        # Rejection sampling: draw from all items, redraw collisions once, then draw exactly from
        # the unseen items. Every stage is uniform over unseen items, so the result is; stages two
        # and three touch few positions.
        negative_Bn = torch.randint(1, n_items + 1, user_Bn.shape, generator=generator)
        row_M, column_M = pairs.contain(user_Bn, negative_Bn).nonzero(as_tuple=True)

        redraw_M = torch.randint(1, n_items + 1, row_M.shape, generator=generator)
        user_M = query.user_B[row_M]
        collides_M = pairs.contain(user_M, redraw_M)
        redraw_M[collides_M] = draw_unseen(pairs, n_items, user_M[collides_M], generator)

        negative_Bn[row_M, column_M] = redraw_M
        return negative_Bn

    def draw_shared(
        self, store: Store, n: int, generator: torch.Generator, pool: Tensor | None = None
    ) -> Tensor:
        device = store.train_pairs.item.device
        return torch.randint(1, store.schema.n_items + 1, (n,), generator=generator, device=device)

    def log_prob(self, store: Store, item: Tensor) -> Tensor:
        return torch.full(item.shape, -math.log(store.schema.n_items), device=item.device)


@dataclass
class Popularity:
    """Proportional to (training events of the item) ** alpha, 0 for an item without any.

    rounds: how often draws that collide with an item of their user are repeated. The rest are
    drawn exactly from the user's distribution, which takes longer. The distribution does not
    depend on it.
    """

    alpha: Annotated[float, Field(ge=0)] = 1.0
    rounds: Annotated[int, Field(ge=0, lt=2**31)] = 20
    _of: Events | None = field(default=None, init=False, repr=False, compare=False)

    def _tables(self, store: Store) -> tuple[Tensor, Tensor]:
        """Cumulated weights, float64 [V], and log-probabilities, float32 [V]; cached per store."""
        if self._of is not store.train:
            count_V = torch.bincount(store.train.item.long(), minlength=store.schema.V).double()
            weight_V = torch.where(count_V > 0, count_V**self.alpha, 0.0)
            weight_V[0] = 0
            self._cdf_V = weight_V.cumsum(0)
            self._log_prob_V = (weight_V / weight_V.sum()).log().float()
            self._of = store.train
        return self._cdf_V, self._log_prob_V

    def __call__(
        self,
        store: Store,
        query: Query,
        n: int,
        generator: torch.Generator,
        pool: Tensor | None = None,
    ) -> Tensor:
        def draw(size: int) -> Tensor:
            return self.draw_shared(store, size, generator)

        def weights() -> tuple[Tensor, Tensor]:
            _, log_prob_V = self._tables(store)
            item_C = log_prob_V.isfinite().nonzero()[:, 0]
            return item_C, log_prob_V[item_C].double().exp()

        return _draw_without_own(draw, weights, store, query, n, generator, self.rounds)

    def draw_shared(
        self, store: Store, n: int, generator: torch.Generator, pool: Tensor | None = None
    ) -> Tensor:
        # Inversion: the first item whose cumulated weight exceeds a uniform number.
        cdf_V, _ = self._tables(store)
        x_n = torch.rand(n, generator=generator, device=cdf_V.device, dtype=torch.float64)
        return torch.searchsorted(cdf_V, x_n * cdf_V[-1], right=True).clamp_(max=len(cdf_V) - 1)

    def log_prob(self, store: Store, item: Tensor) -> Tensor:
        """-inf for an item without training events, which is never drawn."""
        return self._tables(store)[1][item]


@dataclass
class InBatch:
    """Proportional to how often the batch is to predict the item; uniform where it predicts none.

    ``log_prob`` is the distribution over the batches of an epoch whose targets are the training
    events: popularity. Where targets are chosen otherwise (windows=last), it is an approximation.
    Given one batch, the distribution is the items' shares of ``pool``. A correction of sampled
    losses needs the former: the latter would estimate a sum over the items of the batch, not over
    the catalog.

    rounds: as in ``Popularity``.
    """

    rounds: Annotated[int, Field(ge=0, lt=2**31)] = 20
    _popularity: Popularity = field(default_factory=Popularity, init=False, repr=False)

    def __call__(
        self,
        store: Store,
        query: Query,
        n: int,
        generator: torch.Generator,
        pool: Tensor | None = None,
    ) -> Tensor:
        item_P = _items_of(pool)
        if len(item_P) == 0:
            return Uniform()(store, query, n, generator)

        def draw(size: int) -> Tensor:
            return _draw_from(item_P, size, generator)

        def weights() -> tuple[Tensor, Tensor]:
            item_C, count_C = item_P.unique(return_counts=True)
            return item_C, count_C.double()

        return _draw_without_own(draw, weights, store, query, n, generator, self.rounds)

    def draw_shared(
        self, store: Store, n: int, generator: torch.Generator, pool: Tensor | None = None
    ) -> Tensor:
        item_P = _items_of(pool)
        if len(item_P) == 0:
            return Uniform().draw_shared(store, n, generator)
        return _draw_from(item_P, n, generator)

    def log_prob(self, store: Store, item: Tensor) -> Tensor:
        return self._popularity.log_prob(store, item)


def _items_of(pool: Tensor | None) -> Tensor:
    """The real items [P] of a pool."""
    if pool is None:
        raise RecexpError("sampler=in_batch draws from a pool of items, and none was given.")
    return pool[pool != 0]


def _draw_from(item_P: Tensor, size: int, generator: torch.Generator) -> Tensor:
    place = torch.randint(len(item_P), (size,), generator=generator, device=item_P.device)
    return item_P[place].long()


def _draw_without_own(
    draw: Callable[[int], Tensor],
    weights: Callable[[], tuple[Tensor, Tensor]],
    store: Store,
    query: Query,
    n: int,
    generator: torch.Generator,
    rounds: int,
) -> Tensor:
    """Draws [B, n] from a distribution restricted to the items that the row's user does not have.

    draw(size) draws from the unrestricted distribution. Draws of a user's own items are rejected
    and repeated, ``rounds`` times. What is left then is drawn exactly by ``weights()``: the items
    [C] of the distribution and their weights [C].
    """
    pairs = store.train_pairs
    user_M = query.user_B.repeat_interleave(n)
    item_M = draw(len(user_M))
    left_R = pairs.contain(user_M, item_M).nonzero()[:, 0]
    for _ in range(rounds):
        if len(left_R) == 0:
            break
        item_M[left_R] = draw(len(left_R))
        left_R = left_R[pairs.contain(user_M[left_R], item_M[left_R])]
    if len(left_R):
        user_R = user_M[left_R]
        exact_R = _draw_restricted(pairs, user_R, *weights(), generator)
        unseen_R = draw_unseen(pairs, store.schema.n_items, user_R, generator)
        item_M[left_R] = torch.where(exact_R > 0, exact_R, unseen_R)
    return item_M.view(len(query), n)


def _draw_restricted(
    pairs: Pairs, user_M: Tensor, item_C: Tensor, weight_C: Tensor, generator: torch.Generator
) -> Tensor:
    """One item [M] per user by the weights of the items that the user does not have.

    0 where the user has all of them.
    """
    distinct_R, row_M = user_M.unique(return_inverse=True)
    drawn_M = torch.zeros_like(user_M)
    C = len(item_C)
    n_rows = max(1, _CHUNK_SIZE // C)
    for first in range(0, len(distinct_R), n_rows):
        user_RC = distinct_R[first : first + n_rows, None].expand(-1, C)
        own_RC = pairs.contain(user_RC, item_C.expand_as(user_RC))
        # The rows' weights cumulated one after the other, so that one search serves all rows.
        cdf = torch.where(own_RC, 0.0, weight_C).flatten().cumsum(0)
        end_R = cdf[C - 1 :: C]
        start_R = torch.cat([end_R.new_zeros(1), end_R[:-1]])

        # m: the draws that belong to users of this chunk.
        at_m = ((row_M >= first) & (row_M < first + n_rows)).nonzero()[:, 0]
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
    """Items that the user touched only through behaviors weaker than the strongest one.

    Uniform over these items, or over the unseen items where the user has none. Source: the
    multi-feedback paper (MF + multi-branch MLP), Table 3.
    """

    _of: Pairs | None = field(default=None, init=False, repr=False, compare=False)

    def __call__(
        self,
        store: Store,
        query: Query,
        n: int,
        generator: torch.Generator,
        pool: Tensor | None = None,
    ) -> Tensor:
        ptr, item = self._supportive(store)
        start_B = ptr[query.user_B]
        n_own_B = ptr[query.user_B + 1] - start_B
        draw_Bn = torch.randint(_LARGE, (len(query), n), generator=generator, device=item.device)
        place_Bn = start_B[:, None] + draw_Bn % n_own_B.clamp(min=1)[:, None]
        place_Bn = place_Bn.clamp_(max=max(0, len(item) - 1))
        own_Bn = item[place_Bn].long() if len(item) else torch.zeros_like(place_Bn)
        unseen_Bn = Uniform()(store, query, n, generator)
        return torch.where(n_own_B[:, None] > 0, own_Bn, unseen_Bn)

    def _supportive(self, store: Store) -> tuple[Tensor, Tensor]:
        """The users' items without the strongest behavior in CSR form, [U+1] and [nnz]; cached."""
        pairs = store.train_pairs
        if self._of is not pairs:
            strongest = 1 << (len(store.schema.behaviors) - 1)
            keep_P = (pairs.mask & strongest) == 0
            n_users = len(pairs.ptr) - 1
            n_kept_U = torch.zeros(n_users, dtype=torch.int64, device=keep_P.device)
            n_kept_U.index_add_(0, pairs.user, keep_P.long())
            self._ptr = torch.cat([n_kept_U.new_zeros(1), n_kept_U.cumsum(0)])
            self._item = pairs.item[keep_P]
            self._of = pairs
        return self._ptr, self._item

    def draw_shared(
        self, store: Store, n: int, generator: torch.Generator, pool: Tensor | None = None
    ) -> Tensor:
        raise RecexpError(
            "sampler=supportive_only draws from a user's own items, and negatives common to a "
            "batch have no user: choose sampler=uniform or popularity."
        )

    def log_prob(self, store: Store, item: Tensor) -> Tensor:
        raise RecexpError(
            "sampler=supportive_only has no proposal probability over items; use uniform or "
            "popularity with this loss."
        )


@dataclass
class Mixed:
    """Each negative from ``first`` with probability ``share``, else from ``second``.

    A row's negatives follow the mixture of the two restricted distributions.
    """

    first: NegativeSampler
    second: NegativeSampler
    share: Annotated[float, Field(ge=0, le=1)] = 0.5

    def __call__(
        self,
        store: Store,
        query: Query,
        n: int,
        generator: torch.Generator,
        pool: Tensor | None = None,
    ) -> Tensor:
        first_Bn = self.first(store, query, n, generator, pool)
        second_Bn = self.second(store, query, n, generator, pool)
        return self._choose(first_Bn, second_Bn, generator)

    def draw_shared(
        self, store: Store, n: int, generator: torch.Generator, pool: Tensor | None = None
    ) -> Tensor:
        first_n = self.first.draw_shared(store, n, generator, pool)
        second_n = self.second.draw_shared(store, n, generator, pool)
        return self._choose(first_n, second_n, generator)

    def _choose(self, first: Tensor, second: Tensor, generator: torch.Generator) -> Tensor:
        random = torch.rand(first.shape, generator=generator, device=first.device)
        return torch.where(random < self.share, first, second)

    def log_prob(self, store: Store, item: Tensor) -> Tensor:
        first = self.first.log_prob(store, item) + torch.log(torch.tensor(self.share))
        second = self.second.log_prob(store, item) + torch.log(torch.tensor(1 - self.share))
        return torch.logaddexp(first, second)


class NoSampler:
    """For objectives without negatives. Drawing from it raises an error that names the setting."""

    def __call__(
        self,
        store: Store,
        query: Query,
        n: int,
        generator: torch.Generator,
        pool: Tensor | None = None,
    ) -> Tensor:
        raise RecexpError(NO_SAMPLER)

    def draw_shared(
        self, store: Store, n: int, generator: torch.Generator, pool: Tensor | None = None
    ) -> Tensor:
        raise RecexpError(NO_SAMPLER)

    def log_prob(self, store: Store, item: Tensor) -> Tensor:
        raise RecexpError(
            "This loss needs a sampler's probabilities, but sampler=none: choose sampler=uniform "
            "or popularity."
        )
