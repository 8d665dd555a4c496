"""Preferences between pairs of items.

Rendle et al. 2009 (BPR), arXiv:1205.2618; the multi-feedback paper (MF + multi-branch MLP) for
negatives met through weaker behaviors and for pairs ordered by level.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from recexp.contracts import (
    BranchMasked,
    Factorized,
    NegativeSampler,
    Objective,
    Recommender,
    SampledLoss,
)
from recexp.data.store import Pairs, Store, elements
from recexp.errors import RecexpError
from recexp.nn.cpu.factor_bpr import factor_bpr
from recexp.objectives.base import (
    Positives,
    behaviors_on,
    check_choice,
    check_loss,
    check_negatives,
    check_sampler,
    penalty,
    positive_rows,
    random_rows,
)
from recexp.objectives.losses import BPR
from recexp.types import PairwiseBatch, Query, SampledScores

PairKind = Literal["sampler", "levels"]
_LARGE = 2**62  # range of integers that are reduced modulo a per-row bound


@dataclass(frozen=True)
class _Levels:
    """The training pairs by level, and each user's items sorted by level in CSR form."""

    pairs: Pairs
    n_levels: int
    level_P: Tensor  # int64: level of each pair
    item_P: Tensor  # items sorted by (user, level)
    ptr: Tensor  # int64 [U * n_levels + 1]: where each (user, level) begins


