"""Matrix factorization; with the pairwise objective it is BPR-MF."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recexp.contracts import Factorized, MultiBehavior
from recexp.models.common import mean_square, table_scores
from recexp.nn.cpu.lookup import table_dot
from recexp.nn.init import normal_embeddings
from recexp.nn.lookup import Embedding
from recexp.nn.parameters import NonNegative, Width, require_positive
from recexp.nn.sharded import ShardedEmbedding
from recexp.types import Query, RowTables, Schema


class MF(MultiBehavior, Factorized):
    """s_ui = p_u . q_i (+ b_i).

    n_factors: width of p and q.
    item_bias: whether there is a b_i; usual in BPR-MF, left out in the MF of the multi-feedback
        paper (MF + multi-branch MLP).
    init_std: p, q ~ N(0, init_std^2).

    Koren, Bell and Volinsky 2009, https://doi.org/10.1109/MC.2009.263; trained on pairs it is
    BPR-MF, Rendle et al. 2009, arXiv:1205.2618.
    """

    n_behaviors = 1

    def __init__(
        self,
        schema: Schema,
        *,
        n_factors: Width = 64,
        item_bias: bool = False,
        init_std: NonNegative = 0.01,
    ) -> None:
        super().__init__()
        require_positive(n_factors=n_factors)
        self.user = Embedding(schema.n_users, n_factors)
        self.item = Embedding(schema.V, n_factors, padding_idx=0)
        self.item_bias = nn.Parameter(torch.zeros(schema.V)) if item_bias else None
        normal_embeddings(self, init_std)

    def score(self, query: Query, item_BC: Tensor | None = None) -> Tensor:
        user_BD = self.user(query.user_B)
        if item_BC is None:
            return table_scores(user_BD, self.item.weight, self.item_bias, None)
        s_BC = table_dot(user_BD, *self.item.local(item_BC), self.item.sparse)
        return s_BC if self.item_bias is None else s_BC + self.item_bias[item_BC]

    def tables(self) -> tuple[nn.Embedding, nn.Embedding, Tensor | None]:
        return self.user, self.item, self.item_bias

    @property
    def scores_by_tables(self) -> bool:
        """False also where no process has the whole tables."""
        is_shared = isinstance(self.item, ShardedEmbedding) or isinstance(
            self.user, ShardedEmbedding
        )
        return super().scores_by_tables and not is_shared

    def row_tables(self) -> RowTables:
        return RowTables(items=(self.item,), users=(self.user,))

    def logits(self, query: Query, item_BC: Tensor) -> Tensor:
        """The score as the logit of the only behavior, z_BC1."""
        return self.score(query, item_BC).unsqueeze(-1)

    def item_embeddings(self) -> Tensor:
        return self.item.weight[1:]

    def penalty(self, query: Query, item_BC: Tensor) -> Tensor:
        return mean_square(self.user(query.user_B), self.item(item_BC))
