"""Several behaviors predicted per (user, item): binary labels and weights as data.

ITE paper, eq. 17-19; the multi-feedback paper (MF + multi-branch MLP); He et al. 2017 (NCF),
arXiv:1708.05031.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from recexp.contracts import (
    BranchMasked,
    LabelLoss,
    Mean,
    MultiBehavior,
    NegativeSampler,
    Objective,
)
from recexp.data.store import Store, elements
from recexp.errors import RecexpError
from recexp.objectives.base import (
    Positives,
    behaviors_on,
    check_choice,
    check_loss,
    check_negatives,
    check_sampler,
    explicit_bits,
    penalty,
    positive_rows,
    random_rows,
)
from recexp.objectives.losses import BCE
from recexp.types import PointwiseBatch, Query

ExplicitNegatives = Literal["unobserved", "clicked_only", "both"]


@dataclass
class Pointwise(Objective[MultiBehavior, PointwiseBatch]):
    """A row is a training event; its positive and ``n_negatives`` drawn items get labels per level.

    positives: the training events to learn from: "any", "explicit" ones or those of the
        "strongest" behavior (NCF in the multi-feedback paper: purchases).
    levels: what each of the model's K logits means, weak to strong: "any" (any behavior),
        "explicit" (any explicit behavior) or the name of a behavior. None: "any" for a model with
        K = 1, "any" and "explicit" with K = 2, otherwise each behavior.
    loss: over labels, such as ``BCE`` of logits or ``MSE`` of the scores themselves (MTMF).
    weights: weight of each level's loss (ITE paper: eta = weights[0] on the implicit loss); None:
        all 1.
    explicit_neg: which pairs are negatives of the levels above the first: "unobserved" (items
        drawn for its positives), "clicked_only" (items met only through a weaker behavior) or
        "both".
    l2: weight of the mean square of the batch's embeddings (ITE paper: lambda R).
    reduction: "rows" (mean over all scored pairs, as the authors' code) or "weights" (mean over
        those with weight).
    balance: 0 counts every event alike, 1 every user alike (events weighted by 1 / their user's
        events, mean 1); between: a power.
    leave_target_out: the row's positive does not count in its user's side features, which are then
        those of the user's other training items.
    shuffle_targets: control: labels belong to a random user's event. A model that still learns
        from them learns from popularity alone.
    """

    sampler: NegativeSampler
    n_negatives: Annotated[int, Field(ge=0, le=1_000_000)] = 4
    loss: LabelLoss = field(default_factory=BCE)
    positives: Positives = "any"
    levels: list[str] | None = None
    weights: list[Annotated[float, Field(ge=0)]] | None = None
    explicit_neg: ExplicitNegatives = "both"
    l2: Annotated[float, Field(ge=0)] = 0.0
    reduction: Mean = "rows"
    balance: Annotated[float, Field(ge=0)] = 0.0
    leave_target_out: bool = False
    shuffle_targets: bool = False

    needs = MultiBehavior

    def __post_init__(self) -> None:
        check_choice("positives", self.positives, Positives)
        check_choice("explicit_neg", self.explicit_neg, ExplicitNegatives)
        check_loss(self, self.loss, LabelLoss)
        check_choice("reduction", self.reduction, Mean)
        check_sampler(self.sampler)
        if self.n_negatives < 1:
            raise RecexpError(
                "objective.n_negatives must be at least 1: a binary loss without negatives learns "
                "nothing."
            )

    def check(self, model: MultiBehavior, store: Store) -> None:
        super().check(model, store)
        check_negatives(store)
        self.rows(store)
        self._level_bits(model, store)

    def bind(self, model: MultiBehavior, store: Store) -> None:
        super().bind(model, store)
        self._bits_K = self._level_bits(model, store)
        self._history = model.history
        self._has_branches = isinstance(model, BranchMasked)

    def _level_bits(self, model: MultiBehavior, store: Store) -> Tensor:
        """Bit mask of each level over the behaviors, int64 [K]."""
        behaviors = store.schema.behaviors
        K = model.n_behaviors
        name = type(model).__name__
        bits = {behavior: 1 << t for t, behavior in enumerate(behaviors)}
        bits["any"] = (1 << len(behaviors)) - 1
        bits["explicit"] = explicit_bits(store)

        levels = self._level_names(K, behaviors)
        if len(levels) != K:
            raise RecexpError(
                f"objective.levels {levels} names {len(levels)} levels; {name} predicts {K}."
            )
        if unknown := [level for level in levels if level not in bits]:
            raise RecexpError(f"objective.levels: {unknown} unknown; this data has {sorted(bits)}.")
        if "explicit" in levels and bits["explicit"] in (0, bits["any"]) and K > 1:
            amount = "every" if bits["explicit"] else "no"
            raise RecexpError(
                f"{name} learns implicit and explicit feedback, but here {amount} behavior of "
                f"{list(behaviors)} counts as explicit. Set dataset.explicit, or read ratings as "
                "behaviors: 'dataset.value_behaviors={rated: 0, liked: 4}' "
                "'dataset.explicit=[liked]'."
            )
        if self.weights is not None and len(self.weights) != K:
            raise RecexpError(
                f"objective.weights has {len(self.weights)} numbers; the model predicts {K} levels."
            )
        return torch.tensor([bits[level] for level in levels])

    def _level_names(self, K: int, behaviors: tuple[str, ...]) -> list[str]:
        if self.levels:
            return self.levels
        if K == 1:
            return ["any"]
        if K == 2:
            return ["any", "explicit"]
        return list(behaviors)

    def rows(self, store: Store) -> Tensor:
        return positive_rows(store, self.positives)

    def instances(self) -> int:
        """The positive and its negatives, each a labeled (user, item) pair."""
        return 1 + self.n_negatives

    def constant_loss(self, store: Store, batch_size: int) -> float:
        rows = self.rows(store).to(store.device)
        user = elements(store.train.user, rows)
        item = elements(store.train.item, rows).long()
        mask = store.train_pairs.mask[store.train_pairs.find(user, item)]
        weight = _balance(store, user, self.balance) if self.balance else None
        n_scored = (1 + self.n_negatives) * len(rows)
        total = 0.0
        for k, bits in enumerate(self._bits_K.tolist()):
            label = (mask & bits) != 0
            ones = _total(label, weight)
            others = _total(~label, weight)
            zeros = self._weight_of_zeros(k, ones, others)
            n_terms = n_scored if self.reduction == "rows" else max(ones + zeros, 1e-12)
            level_loss = self.loss.constant_of_labels(ones, zeros) / n_terms
            total += self._level_weight(k) * level_loss
        return total

    def _weight_of_zeros(self, k: int, ones: float, others: float) -> float:
        """Total weight of label 0 at level k over an epoch.

        ones, others: weight of the positives that have the level, and of those that do not.
        """
        if k > 0 and self.explicit_neg == "unobserved":
            return self.n_negatives * ones
        if k > 0 and self.explicit_neg == "clicked_only":
            return others
        return others + self.n_negatives * (ones + others)

    def _level_weight(self, k: int) -> float:
        return self.weights[k] if self.weights else 1.0

    def batch(self, store: Store, rows: Tensor, generator: torch.Generator) -> PointwiseBatch:
        query = store.query(rows, self._history)
        owner = query  # whose event the labels belong to
        if self.shuffle_targets:
            rows = random_rows(store, rows.shape, generator)
            owner = replace(query, user_B=elements(store.train.user, rows))
        positive_B = elements(store.train.item, rows).long()
        if self.leave_target_out:
            # A shuffled target may be an item that the row's user never had.
            own_B = store.train_pairs.contain(query.user_B, positive_B)
            query.without_B = torch.where(own_B, positive_B, 0)
        negative_Bn = self.sampler(store, owner, self.n_negatives, generator, positive_B)
        item_BC = torch.cat([positive_B[:, None], negative_Bn], 1)
        y_BCK, w_BCK = self._labels(store, owner, item_BC)
        if self.balance:
            w_BCK = w_BCK * _balance(store, query.user_B, self.balance)[:, None, None]
        did_BCT = None
        if self._has_branches:
            did_BCT = behaviors_on(store, owner.user_B[:, None].expand_as(item_BC), item_BC)
        return PointwiseBatch(query, item_BC, y_BCK, w_BCK, did_BCT)

    def _labels(self, store: Store, owner: Query, item_BC: Tensor) -> tuple[Tensor, Tensor]:
        """Labels and weights, float32 [B, C, K] each; candidate 0 is the positive."""
        # Labels belong to the pair: an item viewed and later bought is bought in both its events.
        pairs = store.train_pairs
        mask_B = pairs.mask[pairs.find(owner.user_B, item_BC[:, 0])]
        y_BK = ((mask_B[:, None] & self._bits_K.to(item_BC.device)) != 0).float()
        y_BCK = y_BK.new_zeros(*item_BC.shape, y_BK.shape[1])
        y_BCK[:, 0] = y_BK
        w_BCK = torch.ones_like(y_BCK)
        if self.explicit_neg == "unobserved":
            w_BCK[:, :, 1:] = y_BK[:, None, 1:]
        elif self.explicit_neg == "clicked_only":
            w_BCK[:, 1:, 1:] = 0
        return y_BCK, w_BCK

    def losses(self, model: MultiBehavior, batch: PointwiseBatch) -> dict[str, Tensor]:
        if batch.did_BCT is None:
            z_BCK = model.logits(batch.query, batch.item_BC)
        else:
            assert isinstance(model, BranchMasked)
            z_BCK = model.logits(batch.query, batch.item_BC, batch.did_BCT)
        K = z_BCK.shape[-1]
        parts = []
        for k in range(K):
            y_BC = batch.y_BCK[..., k]
            w_BC = batch.w_BCK[..., k]
            parts.append(self.loss.of_labels(z_BCK[..., k], y_BC, w_BC, mean=self.reduction))
        total = self._level_weight(0) * parts[0]
        for k in range(1, K):
            total = total + self._level_weight(k) * parts[k]
        extra = penalty(model, batch.query, batch.item_BC, self.l2)
        if extra is not None:
            total = total + extra
        if K == 1:
            return {"loss": total}
        return {"loss": total} | {f"loss_{k}": part.detach() for k, part in enumerate(parts)}


def _total(label: Tensor, weight: Tensor | None) -> float:
    """Weight of the rows where label is True; their number where weight is None."""
    if weight is None:
        return float(label.sum())
    return float(weight[label].double().sum())


def _balance(store: Store, user_B: Tensor, power: float) -> Tensor:
    """Weight [B], (events of the user) ** -power, scaled so that its mean over all events is 1."""
    n_events_U = (store.train.ptr[1:] - store.train.ptr[:-1]).float()
    weight_U = n_events_U.clamp(min=1) ** -power
    mean = (weight_U * n_events_U).sum() / n_events_U.sum()
    return (weight_U / mean)[user_B]
