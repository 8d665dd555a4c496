"""MFPR: matrix factorization with implicit terms for several kinds of feedback."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from recexp.contracts import MultiBehavior
from recexp.errors import RecexpError
from recexp.models.common import mean_square, table_scores
from recexp.nn.cpu.lookup import row_dot
from recexp.nn.init import normal_embeddings
from recexp.nn.lookup import Embedding
from recexp.nn.parameters import NonNegative, Width, require_positive
from recexp.nn.traced import Foldable
from recexp.types import Query, Schema

if TYPE_CHECKING:
    from recexp.data.store import Store


class MFPR(MultiBehavior, Foldable):
    """s_ui = b_i + q_i . (p_u + sum_t w_t |N_t(u)|^(-1/2) sum over j in N_t(u) of y_j^t).

    N_t(u) are the items that u showed behavior t on in training. In training mode the scored item
    itself is taken out of every N_t(u), since its presence would tell the label.

    n_factors: width of p, q and y, which start at N(0, init_std^2). w_t is learned from 1 on.

    Liu et al. 2017, https://doi.org/10.1007/978-3-319-57529-2_11, and 2018,
    https://doi.org/10.1145/3216368; a baseline of the multi-feedback paper, which uses the implicit
    part only. Reconstruction: only the abstracts were available. They confirm a pairwise ranking
    loss and several implicit feedbacks; the score is ours, after SVD++ (Koren 2008,
    https://doi.org/10.1145/1401890.1401944) with a term per behavior.

    Extra shape symbol: T behaviors of the data.
    """

    n_behaviors = 1
    reconstruction = True
    size_UT: Tensor
    start_UT: Tensor
    member: Tensor
    pair_key: Tensor
    pair_mask: Tensor

    def __init__(
        self, schema: Schema, *, n_factors: Width = 64, init_std: NonNegative = 0.01
    ) -> None:
        super().__init__()
        require_positive(n_factors=n_factors)
        self.n_kinds = len(schema.behaviors)
        self.V = schema.V
        self.bound = False
        self.user = Embedding(schema.n_users, n_factors)
        self.item = Embedding(schema.V, n_factors, padding_idx=0)
        self.implicit = Embedding(self.n_kinds * schema.V, n_factors)  # y_j^t in row t * V + j
        self.weight_T = nn.Parameter(torch.ones(self.n_kinds))
        self.item_bias = nn.Parameter(torch.zeros(schema.V))
        normal_embeddings(self, init_std)

    def bind(self, store: Store) -> None:
        """Take the users' item sets per behavior from the training pairs.

        The sets of one user stand together in ``member``: set (u, t) owns size_UT[u, t] entries
        from start_UT[u, t] on.
        """
        pairs = store.train_pairs
        kind_T = torch.arange(self.n_kinds, device=pairs.mask.device)
        pair, t = ((pairs.mask.unsqueeze(1) >> kind_T) & 1).nonzero(as_tuple=True)
        bag = pairs.user[pair] * self.n_kinds + t
        order = bag.argsort(stable=True)
        length = torch.bincount(bag, minlength=self.user.num_embeddings * self.n_kinds)
        start = length.cumsum(0) - length
        self._keep("size_UT", length.view(-1, self.n_kinds))
        self._keep("start_UT", start.view(-1, self.n_kinds))
        self._keep("member", (t * self.V + pairs.item[pair])[order])
        self._keep("pair_key", pairs.user * self.V + pairs.item)
        self._keep("pair_mask", pairs.mask)
        self.bound = True

    def _keep(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value.to(self.weight_T.device), persistent=False)

    def score(self, query: Query, item_BC: Tensor | None = None) -> Tensor:
        if self.training and item_BC is not None:
            return self._score_without_own(query, item_BC)
        if self.folded is None:
            taste_BD = self._taste(query.user_B)
        else:
            taste_BD = nn.functional.embedding(query.user_B, self.folded)
        return table_scores(taste_BD, self.item.weight, self.item_bias, item_BC)

    def fold(self) -> None:
        """Bags of items are as long as the data say; their sums are a row per user."""
        weight = self.user.weight
        self.folded = self._taste(torch.arange(len(weight), device=weight.device))
        del self.user, self.implicit, self.weight_T
        del self.size_UT, self.start_UT, self.member, self.pair_key, self.pair_mask

    def _taste(self, user_B: Tensor) -> Tensor:
        """The users' vectors plus those of their items, [B, D]."""
        sum_BTD, size_BT = self._bag_sums(user_B)
        user_BD = self.user(user_B)
        share_BT = self.weight_T * size_BT.clamp_min(1).to(user_BD.dtype).rsqrt()
        return user_BD + (share_BT.unsqueeze(-1) * sum_BTD).sum(1)

    def _bag_sums(self, user_B: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of y over the users' sets, [B, T, D], and the sizes of the sets, [B, T]."""
        member, size_BT, begin_BT = self._members(user_B)
        y_MD = self.implicit.weight
        sparse = self.implicit.sparse and len(member) <= len(y_MD)
        sum_XD = nn.functional.embedding_bag(
            member, y_MD, begin_BT.flatten(), mode="sum", sparse=sparse
        )
        return sum_XD.view(*size_BT.shape, -1), size_BT

    def _score_without_own(self, query: Query, item_BC: Tensor) -> Tensor:
        """Scores [B, C], each item being taken out of the user's sets."""
        sum_BTD, size_BT = self._bag_sums(query.user_B)
        user_BD = self.user(query.user_B)
        q_BCD = self.item(item_BC)
        own_BCT = self._own(query.user_B, item_BC)
        first_row_T = self.V * torch.arange(self.n_kinds, device=item_BC.device)
        y_BCTD = self.implicit(item_BC.unsqueeze(-1) + first_row_T)
        all_BCT = torch.einsum("bcd,btd->bct", q_BCD, sum_BTD)
        rest_BCT = all_BCT - own_BCT * torch.einsum("bcd,bctd->bct", q_BCD, y_BCTD)
        n_rest_BCT = (size_BT.unsqueeze(1) - own_BCT).clamp_min(1)
        share_BCT = self.weight_T * n_rest_BCT.to(user_BD.dtype).rsqrt()
        taste_BC = row_dot(q_BCD, user_BD) + self.item_bias[item_BC]
        return taste_BC + (share_BCT * rest_BCT).sum(-1)

    def _members(self, user_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of y for all sets of the users, one set after another.

        Also the sizes of the sets and where each begins, [B, T].
        """
        if not self.bound:
            raise RecexpError(
                "MFPR scores from the users' training items: call bind(store) before the first use."
            )
        size_BT = self.size_UT[user_B]
        size = size_BT.flatten()
        begin = size.cumsum(0) - size
        # Ragged gather: entry e of the flat list, of set s, is member[start[s] + e - begin[s]].
        entry = torch.repeat_interleave(self.start_UT[user_B].flatten() - begin, size)
        entry = entry + torch.arange(len(entry), device=entry.device)
        return self.member[entry], size_BT, begin.view_as(size_BT)

    def _own(self, user_B: Tensor, item_BC: Tensor) -> Tensor:
        """1 where the candidate is in the user's set of the behavior, int64 [B, C, T]."""
        key_BC = user_B.unsqueeze(1) * self.V + item_BC
        place_BC = torch.searchsorted(self.pair_key, key_BC).clamp_max(len(self.pair_key) - 1)
        mask_BC = torch.where(self.pair_key[place_BC] == key_BC, self.pair_mask[place_BC], 0)
        return (mask_BC.unsqueeze(-1) >> torch.arange(self.n_kinds, device=item_BC.device)) & 1

    def logits(self, query: Query, item_BC: Tensor) -> Tensor:
        """The score as the logit of the only behavior, z_BC1."""
        return self.score(query, item_BC).unsqueeze(-1)

    def item_embeddings(self) -> Tensor:
        return self.item.weight[1:]

    def penalty(self, query: Query, item_BC: Tensor) -> Tensor:
        """Mean square of the embeddings looked up, those of the users' items included."""
        member, _, _ = self._members(query.user_B)
        return mean_square(self.user(query.user_B), self.item(item_BC), self.implicit(member))
