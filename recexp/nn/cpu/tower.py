"""Scores of all pairs of a user and an item by a ReLU tower, for inference on CPUs.

A new tensor for each sum, bias and ReLU costs more than computing it. Each thread works on blocks
of its own, by ``torch.mm`` into memory that it writes over and over. oneDNN's convolution, which
makes a tensor for every product, takes longer: ``docs/results/speed``.

Extra shape symbols: b users and c items of one block, P their pairs, W width of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recexp.nn.cpu.threads import map_in_threads

# Pairs of one block. Small blocks call more operators; what is written in large ones leaves the
# processor's cache before it is read.
BLOCK = 4096
# Blocks that a thread takes at a time.
BLOCKS_PER_TURN = 8


def tower_dot(
    layers: Sequence[nn.Linear], left_BW: Tensor, right_CW: Tensor, weight: Tensor
) -> Tensor:
    """Inner products of ``weight`` with relu(layer(... relu(left + right))), [B, C], no gradient.

    layers: those after the first one, whose two parts left and right are. All of one type.

    Every step uses relu(x + s) = max(x, -s) + s, where s is the same for all items of a user: the
    tower without activations, applied to the left part. The sums "+ s" are thereby never computed
    for pairs: the next layer takes them into its own s.

    Where the number of items is no multiple of 4, the last ones may be rounded otherwise than equal
    items before them: the library of the products has another loop for them.
    """
    shifts = [left_BW]
    for layer in layers:
        shifts.append(layer(shifts[-1]))
    floors = [-shift for shift in shifts]
    weights = [layer.weight.T for layer in layers]
    out_BC = left_BW.new_empty(len(left_BW), len(right_CW))
    n_items = max(1, min(BLOCK, len(right_CW)))
    n_users = max(1, BLOCK // n_items)

    def score(users: range) -> None:
        """Fill the rows of the users, in blocks."""
        buffers = [left_BW.new_empty(n_users * n_items, floor.shape[1]) for floor in floors]
        for start in users:
            rows = slice(start, start + n_users)
            for first in range(0, len(right_CW), n_items):
                columns = slice(first, first + n_items)
                out_bc = out_BC[rows, columns]
                x_PW = buffers[0][: out_bc.numel()]
                x_bcW = x_PW.view(*out_bc.shape, -1)
                torch.maximum(right_CW[columns], floors[0][rows, None], out=x_bcW)
                for weight_WV, floor_BW, buffer_PW in zip(
                    weights, floors[1:], buffers[1:], strict=True
                ):
                    x_PW = torch.mm(x_PW, weight_WV, out=buffer_PW[: out_bc.numel()])
                    x_bcW = x_PW.view(*out_bc.shape, -1)
                    torch.maximum(x_bcW, floor_BW[rows, None], out=x_bcW)
                out_bc.copy_(x_bcW @ weight)

    starts = range(0, len(left_BW), n_users)
    turns = range(0, len(starts), BLOCKS_PER_TURN)
    map_in_threads(score, [starts[turn : turn + BLOCKS_PER_TURN] for turn in turns])
    return out_BC.add_((shifts[-1] @ weight)[:, None])
