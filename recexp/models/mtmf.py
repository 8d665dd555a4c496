"""MTMF: several feedback types factorised together over shared user factors (baseline of S000; specification §6.7).

Reconstruction: only the paper's abstract was at hand. Confirmed are the common user feature space and the joint training of the
sub-models; the rest follows the specification. On ratings the original took squared errors: objective.loss_name=mse.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recexp.contracts import MultiBehaviour
from recexp.errors import RecexpError
from recexp.models.mf import inner_product, mean_square, require_positive
from recexp.nn.init import normal_embeddings
from recexp.types import Query, Schema


class MTMF(MultiBehaviour):
    """r^t_ui = p_u . q_i^t + b_u^t + b_i^t for t in (implicit, explicit), with one p_u for both.

    score_by: "explicit" ranks by r^explicit, "sum" by r^explicit + implicit_share * r^implicit.
    """

    n_behaviours = 2
    reconstruction = True

    def __init__(
        self,
        schema: Schema,
        *,
        num_factors: int = 64,
        score_by: str = "explicit",
        implicit_share: float = 1.0,
        init_std: float = 0.01,
    ) -> None:
        super().__init__()
        require_positive(num_factors=num_factors)
        if score_by not in ("explicit", "sum"):
            raise RecexpError(f"score_by={score_by!r} is not one of explicit, sum.")
        self.share = (implicit_share, 1.0) if score_by == "sum" else (0.0, 1.0)
        self.user = nn.Embedding(schema.n_users, num_factors)
        self.items = nn.ModuleList(
            nn.Embedding(schema.V, num_factors, padding_idx=0) for _ in range(self.n_behaviours)
        )
        self.user_bias = nn.Parameter(torch.zeros(schema.n_users, self.n_behaviours))
        self.item_bias = nn.Parameter(torch.zeros(schema.V, self.n_behaviours))
        normal_embeddings(self, init_std)

    def logits(self, query: Query, item_BC: Tensor | None) -> Tensor:
        """z_BCK, implicit before explicit; of all items where item_BC is None."""
        p_BD = self.user(query.user_B)
        z = [
            inner_product(p_BD, table.weight, self.item_bias[:, t], item_BC)
            for t, table in enumerate(self.items)
        ]
        return torch.stack(z, dim=-1) + self.user_bias[query.user_B].unsqueeze(1)

    def score(self, query: Query, item_BC: Tensor | None = None) -> Tensor:
        """[B, C], or [B, V-1] where item_BC is None."""
        z_BCK = self.logits(query, item_BC)
        return (z_BCK * z_BCK.new_tensor(self.share)).sum(-1)

    def penalty(self, query: Query, item_BC: Tensor) -> Tensor:
        """Mean square of the embeddings looked up."""
        return mean_square(self.user(query.user_B), *(table(item_BC) for table in self.items))
