"""WMF: implicit-feedback matrix factorisation by alternating least squares (baseline of S001; specification §5.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from recexp.contracts import ClosedForm
from recexp.errors import RecexpError
from recexp.models.mf import inner_product, require_positive
from recexp.models.pop import behaviour_codes, select_events
from recexp.types import Query, Schema

_BLOCK = (
    1 << 18
)  # doubles gathered, or held in normal equations, at a time: few enough for the processor's cache


class WMF(ClosedForm):
    """s_ui = x_u . y_i minimising sum over all u, i of c_ui (p_ui - x_u . y_i)^2 + regularisation * (sum |x|^2 + sum |y|^2).

    p_ui says whether u interacted with i, and c_ui = 1 + alpha * (number of training events). ``fit_pass`` solves exactly for all
    users, then for all items. behaviours: which events count, as in ``Pop``.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        num_factors: int = 64,
        alpha: float = 40.0,
        regularisation: float = 0.1,
        init_std: float = 0.1,
        behaviours: list[str] | str | None = None,
    ) -> None:
        super().__init__()
        require_positive(num_factors=num_factors)
        if regularisation <= 0 or alpha <= 0:
            raise RecexpError(
                f"alpha={alpha}, regularisation={regularisation}: both must be above 0."
            )
        self.alpha, self.regularisation = alpha, regularisation
        self.codes = behaviour_codes(schema, behaviours)
        self.register_buffer("user_UD", torch.zeros(schema.n_users, num_factors))
        self.register_buffer("item_VD", torch.randn(schema.V, num_factors) * init_std)
        self.item_VD[0] = 0.0

    def score(self, query: Query, item_BC: Tensor | None = None) -> Tensor:
        """[B, C], or [B, V-1] where item_BC is None."""
        return inner_product(self.user_UD[query.user_B], self.item_VD, None, item_BC)

    @torch.no_grad()
    def fit_pass(self, store) -> dict[str, float]:
        """Solves once for all users and once for all items; returns the objective reached."""
        user, item = select_events(store, self.codes)
        V = len(self.item_VD)
        pair, count = torch.unique(
            user.to(self.item_VD.device) * V + item.to(self.item_VD.device), return_counts=True
        )
        user, item, extra = (
            pair // V,
            pair % V,
            (self.alpha * count).to(self.item_VD.dtype),
        )  # extra = c - 1
        self._solve(self.user_UD, self.item_VD, user, item, extra)
        self._solve(self.item_VD, self.user_UD, item, user, extra)
        return {"objective": self._objective(user, item, extra)}

    def _solve(
        self, out_RD: Tensor, fixed_SD: Tensor, row: Tensor, column: Tensor, extra: Tensor
    ) -> None:
        """Fills out with the best row vectors given the fixed ones; rows without an entry become 0.

        Rows are taken longest first, so that rows of nearly the same length share a padded batch. All in double: with large alpha
        and counts, single precision loses the regularisation and the normal equations are no longer positive definite.
        """
        d = fixed_SD.shape[1]
        fixed_SD, extra = fixed_SD.double(), extra.double()
        order = row.argsort(stable=True)
        column, extra = column[order], extra[order]
        length = torch.bincount(row, minlength=len(out_RD))
        start = length.cumsum(0) - length
        rank = length.argsort(descending=True, stable=True)
        lengths = length[rank].tolist()
        n_rows = int((length > 0).sum())
        gram = fixed_SD.T @ fixed_SD + self.regularisation * torch.eye(
            d, dtype=fixed_SD.dtype, device=fixed_SD.device
        )
        out_RD.zero_()
        at = 0
        while at < n_rows:
            longest = lengths[at]
            rows = rank[at : min(n_rows, at + max(1, _BLOCK // (d * max(longest, d))))]
            step = torch.arange(longest, device=row.device)
            inside_RL = step < length[rows].unsqueeze(1)
            entry_RL = (start[rows].unsqueeze(1) + step) * inside_RL
            y_RLD = fixed_SD[column[entry_RL]]
            extra_RL = extra[entry_RL] * inside_RL
            weighted_RDL = (y_RLD * extra_RL.unsqueeze(-1)).mT
            right_RD = (y_RLD * ((1 + extra_RL) * inside_RL).unsqueeze(-1)).sum(1)
            factor = torch.linalg.cholesky(weighted_RDL @ y_RLD + gram)
            out_RD[rows] = (
                torch.cholesky_solve(right_RD.unsqueeze(-1), factor).squeeze(-1).to(out_RD.dtype)
            )
            at += len(rows)

    def _objective(self, user: Tensor, item: Tensor, extra: Tensor) -> float:
        x, y = self.user_UD.double(), self.item_VD.double()
        total = (x.T @ x * (y.T @ y)).sum() + self.regularisation * (
            x.square().sum() + y.square().sum()
        )
        block = max(1, _BLOCK // x.shape[1])
        for at in range(
            0, len(user), block
        ):  # the sum over all pairs took p = 0 and c = 1: put the observed ones right
            part = slice(at, at + block)
            s = (x[user[part]] * y[item[part]]).sum(1)
            total += ((1 + extra[part]) * (1 - s).square() - s.square()).sum()
        return float(total)
