"""SLIM: a sparse linear item-item model, fitted by coordinate descent."""

from __future__ import annotations

from collections.abc import Iterator
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
from recexp.nn.co_occurrence import item_products, largest
from recexp.nn.parameters import (
    Count,
    Decay,
    Length,
    NonNegative,
    Positive,
    checked_decay,
    require_positive,
)
from recexp.types import Query, Schema

if TYPE_CHECKING:
    from recexp.data.store import Store

# Coefficients that are solved for at a time: 256 MB of them and of their products.
BLOCK = 1 << 25
COORDINATES = 64  # whose products with all coefficients are computed at a time


class SLIM(ClosedForm):
    """s_ui = sum of decay^age(j) * W_ji over the distinct items j of the history.

    Minimizes 1/2 |X - X W|^2 + l2/2 |W|^2 + l1 |W|_1 with W >= 0 and a diagonal of zeros, where X
    says which user has which item in training. Cyclic coordinate descent over the rows of W, for
    all columns at once.

    neighbors: how many weights of an item are kept, the largest ones.
    max_sweeps, tolerance: an item is done after so many sweeps, or where no weight of it changes by
    more than the tolerance in a sweep.
    max_len, decay: as in ``EASE``.
    behaviors: which events count, in training and in the history; as in ``Pop``.

    Memory while fitting: V^2 numbers. A sweep takes 2 V^3 operations at most.

    Ning and Karypis 2011 (SLIM), https://doi.org/10.1109/ICDM.2011.134; coordinate descent with
    products of columns: Friedman et al. 2010, https://doi.org/10.18637/jss.v033.i01.
    """

    needs_user = False
    n_passes = 1
    neighbor_Vn: Tensor
    weight_Vn: Tensor

    def __init__(
        self,
        schema: Schema,
        *,
        l1: NonNegative = 1.0,
        l2: Positive = 100.0,
        neighbors: Count = 500,
        max_sweeps: Count = 100,
        tolerance: Positive = 1e-3,
        max_len: Length | None = None,
        decay: Decay = 1.0,
        behaviors: list[str] | str | None = None,
    ) -> None:
        super().__init__()
        require_positive(neighbors=neighbors, max_sweeps=max_sweeps)
        if l1 < 0 or l2 <= 0 or tolerance <= 0:
            raise RecexpError(
                f"l1={l1}, l2={l2}, tolerance={tolerance}: l1 must be at least 0, the others above."
            )
        self.history = WHOLE_HISTORY if max_len is None else checked_length(max_len)
        self.decay = checked_decay(decay)
        self.l1 = l1
        self.l2 = l2
        self.max_sweeps = max_sweeps
        self.tolerance = tolerance
        self.codes = behavior_codes(schema, behaviors)
        n_neighbors = min(neighbors, schema.V)
        self.register_buffer("neighbor_Vn", torch.zeros(schema.V, n_neighbors, dtype=torch.int32))
        self.register_buffer("weight_Vn", torch.zeros(schema.V, n_neighbors))

    @torch.no_grad()
    def fit_pass(self, store: Store) -> dict[str, float]:
        """Solve for all items. Returns the weights that are not zero, and those not kept of them,
        and the largest number of sweeps.

        Extra shape symbol: T items that are solved for together, the columns of W.
        """
        user_P, item_P, _ = select_pairs(store, self.codes)
        V, n_neighbors = self.weight_Vn.shape
        weight_P = torch.ones_like(item_P, dtype=self.weight_Vn.dtype, device=self.weight_Vn.device)
        gram_VV = self.weight_Vn.new_empty(V, V)
        for rows, part_rV in item_products(user_P, item_P, weight_P, store.schema.n_users, V):
            gram_VV[rows] = part_rV
        n_nonzero = 0
        n_kept = 0
        n_sweeps = 0
        width = max(1, BLOCK // V)
        for first in range(1, V, width):
            target_T = torch.arange(first, min(V, first + width), device=gram_VV.device)
            for done_T, weight_VT, sweep in self._solve(gram_VV, target_T):
                weight_TV = weight_VT.T.contiguous()
                kept_Tn = largest(weight_TV, n_neighbors)
                self.neighbor_Vn[done_T] = kept_Tn.int()
                self.weight_Vn[done_T] = weight_TV.gather(1, kept_Tn)
                n_nonzero += int((weight_TV > 0).sum())
                n_kept += int((self.weight_Vn[done_T] > 0).sum())
                n_sweeps = max(n_sweeps, sweep)
        left_out = float(n_nonzero - n_kept)
        return {"weights": float(n_nonzero), "left_out": left_out, "sweeps": float(n_sweeps)}

    def _solve(self, gram_VV: Tensor, target_T: Tensor) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Items, as soon as they are done, with their columns of W and the number of sweeps."""
        weight_VT = gram_VV.new_zeros(len(gram_VV), len(target_T))
        for sweep in range(1, self.max_sweeps + 1):
            change_T = self._sweep(gram_VV, weight_VT, target_T)
            is_done_T = change_T <= self.tolerance
            if sweep == self.max_sweeps:
                is_done_T = torch.ones_like(is_done_T)
            n_done = int(is_done_T.sum())
            # Dropping columns copies the others, so some have to be done.
            if n_done == len(target_T) or 8 * n_done > len(target_T):
                yield target_T[is_done_T], weight_VT[:, is_done_T], sweep
                target_T = target_T[~is_done_T]
                weight_VT = weight_VT[:, ~is_done_T].contiguous()
            if len(target_T) == 0:
                return

    def _sweep(self, gram_VV: Tensor, weight_VT: Tensor, target_T: Tensor) -> Tensor:
        """Optimize one row of W after the other; returns the largest change of each column.

        Extra shape symbol: J rows whose products are kept up to date while they change.
        """
        change_T = weight_VT.new_zeros(len(target_T))
        item_V = torch.arange(len(gram_VV), device=gram_VV.device)
        for first in range(0, len(gram_VV), COORDINATES):
            rows = slice(first, first + COORDINATES)
            # What is missing of the products of the columns of X with X - X W.
            rest_JT = gram_VV[rows].index_select(1, target_T)
            rest_JT.addmm_(gram_VV[rows], weight_VT, alpha=-1)
            rest_JT.masked_fill_(item_V[rows, None] == target_T, -torch.inf)
            self._update_rows(gram_VV[rows, rows], weight_VT[rows], rest_JT, change_T)
        return change_T

    def _update_rows(
        self, gram_JJ: Tensor, weight_JT: Tensor, rest_JT: Tensor, change_T: Tensor
    ) -> None:
        """Optimize rows of W in place. rest_JT: -inf at the diagonal of W, which stays 0."""
        for j, square in enumerate(gram_JJ.diagonal().tolist()):
            before_T = weight_JT[j]
            better_T = rest_JT[j].add(before_T, alpha=square).sub_(self.l1)
            better_T.div_(square + self.l2).clamp_(min=0)
            step_T = better_T - before_T
            rest_JT[j + 1 :].addr_(gram_JJ[j + 1 :, j], step_T, alpha=-1)
            weight_JT[j] = better_T
            torch.maximum(change_T, step_T.abs_(), out=change_T)

    def score(self, query: Query, item_BC: Tensor | None = None) -> Tensor:
        item_BL = items_read(query, self.history, self.codes)
        x_BV = decayed_hot(item_BL, self.decay, self.weight_Vn)
        # All users' values of an item side by side: one pass over the weights serves all of them.
        s_VB = F.embedding_bag(
            self.neighbor_Vn, x_BV.T.contiguous(), mode="sum", per_sample_weights=self.weight_Vn
        )
        s_BV = s_VB.T
        return s_BV[:, 1:] if item_BC is None else s_BV.gather(1, item_BC)
