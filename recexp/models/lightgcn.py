"""LightGCN: matrix factorization whose vectors are smoothed over the graph of users and items."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from recexp.contracts import Recommender
from recexp.errors import RecexpError
from recexp.models.common import mean_square, table_scores
from recexp.nn.init import normal_embeddings
from recexp.nn.kept import Kept
from recexp.nn.lookup import Embedding
from recexp.nn.parameters import Depth, NonNegative, Width, require_positive
from recexp.nn.propagation import BipartiteGraph
from recexp.nn.traced import Foldable
from recexp.types import Query, Schema

if TYPE_CHECKING:
    from recexp.data.store import Store


class LightGCN(Foldable, Recommender):
    """s_ui = x_u . y_i, where [x; y] is the mean of E, S E, S^2 E, ..., S^n_layers E.

    E: one vector per user and item, the only parameters. S = D^-1/2 A D^-1/2 of the graph that
    joins users and items by their training pairs.

    n_factors: width of E. init_std: E ~ N(0, init_std^2).
    penalty: of the rows of E that a batch looks up, as in the authors' code.

    A training step computes the layers of all users and items, whatever the size of its batch:
    8 * pairs * n_factors * n_layers operations with the gradient. Evaluation computes them once.

    He et al. 2020, eq. 7-11 and 15, arXiv:2002.02126; authors' code
    https://github.com/gusye1234/LightGCN-PyTorch.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        n_factors: Width = 64,
        n_layers: Depth = 3,
        init_std: NonNegative = 0.1,
    ) -> None:
        super().__init__()
        require_positive(n_factors=n_factors, n_layers=n_layers)
        self.n_users = schema.n_users
        self.n_layers = n_layers
        self.user = Embedding(schema.n_users, n_factors)
        self.item = Embedding(schema.V, n_factors, padding_idx=0)
        self.graph = BipartiteGraph(schema.n_users, schema.V)
        self.kept = Kept()
        normal_embeddings(self, init_std)

    def bind(self, store: Store) -> None:
        """Take the graph of the training pairs."""
        self.graph.set_pairs(store.train_pairs.user, store.train_pairs.item)

    def score(self, query: Query, item_BC: Tensor | None = None) -> Tensor:
        user_UD, item_VD = self._vectors()
        return table_scores(F.embedding(query.user_B, user_UD), item_VD, None, item_BC)

    def item_embeddings(self) -> Tensor:
        return self._vectors()[1][1:]

    def penalty(self, query: Query, item_BC: Tensor) -> Tensor:
        return mean_square(self.user(query.user_B), self.item(item_BC))

    def fold(self) -> None:
        self.folded = self._propagated()
        del self.user, self.item, self.graph, self.kept

    def _vectors(self) -> tuple[Tensor, Tensor]:
        """x [U, D] and y [V, D]."""
        x_ND = self.folded
        if x_ND is None:
            x_ND = self.kept(self._propagated, self.user.weight, self.item.weight)
        return x_ND[: self.n_users], x_ND[self.n_users :]

    def _propagated(self) -> Tensor:
        """The mean of all layers, of users and then of items, [U + V, D]."""
        if not len(self.graph.column_E):
            raise RecexpError(
                "LightGCN scores over the graph of training pairs: call bind(store) before the "
                "first use."
            )
        x_ND = torch.cat([self.user.weight, self.item.weight])
        total_ND = x_ND
        for _ in range(self.n_layers):
            x_ND = self.graph(x_ND)
            total_ND = total_ND + x_ND
        return total_ND / (self.n_layers + 1)
