"""MTMF: several feedback types factorized together over shared user factors."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn

from recexp.contracts import MultiBehavior
from recexp.models.common import mean_square, table_scores
from recexp.nn.init import normal_embeddings
from recexp.nn.lookup import Embedding
from recexp.nn.parameters import NonNegative, Width, one_of, require_positive
from recexp.types import Query, Schema

ScoreBy = Literal["explicit", "sum"]


class MTMF(MultiBehavior):
    """r^t_ui = p_u . q_i^t + b_u^t + b_i^t for t in (implicit, explicit), with one p_u for both.

    n_factors: width of p and q, which start at N(0, init_std^2).
    score_by: "explicit" ranks by r^explicit, "sum" by r^explicit + implicit_share * r^implicit.

    Shi et al. 2017, CSCWD,
    https://research.ibm.com/publications/multi-task-matrix-factorization-for-collaborative-filtering;
    a baseline of the ITE paper. Reconstruction: only the abstract was available. It confirms the
    common user factors and the joint training of the parts; the biases and the binary loss are our
    choice. The original predicts ratings; its squared error is loss=mse.
    """

    n_behaviors = 2
    reconstruction = True

    def __init__(
        self,
        schema: Schema,
        *,
        n_factors: Width = 64,
        score_by: ScoreBy = "explicit",
        implicit_share: NonNegative = 1.0,
        init_std: NonNegative = 0.01,
    ) -> None:
        super().__init__()
        require_positive(n_factors=n_factors)
        one_of("score_by", score_by, ScoreBy)
        self.share = (implicit_share, 1.0) if score_by == "sum" else (0.0, 1.0)
        self.user = Embedding(schema.n_users, n_factors)
        self.items = nn.ModuleList(
            Embedding(schema.V, n_factors, padding_idx=0) for _ in range(self.n_behaviors)
        )
        self.user_bias = nn.Parameter(torch.zeros(schema.n_users, self.n_behaviors))
        self.item_bias = nn.Parameter(torch.zeros(schema.V, self.n_behaviors))
        normal_embeddings(self, init_std)

    def logits(self, query: Query, item_BC: Tensor | None) -> Tensor:
        """z_BCK with K = 2, implicit before explicit; of all items where item_BC is None."""
        user_BD = self.user(query.user_B)
        z = []
        for t, table in enumerate(self.items):
            assert isinstance(table, Embedding)
            bias_V = self.item_bias[:, t]
            z.append(table_scores(user_BD, table.weight, bias_V, item_BC, table.sparse))
        return torch.stack(z, dim=-1) + self.user_bias[query.user_B].unsqueeze(1)

    def score(self, query: Query, item_BC: Tensor | None = None) -> Tensor:
        z_BCK = self.logits(query, item_BC)
        return (z_BCK * z_BCK.new_tensor(self.share)).sum(-1)

    def item_embeddings(self) -> Tensor:
        return cast(Tensor, self.items[-1].weight)[1:]

    def penalty(self, query: Query, item_BC: Tensor) -> Tensor:
        return mean_square(self.user(query.user_B), *(table(item_BC) for table in self.items))
