"""Several behaviours predicted per (user, item): binary labels and weights as data (S000 eq. 17-19, S001, NeuMF)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from recexp.contracts import BranchMasked, MultiBehaviour, NegativeSampler, Objective
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
from recexp.types import PointwiseBatch


@dataclass
class Pointwise(Objective):
    """Each training event that ``positives`` names, with ``n_negatives`` items the user has not; one binary cross-entropy per predicted level.

    positives: the training events to learn from: "any", "explicit" ones or those of the "strongest" behaviour (S001's NCF: purchases).
    levels: what each of the model's K logits means, weak to strong: "any" (any behaviour), "explicit" (any explicit behaviour) or the name of a
        behaviour. None: "any" for a model with K = 1, "any" and "explicit" with K = 2, otherwise each behaviour.
    loss_name: "bce" on logits, or "mse", squared error of the scores themselves against the labels 0 and 1 (MTMF's, models.md §6.7).
    weights: weight of each level's loss (S000: eta = weights[0] on the implicit loss); None: all 1.
    explicit_neg: which pairs are negatives of the levels above the first (models.md §6.2): "unobserved" (items drawn for its positives),
        "clicked_only" (items met only through a weaker behaviour) or "both".
    l2: weight of the mean square of the batch's embeddings (S000's lambda R).
    reduction: "rows" (mean over all scored pairs, as the authors' code) or "weights" (mean over those with weight).
    balance: 0 counts every event alike, 1 every user alike (events weighted by 1 / their user's events, mean 1), between: a power.
    leave_target_out: the row's positive does not count in its user's side features, which are then
        those of the user's other training items.
    shuffle_targets: control: labels belong to a random user's event. A model that still learns under it learns from popularity alone.
    """

    sampler: NegativeSampler
    n_negatives: int = 4
    loss_name: str = "bce"
    positives: str = "any"
    levels: list[str] | None = None
    weights: list[float] | None = None
    explicit_neg: str = "both"
    l2: float = 0.0
    reduction: str = "rows"
    balance: float = 0.0
    leave_target_out: bool = False
    shuffle_targets: bool = False

    needs = MultiBehaviour

    def __post_init__(self):
        check_positives(self.positives)
        check_sampler(self.sampler)
        if self.explicit_neg not in ("unobserved", "clicked_only", "both"):
            raise RecexpError(
                f"objective.explicit_neg={self.explicit_neg!r}: choose unobserved, clicked_only or both."
            )
        if self.loss_name not in ("bce", "mse"):
            raise RecexpError(f"objective.loss_name={self.loss_name!r}: choose bce or mse.")
        if self.reduction not in ("rows", "weights"):
            raise RecexpError(f"objective.reduction={self.reduction!r}: choose rows or weights.")
        if self.n_negatives < 1:
            raise RecexpError(
                "objective.n_negatives must be at least 1: a binary loss without negatives learns nothing."
            )

    def check(self, model, store) -> None:
        super().check(model, store)
        check_negatives(store, self.n_negatives, model)
        self.rows(store)
        self._level_bits(model, store)

    def bind(self, model, store) -> None:
        super().bind(model, store)
        self._bits_K = self._level_bits(model, store)
        self._history = model.history
        self._branches = isinstance(model, BranchMasked)

    def _level_bits(self, model, store) -> Tensor:
        """Bit mask of each level over the behaviors, int64 [K]."""
        schema, K = store.schema, model.n_behaviours
        levels = self.levels or {1: ["any"], 2: ["any", "explicit"]}.get(K, list(schema.behaviours))
        if len(levels) != K:
            raise RecexpError(
                f"objective.levels {levels} names {len(levels)} levels; {type(model).__name__} predicts {K}."
            )
        known = {name: 1 << i for i, name in enumerate(schema.behaviours)}
        known |= {
            "any": (1 << len(known)) - 1,
            "explicit": sum(1 << i for i, e in enumerate(schema.explicit) if e),
        }
        if unknown := [name for name in levels if name not in known]:
            raise RecexpError(
                f"objective.levels: {unknown} unknown; this data has {sorted(known)}."
            )
        if "explicit" in levels and known["explicit"] in (0, known["any"]) and K > 1:
            raise RecexpError(
                f"{type(model).__name__} learns implicit and explicit feedback, but here {'every' if known['explicit'] else 'no'} behaviour of "
                f"{list(schema.behaviours)} counts as explicit. Set dataset.explicit, or read ratings as behaviours: "
                "'dataset.value_behaviours={rated: 0, liked: 4}' 'dataset.explicit=[liked]'."
            )
        if self.weights is not None and len(self.weights) != K:
            raise RecexpError(
                f"objective.weights has {len(self.weights)} numbers; the model predicts {K} levels."
            )
        return torch.tensor([known[name] for name in levels])

    def rows(self, store) -> Tensor:
        return positive_rows(store, self.positives)

    def instances(self) -> int:
        """The positive and its negatives, each a labeled (user, item) pair."""
        return 1 + self.n_negatives

    def constant_loss(self, store, batch_size: int) -> float:
        rows = self.rows(store).to(store.device)
        pairs, user = store.train_pairs, store.train.user.take(rows)
        mask = pairs.mask[pairs.find(user, store.train.item.take(rows).long())]
        weight = _balance(store, user, self.balance) if self.balance else None
        total = 0.0
        for k, bits in enumerate(self._bits_K.tolist()):
            label = (mask & bits) != 0
            ones = float(label.sum() if weight is None else weight[label].double().sum())
            others = float((~label).sum() if weight is None else weight[~label].double().sum())
            if k and self.explicit_neg == "unobserved":
                zeros = self.n_negatives * ones
            elif k and self.explicit_neg == "clicked_only":
                zeros = others
            else:
                zeros = others + self.n_negatives * (ones + others)
            every = (1 + self.n_negatives) * len(rows)
            terms = every if self.reduction == "rows" else max(ones + zeros, 1e-12)
            level = _constant(self.loss_name, ones, zeros) / terms
            total += (self.weights[k] if self.weights else 1.0) * level
        return total

    def batch(self, store, rows: Tensor, generator: torch.Generator) -> PointwiseBatch:
        query = owner = store.query(rows, self._history)
        if self.shuffle_targets:
            rows = somebody(store, rows.shape, generator)
            owner = replace(query, user_B=store.train.user.take(rows))
        positive = store.train.item.take(rows).long()
        if self.leave_target_out:  # a shuffled target may be an item that the row's user never had
            own_B = store.train_pairs.contain(query.user_B, positive)
            query.without_B = torch.where(own_B, positive, 0)
        item_BC = torch.cat(
            [positive[:, None], self.sampler(store, owner, self.n_negatives, generator, positive)],
            1,
        )
        # Labels belong to the pair: an item viewed and later bought is bought in both its events.
        pairs = store.train_pairs
        mask_B = pairs.mask[pairs.find(owner.user_B, positive)]
        y_BK = ((mask_B[:, None] & self._bits_K.to(rows.device)) != 0).float()
        y_BCK = y_BK.new_zeros(*item_BC.shape, y_BK.shape[1])
        y_BCK[:, 0] = y_BK
        w_BCK = torch.ones_like(y_BCK)
        if self.explicit_neg == "unobserved":
            w_BCK[:, :, 1:] = y_BK[:, None, 1:]
        elif self.explicit_neg == "clicked_only":
            w_BCK[:, 1:, 1:] = 0
        if self.balance:
            w_BCK = w_BCK * _balance(store, query.user_B, self.balance)[:, None, None]
        did_BCT = (
            behaviours_on(store, owner.user_B[:, None].expand_as(item_BC), item_BC)
            if self._branches
            else None
        )
        return PointwiseBatch(query, item_BC, y_BCK, w_BCK, did_BCT)

    def loss(self, model, batch: PointwiseBatch) -> dict[str, Tensor]:
        extra = () if batch.did_BCT is None else (batch.did_BCT,)
        z_BCK = model.logits(batch.query, batch.item_BC, *extra)
        K = z_BCK.shape[-1]
        loss = losses.bce_with_weights if self.loss_name == "bce" else losses.mse_with_weights
        parts = {
            f"loss_{k}": loss(
                z_BCK[..., k], batch.y_BCK[..., k], batch.w_BCK[..., k], mean=self.reduction
            )
            for k in range(K)
        }
        total = sum(
            (self.weights[k] if self.weights else 1.0) * part
            for k, part in enumerate(parts.values())
        )
        if (extra := penalty(model, batch.query, batch.item_BC, self.l2)) is not None:
            total = total + extra
        return (
            ({"loss": total} | {k: v.detach() for k, v in parts.items()})
            if K > 1
            else {"loss": total}
        )


def _constant(loss_name: str, ones: float, zeros: float) -> float:
    """Summed loss of the best constant prediction for labels of these total weights."""
    if not ones or not zeros:
        return 0.0
    share = ones / (ones + zeros)
    if loss_name == "mse":
        return ones * (1 - share)
    return -ones * math.log(share) - zeros * math.log(1 - share)


def _balance(store, user_B: Tensor, power: float) -> Tensor:
    """Weight per row, (events of the user) ** -power, scaled so that its mean over all events is 1."""
    events = (store.train.ptr[1:] - store.train.ptr[:-1]).float()
    weight = events.clamp(min=1) ** -power
    return (weight / ((weight * events).sum() / events.sum()))[user_B]
