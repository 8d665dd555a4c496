"""Matrix factorisation: MF (S001, specification §5.1) and BPR-MF (S001, S002; §4.2), one model under two objectives."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recexp.contracts import MultiBehaviour
from recexp.errors import RecexpError
from recexp.nn.cpu.lookup import Embedding, table_dot
from recexp.nn.init import normal_embeddings
from recexp.types import Query, Schema


class MF(MultiBehaviour):
    """s_ui = p_u . q_i (+ b_i).

    item_bias: learn b_i; on for BPR-MF, off for the plain MF of S001.
    """

    n_behaviours = 1

    def __init__(
        self,
        schema: Schema,
        *,
        num_factors: int = 64,
        item_bias: bool = False,
        init_std: float = 0.01,
    ) -> None:
        super().__init__()
        require_positive(num_factors=num_factors)
        self.user = Embedding(schema.n_users, num_factors)
        self.item = Embedding(schema.V, num_factors, padding_idx=0)
        self.item_bias = nn.Parameter(torch.zeros(schema.V)) if item_bias else None
        normal_embeddings(self, init_std)

    def score(self, query: Query, item_BC: Tensor | None = None) -> Tensor:
        """[B, C], or [B, V-1] where item_BC is None."""
        return inner_product(self.user(query.user_B), self.item.weight, self.item_bias, item_BC)

    def logits(self, query: Query, item_BC: Tensor) -> Tensor:
        """The score as the only behaviour's logit: z_BC1."""
        return self.score(query, item_BC).unsqueeze(-1)

    def penalty(self, query: Query, item_BC: Tensor) -> Tensor:
        """Mean square of the embeddings looked up."""
        return mean_square(self.user(query.user_B), self.item(item_BC))


def inner_product(
    user_BD: Tensor, item_VD: Tensor, bias_V: Tensor | None, item_BC: Tensor | None
) -> Tensor:
    """Inner products with the items of a table plus their biases, [B, C]; with all but row 0 where item_BC is None, [B, V-1]."""
    if item_BC is None:
        s = user_BD @ item_VD[1:].T
        return s if bias_V is None else s + bias_V[1:]
    s = table_dot(user_BD, item_VD, item_BC)
    return s if bias_V is None else s + bias_V[item_BC]


def mean_square(*vectors: Tensor) -> Tensor:
    """Mean of squares over all elements of all tensors."""
    return sum(x.square().sum() for x in vectors) / sum(x.numel() for x in vectors)


def require_positive(**sizes: int) -> None:
    """Raise RecexpError for the first knob that is not a positive whole number."""
    for name, value in sizes.items():
        if not isinstance(value, int) or value < 1:
            raise RecexpError(f"{name}={value!r}: must be a whole number of at least 1.")
