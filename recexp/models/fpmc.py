"""FPMC: matrix factorization plus a factorized first-order Markov chain."""

from __future__ import annotations

from torch import Tensor

from recexp.contracts import MultiBehavior
from recexp.models.common import last_item, mean_square, table_scores
from recexp.nn.init import normal_embeddings
from recexp.nn.lookup import Embedding
from recexp.nn.parameters import NonNegative, Width, require_positive
from recexp.types import Query, Schema


class FPMC(MultiBehavior):
    """s(u, l, i) = <V^UI_u, V^IU_i> + <V^IL_i, V^LI_l>, l being the last item of the history.

    The second term is 0 for an empty history.

    n_factors: width of all four tables, which start at N(0, init_std^2).

    Rendle, Freudenthaler and Schmidt-Thieme 2010, eq. 7, https://doi.org/10.1145/1772690.1772773.
    A basket is one item here. The user-last-item term of the paper's general model is the same for
    all candidates and left out, as there.
    """

    history = 1
    n_behaviors = 1

    def __init__(
        self, schema: Schema, *, n_factors: Width = 64, init_std: NonNegative = 0.01
    ) -> None:
        super().__init__()
        require_positive(n_factors=n_factors)
        self.user_item = Embedding(schema.n_users, n_factors)
        self.item_user = Embedding(schema.V, n_factors, padding_idx=0)
        self.item_last = Embedding(schema.V, n_factors, padding_idx=0)
        self.last_item = Embedding(schema.V, n_factors, padding_idx=0)
        normal_embeddings(self, init_std)

    def score(self, query: Query, item_BC: Tensor | None = None) -> Tensor:
        user_BD = self.user_item(query.user_B)
        last_BD = self.last_item(last_item(query))
        taste = table_scores(user_BD, self.item_user.weight, None, item_BC)
        return taste + table_scores(last_BD, self.item_last.weight, None, item_BC)

    def logits(self, query: Query, item_BC: Tensor) -> Tensor:
        """The score as the logit of the only behavior, z_BC1."""
        return self.score(query, item_BC).unsqueeze(-1)

    def item_embeddings(self) -> Tensor:
        return self.item_user.weight[1:]

    def penalty(self, query: Query, item_BC: Tensor) -> Tensor:
        return mean_square(
            self.user_item(query.user_B),
            self.last_item(last_item(query)),
            self.item_user(item_BC),
            self.item_last(item_BC),
        )
