"""What next_item and cloze share: windows of users' histories, and a loss at the positions that have a target."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from recexp.contracts import Encoder, NegativeSampler, Objective
from recexp.errors import RecexpError
from recexp.nn.cpu.linear_cross_entropy import linear_cross_entropy
from recexp.nn.cpu.lookup import row_dot
from recexp.objectives import losses
from recexp.objectives.base import check_negatives, check_sampler, somebody
from recexp.types import Query, SequenceBatch

LOSSES = ("ce", "bce", "gbce", "bpr", "sampled_softmax", "top1", "top1_max", "bpr_max")


@dataclass
class SequenceObjective(Objective):
    """loss: "ce" (softmax over the whole catalogue) or one over n_negatives drawn items: "bce", "gbce", "bpr", "sampled_softmax", "top1", "top1_max",
    "bpr_max".

    shared: negatives drawn once per "position", per "row" (one set for all positions of a history)
    or per "batch". Those of a position or a row are items that the user does not have in training.
    Those of a batch have no user: they are drawn from all items, and the loss leaves out copies of
    a position's own target.
    log_q: subtract log(n q) from the negatives' scores in sampled_softmax, so that the loss
    estimates the softmax over the items that the sampler can draw (only with shared=batch). See
    ``losses.sampled_softmax``.
    t: gBCE's calibration; bpreg: BPR-max's regularisation.
    shuffle_targets: control, see ``Pointwise``.
    """

    sampler: NegativeSampler
    loss_name: str = "ce"
    n_negatives: int = 1
    shared: str = "position"
    log_q: bool = False
    t: float = 0.75
    bpreg: float = 1.0
    shuffle_targets: bool = False

    needs = Encoder

    def __post_init__(self):
        if self.loss_name not in LOSSES:
            raise RecexpError(
                f"objective.loss_name={self.loss_name!r} is unknown; choose one of {', '.join(LOSSES)}."
            )
        if self.shared not in ("position", "row", "batch"):
            raise RecexpError(f"objective.shared={self.shared!r}: choose position, row or batch.")
        if self.loss_name != "ce" and self.n_negatives < 1:
            raise RecexpError(
                f"objective.loss_name={self.loss_name} needs objective.n_negatives of at least 1."
            )
        if self.loss_name != "ce":
            check_sampler(self.sampler, shared=self.shared == "batch")
        if self.loss_name == "gbce" and self.shared == "batch":
            raise RecexpError(
                "objective.loss_name=gbce counts its negatives, so none may be a row's own target: choose shared=position or row."
            )
        if self.log_q and (self.loss_name, self.shared) != ("sampled_softmax", "batch"):
            raise RecexpError(
                "objective.log_q corrects loss_name=sampled_softmax with shared=batch only."
            )

    def check(self, model, store) -> None:
        super().check(model, store)
        if self.loss_name != "ce" and self.shared != "batch":
            check_negatives(store, self.n_negatives, model)

    def bind(self, model, store) -> None:
        super().bind(model, store)
        self._history = model.history
        self._n_items = store.schema.n_items

    def constant_loss(self, store, batch_size: int) -> float:
        if self.loss_name == "ce" or self.log_q:  # corrected, a sample stands for the catalog
            return math.log(store.schema.n_items)
        return losses.constant(self.loss_name, self.n_negatives, store.schema.n_items, self.t)

    def _negatives(self, store, batch: SequenceBatch, generator: torch.Generator) -> SequenceBatch:
        """The batch with its negatives; where targets are to be shuffled, with these replaced by items of random training events."""
        query, n, pool = batch.query, self.n_negatives, batch.target_BL
        if self.shuffle_targets:
            random_BL = store.train.item[somebody(store, batch.target_BL.shape, generator)].long()
            pool = batch.target_BL = torch.where(batch.target_BL != 0, random_BL, 0)
            query = replace(
                query, user_B=store.train.user[somebody(store, query.user_B.shape, generator)]
            )
        if self.loss_name == "ce":
            return batch
        B, L = batch.target_BL.shape
        if self.shared == "position":
            batch.negative_BLn = self.sampler(store, query, L * n, generator, pool).view(B, L, n)
        elif self.shared == "row":
            batch.negative_Bn = self.sampler(store, query, n, generator, pool)
        else:
            batch.negative_n = self.sampler.draw_shared(store, n, generator, pool)
            batch.log_prob_n = (
                self.sampler.log_prob(store, batch.negative_n) if self.log_q else None
            )
        return batch

    def states(self, model, batch: SequenceBatch, wanted_BL: Tensor) -> Tensor:
        """States [N, D] at the wanted places, row by row."""
        return model.encode_at(batch.query, wanted_BL)

    def loss(self, model, batch: SequenceBatch) -> dict[str, Tensor]:
        wanted_BL = batch.target_BL != 0
        h_ND, target_N = self.states(model, batch, wanted_BL), batch.target_BL[wanted_BL]
        h_ND = model.head(h_ND)
        if self.loss_name == "ce":
            vectors, bias = model.item_vectors()
            return {"loss": linear_cross_entropy(h_ND, vectors, bias, target_N - 1)}
        if batch.negative_n is not None:
            mask_Nn = batch.negative_n != target_N[:, None]
            loss = self._sampled(model, h_ND, target_N, batch.negative_n, mask_Nn, batch.log_prob_n)
            return {"loss": loss}
        negative_Nn = (
            batch.negative_BLn[wanted_BL]
            if batch.negative_BLn is not None
            else batch.negative_Bn[wanted_BL.nonzero()[:, 0]]
        )
        return {"loss": self._sampled(model, h_ND, target_N, negative_Nn)}

    def _sampled(
        self,
        model,
        h_ND: Tensor,
        target_N: Tensor,
        negative: Tensor,
        mask: Tensor | None = None,
        log_prob_n: Tensor | None = None,
    ) -> Tensor:
        """The loss of states against their targets and drawn items, [N, n] or, common to all, [n].

        mask: bool [N, n], True where a negative counts.
        """
        vectors, bias = model.item_vectors(target_N)
        positive_N = (h_ND * vectors).sum(-1) + (0 if bias is None else bias)
        vectors, bias = model.item_vectors(negative)
        score_Nn = h_ND @ vectors.T if negative.dim() == 1 else row_dot(vectors, h_ND)
        score_Nn = score_Nn + (0 if bias is None else bias)
        if self.loss_name != "sampled_softmax":
            positive_N = model.final_activation(positive_N)
            score_Nn = model.final_activation(score_Nn)
        match self.loss_name:
            case "bce":
                return losses.bce_negatives(positive_N, score_Nn, mask=mask)
            case "gbce":
                return losses.gbce(positive_N, score_Nn, n_items=self._n_items, t=self.t)
            case "bpr":
                return losses.bpr(positive_N, score_Nn, mask=mask)
            case "sampled_softmax":
                return losses.sampled_softmax(
                    positive_N, score_Nn, mask=mask, log_q_negative=log_prob_n
                )
            case "top1":
                return losses.top1(positive_N, score_Nn, mask=mask)
            case "top1_max":
                return losses.top1_max(positive_N, score_Nn, mask=mask)
            case _:
                return losses.bpr_max(positive_N, score_Nn, mask=mask, bpreg=self.bpreg)


def window_ends(store, length: int, step: int, least: int) -> Tensor:
    """Ends (exclusive rows of ``store.train``) of windows of ``length`` events per user: the newest, then back by ``step`` until the history is
    covered. Users with fewer than ``least`` events have none.
    """
    ptr = store.train.ptr
    n = ptr[1:] - ptr[:-1]
    windows = torch.where(
        n >= least,
        1 + torch.clamp(n - length, min=0).add(step - 1).div(step, rounding_mode="floor"),
        0,
    )
    user = torch.repeat_interleave(torch.arange(len(n), device=ptr.device), windows)
    number = torch.arange(len(user), device=ptr.device) - (windows.cumsum(0) - windows)[user]
    return torch.maximum(
        ptr[user + 1] - number * step,
        ptr[user] + torch.minimum(n[user], torch.full_like(user, length)),
    )


def read_window(store, end_B: Tensor, length: int) -> Query:
    """The last ``length`` training events before each end, of the user who owns the row before it."""
    user = store.train.user[end_B - 1]
    return store.window(store.train, user, store.train.ptr[user], end_B, length)
