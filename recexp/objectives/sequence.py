"""The loss at the positions of a history that have a target, shared by next_item and cloze."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from recexp.contracts import CatalogLoss, Encoder, NegativeSampler, Objective, SampledLoss
from recexp.data.store import Store
from recexp.errors import RecexpError
from recexp.nn.cpu.catalog_dot import catalog_dot
from recexp.nn.cpu.lookup import row_dot
from recexp.objectives.base import (
    Positives,
    check_choice,
    check_loss,
    check_negatives,
    check_sampler,
    positive_bits,
    positive_rows,
    random_rows,
)
from recexp.objectives.losses import CE
from recexp.types import SampledScores, SequenceBatch

Shared = Literal["position", "row", "batch"]
# From so many negatives per state on, vectors of the whole catalog are made and read in place: a
# copy per negative would fill gigabytes.
MANY = 16


@dataclass
class SequenceObjective(Objective[Encoder, SequenceBatch]):
    """Base of the objectives that train an encoder at every position with a target.

    loss: over the whole catalog, or over n_negatives drawn items.
    shared: negatives are drawn once per "position" with a target, per "row" (one set for all
        positions of a history) or per "batch". Those of a position or a row are items that the
        user does not have in training. Those of a batch have no user: they are drawn from all
        items, and the loss leaves out copies of a position's own target.
    positives: the training events that are predicted: "any", "explicit" ones or those of the
        "strongest" behavior. Histories hold the others too.
    shuffle_targets: control, see ``Pointwise``.
    """

    sampler: NegativeSampler
    loss: CatalogLoss | SampledLoss = field(default_factory=CE)
    n_negatives: Annotated[int, Field(ge=0, le=1_000_000)] = 1
    shared: Shared = "position"
    positives: Positives = "any"
    shuffle_targets: bool = False

    needs = Encoder

    def __post_init__(self) -> None:
        check_choice("shared", self.shared, Shared)
        check_choice("positives", self.positives, Positives)
        check_loss(self, self.loss, CatalogLoss, SampledLoss)
        if not isinstance(self.loss, CatalogLoss):
            self._check_sampled(self.loss)

    def _check_sampled(self, loss: SampledLoss) -> None:
        name = type(loss).__name__
        if self.n_negatives < 1:
            raise RecexpError(f"loss={name} needs objective.n_negatives of at least 1.")
        check_sampler(self.sampler, shared=self.shared == "batch")
        if loss.counts_negatives and self.shared == "batch":
            raise RecexpError(
                f"loss={name} counts its negatives, so none may be a row's own target: choose "
                "objective.shared=position or row."
            )
        if loss.needs_log_q and self.shared != "batch":
            raise RecexpError(
                f"loss={name} with loss.log_q=true corrects for negatives that are common to a "
                "batch: choose objective.shared=batch, or loss.log_q=false."
            )

    def check(self, model: Encoder, store: Store) -> None:
        super().check(model, store)
        positive_rows(store, self.positives)
        if not isinstance(self.loss, CatalogLoss) and self.shared != "batch":
            check_negatives(store)

    def bind(self, model: Encoder, store: Store) -> None:
        super().bind(model, store)
        self._history = model.history
        self._n_items = store.schema.n_items

    def _is_positive(self, store: Store, row: Tensor) -> Tensor:
        """Are the rows of ``store.train`` events to predict? bool, in the shape of row."""
        return (store.train.mask[row] & positive_bits(store, self.positives)) != 0

    def _with_positives(self, store: Store, first_N: Tensor, end_N: Tensor) -> Tensor:
        """The ends of those ranges first..end of training rows that hold an event to predict."""
        if self.positives == "any":
            return end_N
        every_E = torch.arange(len(store.train), device=end_N.device)
        n_before_E = F.pad(self._is_positive(store, every_E).cumsum(0), (1, 0))
        found_N = end_N[n_before_E[end_N] > n_before_E[first_N]]
        if len(found_N) == 0:
            raise RecexpError(
                f"objective.positives={self.positives}: no training event of such a behavior "
                "follows another event of its user, so there is nothing to predict."
            )
        return found_N

    def constant_loss(self, store: Store, batch_size: int) -> float:
        n_items = store.schema.n_items
        if isinstance(self.loss, CatalogLoss):
            return self.loss.constant_of_catalog(n_items)
        return self.loss.constant_of_sampled(self.n_negatives, n_items)

    def _with_negatives(
        self, store: Store, batch: SequenceBatch, generator: torch.Generator
    ) -> SequenceBatch:
        """The batch with its negatives and, where asked for, with shuffled targets.

        Shuffled targets are items of random training events; the negatives then avoid the items
        of a random user.
        """
        query = batch.query
        if self.shuffle_targets:
            event_BL = random_rows(store, batch.target_BL.shape, generator)
            random_BL = store.train.item[event_BL].long()
            batch.target_BL = torch.where(batch.target_BL != 0, random_BL, 0)
            event_B = random_rows(store, query.user_B.shape, generator)
            query = replace(query, user_B=store.train.user[event_B])
        if isinstance(self.loss, CatalogLoss):
            return batch

        n = self.n_negatives
        pool_BL = batch.target_BL
        if self.shared == "position":
            # Histories are left out: they would be copied once per position.
            row_N = pool_BL.nonzero()[:, 0]
            owner = query.change_columns(lambda x_BL: x_BL[:, :0])[row_N]
            batch.negative_Nn = self.sampler(store, owner, n, generator, pool_BL)
        elif self.shared == "row":
            batch.negative_Bn = self.sampler(store, query, n, generator, pool_BL)
        else:
            batch.negative_n = self.sampler.draw_shared(store, n, generator, pool_BL)
            if self.loss.needs_log_q:
                batch.log_prob_n = self.sampler.log_prob(store, batch.negative_n)
        return batch

    def states(self, model: Encoder, batch: SequenceBatch, wanted_BL: Tensor) -> Tensor:
        """States [N, D] at the wanted positions, row by row."""
        return model.encode_at(batch.query, wanted_BL)

    def losses(self, model: Encoder, batch: SequenceBatch) -> dict[str, Tensor]:
        wanted_BL = batch.target_BL != 0
        h_ND = model.head(self.states(model, batch, wanted_BL))
        target_N = batch.target_BL[wanted_BL]
        loss = self._loss(model, batch, wanted_BL, h_ND, target_N)
        extra = model.extra_loss(h_ND, target_N)
        if extra is None:
            return {"loss": loss}
        return {"loss": loss + extra, "item_loss": loss, "extra_loss": extra}

    def _loss(
        self,
        model: Encoder,
        batch: SequenceBatch,
        wanted_BL: Tensor,
        h_ND: Tensor,
        target_N: Tensor,
    ) -> Tensor:
        """The loss of the states at the wanted positions against their targets."""
        if isinstance(self.loss, CatalogLoss):
            vectors_VD, bias_V = model.catalog()
            return self.loss.of_catalog(h_ND, vectors_VD, bias_V, target_N - 1)

        mask_Nn = None
        if batch.negative_n is not None:
            negative = batch.negative_n
            mask_Nn = negative != target_N[:, None]
        elif batch.negative_Nn is not None:
            negative = batch.negative_Nn
        else:
            assert batch.negative_Bn is not None
            negative = batch.negative_Bn[wanted_BL.nonzero()[:, 0]]  # [N, n]
        positive_N, score_Nn = sampled_scores(
            model, h_ND, target_N, negative, self.loss, self._n_items
        )
        scores = SampledScores(positive_N, score_Nn, self._n_items, mask_Nn, batch.log_prob_n)
        return self.loss.of_sampled(scores)


def sampled_scores(
    model: Encoder,
    h_ND: Tensor,
    target_N: Tensor,
    negative: Tensor,
    loss: SampledLoss,
    n_items: int,
) -> tuple[Tensor, Tensor]:
    """Scores of states against their targets, [N], and against drawn items, [N, n].

    negative: int64 [N, n] or, common to all states, [n].
    """
    vectors_ND, bias_N = model.item_vectors(target_N)
    positive_N = (h_ND * vectors_ND).sum(-1)
    if bias_N is not None:
        positive_N = positive_N + bias_N

    score_Nn = _negative_scores(model, h_ND, negative, n_items)
    if loss.activates:
        positive_N = model.final_activation(positive_N)
        score_Nn = model.final_activation(score_Nn)
    return positive_N, score_Nn


def _negative_scores(model: Encoder, h_ND: Tensor, negative: Tensor, n_items: int) -> Tensor:
    """Scores [N, n] of negatives [N, n] or [n]."""
    if negative.dim() == 2 and negative.shape[1] >= MANY and negative.numel() > n_items:
        catalog, bias = model.catalog()
        if isinstance(catalog, Tensor):  # no process has all vectors of a table that is shared out
            negative = negative - 1  # the catalog has no row for padding
            score_Nn = catalog_dot(h_ND, catalog, negative)
            return score_Nn if bias is None else score_Nn + bias[negative]
    vectors, bias = model.item_vectors(negative)
    score_Nn = h_ND @ vectors.T if negative.dim() == 1 else row_dot(vectors, h_ND)
    return score_Nn if bias is None else score_Nn + bias
