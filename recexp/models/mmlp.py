"""M-MLP and MF+M-MLP: a branch per behaviour over shared embeddings (S001; specification §5.1, §5.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recexp.contracts import BranchMasked
from recexp.models.mf import mean_square, require_positive
from recexp.models.neumf import in_chunks
from recexp.nn.cpu.lookup import Embedding, Rows
from recexp.nn.mlp import PairMLP
from recexp.types import Query, Schema


class MMLP(BranchMasked):
    """One tower ("branch") per behaviour on [p_u; q_i], fused linearly, optionally joined with a matrix factorisation part.

    phi^ML = W_M [o_1; ...; o_T] + b_M over the branch outputs o_t (weak to strong, the last one being the target's). Without
    mf_part (M-MLP) phi^ML is the logit; with it (MF+M-MLP) the logit is W_f [p^MF * q^MF; phi^ML] + b_f, phi^ML being
    num_factors wide.

    A branch is to learn only from pairs on which the user showed its behaviour. In training, ``logits`` therefore takes the
    pair's behaviours as a mask and stops the gradient at the outputs of the other branches; the target's branch always learns.
    Values never depend on the mask. All weights and biases start at N(0, init_std^2).

    The paper leaves the widths open. Layers of a branch: 2d wide, then half the previous one (2 layers: 2d -> 2d -> d).
    """

    n_behaviours = 1

    def __init__(
        self,
        schema: Schema,
        *,
        num_factors: int = 4,
        num_layers: int = 2,
        mf_part: bool = True,
        init_std: float = 0.01,
    ) -> None:
        super().__init__()
        require_positive(num_factors=num_factors, num_layers=num_layers)
        d = num_factors
        widths = [2 * d, *(max(1, 2 * d >> k) for k in range(num_layers))]
        n_branches = len(schema.behaviours)
        self.user = Embedding(schema.n_users, d)
        self.item = Embedding(schema.V, d, padding_idx=0)
        self.branches = nn.ModuleList(PairMLP(widths) for _ in range(n_branches))
        self.fusion = nn.Linear(n_branches * widths[-1], d if mf_part else 1)
        self.mf_user = Embedding(schema.n_users, d) if mf_part else None
        self.mf_item = Embedding(schema.V, d, padding_idx=0) if mf_part else None
        self.head = nn.Linear(2 * d, 1) if mf_part else None
        self.widest = n_branches * widths[1]
        self._active: list[Tensor] = []
        with torch.no_grad():
            for x in self.parameters():
                x.normal_(0.0, init_std)
            for table in (self.item, self.mf_item):
                if table is not None:
                    table.weight[0] = 0.0

    def _logit(self, query: Query, item: Tensor, branch_mask_BCT: Tensor | None = None) -> Tensor:
        users, items = Rows(self.user, query.user_B), Rows(self.item, item)
        outputs = [
            branch.join(users.through(branch.left).unsqueeze(1), items.through(branch.right))
            for branch in self.branches
        ]
        if self.training:
            self._active = [(o.detach() > 0).float().mean() for o in outputs]
        if branch_mask_BCT is not None:
            masks = branch_mask_BCT.bool().unsqueeze(-1).unbind(2)[:-1]
            outputs = [
                *(torch.where(m, o, o.detach()) for m, o in zip(masks, outputs[:-1], strict=True)),
                outputs[-1],
            ]
        phi = self.fusion(torch.cat(outputs, dim=-1))
        if self.head is None:
            return phi.squeeze(-1)
        w_mf, w_ml = self.head.weight.squeeze(0).chunk(2)
        return (
            Rows(self.mf_item, item).dot(self.mf_user(query.user_B) * w_mf)
            + phi @ w_ml
            + self.head.bias
        )

    def score(self, query: Query, item_BC: Tensor | None = None) -> Tensor:
        """[B, C], or [B, V-1] where item_BC is None."""
        n_items = self.item.num_embeddings - 1
        return in_chunks(
            lambda item: self._logit(query, item), query, item_BC, self.widest, n_items
        )

    def logits(
        self, query: Query, item_BC: Tensor, branch_mask_BCT: Tensor | None = None
    ) -> Tensor:
        """The only behaviour's logit z_BC1.

        branch_mask_BCT: 1 where the user showed behaviour t (weak to strong) on the item; None lets every branch learn.
        """
        return self._logit(query, item_BC, branch_mask_BCT).unsqueeze(-1)

    def diagnostics(self) -> dict[str, Tensor]:
        """Share of each branch's outputs that its last ReLU let through in the latest training step: at d = 4 and N(0, 0.01^2) branches die."""
        return {f"active_branch_{t}": share for t, share in enumerate(self._active)}

    def penalty(self, query: Query, item_BC: Tensor) -> Tensor:
        """Mean square of the embeddings looked up."""
        vectors = [self.user(query.user_B), self.item(item_BC)]
        if self.head is not None:
            vectors += [self.mf_user(query.user_B), self.mf_item(item_BC)]
        return mean_square(*vectors)