@dataclass
class Pairwise(Objective[Recommender, PairwiseBatch]):
    """Training events above drawn or weaker items: by ``BPR``, -log sigmoid(s_pos - s_neg).

    loss: over positives and their negatives.
    positives: "any" event, "explicit" ones or those of the "strongest" behavior only (the
        multi-feedback paper: purchases).
    pairs: "sampler" draws the negatives from the sampler. "levels" takes items of a lower level
        than the positive's (MFPR in the multi-feedback paper): first one of the levels below at
        which the user has items, or no level at all, is drawn, each equally likely; then an item
        of it, from the sampler where it is no level. A pair's level is that of its strongest
        behavior in training.
    levels: the level of each behavior, weak to strong; None: 1, 2, ... Equal levels are not
        ordered (the multi-feedback paper: click 1, cart and favorite 2, purchase 3).
    l2: weight of the mean square of the batch's embeddings.
    shuffle_targets: control, see ``Pointwise``.
    """

    sampler: NegativeSampler
    n_negatives: Annotated[int, Field(ge=0, le=1_000_000)] = 1
    loss: SampledLoss = field(default_factory=BPR)
    positives: Positives = "any"
    pairs: PairKind = "sampler"
    levels: list[Annotated[int, Field(ge=1, le=31)]] | None = None
    l2: Annotated[float, Field(ge=0)] = 0.0
    shuffle_targets: bool = False

    needs = Recommender

    def __post_init__(self) -> None:
        check_choice("positives", self.positives, Positives)
        check_choice("pairs", self.pairs, PairKind)
        check_loss(self, self.loss, SampledLoss)
        if self.loss.needs_log_q:
            raise RecexpError(
                f"loss={type(self.loss).__name__} with loss.log_q=true corrects for negatives that "
                "are common to a batch, and objective=Pairwise draws them for each row: set "
                "loss.log_q=false."
            )
        check_sampler(self.sampler)
        if self.n_negatives < 1:
            raise RecexpError("objective.n_negatives must be at least 1: a pair needs a negative.")
        self._levels: _Levels | None = None

    def check(self, model: Recommender, store: Store) -> None:
        super().check(model, store)
        check_negatives(store)
        self.rows(store)
        behaviors = list(store.schema.behaviors)
        levels = self.levels
        if levels is not None and (len(levels) != len(behaviors) or min(levels) < 1):
            raise RecexpError(
                f"objective.levels={list(levels)} must give each of the behaviors {behaviors} a "
                "level >= 1."
            )

    def bind(self, model: Recommender, store: Store) -> None:
        super().bind(model, store)
        self._history = model.history
        self._has_branches = isinstance(model, BranchMasked)
        self._n_items = store.schema.n_items
        self._levels = None

    def rows(self, store: Store) -> Tensor:
        return positive_rows(store, self.positives)

    def instances(self) -> int:
        """One per pair: BPR's instance is a (user, positive, negative) triple."""
        return self.n_negatives

    def constant_loss(self, store: Store, batch_size: int) -> float:
        return self.loss.constant_of_sampled(self.n_negatives, store.schema.n_items)

    def batch(self, store: Store, rows: Tensor, generator: torch.Generator) -> PairwiseBatch:
        query = store.query(rows, self._history)
        owner = query  # whose event the positive is
        if self.shuffle_targets:
            rows = random_rows(store, rows.shape, generator)
            owner = replace(query, user_B=elements(store.train.user, rows))
        positive_B = elements(store.train.item, rows).long()
        negative_Bn = self.sampler(store, owner, self.n_negatives, generator, positive_B)
        if self.pairs == "levels":
            negative_Bn = self._draw_lower(store, owner, positive_B, negative_Bn, generator)
        did_BCT = None
        if self._has_branches:
            item_BC = torch.cat([positive_B[:, None], negative_Bn], 1)
            did_BCT = behaviors_on(store, owner.user_B[:, None].expand_as(item_BC), item_BC)
        return PairwiseBatch(query, positive_B, negative_Bn, did_BCT)

    def _draw_lower(
        self,
        store: Store,
        owner: Query,
        positive_B: Tensor,
        unseen_Bn: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """Negatives [B, n] of a lower level than the positive's.

        unseen_Bn: the negatives where the drawn level is "no level".
        """
        levels = self._levels_of(store)
        user_B = owner.user_B
        device = user_B.device
        n_levels = levels.n_levels

        # Which levels below the positive's has the user items at? Column l - 1 is level l.
        group_Bl = user_B[:, None] * n_levels + torch.arange(n_levels, device=device)
        n_items_Bl = levels.ptr[group_Bl + 1] - levels.ptr[group_Bl]
        level_B = levels.level_P[levels.pairs.find(user_B, positive_B)]
        lower_Bl = torch.arange(1, n_levels + 1, device=device) < level_B[:, None]
        possible_Bl = (n_items_Bl > 0) & lower_Bl

        # The largest of uniform numbers chooses among them and "no level", which is column 0.
        no_level_B1 = torch.ones_like(possible_Bl[:, :1])
        possible_B1l = torch.cat([no_level_B1, possible_Bl], 1)[:, None]
        draw_Bnl = torch.rand(*unseen_Bn.shape, n_levels + 1, generator=generator, device=device)
        chosen_Bn = draw_Bnl.masked_fill(~possible_B1l, -1.0).argmax(-1)

        group_Bn = user_B[:, None] * n_levels + (chosen_Bn - 1).clamp(min=0)
        n_items_Bn = (levels.ptr[group_Bn + 1] - levels.ptr[group_Bn]).clamp(min=1)
        draw_Bn = torch.randint(_LARGE, unseen_Bn.shape, generator=generator, device=device)
        place_Bn = levels.ptr[group_Bn] + draw_Bn % n_items_Bn
        lower_Bn = levels.item_P[place_Bn.clamp(max=len(levels.item_P) - 1)].long()
        return torch.where(chosen_Bn > 0, lower_Bn, unseen_Bn)

    def _levels_of(self, store: Store) -> _Levels:
        """The levels of the store's training pairs, computed once."""
        pairs = store.train_pairs
        if self._levels is None or self._levels.pairs is not pairs:
            T = len(store.schema.behaviors)
            device = pairs.mask.device
            level_T = torch.tensor(self.levels or range(1, T + 1), device=device)
            did_PT = (pairs.mask[:, None] >> torch.arange(T, device=device)) % 2 == 1
            level_P = torch.where(did_PT, level_T, 0).amax(1)
            n_levels = int(level_T.max())
            group_P = pairs.user * n_levels + level_P - 1
            n_groups = (len(pairs.ptr) - 1) * n_levels
            length = torch.bincount(group_P, minlength=n_groups)
            ptr = torch.cat([length.new_zeros(1), length.cumsum(0)])
            item_P = pairs.item[group_P.argsort(stable=True)]
            self._levels = _Levels(pairs, n_levels, level_P, item_P, ptr)
        return self._levels

    def losses(self, model: Recommender, batch: PairwiseBatch) -> dict[str, Tensor]:
        item_BC = torch.cat([batch.positive_B[:, None], batch.negative_Bn], 1)
        total = self._loss(model, batch, item_BC)
        extra = penalty(model, batch.query, item_BC, self.l2)
        if extra is not None:
            total = total + extra
        if batch.did_BCT is None:
            return {"loss": total}
        # Users without items met only through weaker behaviors got unseen items instead.
        negatives_met = batch.did_BCT[:, 1:].any(-1).float().mean()
        return {"loss": total, "negatives_met": negatives_met}

    def _loss(self, model: Recommender, batch: PairwiseBatch, item_BC: Tensor) -> Tensor:
        """The loss of the batch, without the penalty."""
        if isinstance(model, Factorized) and model.scores_by_tables and type(self.loss) is BPR:
            return factor_bpr(*model.tables(), batch.query.user_B, item_BC)
        if batch.did_BCT is None:
            score_BC = model.score(batch.query, item_BC)
        else:
            assert isinstance(model, BranchMasked)
            score_BC = model.logits(batch.query, item_BC, batch.did_BCT)[..., -1]
        scores = SampledScores(score_BC[:, 0], score_BC[:, 1:], self._n_items)
        return self.loss.of_sampled(scores)
