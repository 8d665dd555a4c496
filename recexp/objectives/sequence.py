"""The loss at the positions of a history that have a target, shared by next_item and cloze."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from recexp.contracts import Encoder, NegativeSampler, Objective
from recexp.data.store import Store
from recexp.errors import RecexpError
from recexp.nn.cpu.linear_cross_entropy import linear_cross_entropy
from recexp.nn.cpu.lookup import row_dot
from recexp.objectives.base import check_choice, check_negatives, check_sampler, random_rows
from recexp.objectives.losses import (
    SAMPLED_LOSSES,
    SampledLoss,
    SampledScores,
    sampled_loss,
)
from recexp.types import SequenceBatch

LOSSES = ("ce", *SAMPLED_LOSSES)

Shared = Literal["position", "row", "batch"]


@dataclass
class SequenceObjective(Objective[Encoder, SequenceBatch]):
    """Base of the objectives that train an encoder at every position with a target.

    loss_name: "ce" (softmax over the whole catalog), or a loss over n_negatives drawn items, see
        ``losses.SAMPLED_LOSSES``: "bce", "gbce", "bpr", "sampled_softmax", "top1", "top1_max",
        "bpr_max".
    shared: negatives are drawn once per "position", per "row" (one set for all positions of a
        history) or per "batch". Those of a position or a row are items that the user does not
        have in training. Those of a batch have no user: they are drawn from all items, and the
        loss leaves out copies of a position's own target.
    log_q: subtract log(n q) from the negatives' scores in sampled_softmax, so that the loss
        estimates the softmax over the items that the sampler can draw (only with shared=batch).
        See ``losses.sampled_softmax``.
    t: calibration of gBCE. bpreg: regularization of BPR-max.
    shuffle_targets: control, see ``Pointwise``.
    """

    sampler: NegativeSampler
    loss_name: str = "ce"
    n_negatives: Annotated[int, Field(ge=0, le=1_000_000)] = 1
    shared: Shared = "position"
    log_q: bool = False
    t: Annotated[float, Field(ge=0, le=1)] = 0.75
    bpreg: Annotated[float, Field(ge=0)] = 1.0
    shuffle_targets: bool = False

    needs = Encoder

    def __post_init__(self) -> None:
        if self.loss_name not in LOSSES:
            raise RecexpError(
                f"objective.loss_name={self.loss_name!r} is unknown; choose one of "
                f"{', '.join(LOSSES)}."
            )
        check_choice("shared", self.shared, Shared)
        # None: the softmax over the whole catalog.
        self._loss: SampledLoss | None = None
        if self.loss_name != "ce":
            self._loss = sampled_loss(self.loss_name, t=self.t, bpreg=self.bpreg)
            self._check_sampled(self._loss)
        if self.log_q and not (self._loss and self._loss.corrects and self.shared == "batch"):
            raise RecexpError(
                "objective.log_q corrects loss_name=sampled_softmax with shared=batch only."
            )

    def _check_sampled(self, loss: SampledLoss) -> None:
        if self.n_negatives < 1:
            raise RecexpError(
                f"objective.loss_name={self.loss_name} needs objective.n_negatives of at least 1."
            )
        check_sampler(self.sampler, shared=self.shared == "batch")
        if loss.counts_negatives and self.shared == "batch":
            raise RecexpError(
                f"objective.loss_name={self.loss_name} counts its negatives, so none may be a "
                "row's own target: choose shared=position or row."
            )

    def check(self, model: Encoder, store: Store) -> None:
        super().check(model, store)
        if self._loss is not None and self.shared != "batch":
            check_negatives(store)

    def bind(self, model: Encoder, store: Store) -> None:
        super().bind(model, store)
        self._history = model.history
        self._n_items = store.schema.n_items

    def constant_loss(self, store: Store, batch_size: int) -> float:
        n_items = store.schema.n_items
        # Corrected, a sample stands for the catalog.
        if self._loss is None or self.log_q:
            return math.log(n_items)
        return self._loss.constant(self.n_negatives, n_items)

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
        if self._loss is None:
            return batch

        n = self.n_negatives
        pool_BL = batch.target_BL
        if self.shared == "position":
            B, L = pool_BL.shape
            negative_Bm = self.sampler(store, query, L * n, generator, pool_BL)
            batch.negative_BLn = negative_Bm.view(B, L, n)
        elif self.shared == "row":
            batch.negative_Bn = self.sampler(store, query, n, generator, pool_BL)
        else:
            batch.negative_n = self.sampler.draw_shared(store, n, generator, pool_BL)
            if self.log_q:
                batch.log_prob_n = self.sampler.log_prob(store, batch.negative_n)
        return batch

    def states(self, model: Encoder, batch: SequenceBatch, wanted_BL: Tensor) -> Tensor:
        """States [N, D] at the wanted positions, row by row."""
        return model.encode_at(batch.query, wanted_BL)

    def loss(self, model: Encoder, batch: SequenceBatch) -> dict[str, Tensor]:
        wanted_BL = batch.target_BL != 0
        h_ND = model.head(self.states(model, batch, wanted_BL))
        target_N = batch.target_BL[wanted_BL]
        if self._loss is None:
            vectors_VD, bias_V = model.item_vectors()
            return {"loss": linear_cross_entropy(h_ND, vectors_VD, bias_V, target_N - 1)}

        mask_Nn = None
        if batch.negative_n is not None:
            negative = batch.negative_n
            mask_Nn = negative != target_N[:, None]
        elif batch.negative_BLn is not None:
            negative = batch.negative_BLn[wanted_BL]  # [N, n]
        else:
            assert batch.negative_Bn is not None
            negative = batch.negative_Bn[wanted_BL.nonzero()[:, 0]]  # [N, n]
        positive_N, score_Nn = sampled_scores(model, h_ND, target_N, negative, self._loss)
        scores = SampledScores(positive_N, score_Nn, self._n_items, mask_Nn, batch.log_prob_n)
        return {"loss": self._loss(scores)}


def sampled_scores(
    model: Encoder, h_ND: Tensor, target_N: Tensor, negative: Tensor, loss: SampledLoss
) -> tuple[Tensor, Tensor]:
    """Scores of states against their targets, [N], and against drawn items, [N, n].

    negative: int64 [N, n] or, common to all states, [n].
    """
    vectors_ND, bias_N = model.item_vectors(target_N)
    positive_N = (h_ND * vectors_ND).sum(-1)
    if bias_N is not None:
        positive_N = positive_N + bias_N

    vectors, bias = model.item_vectors(negative)
    score_Nn = h_ND @ vectors.T if negative.dim() == 1 else row_dot(vectors, h_ND)
    if bias is not None:
        score_Nn = score_Nn + bias

    if loss.activates:
        positive_N = model.final_activation(positive_N)
        score_Nn = model.final_activation(score_Nn)
    return positive_N, score_Nn
