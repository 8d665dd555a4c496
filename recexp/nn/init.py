"""Initial values of weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def normal_embeddings(module: nn.Module, std: float | Tensor) -> None:
    """Every embedding table in the module ~ N(0, std^2), padding rows 0.

    std: a number, or a vector with one number per column.
    """
    for table in module.modules():
        if isinstance(table, nn.Embedding):
            weight = table.weight
            weight.normal_().mul_(torch.as_tensor(std, dtype=weight.dtype, device=weight.device))
            if table.padding_idx is not None:
                weight[table.padding_idx] = 0


@torch.no_grad()
def xavier_linears(module: nn.Module) -> None:
    """Every linear layer in the module: weights Glorot uniform, biases 0."""
    for linear in module.modules():
        if isinstance(linear, nn.Linear):
            nn.init.xavier_uniform_(linear.weight)
            if linear.bias is not None:
                linear.bias.zero_()


@torch.no_grad()
def like_rows_of(table: nn.Embedding, *modules: nn.Module) -> None:
    """Every embedding table in the modules ~ U(-b, b), as rows of a table that is Glorot uniform.

    b^2 = 6 / (rows + columns) of that table: a small table of its own Glorot values would have
    much longer rows. Padding rows are 0.
    """
    bound = (6 / (table.num_embeddings + table.embedding_dim)) ** 0.5
    for module in modules:
        for part in module.modules():
            if isinstance(part, nn.Embedding):
                part.weight.uniform_(-bound, bound)
                if part.padding_idx is not None:
                    part.weight[part.padding_idx] = 0


@torch.no_grad()
def bert_init(module: nn.Module, std: float = 0.02) -> None:
    """BERT's initial values: embeddings and linear weights ~ N(0, std^2), truncated at 2 std.

    Padding rows and biases are 0. Devlin et al. 2019, arXiv:1810.04805, and its official code.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(part.weight, std=std, a=-2 * std, b=2 * std)
        if isinstance(part, nn.Linear) and part.bias is not None:
            part.bias.zero_()
        if isinstance(part, nn.Embedding) and part.padding_idx is not None:
            part.weight[part.padding_idx] = 0
