"""iALS: alternating least squares with weighted unobserved pairs and scaled regularization."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from recexp.errors import RecexpError
from recexp.models.wmf import WMF, Solver
from recexp.nn.least_squares import RowRegularizedTable, SparseRows
from recexp.nn.parameters import Count, NonNegative, Positive, Share, Width
from recexp.types import Schema

if TYPE_CHECKING:
    from recexp.data.store import Store


class IALS(WMF):
    """s_ui = x_u . y_i, fitted to the observed pairs and, with a smaller weight, to all.

    Minimizes sum over observed u, i of (x_u . y_i - 1)^2
        + unobserved_weight * sum over all u, i of (x_u . y_i)^2
        + sum over u of r(items of u, items) |x_u|^2 + sum over i of r(users of i, users) |y_i|^2

    with r(n, N) = regularization * (n + unobserved_weight * N)^frequency_exponent. One pass solves
    for all users and then for all items.

    frequency_exponent: 0 regularizes all rows equally, 1 by the terms that a row has in the loss.
    init_std: y starts at N(0, init_std^2 / n_factors).
    n_factors, behaviors, solver, cg_steps: as in ``WMF``.

    Rendle et al. 2022 (iALS), arXiv:2110.14037.
    """

    counts_events: ClassVar[bool] = False

    def __init__(
        self,
        schema: Schema,
        *,
        n_factors: Width = 64,
        unobserved_weight: Positive = 0.1,
        regularization: Positive = 0.003,
        frequency_exponent: Share = 1.0,
        init_std: NonNegative = 0.1,
        behaviors: list[str] | str | None = None,
        solver: Solver = "auto",
        cg_steps: Count = 3,
    ) -> None:
        if unobserved_weight <= 0 or not 0 <= frequency_exponent <= 1:
            raise RecexpError(
                f"unobserved_weight={unobserved_weight}, frequency_exponent={frequency_exponent}: "
                "the weight must be above 0, and the exponent lie in [0, 1]."
            )
        super().__init__(
            schema,
            n_factors=n_factors,
            alpha=1 / unobserved_weight,
            regularization=regularization,
            init_std=init_std / n_factors**0.5,
            behaviors=behaviors,
            solver=solver,
            cg_steps=cg_steps,
        )
        self.unobserved_weight = unobserved_weight
        self.frequency_exponent = frequency_exponent

    @torch.no_grad()
    def fit_pass(self, store: Store) -> dict[str, float]:
        """Solve for all users and then for all items. Returns the objective reached."""
        layout = self._layout_of(store)
        user_UD = self.user_UD
        penalty_U = self._penalties(layout.by_user, store.schema.n_items)
        penalty_V = self._penalties(layout.by_item, store.schema.n_users)
        self._solve_with(penalty_U, user_UD, self.item_VD, layout.by_user)
        of_items = self._solve_with(penalty_V, self.item_VD, user_UD, layout.by_item)
        of_users = (penalty_U * user_UD.double().square().sum(1)).sum()
        return {"objective": len(layout.by_user.column_P) + float(of_users) + of_items}

    def _penalties(self, rows: SparseRows, n_columns: int) -> Tensor:
        """r of each row, a double [R]."""
        n_terms_R = rows.length_R.double() + self.unobserved_weight * n_columns
        return self.regularization * n_terms_R**self.frequency_exponent

    def _solve_with(
        self, penalty_R: Tensor, out_RD: Tensor, fixed_SD: Tensor, rows: SparseRows
    ) -> float:
        """Fill out_RD with the best row vectors given the fixed ones.

        Divided by the weight of unobserved pairs, the matrix of a row is that of WMF with
        alpha = 1 / unobserved_weight. The right side is alpha where WMF's is 1 + alpha, and so the
        solution is WMF's times alpha / (1 + alpha). Returns the part of the objective that depends
        on the rows.
        """
        table = RowRegularizedTable(fixed_SD, penalty_R / self.unobserved_weight)
        share = self.alpha / (1 + self.alpha)
        out_RD /= share  # conjugate gradient starts from it
        value = self._solve_rows(out_RD, rows, table, len(rows.column_P))
        out_RD *= share
        return self.unobserved_weight * share**2 * value
