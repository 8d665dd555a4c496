"""WMF: matrix factorization of implicit feedback by alternating least squares."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from recexp.contracts import ClosedForm
from recexp.errors import RecexpError
from recexp.models.common import behavior_codes, select_events, table_scores
from recexp.nn.parameters import NonNegative, Positive, Width, require_positive
from recexp.types import Query, Schema

if TYPE_CHECKING:
    from recexp.data.store import Store

# Doubles gathered, or held in normal equations, at a time: few enough for the processor's cache.
_BLOCK = 1 << 18


class WMF(ClosedForm):
    """s_ui = x_u . y_i, fitted to observed and unobserved pairs with different confidence.

    Minimizes sum over all u, i of c_ui (p_ui - x_u . y_i)^2
        + regularization * (sum |x_u|^2 + sum |y_i|^2),
    where p_ui says whether u interacted with i, and c_ui = 1 + alpha * (number of training events).
    One pass solves exactly for all users and then for all items.

    n_factors: width D of x and y. init_std: y starts at N(0, init_std^2).
    behaviors: which events count, as in ``Pop``.

    Hu, Koren and Volinsky 2008, eq. 3-5, https://doi.org/10.1109/ICDM.2008.22.
    """

    user_UD: Tensor
    item_VD: Tensor

    def __init__(
        self,
        schema: Schema,
        *,
        n_factors: Width = 64,
        alpha: Positive = 40.0,
        regularization: Positive = 0.1,
        init_std: NonNegative = 0.1,
        behaviors: list[str] | str | None = None,
    ) -> None:
        super().__init__()
        require_positive(n_factors=n_factors)
        if regularization <= 0 or alpha <= 0:
            raise RecexpError(
                f"alpha={alpha}, regularization={regularization}: both must be above 0."
            )
        self.alpha = alpha
        self.regularization = regularization
        self.codes = behavior_codes(schema, behaviors)
        self.register_buffer("user_UD", torch.zeros(schema.n_users, n_factors))
        self.register_buffer("item_VD", torch.randn(schema.V, n_factors) * init_std)
        self.item_VD[0] = 0.0

    def score(self, query: Query, item_BC: Tensor | None = None) -> Tensor:
        return table_scores(self.user_UD[query.user_B], self.item_VD, None, item_BC)

    @torch.no_grad()
    def item_embeddings(self) -> Tensor:
        return self.item_VD[1:]

    def fit_pass(self, store: Store) -> dict[str, float]:
        """Solve for all users and then for all items. Returns the objective reached.

        Extra shape symbol: P distinct (user, item) pairs.
        """
        user_E, item_E = select_events(store, self.codes)
        V = len(self.item_VD)
        device = self.item_VD.device
        pair_E = user_E.to(device) * V + item_E.to(device)
        pair_P, count_P = torch.unique(pair_E, return_counts=True)
        user_P = pair_P // V
        item_P = pair_P % V
        extra_P = (self.alpha * count_P).to(self.item_VD.dtype)  # c - 1
        self._solve(self.user_UD, self.item_VD, user_P, item_P, extra_P)
        self._solve(self.item_VD, self.user_UD, item_P, user_P, extra_P)
        return {"objective": self._objective(user_P, item_P, extra_P)}

    def _solve(
        self, out_RD: Tensor, fixed_SD: Tensor, row_P: Tensor, column_P: Tensor, extra_P: Tensor
    ) -> None:
        """Fill out_RD with the best row vectors given the fixed ones; rows without a pair get 0.

        Rows are taken longest first, so that rows of nearly the same length share a padded batch.
        Everything is in double: with large alpha and counts, single precision loses the
        regularization, and the normal equations are no longer positive definite.

        Extra shape symbols: R rows, r rows of one batch, L pairs of a row.
        """
        width = fixed_SD.shape[1]
        fixed_SD = fixed_SD.double()
        order_P = row_P.argsort(stable=True)
        column_P = column_P[order_P]
        extra_P = extra_P.double()[order_P]
        length_R = torch.bincount(row_P, minlength=len(out_RD))
        start_R = length_R.cumsum(0) - length_R
        rank_R = length_R.argsort(descending=True, stable=True)
        lengths = length_R[rank_R].tolist()
        n_rows = int((length_R > 0).sum())
        identity_DD = torch.eye(width, dtype=fixed_SD.dtype, device=fixed_SD.device)
        gram_DD = fixed_SD.T @ fixed_SD + self.regularization * identity_DD
        out_RD.zero_()
        first = 0
        while first < n_rows:
            longest = lengths[first]
            size = max(1, _BLOCK // (width * max(longest, width)))
            rows_r = rank_R[first : min(n_rows, first + size)]
            step_L = torch.arange(longest, device=row_P.device)
            inside_rL = step_L < length_R[rows_r].unsqueeze(1)
            entry_rL = (start_R[rows_r].unsqueeze(1) + step_L) * inside_rL
            y_rLD = fixed_SD[column_P[entry_rL]]
            extra_rL = extra_P[entry_rL] * inside_rL
            weighted_rDL = (y_rLD * extra_rL.unsqueeze(-1)).mT
            right_rD = (y_rLD * ((1 + extra_rL) * inside_rL).unsqueeze(-1)).sum(1)
            factor_rDD = torch.linalg.cholesky(weighted_rDL @ y_rLD + gram_DD)
            solution_rD = torch.cholesky_solve(right_rD.unsqueeze(-1), factor_rDD).squeeze(-1)
            out_RD[rows_r] = solution_rD.to(out_RD.dtype)
            first += len(rows_r)

    def _objective(self, user_P: Tensor, item_P: Tensor, extra_P: Tensor) -> float:
        x_UD = self.user_UD.double()
        y_VD = self.item_VD.double()
        norms = x_UD.square().sum() + y_VD.square().sum()
        # The sum of squared scores over all pairs takes p = 0 and c = 1 for every pair; the loop
        # corrects the observed ones.
        total = (x_UD.T @ x_UD * (y_VD.T @ y_VD)).sum() + self.regularization * norms
        block = max(1, _BLOCK // x_UD.shape[1])
        for start in range(0, len(user_P), block):
            part = slice(start, start + block)
            s = (x_UD[user_P[part]] * y_VD[item_P[part]]).sum(1)
            total += ((1 + extra_P[part]) * (1 - s).square() - s.square()).sum()
        return float(total)
