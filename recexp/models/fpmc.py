"""FPMC: matrix factorization plus a factorized first-order Markov chain."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from recexp.contracts import MultiBehavior
from recexp.models.common import encoder_scores, last_item, mean_square
from recexp.nn.embeddings import ItemEncoder, SideVectors, UserEncoder
from recexp.nn.events import EventSides
from recexp.nn.init import normal_embeddings
from recexp.nn.lookup import Embedding
from recexp.nn.parameters import NonNegative, Width, require_positive
from recexp.types import Query, Schema


class FPMC(MultiBehavior):
    """s(u, l, i) = <V^UI_u, V^IU_i> + <V^IL_i, V^LI_l>, l being the last item of the history.

    The second term is 0 for an empty history.

    n_factors: width of all four tables, which start at N(0, init_std^2).

    Not in the paper: features are added to the vectors that the tables hold, as columns of a
    factorization machine are.
    item_side: features of items ("all", or names), in V^LI and, with side_of_candidates, in V^IU
        and V^IL.
    user_side: features of users, in V^UI. event_side: those of the last event, in V^LI
        (``EventSides``).
    side_vectors: features that are vectors are "frozen", or start values of parameters ("trained").

    Rendle, Freudenthaler and Schmidt-Thieme 2010, eq. 7, https://doi.org/10.1145/1772690.1772773.
    A basket is one item here. The user-last-item term of the paper's general model is the same for
    all candidates and left out, as there.
    """

    n_behaviors = 1

    def __init__(
        self,
        schema: Schema,
        *,
        n_factors: Width = 64,
        init_std: NonNegative = 0.01,
        item_side: str | Sequence[str] = (),
        user_side: str | Sequence[str] = (),
        event_side: str | Sequence[str] = (),
        side_of_candidates: bool = True,
        side_vectors: SideVectors = "frozen",
    ) -> None:
        super().__init__()
        require_positive(n_factors=n_factors)
        self.user_item = Embedding(schema.n_users, n_factors)
        self.item_user = Embedding(schema.V, n_factors, padding_idx=0)
        self.item_last = Embedding(schema.V, n_factors, padding_idx=0)
        self.last_item = Embedding(schema.V, n_factors, padding_idx=0)
        self.users = UserEncoder(
            schema, n_factors, side=user_side, vectors=side_vectors, table=self.user_item
        )

        def encoder(table: Embedding, side: str | Sequence[str]) -> ItemEncoder:
            return ItemEncoder(schema, n_factors, side=side, vectors=side_vectors, table=table)

        of_candidates = item_side if side_of_candidates else ()
        self.user_items = encoder(self.item_user, of_candidates)
        self.next_items = encoder(self.item_last, of_candidates)
        self.last_items = encoder(self.last_item, item_side)
        self.event_sides = EventSides(schema, n_factors, event_side, causal=True)
        self.history = 2 if self.event_sides.reads_before else 1
        normal_embeddings(self, init_std)

    def score(self, query: Query, item_BC: Tensor | None = None) -> Tensor:
        user_BD = self.users(query.user_B, query.without_B)
        taste = encoder_scores(user_BD, self.user_items, item_BC)
        return taste + encoder_scores(self._last_event(query), self.next_items, item_BC)

    def _last_event(self, query: Query) -> Tensor:
        """V^LI of the newest events, [B, D]; 0 where there is none."""
        last_BD = self.last_items(last_item(query))
        return self.event_sides.add_to_last(last_BD, query) if query.item_BL.shape[1] else last_BD

    def logits(self, query: Query, item_BC: Tensor) -> Tensor:
        """The score as the logit of the only behavior, z_BC1."""
        return self.score(query, item_BC).unsqueeze(-1)

    def item_embeddings(self) -> Tensor:
        return self.user_items.catalog()

    def penalty(self, query: Query, item_BC: Tensor) -> Tensor:
        return mean_square(
            self.users(query.user_B, query.without_B),
            self._last_event(query),
            self.user_items(item_BC),
            self.next_items(item_BC),
        )
