"""NMTR: behaviours predicted in a cascade, each from the one before (baseline of S000; specification §6.6).

Reconstruction: neither the paper's text nor code was at hand. Confirmed are the order of behaviours from weak to strong, that a
behaviour's prediction adds the previous one's scalar prediction, and the joint loss; the rest follows the specification.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recexp.contracts import MultiBehaviour
from recexp.errors import RecexpError
from recexp.models.neumf import (
    Interaction,
    in_chunks,
    interaction_widths,
    look_up,
    mean_square_of,
    pair_tables,
)
from recexp.nn.init import normal_embeddings
from recexp.types import Query, Schema


class NMTR(MultiBehaviour):
    """z_1 = f_1(u, i) + b_i^1 and z_r = carry(z_{r-1}) + f_r(u, i) + b_i^r: embeddings shared, f_r and b^r per level.

    The levels are nested, from any interaction to the explicit ones; n_behaviours says how many. The score is the last z.

    num_factors: width of the vector a level's logit is read from; with interaction "neumf" half of it comes from either part.
    carry: "logit" passes z_{r-1} on, "prob" passes sigma(z_{r-1}).
    """

    reconstruction = True

    def __init__(
        self,
        schema: Schema,
        *,
        n_behaviours: int = 2,
        interaction: str = "neumf",
        carry: str = "logit",
        num_factors: int = 64,
        num_layers: int = 2,
        dropout: float = 0.0,
        init_std: float = 0.01,
    ) -> None:
        super().__init__()
        if n_behaviours < 1:
            raise RecexpError(f"n_behaviours={n_behaviours}: at least 1 level is needed.")
        if carry not in ("logit", "prob"):
            raise RecexpError(f"carry={carry!r} is not one of logit, prob.")
        if interaction == "neumf" and num_factors % 2:
            raise RecexpError(
                f"num_factors={num_factors}: must be even, as each half of neumf gives one half of it."
            )
        f = num_factors // 2 if interaction == "neumf" else num_factors
        widths = interaction_widths(interaction, f, num_layers)
        self.n_behaviours, self.carry = n_behaviours, carry
        self.user, self.item = pair_tables(schema, widths)
        self.levels = nn.ModuleList(
            Interaction(widths, f, num_layers, dropout=dropout, bias=False)
            for _ in range(n_behaviours)
        )
        self.item_bias = nn.Parameter(torch.zeros(schema.V, n_behaviours))
        normal_embeddings(self, init_std)

    def _logits(self, query: Query, item: Tensor) -> list[Tensor]:
        users, items, bias = (
            look_up(self.user, query.user_B),
            look_up(self.item, item),
            self.item_bias[item],
        )
        z = []
        for level, interact in enumerate(self.levels):
            own = interact(users, items) + bias[..., level]
            before = 0.0 if not z else z[-1] if self.carry == "logit" else z[-1].sigmoid()
            z.append(own + before)
        return z

    def score(self, query: Query, item_BC: Tensor | None = None) -> Tensor:
        """[B, C], or [B, V-1] where item_BC is None."""
        n_items = len(self.item_bias) - 1
        return in_chunks(
            lambda item: self._logits(query, item)[-1],
            query,
            item_BC,
            self.levels[0].widest,
            n_items,
        )

    def logits(self, query: Query, item_BC: Tensor) -> Tensor:
        """z_BCK, levels weak to strong."""
        return torch.stack(self._logits(query, item_BC), dim=-1)

    def penalty(self, query: Query, item_BC: Tensor) -> Tensor:
        """Mean square of the embeddings looked up."""
        return mean_square_of(look_up(self.user, query.user_B), look_up(self.item, item_BC))
