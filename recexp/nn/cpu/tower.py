"""Scores of all pairs of a user and an item by a ReLU tower, for inference on CPUs.

NeuMF with layers 256 -> 128 -> 64 ranks 6 040 users by 3 416 items: BEFORE_AFTER. Layer by layer, a
sum, a bias and a ReLU each read and write what the matrix product alone would need once.
Measured by ``python tests/perf/kernels.py tower``.

Extra shape symbols: b users of one block, c items of one block, W width of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

# Pairs of one block. In small blocks the threads wait for each other more often; what is written in
# large ones leaves the processor's cache before it is read.
BLOCK = 8192


def tower_dot(
    layers: Sequence[nn.Linear], left_BW: Tensor, right_CW: Tensor, weight: Tensor
) -> Tensor:
    """Inner products of ``weight`` with relu(layer(... relu(left + right))), [B, C], no gradient.

    layers: those after the first one, whose two parts left and right are. All of one type.

    Every step uses relu(x + s) = max(x, -s) + s, where s is the same for all items of a user: the
    tower without activations, applied to the left part. The sums "+ s" are thereby never computed
    for pairs: the next layer takes them into its own s.
    """
    shifts = [left_BW]
    for layer in layers:
        shifts.append(layer(shifts[-1]))
    floors = [-shift for shift in shifts]
    out_BC = left_BW.new_empty(len(left_BW), len(right_CW))
    n_items = min(BLOCK, len(right_CW))
    n_users = max(1, BLOCK // max(1, n_items))
    buffers = [left_BW.new_empty(n_users * n_items, shift.shape[-1]) for shift in shifts]
    for out_Bc, right_cW in zip(out_BC.split(n_items, 1), right_CW.split(n_items), strict=True):
        for start in range(0, len(left_BW), n_users):
            rows = slice(start, start + n_users)
            blocks = [floor[rows] for floor in floors]
            out_Bc[rows] = _block_dot(layers, blocks, right_cW, weight, buffers)
    return out_BC.add_((shifts[-1] @ weight)[:, None])


def _block_dot(
    layers: Sequence[nn.Linear],
    floors: list[Tensor],
    right_cW: Tensor,
    weight: Tensor,
    buffers: list[Tensor],
) -> Tensor:
    """Inner products of ``weight`` with the tower's outputs minus the last s, [b, c].

    floors: -s of each layer, [b, W]. buffers: room for each layer's outputs, [at least b c, W].
    """
    shape = (len(floors[0]), len(right_cW))
    x_bcW = right_cW
    for i, (floor_bW, buffer) in enumerate(zip(floors, buffers, strict=True)):
        out = buffer[: shape[0] * shape[1]]
        out_bcW = out.view(*shape, floor_bW.shape[-1])
        if i > 0:
            torch.mm(x_bcW.flatten(0, 1), layers[i - 1].weight.T, out=out)
            x_bcW = out_bcW
        x_bcW = torch.maximum(x_bcW, floor_bW[:, None], out=out_bcW)
    return x_bcW @ weight
