"""WMF: matrix factorization of implicit feedback by alternating least squares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from recexp.contracts import ClosedForm
from recexp.errors import RecexpError
from recexp.models.common import behavior_codes, select_events, table_scores
from recexp.nn.least_squares import (
    SparseRows,
    WhitenedTable,
    solve_by_conjugate_gradient,
    solve_exactly,
)
from recexp.nn.parameters import Count, NonNegative, Positive, Width, one_of, require_positive
from recexp.types import Query, Schema

if TYPE_CHECKING:
    from recexp.data.store import Store

Solver = Literal["auto", "exact", "cg"]
# Floating-point operations of an exact pass up to which solver=auto is exact: some seconds of two
# cores.
MAX_EXACT_FLOPS = 5e11


@dataclass
class _Layout:
    """The pairs of a store by user and by item. n_events: that they stand for."""

    events: object
    by_user: SparseRows
    by_item: SparseRows
    n_events: int
    device: torch.device

    def __deepcopy__(self, memo: object) -> _Layout:
        return self  # nothing changes it


class WMF(ClosedForm):
    """s_ui = x_u . y_i, fitted to observed and unobserved pairs with different confidence.

    Minimizes sum over all u, i of c_ui (p_ui - x_u . y_i)^2
        + regularization * (sum |x_u|^2 + sum |y_i|^2),
    where p_ui says whether u interacted with i, and c_ui = 1 + alpha * (number of training events).
    One pass solves for all users and then for all items.

    n_factors: width D of x and y. init_std: y starts at N(0, init_std^2).
    behaviors: which events count, as in ``Pop``.
    solver: "exact" solves the normal equations of every row. "cg" takes ``cg_steps`` steps of
    conjugate gradient from the vectors of the last pass, which costs time in proportion to D
    instead of D^2 per pair. "auto" is exact where a pass takes at most ``MAX_EXACT_FLOPS``
    operations, and "cg" above.

    Hu, Koren and Volinsky 2008, eq. 3-5, https://doi.org/10.1109/ICDM.2008.22;
    Takács, Pilászy and Tikk 2011 (cg), https://doi.org/10.1145/2043932.2043987.
    """

    counts_events: ClassVar[bool] = True
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
        solver: Solver = "auto",
        cg_steps: Count = 3,
    ) -> None:
        super().__init__()
        require_positive(n_factors=n_factors, cg_steps=cg_steps)
        if regularization <= 0 or alpha <= 0:
            raise RecexpError(
                f"alpha={alpha}, regularization={regularization}: both must be above 0."
            )
        self.alpha = alpha
        self.regularization = regularization
        self.solver = one_of("solver", solver, Solver)
        self.cg_steps = cg_steps
        self._layout: _Layout | None = None
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
        """Solve for all users and then for all items. Returns the objective reached."""
        layout = self._layout_of(store)
        n_pairs = len(layout.by_user.column_P)
        self._solve(self.user_UD, self.item_VD, layout.by_user, n_pairs)
        of_users, of_items = self._solve(self.item_VD, self.user_UD, layout.by_item, n_pairs)
        # Each observed pair adds its confidence, and the solution for the items all the rest.
        constant = n_pairs + self.alpha * layout.n_events
        return {"objective": constant + self.regularization * of_users + of_items}

    def _solve(
        self, out_RD: Tensor, fixed_SD: Tensor, rows: SparseRows, n_pairs: int
    ) -> tuple[float, float]:
        """Fill out_RD with the best row vectors given the fixed ones; rows without a pair get 0.

        Returns the sum of squares of the fixed vectors, and of x^T A x - 2 b^T x over all rows, as
        ``nn.least_squares`` has them.
        """
        table = WhitenedTable(fixed_SD, self.regularization)
        return float(table.square_sum), self._solve_rows(out_RD, rows, table, n_pairs)

    def _solve_rows(
        self, out_RD: Tensor, rows: SparseRows, table: WhitenedTable, n_pairs: int
    ) -> float:
        """By the solver that ``solver`` names. Returns the sum of x^T A x - 2 b^T x."""
        if self._is_exact(n_pairs):
            return solve_exactly(out_RD, rows, table, self.alpha)
        return solve_by_conjugate_gradient(out_RD, rows, table, self.alpha, self.cg_steps)

    def _is_exact(self, n_pairs: int) -> bool:
        if self.solver != "auto":
            return self.solver == "exact"
        n_rows = len(self.user_UD) + len(self.item_VD)
        width = self.item_VD.shape[1]
        # Both halves of a pass add an outer product per pair and factorize a matrix per row.
        return 2 * n_pairs * 2 * width**2 + n_rows * 2 * width**3 / 3 <= MAX_EXACT_FLOPS

    def _layout_of(self, store: Store) -> _Layout:
        """The store's pairs on the model's device, computed once per store."""
        device = self.item_VD.device
        layout = self._layout
        if layout is None or layout.events is not store.train or layout.device != device:
            layout = self._layout = self._new_layout(store)
        return layout

    def _new_layout(self, store: Store) -> _Layout:
        """Extra shape symbol: P distinct (user, item) pairs."""
        user_E, item_E = select_events(store, self.codes)
        device = self.item_VD.device
        U, V = len(self.user_UD), len(self.item_VD)
        pair_P, count_P = torch.unique(
            user_E.to(device) * V + item_E.to(device), return_counts=True
        )
        user_P = pair_P // V
        item_P = pair_P % V
        counts = None if not self.counts_events or bool((count_P == 1).all()) else count_P
        return _Layout(
            events=store.train,
            by_user=SparseRows.of_pairs(user_P, item_P, counts, U),
            by_item=SparseRows.of_pairs(item_P, user_P, counts, V),
            n_events=len(user_E),
            device=device,
        )
