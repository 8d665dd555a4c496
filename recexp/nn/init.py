"""Starting values for weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def normal_embeddings(module: nn.Module, std: float | Tensor) -> None:
    """Every embedding table in the module ~ N(0, std^2), padding rows 0. std: a number, or a vector with one per column."""
    for table in module.modules():
        if isinstance(table, nn.Embedding):
            table.weight.normal_().mul_(
                torch.as_tensor(std, dtype=table.weight.dtype, device=table.weight.device)
            )
            if table.padding_idx is not None:
                table.weight[table.padding_idx] = 0


@torch.no_grad()
def xavier_linears(module: nn.Module) -> None:
    """Every linear layer in the module: Glorot uniform weights, zero bias."""
    for linear in module.modules():
        if isinstance(linear, nn.Linear):
            nn.init.xavier_uniform_(linear.weight)
            if linear.bias is not None:
                linear.bias.zero_()
