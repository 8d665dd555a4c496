"""EASE: a linear item-item model with a solution in closed form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from recexp.contracts import ClosedForm
from recexp.errors import RecexpError
from recexp.models.common import (
    WHOLE_HISTORY,
    behavior_codes,
    checked_length,
    decayed_hot,
    items_read,
    select_pairs,
)
from recexp.nn.co_occurrence import item_products
from recexp.nn.parameters import Decay, Length, Positive, checked_decay
from recexp.types import Query, Schema

if TYPE_CHECKING:
    from recexp.data.store import Store


class EASE(ClosedForm):
    """s_ui = sum of decay^age(j) * B_ji over the distinct items j of the history.

    Minimizes |X - X B|^2 + regularization * |B|^2 with a diagonal of zeros, where X says which user
    has which item in training. With P = (X^T X + regularization * I)^-1 the solution is
    B = I - P diag(1 / diag P).

    regularization: of B. max_len: events of the history that are read; None: all.
    decay: of items in the history by the number of events after them; 1, as in the paper: none.
    behaviors: which events count, in training and in the history; as in ``Pop``.

    Memory: B has V^2 numbers, and the fit takes as much again: 5.7 GB for the 26 744 items of
    ML-20M in single precision.

    Steck 2019 (EASE), arXiv:1905.03375.
    """

    needs_user = False
    n_passes = 1
    weight_VV: Tensor

    def __init__(
        self,
        schema: Schema,
        *,
        regularization: Positive = 500.0,
        max_len: Length | None = None,
        decay: Decay = 1.0,
        behaviors: list[str] | str | None = None,
    ) -> None:
        super().__init__()
        if regularization <= 0:
            raise RecexpError(f"regularization={regularization}: must be above 0.")
        self.history = WHOLE_HISTORY if max_len is None else checked_length(max_len)
        self.regularization = regularization
        self.decay = checked_decay(decay)
        self.codes = behavior_codes(schema, behaviors)
        self.register_buffer("weight_VV", torch.zeros(schema.V, schema.V))

    @torch.no_grad()
    def fit_pass(self, store: Store) -> dict[str, float]:
        """Count in how many users two items meet, and solve in the same memory."""
        user_P, item_P, _ = select_pairs(store, self.codes)
        V = len(self.weight_VV)
        weight_P = torch.ones_like(item_P, dtype=self.weight_VV.dtype, device=self.weight_VV.device)
        matrix_VV = self.weight_VV
        for rows, part_rV in item_products(user_P, item_P, weight_P, store.schema.n_users, V):
            matrix_VV[rows] = part_rV
        # The padding item meets no other, so its row does not change the rest of the solution.
        matrix_VV.diagonal().add_(self.regularization)
        self._invert(matrix_VV)
        matrix_VV.div_(-matrix_VV.diagonal().clone())
        matrix_VV.fill_diagonal_(0.0)
        matrix_VV[0] = 0.0
        matrix_VV[:, 0] = 0.0
        return {"pairs": float(len(item_P)), "norm": float(matrix_VV.norm())}

    def _invert(self, matrix_VV: Tensor) -> None:
        try:
            torch.linalg.cholesky(matrix_VV, out=matrix_VV)
        except torch.linalg.LinAlgError as error:
            raise RecexpError(
                f"model.regularization={self.regularization} is too small for these data: the "
                "matrix of EASE cannot be inverted in this precision. Raise it."
            ) from error
        torch.cholesky_inverse(matrix_VV, out=matrix_VV)

    def score(self, query: Query, item_BC: Tensor | None = None) -> Tensor:
        item_BL = items_read(query, self.history, self.codes)
        x_BV = decayed_hot(item_BL, self.decay, self.weight_VV)
        if torch.compiler.is_exporting():
            s_BV = x_BV @ self.weight_VV
        else:
            row_N, item_N = x_BV.nonzero(as_tuple=True)
            n_items_B = torch.bincount(row_N, minlength=len(x_BV))
            s_BV = F.embedding_bag(
                item_N,
                self.weight_VV,
                n_items_B.cumsum(0) - n_items_B,
                mode="sum",
                per_sample_weights=x_BV[row_N, item_N],
            )
        return s_BV[:, 1:] if item_BC is None else s_BV.gather(1, item_BC)
