"""Feed-forward towers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from recexp.nn.cpu.tower import tower_dot
from recexp.nn.dropout import Dropout


class _Tower(nn.Module):
    """Linear layers of the given widths, input width first, with an activation after each one.

    activation: ReLU where None. last: whether it also follows the last layer.
    dropout: on the input of every layer.
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
        # In place: its input is a sum or a product, whose own gradients do not need the value.
        self.activation = activation or nn.ReLU(inplace=True)
        self.last = last
        self.dropout = Dropout(dropout)

    def _run_from(self, start: int, x: Tensor) -> Tensor:
        """The layers from number ``start`` on."""
        for i in range(start, len(self.layers)):
            x = self._activate(i, self.layers[i](self.dropout(x)))
        return x

    def _activate(self, layer: int, x: Tensor) -> Tensor:
        if self.last or layer + 1 < len(self.layers):
            return self.activation(x)
        return x


class MLP(_Tower):
    """A tower with one input [..., widths[0]] and output [..., widths[-1]]."""

    def forward(self, x: Tensor) -> Tensor:
        return self._run_from(0, x)


class PairMLP(_Tower):
    """A tower on the concatenation [left; right] of two inputs that broadcast against each other.

    left [..., a] and right [..., widths[0] - a]; output [..., widths[-1]]. The first layer is
    computed for each input alone and then added. That equals concatenating them but costs
    rows(left) + rows(right) instead of rows(left) * rows(right).
    """

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.join(self.left(left), self.right(right))

    def left(self, x: Tensor) -> Tensor:
        """The left input's part of the first layer, with the bias."""
        weight = self._first.weight[:, : x.shape[-1]]
        return F.linear(self.dropout(x), weight, self._first.bias)

    def right(self, x: Tensor) -> Tensor:
        """The right input's part of the first layer."""
        return F.linear(self.dropout(x), self._first.weight[:, -x.shape[-1] :])

    def join(self, left: Tensor, right: Tensor) -> Tensor:
        """The tower's output, from both parts of the first layer."""
        return self._run_from(1, self._activate(0, left + right))

    def dot_all(self, left_BW: Tensor, right_CW: Tensor, weight: Tensor) -> Tensor:
        """Inner products of ``weight`` with the outputs of all pairs of rows, [B, C].

        From both parts of the first layer. Without gradients, without dropout, on a CPU, in a
        tower of ReLUs, where it holds one block of pairs at a time.
        """
        rest = [cast(nn.Linear, layer) for layer in self.layers[1:]]
        return tower_dot(rest, left_BW, right_CW, weight)

    @property
    def _first(self) -> nn.Linear:
        return cast(nn.Linear, self.layers[0])
