"""Preferences between pairs of items (BPR; S001's supportive-only and level-ordered pairs)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from recexp.contracts import BranchMasked, NegativeSampler, Objective, Recommender
from recexp.errors import RecexpError
from recexp.objectives import losses
from recexp.objectives.base import (
    behaviours_on,
    check_negatives,
    check_positives,
    check_sampler,
    penalty,
    positive_rows,
    somebody,
)
from recexp.types import PairwiseBatch, Query


@dataclass
class Pairwise(Objective):
    """-log sigmoid(score(positive) - score(negative)) over training events drawn uniformly.

    positives: "any" event, "explicit" ones or the "strongest" behaviour only (S001: purchases).
    pairs: "sampler" draws the negatives from the sampler; "levels" takes items of a lower level than the positive's (S001's MFPR, models.md §5.3).
        First one of the levels below at which the user has items, or no level at all, is drawn, each equally likely, then an item of it, by the
        sampler where it is no level. A pair's level is that of its strongest behaviour in training.
    levels: the level of each behaviour, weak to strong; None: 1, 2, ... Equal levels are not ordered (S001: click 1, cart and favourite 2,
        purchase 3).
    shuffle_targets: control, see ``Pointwise``.
    """

    sampler: NegativeSampler
    n_negatives: int = 1
    positives: str = "any"
    pairs: str = "sampler"
    levels: list[int] | None = None
    l2: float = 0.0
    shuffle_targets: bool = False

    needs = Recommender

    def __post_init__(self):
        check_positives(self.positives)
        check_sampler(self.sampler)
        if self.pairs not in ("sampler", "levels"):
            raise RecexpError(f"objective.pairs={self.pairs!r}: choose sampler or levels.")
        if self.n_negatives < 1:
            raise RecexpError("objective.n_negatives must be at least 1: a pair needs a negative.")

    def check(self, model, store) -> None:
        super().check(model, store)
        check_negatives(store, self.n_negatives, model)
        self.rows(store)
        T = len(store.schema.behaviours)
        if self.levels is not None and (len(self.levels) != T or min(self.levels) < 1):
            raise RecexpError(
                f"objective.levels={list(self.levels)} must give each of the behaviours {list(store.schema.behaviours)} a level >= 1."
            )

    def bind(self, model, store) -> None:
        super().bind(model, store)
        self._history = model.history
        self._branches = isinstance(model, BranchMasked)
        self._items_by_level = None

    def rows(self, store) -> Tensor:
        return positive_rows(store, self.positives)

    def instances(self) -> int:
        """One per pair: BPR's instance is a (user, positive, negative) triple."""
        return self.n_negatives

    def constant_loss(self, store, batch_size: int) -> float:
        return math.log(2)

    def batch(self, store, rows: Tensor, generator: torch.Generator) -> PairwiseBatch:
        query = owner = store.query(rows, self._history)
        if self.shuffle_targets:
            rows = somebody(store, rows.shape, generator)
            owner = replace(query, user_B=store.train.user.take(rows))
        positive_B = store.train.item.take(rows).long()
        negative_Bn = self.sampler(store, owner, self.n_negatives, generator, positive_B)
        if self.pairs == "levels":
            negative_Bn = self._lower(store, owner, positive_B, negative_Bn, generator)
        did_BCT = None
        if self._branches:
            item_BC = torch.cat([positive_B[:, None], negative_Bn], 1)
            did_BCT = behaviours_on(store, owner.user_B[:, None].expand_as(item_BC), item_BC)
        return PairwiseBatch(query, positive_B, negative_Bn, did_BCT)

    def _lower(
        self, store, owner: Query, positive_B: Tensor, unseen_Bn: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Negatives [B, n] of a lower level than the positive's; unseen_Bn where the drawn level is "no level"."""
        pairs, user_B = store.train_pairs, owner.user_B
        level_P, item_P, ptr = self._by_level(store)
        n_levels = (len(ptr) - 1) // (len(pairs.ptr) - 1)
        group_Bl = user_B[:, None] * n_levels + torch.arange(
            n_levels, device=user_B.device
        )  # column l - 1 is level l
        have_Bl = ptr[group_Bl + 1] - ptr[group_Bl]
        level_B = level_P[pairs.find(user_B, positive_B)]
        possible_Bl = (have_Bl > 0) & (
            torch.arange(1, n_levels + 1, device=user_B.device) < level_B[:, None]
        )
        possible = torch.cat([torch.ones_like(possible_Bl[:, :1]), possible_Bl], 1)[:, None]
        draw = torch.rand(*unseen_Bn.shape, n_levels + 1, generator=generator, device=user_B.device)
        chosen_Bn = draw.masked_fill(~possible, -1.0).argmax(-1)
        group_Bn = user_B[:, None] * n_levels + (chosen_Bn - 1).clamp(min=0)
        have_Bn = (ptr[group_Bn + 1] - ptr[group_Bn]).clamp(min=1)
        place_Bn = (
            ptr[group_Bn]
            + torch.randint(2**62, unseen_Bn.shape, generator=generator, device=user_B.device)
            % have_Bn
        )
        return torch.where(
            chosen_Bn > 0, item_P[place_Bn.clamp(max=len(item_P) - 1)].long(), unseen_Bn
        )

    def _by_level(self, store) -> tuple[Tensor, Tensor, Tensor]:
        """Level of each training pair; the pairs' items sorted by (user, level), and where each (user, level) begins."""
        pairs = store.train_pairs
        if self._items_by_level is None or self._items_by_level[0] is not pairs:
            T = len(store.schema.behaviours)
            levels = torch.tensor(self.levels or range(1, T + 1), device=pairs.mask.device)
            level_P = torch.where(
                (pairs.mask[:, None] >> torch.arange(T, device=pairs.mask.device)) % 2 == 1,
                levels,
                0,
            ).amax(1)
            n_levels = int(levels.max())
            group_P = pairs.user * n_levels + level_P - 1
            length = torch.bincount(group_P, minlength=(len(pairs.ptr) - 1) * n_levels)
            ptr = torch.cat([length.new_zeros(1), length.cumsum(0)])
            self._items_by_level = (pairs, level_P, pairs.item[group_P.argsort(stable=True)], ptr)
        return self._items_by_level[1:]

    def loss(self, model, batch: PairwiseBatch) -> dict[str, Tensor]:
        item_BC = torch.cat([batch.positive_B[:, None], batch.negative_Bn], 1)
        masked = batch.did_BCT is not None
        score_BC = (
            model.logits(batch.query, item_BC, batch.did_BCT)[..., -1]
            if masked
            else model.score(batch.query, item_BC)
        )
        total = losses.bpr(score_BC[:, 0], score_BC[:, 1:])
        if (extra := penalty(model, batch.query, item_BC, self.l2)) is not None:
            total = total + extra
        if not masked:
            return {"loss": total}
        # The rest were drawn from the unseen, for want of items met only through weaker behaviours (models.md §5.2 asks to say how many).
        return {"loss": total, "negatives_met": batch.did_BCT[:, 1:].any(-1).float().mean()}
