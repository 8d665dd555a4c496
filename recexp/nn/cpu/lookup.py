"""Rows of tables, and inner products with them, on CPUs.

Inner products with 16 384 x 2 rows of a table: 21.2 / 11.0 ms. A batched product of matrices this
thin is slow, and rows looked up block by block stay in the processor's cache.
The gradient of a lookup by ``index_add_``: 11.5 / 12.0 ms. It was faster than torch's when it was
written and is not with torch 2.13; it stays because another order of summation changes results.
Measured by ``python tests/perf/kernels.py lookup``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Floats looked up at a time: half a megabyte, so that they are in the cache for their products.
BLOCK = 2**17
NARROW = 8  # columns up to which one column is computed at a time


def row_dot(many_BCD: Tensor, one_BD: Tensor) -> Tensor:
    """[B, C]: inner products of each row's C vectors with the row's own vector."""
    if many_BCD.device.type == "cpu":
        return (many_BCD * one_BD[:, None]).sum(-1)
    return (many_BCD @ one_BD[:, :, None]).squeeze(-1)


def table_dot(one_BD: Tensor, table_VD: Tensor, index_BC: Tensor, sparse: bool = False) -> Tensor:
    """[B, C]: ``row_dot`` with rows of a table. Row 0 is padding and gets no gradient.

    sparse: the table's gradient is sparse, as by ``look_up``.
    """
    if table_VD.device.type == "cpu" and table_VD.dtype == one_BD.dtype:
        sparse = sparse and index_BC.numel() <= len(table_VD)
        return _TableDot.apply(one_BD, table_VD, index_BC, sparse)
    return row_dot(F.embedding(index_BC, table_VD, padding_idx=0), one_BD)


def look_up(table_VD: Tensor, index: Tensor, padding: int | None, sparse: bool = False) -> Tensor:
    """Rows of a table, [..., D].

    padding: a row that gets no gradient. sparse: the gradient is a sparse tensor of the rows of
    index, with a row as often as index has it. In half precision, and where index is longer than
    the table, it is dense nevertheless.
    """
    return _LookUp.apply(table_VD, index, padding, sparse and index.numel() <= len(table_VD))


class _TableDot(torch.autograd.Function):
    """Tile by tile. Looked-up rows are not kept: looking them up again costs less than memory."""

    @staticmethod
    def forward(
        ctx: Any, one_BD: Tensor, table_VD: Tensor, index_BC: Tensor, sparse: bool
    ) -> Tensor:
        ctx.save_for_backward(one_BD, table_VD, index_BC)
        ctx.sparse = sparse
        out_BC = one_BD.new_empty(index_BC.shape)
        for tile in _tiles(index_BC, one_BD):
            products = F.embedding(index_BC[tile], table_VD).mul_(_own_vectors(one_BD, tile))
            torch.sum(products, -1, out=out_BC[tile])
        return out_BC

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BC: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        one_BD, table_VD, index_BC = ctx.saved_tensors
        d_one = torch.zeros_like(one_BD) if ctx.needs_input_grad[0] else None
        d_table = d_rows_BCD = None
        if ctx.needs_input_grad[1] and ctx.sparse:
            d_rows_BCD = one_BD.new_empty(*index_BC.shape, one_BD.shape[1])
        elif ctx.needs_input_grad[1]:
            d_table = torch.zeros_like(table_VD)
        for tile in _tiles(index_BC, one_BD):
            grad = grad_BC[tile].unsqueeze(-1)
            index = index_BC[tile]
            if d_one is not None:
                d_many = F.embedding(index, table_VD).mul_(grad)
                d_one[tile[0]] += d_many if d_many.ndim == 2 else d_many.sum(1)
            if d_rows_BCD is not None:
                d_rows_BCD[tile] = grad * _own_vectors(one_BD, tile)
            if d_table is not None:
                d_rows = (grad * _own_vectors(one_BD, tile)).flatten(0, -2)
                d_table.index_add_(0, index.flatten(), d_rows)
        if d_table is not None:
            d_table[0] = 0
        if d_rows_BCD is not None:
            rows = d_rows_BCD.flatten(0, 1)
            d_table = _sparse_rows(index_BC.flatten(), rows, table_VD.shape, padding=0)
        return d_one, d_table, None, None


def _tiles(index_BC: Tensor, one_BD: Tensor) -> list[tuple[slice, int | slice]]:
    """(rows, columns) of index_BC that are computed together.

    Of few columns one at a time: sums and products over a short middle dimension are slow.
    """
    n_rows, n_columns = index_BC.shape
    width = one_BD.shape[1]
    columns: list[int | slice] = [slice(None)]
    if n_columns <= NARROW:
        columns = list(range(n_columns))
        n_columns = 1
    size = max(1, BLOCK // max(1, width * n_columns))
    rows = [slice(start, start + size) for start in range(0, n_rows, size)]
    return [(row, column) for row in rows for column in columns]


def _own_vectors(one_BD: Tensor, tile: tuple[slice, int | slice]) -> Tensor:
    """The rows' own vectors, in a shape that broadcasts with the tile's [..., D]."""
    rows, column = tile
    return one_BD[rows] if isinstance(column, int) else one_BD[rows, None]


class _LookUp(torch.autograd.Function):
    """A lookup whose gradient is one ``index_add_``, or sparse."""

    @staticmethod
    def forward(
        ctx: Any, table_VD: Tensor, index: Tensor, padding: int | None, sparse: bool
    ) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape = table_VD.shape
        ctx.padding = padding
        ctx.sparse = sparse
        return F.embedding(index, table_VD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (index,) = ctx.saved_tensors
        index_M = index.flatten()
        d_rows_MD = grad.flatten(0, -2)
        # float32 at least: a GPU adds bfloat16 terms one by one, and 256 + 1 is 256 in bfloat16.
        exact = torch.promote_types(grad.dtype, torch.float32)
        if ctx.sparse and grad.dtype == exact:
            return _sparse_rows(index_M, d_rows_MD, ctx.shape, ctx.padding), None, None, None
        d_table = grad.new_zeros(ctx.shape, dtype=exact)
        d_table.index_add_(0, index_M, d_rows_MD.to(exact))
        if ctx.padding is not None:
            d_table[ctx.padding] = 0
        return d_table.to(grad.dtype), None, None, None


def _sparse_rows(
    index_M: Tensor, rows_MD: Tensor, shape: torch.Size, padding: int | None
) -> Tensor:
    """A sparse tensor of this shape from rows [M, D] without those of the padding."""
    if padding is not None:
        real_M = index_M != padding
        if not real_M.all():
            index_M, rows_MD = index_M[real_M], rows_MD[real_M]
    return torch.sparse_coo_tensor(index_M[None], rows_MD, shape, check_invariants=False)
