"""Give a user's set of items back (Liang et al. 2018, sec. 2.2, arXiv:1802.05814)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from recexp.contracts import Objective, SetAutoencoder
from recexp.data.store import Store, elements
from recexp.errors import RecexpError
from recexp.objectives.base import random_rows
from recexp.objectives.windows import read_window
from recexp.types import SequenceBatch


@dataclass
class Autoencode(Objective[SetAutoencoder, SequenceBatch]):
    """A row is a user; the input and the target are the set of their training items.

    The loss is the mean over users of -sum over their items of log softmax(scores)[item], plus beta
    times the divergence that the model gives.

    beta: what it grows to. anneal_steps: beta in step n = 0, 1, ... is min(beta, n / anneal_steps),
        as in the authors' code; 0: beta from the start.
    gamma: beta of a user is gamma times the number of their items instead, from the start
        (Shenbin et al. 2020, eq. 11, arXiv:1912.11160); None: it is not.
    shuffle_targets: control, see ``Pointwise``.
    """

    beta: Annotated[float, Field(ge=0)] = 0.2
    anneal_steps: Annotated[int, Field(ge=0)] = 200_000
    gamma: Annotated[float, Field(ge=0)] | None = None
    shuffle_targets: bool = False

    needs = SetAutoencoder

    def __post_init__(self) -> None:
        if self.beta < 0 or self.anneal_steps < 0:
            raise RecexpError(
                f"objective.beta={self.beta} and objective.anneal_steps={self.anneal_steps} must "
                "be at least 0."
            )
        if self.gamma is not None and self.gamma < 0:
            raise RecexpError(f"objective.gamma={self.gamma}: must be at least 0, or null.")
        self._n_steps = 0

    def bind(self, model: SetAutoencoder, store: Store) -> None:
        super().bind(model, store)
        self._history = model.history
        self._n_steps = 0

    def rows(self, store: Store) -> Tensor:
        """Ends of the histories of the users who have one, exclusive rows of ``store.train``."""
        ptr = store.train.ptr
        return ptr[1:][ptr[1:] > ptr[:-1]]

    def batch(self, store: Store, rows: Tensor, generator: torch.Generator) -> SequenceBatch:
        query = read_window(store, rows, self._history)
        target_BL = query.item_BL
        if self.shuffle_targets:
            event_BL = random_rows(store, target_BL.shape, generator)
            random_BL = elements(store.train.item, event_BL).long()
            target_BL = torch.where(target_BL != 0, random_BL, 0)
        return SequenceBatch(query, target_BL)

    def losses(self, model: SetAutoencoder, batch: SequenceBatch) -> dict[str, Tensor | float]:
        h_BD, divergence_B = model.encode_set(batch.query)
        vectors_VD, bias_V = model.item_vectors()
        score_BV = F.linear(model.head(h_BD), vectors_VD, bias_V)
        x_BV = sets_of(batch.target_BL, score_BV)
        loss = multinomial(score_BV, x_BV).mean()
        divergence = divergence_B.mean()
        if self.gamma is None:
            beta: Tensor | float = self._beta()
            weighted = beta * divergence
        else:
            beta_B = self.gamma * x_BV.sum(1)
            beta = beta_B.mean()
            weighted = (beta_B * divergence_B).mean()
        self._n_steps += 1
        return {
            "loss": loss + weighted,
            "item_loss": loss,
            "divergence": divergence,
            "beta": beta,
        }

    def _beta(self) -> float:
        if not self.anneal_steps:
            return self.beta
        return min(self.beta, self._n_steps / self.anneal_steps)

    def constant_loss(self, store: Store, batch_size: int) -> float:
        ptr = store.train_pairs.ptr
        n_items_U = ptr[1:] - ptr[:-1]
        mean = float(n_items_U[n_items_U > 0].double().mean())
        return mean * math.log(store.schema.n_items)

    def state(self) -> dict[str, Any]:
        """How far beta has grown."""
        return {"n_steps": self._n_steps}

    def load_state(self, state: dict[str, Any]) -> None:
        self._n_steps = state["n_steps"]


def sets_of(item_BL: Tensor, score_BV: Tensor) -> Tensor:
    """1 at the items of each row's set and 0 elsewhere, of the items 1..V, [B, V].

    item_BL: the sets, in any order; 0 is no item, copies count once. In float32 at least.
    """
    dtype = torch.promote_types(score_BV.dtype, torch.float32)
    x_BV = torch.zeros_like(score_BV, dtype=dtype, requires_grad=False)
    return F.pad(x_BV, (1, 0)).scatter_(1, item_BL, 1.0)[:, 1:]


def multinomial(score_BV: Tensor, x_BV: Tensor) -> Tensor:
    """-sum over the items of each row's set of log softmax(scores)[item], [B].

    x_BV: of ``sets_of``.
    """
    score_BV = score_BV.to(x_BV.dtype)
    return x_BV.sum(1) * score_BV.logsumexp(1) - (score_BV * x_BV).sum(1)
