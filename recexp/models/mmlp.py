"""M-MLP and MF+M-MLP: a branch per behavior over shared embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recexp.contracts import BranchMasked
from recexp.models.common import mean_square, score_in_chunks
from recexp.nn.lookup import Embedding, Rows
from recexp.nn.mlp import PairMLP
from recexp.nn.parameters import Depth, NonNegative, Width, require_positive
from recexp.types import Query, Schema


class MMLP(BranchMasked):
    """A tower ("branch") per behavior on [p_u; q_i], fused linearly, optionally joined with MF.

    phi^ML = W_M [o_1; ...; o_T] + b_M over the branch outputs o_t, weak to strong; the last one is
    the target's. Without mf_part (M-MLP) phi^ML is the logit. With it (MF+M-MLP) the logit is
    W_f [p^MF * q^MF; phi^ML] + b_f, and phi^ML is n_factors wide.

    A branch learns only from pairs on which the user showed its behavior: ``logits`` stops the
    gradient at the outputs of the other branches. The target's branch always learns. Values do not
    depend on the mask.

    n_factors: width d of the embeddings.
    n_layers: of a branch: 2d wide, then half of the previous one (2 layers: 2d -> 2d -> d).
    init_std: all weights and biases start at N(0, init_std^2).

    The multi-feedback paper (MF + multi-branch MLP). It leaves the widths open.

    Extra shape symbol: T behaviors of the data.
    """

    n_behaviors = 1

    def __init__(
        self,
        schema: Schema,
        *,
        n_factors: Width = 4,
        n_layers: Depth = 2,
        mf_part: bool = True,
        init_std: NonNegative = 0.01,
    ) -> None:
        super().__init__()
        require_positive(n_factors=n_factors, n_layers=n_layers)
        d = n_factors
        widths = [2 * d, *(max(1, 2 * d >> k) for k in range(n_layers))]
        n_branches = len(schema.behaviors)
        self.n_items = schema.n_items
        self.user = Embedding(schema.n_users, d)
        self.item = Embedding(schema.V, d, padding_idx=0)
        self.branches = nn.ModuleList(PairMLP(widths) for _ in range(n_branches))
        self.fusion = nn.Linear(n_branches * widths[-1], d if mf_part else 1)
        self.mf_user = Embedding(schema.n_users, d) if mf_part else None
        self.mf_item = Embedding(schema.V, d, padding_idx=0) if mf_part else None
        self.head = nn.Linear(2 * d, 1) if mf_part else None
        self.widest = n_branches * widths[1]  # of the vectors computed per pair
        self._active: list[Tensor] = []
        self._init(init_std)

    @torch.no_grad()
    def _init(self, std: float) -> None:
        for parameter in self.parameters():
            parameter.normal_(0.0, std)
        for table in (self.item, self.mf_item):
            if table is not None:
                table.weight[0] = 0.0

    def _logit(self, query: Query, item: Tensor, branch_mask_BCT: Tensor | None = None) -> Tensor:
        """[B, C] of items [B, C], or [C] shared by all rows."""
        outputs = self._branch_outputs(query, item)
        if self.training:
            self._active = [(output.detach() > 0).float().mean() for output in outputs]
        if branch_mask_BCT is not None:
            masks = branch_mask_BCT.bool().unsqueeze(-1).unbind(2)
            # The last branch is the target's, which always learns.
            for t, output in enumerate(outputs[:-1]):
                outputs[t] = torch.where(masks[t], output, output.detach())
        phi = self.fusion(torch.cat(outputs, dim=-1))
        if self.head is None or self.mf_user is None or self.mf_item is None:
            return phi.squeeze(-1)
        mf_weight, ml_weight = self.head.weight.squeeze(0).chunk(2)
        mf_part = Rows(self.mf_item, item).dot(self.mf_user(query.user_B) * mf_weight)
        return mf_part + phi @ ml_weight + self.head.bias

    def _branch_outputs(self, query: Query, item: Tensor) -> list[Tensor]:
        """o_1 .. o_T, each [B, C, width of the last layer]."""
        users = Rows(self.user, query.user_B)
        items = Rows(self.item, item)
        outputs = []
        for branch in self.branches:
            assert isinstance(branch, PairMLP)
            left = users.through(branch.left).unsqueeze(1)
            outputs.append(branch.join(left, items.through(branch.right)))
        return outputs

    def score(self, query: Query, item_BC: Tensor | None = None) -> Tensor:
        return score_in_chunks(
            lambda item: self._logit(query, item), query, item_BC, self.widest, self.n_items
        )

    def logits(
        self, query: Query, item_BC: Tensor, branch_mask_BCT: Tensor | None = None
    ) -> Tensor:
        """The logit of the only behavior, z_BC1.

        branch_mask_BCT: 1 where the user showed behavior t (weak to strong) on the item; None lets
        every branch learn.
        """
        return self._logit(query, item_BC, branch_mask_BCT).unsqueeze(-1)

    def diagnostics(self) -> dict[str, Tensor]:
        """Share of each branch's outputs above 0 in the latest training step.

        With d = 4 and weights of N(0, 0.01^2), branches die.
        """
        return {f"active_branch_{t}": share for t, share in enumerate(self._active)}

    def item_embeddings(self) -> Tensor:
        return self.item.weight[1:]

    def penalty(self, query: Query, item_BC: Tensor) -> Tensor:
        vectors = [self.user(query.user_B), self.item(item_BC)]
        if self.mf_user is not None and self.mf_item is not None:
            vectors += [self.mf_user(query.user_B), self.mf_item(item_BC)]
        return mean_square(*vectors)
