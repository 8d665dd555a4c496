"""Models that compute something simple enough to redo by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recexp.contracts import Encoder, MultiBehavior


class PairScores(MultiBehavior):
    """Logits z_BCK looked up in a table of random numbers per (user, item)."""

    def __init__(self, n_users: int, V: int, n_behaviors: int = 1, history: int = 0):
        super().__init__()
        self.history, self.n_behaviors = history, n_behaviors
        self.table = nn.Parameter(
            torch.randn(n_users, V, n_behaviors, generator=torch.Generator().manual_seed(0))
        )

    def logits(self, query, item_BC: Tensor) -> Tensor:
        return self.table[query.user_B[:, None], item_BC]

    def score(self, query, item_BC: Tensor | None = None) -> Tensor:
        return self.logits(query, item_BC)[..., -1]

    def penalty(self, query, item_BC: Tensor) -> Tensor:
        return self.logits(query, item_BC).square().mean()


class RunningSum(Encoder):
    """A causal encoder: the state at a position is the sum of the item vectors up to it."""

    def __init__(
        self, V: int, history: int, width: int = 4, *, bias: bool = True, one_state: bool = False
    ):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.history, self.one_state = history, one_state
        self.item = nn.Parameter(torch.randn(V + 1, width, generator=g, dtype=torch.float64))
        self.bias = nn.Parameter(torch.randn(V, generator=g, dtype=torch.float64)) if bias else None

    def encode(self, query) -> Tensor:
        h = (self.item[query.item_BL] * query.mask_BL[..., None]).cumsum(1)
        return h[:, -1:] if self.one_state else h

    def score(self, query, item_BC: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def item_vectors(self, item: Tensor | None = None):
        V = len(self.item) - 1
        item = torch.arange(1, V) if item is None else item
        return self.item[item], None if self.bias is None else self.bias[item]
