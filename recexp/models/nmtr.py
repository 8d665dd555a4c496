"""NMTR: behaviors predicted in a cascade, each from the one before."""

from __future__ import annotations

from typing import Annotated, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from recexp.contracts import MultiBehavior
from recexp.errors import RecexpError
from recexp.models.common import score_in_chunks
from recexp.models.neumf import (
    Interaction,
    InteractionKind,
    interaction_widths,
    joined_table,
    look_up,
    mean_square_of_rows,
    pair_tables,
)
from recexp.nn.init import normal_embeddings
from recexp.nn.parameters import Depth, NonNegative, Rate, Width, one_of
from recexp.types import Query, Schema

Carry = Literal["logit", "prob"]


class NMTR(MultiBehavior):
    """z_1 = f_1(u, i) + b_i^1 and z_r = carry(z_{r-1}) + f_r(u, i) + b_i^r.

    Embeddings are shared; f_r and b^r are per level. The levels are nested, from any interaction to
    the explicit ones, and the score is the last z.

    n_behaviors: number of levels.
    interaction: the form of f_r, see ``recexp.models.neumf``.
    carry: "logit" carries z_{r-1} on, "prob" carries sigmoid(z_{r-1}).
    n_factors: width of the vector that a level's logit is read from. With interaction "neumf",
        one half comes from the products and one half from the tower.
    n_layers, dropout: of the tower. init_std: embeddings start at N(0, init_std^2).

    Gao et al. 2019, https://doi.org/10.1109/ICDE.2019.00140; a baseline of the ITE paper.
    Reconstruction: neither the text nor code was available. The abstract confirms the order of
    behaviors from weak to strong, that a prediction adds the previous one's scalar prediction, and
    the joint loss; the rest is our choice.
    """

    reconstruction = True

    def __init__(
        self,
        schema: Schema,
        *,
        n_behaviors: Annotated[int, Field(ge=1, le=31)] = 2,
        interaction: InteractionKind = "neumf",
        carry: Carry = "logit",
        n_factors: Width = 64,
        n_layers: Depth = 2,
        dropout: Rate = 0.0,
        init_std: NonNegative = 0.01,
    ) -> None:
        super().__init__()
        if n_behaviors < 1:
            raise RecexpError(f"n_behaviors={n_behaviors}: at least 1 level is needed.")
        if interaction == "neumf" and n_factors % 2:
            raise RecexpError(
                f"n_factors={n_factors}: must be even, as each half of neumf gives one half."
            )
        part_width = n_factors // 2 if interaction == "neumf" else n_factors
        widths = interaction_widths(interaction, part_width, n_layers)
        self.n_behaviors = n_behaviors
        self.carry = one_of("carry", carry, Carry)
        self.user, self.item = pair_tables(schema, widths)
        self.levels = nn.ModuleList(
            Interaction(widths, part_width, n_layers, dropout=dropout, bias=False)
            for _ in range(n_behaviors)
        )
        self.item_bias = nn.Parameter(torch.zeros(schema.V, n_behaviors))
        normal_embeddings(self, init_std)

    def _level_logits(self, query: Query, item: Tensor) -> list[Tensor]:
        """z_1 .. z_K, each [B, C], of items [B, C], or [C] shared by all rows."""
        users = look_up(self.user, query.user_B)
        items = look_up(self.item, item)
        bias = self.item_bias[item]
        z: list[Tensor] = []
        for level, interact in enumerate(self.levels):
            own = interact(users, items) + bias[..., level]
            if z:
                own = own + (z[-1] if self.carry == "logit" else z[-1].sigmoid())
            z.append(own)
        return z

    def score(self, query: Query, item_BC: Tensor | None = None) -> Tensor:
        width = cast(Interaction, self.levels[0]).floats_per_pair(shared=item_BC is None)
        n_items = len(self.item_bias) - 1
        return score_in_chunks(
            lambda item: self._level_logits(query, item)[-1], query, item_BC, width, n_items
        )

    def logits(self, query: Query, item_BC: Tensor) -> Tensor:
        """z_BCK, levels weak to strong."""
        return torch.stack(self._level_logits(query, item_BC), dim=-1)

    def item_embeddings(self) -> Tensor:
        return joined_table(self.item)[1:]

    def penalty(self, query: Query, item_BC: Tensor) -> Tensor:
        return mean_square_of_rows(look_up(self.user, query.user_B), look_up(self.item, item_BC))
