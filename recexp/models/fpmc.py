"""FPMC: matrix factorisation plus a factorised first-order Markov chain (S002; specification §4.4)."""

from __future__ import annotations

from torch import Tensor

from recexp.contracts import MultiBehaviour
from recexp.models.mf import inner_product, mean_square, require_positive
from recexp.nn.cpu.lookup import Embedding
from recexp.nn.init import normal_embeddings
from recexp.types import Query, Schema


class FPMC(MultiBehaviour):
    """s(u, l, i) = <V^UI_u, V^IU_i> + <V^IL_i, V^LI_l>, l the last item of the history; the second term is 0 without one.

    The third, user-last-item term of the general model is the same for all candidates and left out.
    """

    history = 1
    n_behaviours = 1

    def __init__(self, schema: Schema, *, num_factors: int = 64, init_std: float = 0.01) -> None:
        super().__init__()
        require_positive(num_factors=num_factors)
        self.user_item = Embedding(schema.n_users, num_factors)
        self.item_user = Embedding(schema.V, num_factors, padding_idx=0)
        self.item_last = Embedding(schema.V, num_factors, padding_idx=0)
        self.last_item = Embedding(schema.V, num_factors, padding_idx=0)
        normal_embeddings(self, init_std)

    def score(self, query: Query, item_BC: Tensor | None = None) -> Tensor:
        """[B, C], or [B, V-1] where item_BC is None."""
        taste = inner_product(self.user_item(query.user_B), self.item_user.weight, None, item_BC)
        return taste + inner_product(
            self.last_item(last_of(query)), self.item_last.weight, None, item_BC
        )

    def logits(self, query: Query, item_BC: Tensor) -> Tensor:
        """The score as the only behaviour's logit: z_BC1."""
        return self.score(query, item_BC).unsqueeze(-1)

    def penalty(self, query: Query, item_BC: Tensor) -> Tensor:
        """Mean square of the embeddings looked up."""
        return mean_square(
            self.user_item(query.user_B),
            self.last_item(last_of(query)),
            self.item_user(item_BC),
            self.item_last(item_BC),
        )


def last_of(query: Query) -> Tensor:
    """The newest item [B] of each history, 0 where it is empty."""
    if query.item_BL.shape[1] == 0:
        return query.user_B.new_zeros(len(query))
    return query.item_BL[:, -1]
