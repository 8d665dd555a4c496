"""Tables looked up, and inner products with what is looked up, as fast as a CPU can."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

BLOCK = (
    2**17
)  # floats looked up at a time, half a megabyte: products and their gradients find them in the cache
NARROW = 8  # columns


def row_dot(many_BCD: Tensor, one_BD: Tensor) -> Tensor:
    """[B, C]: each row's vector with each of that row's C vectors."""
    if (
        many_BCD.device.type == "cpu"
    ):  # a batched product of matrices this thin takes two to four times as long there
        return (many_BCD * one_BD[:, None]).sum(-1)
    return (many_BCD @ one_BD[:, :, None]).squeeze(-1)


def table_dot(one_BD: Tensor, table_VD: Tensor, index_BC: Tensor) -> Tensor:
    """[B, C]: ``row_dot`` with rows of a table. Row 0 is padding, which learns nothing."""
    if table_VD.device.type == "cpu" and table_VD.dtype == one_BD.dtype:
        return _TableDot.apply(one_BD, table_VD, index_BC)
    return row_dot(F.embedding(index_BC, table_VD, padding_idx=0), one_BD)


class _TableDot(torch.autograd.Function):
    """Tile by tile, nothing of the rows looked up being kept: looking them up again is cheaper than memory."""

    @staticmethod
    def forward(ctx, one_BD: Tensor, table_VD: Tensor, index_BC: Tensor) -> Tensor:
        ctx.save_for_backward(one_BD, table_VD, index_BC)
        out = one_BD.new_empty(index_BC.shape)
        for tile in _tiles(index_BC, one_BD):
            torch.sum(
                F.embedding(index_BC[tile], table_VD).mul_(_beside(one_BD, tile)), -1, out=out[tile]
            )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_BC: Tensor):
        one_BD, table_VD, index_BC = ctx.saved_tensors
        d_one = torch.zeros_like(one_BD) if ctx.needs_input_grad[0] else None
        d_table = torch.zeros_like(table_VD) if ctx.needs_input_grad[1] else None
        for tile in _tiles(index_BC, one_BD):
            grad, index = grad_BC[tile].unsqueeze(-1), index_BC[tile]
            if d_one is not None:
                d_many = F.embedding(index, table_VD).mul_(grad)
                d_one[tile[0]] += d_many if d_many.ndim == 2 else d_many.sum(1)
            if d_table is not None:
                d_table.index_add_(
                    0, index.flatten(), (grad * _beside(one_BD, tile)).flatten(0, -2)
                )
        if d_table is not None:
            d_table[0] = 0
        return d_one, d_table, None


def _tiles(index_BC: Tensor, one_BD: Tensor) -> list[tuple[slice, int | slice]]:
    """(rows, columns) of index_BC. Of few columns one at a time: sums and products over a short dimension in the middle are slow."""
    (B, C), D = index_BC.shape, one_BD.shape[1]
    columns = range(C) if C <= NARROW else [slice(None)]
    size = max(1, BLOCK // max(1, D * (1 if C <= NARROW else C)))
    return [
        (slice(start, start + size), column) for start in range(0, B, size) for column in columns
    ]


def _beside(one_BD: Tensor, tile: tuple[slice, int | slice]) -> Tensor:
    """The rows' own vectors, in a shape that multiplies the tile's [..., D]."""
    rows, column = tile
    return one_BD[rows] if isinstance(column, int) else one_BD[rows, None]


class Embedding(nn.Embedding):
    """torch's, whose gradient a CPU adds up in a fifth of the time."""

    def forward(self, index: Tensor) -> Tensor:
        if (
            self.weight.device.type == "cpu"
            and self.weight.requires_grad
            and torch.is_grad_enabled()
        ):
            return _LookUp.apply(self.weight, index, self.padding_idx)
        return super().forward(index)


class Rows:
    """Rows of a table, ids of any shape, and what is computed from them."""

    def __init__(self, table: Embedding, id: Tensor) -> None:
        self.table, self.id = table, id

    @cached_property
    def vectors(self) -> Tensor:
        """[..., D]"""
        return self.table(self.id)

    def through(self, f: Callable[[Tensor], Tensor]) -> Tensor:
        """f of the vectors, where f deals with each alone and leaves nothing to chance: of the whole table, if that is fewer."""
        if self.id.numel() <= self.table.num_embeddings:
            return f(self.vectors)
        return _LookUp.apply(f(self.table.weight), self.id, self.table.padding_idx)

    def dot(self, one_BD: Tensor) -> Tensor:
        """Inner products [B, C] of ids [B, C], or [C] shared by all rows."""
        return (
            one_BD @ self.vectors.T
            if self.id.dim() == 1
            else table_dot(one_BD, self.table.weight, self.id)
        )


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, table_VD: Tensor, index: Tensor, padding: int | None) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape, ctx.padding = table_VD.shape, padding
        return F.embedding(index, table_VD)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        (index,) = ctx.saved_tensors
        exact = torch.promote_types(
            grad.dtype, torch.float32
        )  # a GPU adds bfloat16 one by one, and 256 + 1 is 256 there
        d_table = grad.new_zeros(ctx.shape, dtype=exact).index_add_(
            0, index.flatten(), grad.flatten(0, -2).to(exact)
        )
        if ctx.padding is not None:
            d_table[ctx.padding] = 0
        return d_table.to(grad.dtype), None, None
