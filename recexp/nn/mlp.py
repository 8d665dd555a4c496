"""Feed-forward towers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from recexp.nn.cpu.dropout import Dropout


class MLP(nn.Module):
    """Linear layers of the given widths with an activation after each one.

    widths: input width first, e.g. (64, 32, 16). last: whether the activation also follows the last layer.
    dropout: on the input of every layer. Input [..., widths[0]], output [..., widths[-1]].
    """

    def __init__(
        self,
        widths: Sequence[int],
        activation: nn.Module | None = None,
        *,
        last: bool = True,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.activation = activation or nn.ReLU(
            inplace=True
        )  # of a sum or product, whose own gradients do not need it
        self.last = last
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self._from(0, x)

    def _from(self, start: int, x: Tensor) -> Tensor:
        for i in range(start, len(self.layers)):
            x = self.layers[i](self.dropout(x))
            x = self.activation(x) if self.last or i + 1 < len(self.layers) else x
        return x


class PairMLP(MLP):
    """An MLP on the concatenation [left; right], whose two inputs only need to broadcast against each other.

    The first layer is computed for left and right apart and then added, which equals concatenating them but costs
    rows(left) + rows(right) instead of rows(left) * rows(right). left [..., a] and right [..., widths[0] - a].
    """

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.join(self.left(left), self.right(right))

    def left(self, x: Tensor) -> Tensor:
        """What the left input adds to the first layer, with the bias."""
        return F.linear(
            self.dropout(x), self.layers[0].weight[:, : x.shape[-1]], self.layers[0].bias
        )

    def right(self, x: Tensor) -> Tensor:
        """What the right input adds to the first layer."""
        return F.linear(self.dropout(x), self.layers[0].weight[:, -x.shape[-1] :])

    def join(self, left: Tensor, right: Tensor) -> Tensor:
        """The output of what ``left`` and ``right`` give."""
        x = left + right
        x = self.activation(x) if self.last or len(self.layers) > 1 else x
        return self._from(1, x)
