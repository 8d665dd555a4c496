"""MFPR: matrix factorisation with implicit terms for several kinds of feedback (baseline of S001; specification §5.3).

Reconstruction: only the paper's abstract was at hand. Confirmed are a BPR-style ranking loss and the use of several implicit
feedbacks; the score is the specification's, SVD++-like with a term per behaviour. S001 uses the implicit part only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recexp.contracts import MultiBehaviour
from recexp.errors import RecexpError
from recexp.models.mf import inner_product, mean_square, require_positive
from recexp.nn.cpu.lookup import row_dot
from recexp.nn.init import normal_embeddings
from recexp.types import Query, Schema


class MFPR(MultiBehaviour):
    """s_ui = b_i + q_i . (p_u + sum_t w_t |N_t(u)|^(-1/2) sum over j in N_t(u) of y_j^t).

    N_t(u) are the items u showed behaviour t on in training (``bind``). In training mode the scored item itself is taken out of
    every N_t(u), as its presence would tell the label. The w_t are learned and start at 1.
    """

    n_behaviours = 1
    reconstruction = True

    def __init__(self, schema: Schema, *, num_factors: int = 64, init_std: float = 0.01) -> None:
        super().__init__()
        require_positive(num_factors=num_factors)
        self.n_kinds, self.V = len(schema.behaviours), schema.V
        self.user = nn.Embedding(schema.n_users, num_factors)
        self.item = nn.Embedding(schema.V, num_factors, padding_idx=0)
        self.implicit = nn.Embedding(self.n_kinds * schema.V, num_factors)  # y_j^t in row t * V + j
        self.weight_T = nn.Parameter(torch.ones(self.n_kinds))
        self.item_bias = nn.Parameter(torch.zeros(schema.V))
        normal_embeddings(self, init_std)

    def bind(self, store) -> None:
        """Takes the users' item sets per behaviour from ``store.train_pairs``."""
        pairs = store.train_pairs
        kind = torch.arange(self.n_kinds, device=pairs.mask.device)
        pair, t = ((pairs.mask.unsqueeze(1) >> kind) & 1).nonzero(as_tuple=True)
        bag = pairs.user[pair] * self.n_kinds + t  # the sets of one user stand together
        order = bag.argsort(stable=True)
        length = torch.bincount(bag, minlength=self.user.num_embeddings * self.n_kinds)
        device = self.weight_T.device
        self.register_buffer("size_UT", length.view(-1, self.n_kinds).to(device), persistent=False)
        self.register_buffer(
            "start_UT",
            (length.cumsum(0) - length).view(-1, self.n_kinds).to(device),
            persistent=False,
        )
        self.register_buffer(
            "member", (t * self.V + pairs.item[pair])[order].to(device), persistent=False
        )
        self.register_buffer(
            "pair_key", (pairs.user * self.V + pairs.item).to(device), persistent=False
        )
        self.register_buffer("pair_mask", pairs.mask.to(device), persistent=False)

    def _members(self, user_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of y for all sets of the users, one after the other; the sets' sizes and where each begins, [B, T]."""
        if not hasattr(self, "member"):
            raise RecexpError(
                "MFPR scores from the users' training items: call bind(store) before the first use."
            )
        size_BT = self.size_UT[user_B]
        size, begin = size_BT.flatten(), size_BT.flatten().cumsum(0) - size_BT.flatten()
        entry = torch.repeat_interleave(self.start_UT[user_B].flatten() - begin, size)
        return (
            self.member[entry + torch.arange(len(entry), device=entry.device)],
            size_BT,
            begin.view_as(size_BT),
        )

    def score(self, query: Query, item_BC: Tensor | None = None) -> Tensor:
        """[B, C], or [B, V-1] where item_BC is None."""
        member, size_BT, begin_BT = self._members(query.user_B)
        sum_BTD = nn.functional.embedding_bag(
            member, self.implicit.weight, begin_BT.flatten(), mode="sum"
        )
        sum_BTD = sum_BTD.view(*size_BT.shape, -1)
        p_BD = self.user(query.user_B)
        if not self.training or item_BC is None:
            share_BT = self.weight_T * size_BT.clamp_min(1).to(p_BD.dtype).rsqrt()
            return inner_product(
                p_BD + (share_BT.unsqueeze(-1) * sum_BTD).sum(1),
                self.item.weight,
                self.item_bias,
                item_BC,
            )
        q_BCD = self.item(item_BC)
        own_BCT = self._own(query.user_B, item_BC)
        y_BCTD = self.implicit(
            item_BC.unsqueeze(-1) + self.V * torch.arange(self.n_kinds, device=item_BC.device)
        )
        rest_BCT = torch.einsum("bcd,btd->bct", q_BCD, sum_BTD) - own_BCT * torch.einsum(
            "bcd,bctd->bct", q_BCD, y_BCTD
        )
        share_BCT = (
            self.weight_T * (size_BT.unsqueeze(1) - own_BCT).clamp_min(1).to(p_BD.dtype).rsqrt()
        )
        taste_BC = row_dot(q_BCD, p_BD) + self.item_bias[item_BC]
        return taste_BC + (share_BCT * rest_BCT).sum(-1)

    def _own(self, user_B: Tensor, item_BC: Tensor) -> Tensor:
        """1 where the candidate is in the user's set of the kind, int64 [B, C, T]."""
        key_BC = user_B.unsqueeze(1) * self.V + item_BC
        place_BC = torch.searchsorted(self.pair_key, key_BC).clamp_max(len(self.pair_key) - 1)
        mask_BC = torch.where(self.pair_key[place_BC] == key_BC, self.pair_mask[place_BC], 0)
        return (mask_BC.unsqueeze(-1) >> torch.arange(self.n_kinds, device=item_BC.device)) & 1

    def logits(self, query: Query, item_BC: Tensor) -> Tensor:
        """The score as the only behaviour's logit: z_BC1."""
        return self.score(query, item_BC).unsqueeze(-1)

    def penalty(self, query: Query, item_BC: Tensor) -> Tensor:
        """Mean square of the embeddings looked up, those of the users' items included."""
        members = self.implicit(self._members(query.user_B)[0])
        return mean_square(self.user(query.user_B), self.item(item_BC), members)
