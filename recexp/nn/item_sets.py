"""Sums of the rows of a table over the items of sets, each set of norm 1."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class ItemSets(NamedTuple):
    """The distinct items of B histories, one after another: M items in all.

    weight_M: 1 / sqrt(size) of the item's set. start_B: where each set begins.
    """

    item_M: Tensor
    weight_M: Tensor
    start_B: Tensor

    def sums(self, table_VD: Tensor) -> Tensor:
        """Weighted sums of the items' rows, [B, D]; 0 for the empty set."""
        return F.embedding_bag(
            self.item_M,
            table_VD,
            self.start_B,
            mode="sum",
            per_sample_weights=self.weight_M.to(table_VD.dtype),
        )


def item_sets(item_BL: Tensor, dtype: torch.dtype) -> ItemSets:
    """item_BL: histories; 0 is no item. dtype: of the weights."""
    item_BL = item_BL.sort(dim=1).values
    is_first_BL = item_BL != F.pad(item_BL, (1, 0))[:, :-1]  # so 0, padding, is not
    size_B = is_first_BL.sum(1)
    row_M = torch.repeat_interleave(torch.arange(len(size_B), device=size_B.device), size_B)
    weight_M = size_B.clamp(min=1).to(dtype).rsqrt()[row_M]
    return ItemSets(item_BL[is_first_BL], weight_M, size_B.cumsum(0) - size_B)


def dense_sums(item_BL: Tensor, table_VD: Tensor) -> Tensor:
    """``item_sets(item_BL).sums(table_VD)`` in operations that an exported graph can have."""
    x_BV = table_VD.new_zeros(item_BL.shape[0], len(table_VD)).scatter(1, item_BL, 1.0)
    x_BV = torch.cat([torch.zeros_like(x_BV[:, :1]), x_BV[:, 1:]], dim=1)
    return (x_BV @ table_VD) * x_BV.sum(1, keepdim=True).clamp(min=1).rsqrt()
