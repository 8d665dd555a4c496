"""Preferences between pairs of items (BPR; S001's supportive-only and level-ordered pairs)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recexp import losses
from recexp.objectives.base import check_negatives, penalty
from recexp.sampling import NegativeSampler
from recexp.types import PairwiseBatch, RecexpError


@dataclass
class Pairwise:
    """-log sigmoid(score(positive) - score(negative)) over training pairs drawn uniformly.

    positives: "any" event, "explicit" ones or the "strongest" behaviour only (S001: purchases).
    shuffle_targets: control, see ``Pointwise``.
    """

    sampler: NegativeSampler
    n_negatives: int = 1
    positives: str = "any"
    l2: float = 0.0
    shuffle_targets: bool = False

    def __post_init__(self):
        if self.positives not in ("any", "explicit", "strongest"):
            raise RecexpError(f"objective.positives={self.positives!r}: choose any, explicit or strongest.")
        if self.n_negatives < 1:
            raise RecexpError("objective.n_negatives must be at least 1: a pair needs a negative.")

    def check(self, model, store) -> None:
        check_negatives(store, self.n_negatives, model)
        if len(self.rows(store)) == 0:
            raise RecexpError(f"objective.positives={self.positives}: no training event has such a behaviour (dataset.explicit lists none?).")
        self._history = model.history

    def rows(self, store) -> Tensor:
        if self.positives == "any":
            return torch.arange(len(store.train))
        K = len(store.schema.behaviours)
        bits = 1 << (K - 1) if self.positives == "strongest" else sum(1 << i for i, e in enumerate(store.schema.explicit) if e)
        return torch.nonzero(store.train.mask & bits).flatten()

    def batch(self, store, rows: Tensor, generator: torch.Generator) -> PairwiseBatch:
        query = store.query(rows, self._history)
        source = torch.randint(len(store.train), rows.shape, generator=generator, device=rows.device) if self.shuffle_targets else rows
        return PairwiseBatch(query, store.train.item[source].long(), self.sampler(store, query, self.n_negatives, generator))

    def loss(self, model, batch: PairwiseBatch) -> dict[str, Tensor]:
        item_BC = torch.cat([batch.positive_B[:, None], batch.negative_Bn], 1)
        score_BC = model.score(batch.query, item_BC)
        total = losses.bpr(score_BC[:, 0], score_BC[:, 1:])
        if (extra := penalty(model, batch.query, item_BC, self.l2)) is not None:
            total = total + extra
        return {"loss": total}
