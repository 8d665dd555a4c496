"""What models need to become graphs of ``torch.export`` (``recexp.runs.graph``).

A graph is fixed before its inputs are known: a Python loop enters it once per step, and sizes that
come out of the data cannot.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

# Floats of a row of the batch in the widest layer while a graph scores: 4 MB.
ROW_BLOCK = 1 << 20


class Foldable(nn.Module):
    """Has a part that follows from ids, parameters and training data alone.

    A graph may not be able to compute it: sums over bags have as many terms as the data say.
    ``fold`` computes it for all ids.
    """

    folded: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("folded", None, persistent=False)

    def fold(self) -> None:
        """Keep that part in ``folded``, a row per id, and drop what only it needs.

        From now on the module can only be evaluated.
        """
        raise NotImplementedError


def fold_all(module: nn.Module) -> None:
    """``Foldable.fold`` of this module and of its parts."""
    if isinstance(module, Foldable):
        module.fold()
    for child in module.children():
        fold_all(child)


def score_catalog(score: Callable[[Tensor], Tensor], n_items: int, width: int) -> Tensor:
    """Scores [B, V-1] of all items, so few at a time that items * width floats fit a block.

    score: takes item ids [C] that all rows share, and returns [B, C].
    """
    size = max(1, ROW_BLOCK // max(1, width))
    if n_items <= size:
        return score(torch.arange(1, n_items + 1))
    from torch._higher_order_ops.scan import scan  # one node of the graph, in ONNX too

    n_blocks = -(-n_items // size)
    size = -(-n_items // n_blocks)
    # The last block is filled up with the last item. N blocks.
    item_NC = torch.arange(1, n_blocks * size + 1).clamp(max=n_items).view(n_blocks, size)
    unused = torch.zeros(1)  # a scan has a state
    _, score_NBC = scan(lambda state, item_C: (state.clone(), score(item_C)), unused, item_NC)
    return score_NBC.transpose(0, 1).flatten(1)[:, :n_items]


def recurrent_states(
    step: Callable[[Tensor, Tensor], Tensor], x_BLG: Tensor, mask_BL: Tensor, width: int
) -> Tensor:
    """States [B, L, D] of a recurrent layer, zero until a row's first event.

    step: the next state [B, D], from an input [B, G] and the last state.
    """
    from torch._higher_order_ops.scan import scan

    def advance(h_BD: Tensor, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x_BG, real_B1 = inputs
        h_BD = step(x_BG, h_BD) * real_B1
        return h_BD, h_BD.clone()

    start_BD = x_BLG.new_zeros(x_BLG.shape[0], width)
    real_LB1 = mask_BL.transpose(0, 1)[..., None].to(x_BLG.dtype)
    _, h_LBD = scan(advance, start_BD, (x_BLG.transpose(0, 1), real_LB1))
    return h_LBD.transpose(0, 1)
