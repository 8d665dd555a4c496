"""Inner products with many rows of a table per vector, on CPUs.

Losses over hundreds of drawn items per position take them. The rows are never copied: the products
are the entries of a sparse matrix, and both gradients are weighted sums of rows.

    2 560 vectors, 256 of 3 416 rows each, width 64     303.4 / 24.7 ms
    2 560 vectors, 256 of 3 416 rows each, width 128    575.8 / 33.6 ms

Measured by ``python tests/perf/kernels.py many_rows``.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from recexp.nn.cpu.lookup import row_dot

WHOLE = (torch.float32, torch.float64)  # what sparse products of a CPU take


def catalog_dot(h_ND: Tensor, table_VD: Tensor, index_Nn: Tensor) -> Tensor:
    """[N, n]: inner products of each vector with n rows of the table, which has no padding row."""
    takes_dtypes = h_ND.dtype in WHOLE and table_VD.dtype == h_ND.dtype
    # torch takes no sparse matrix with more entries than a dense one has.
    takes_size = 0 < index_Nn.shape[1] <= len(table_VD) and len(h_ND) > 0
    if h_ND.device.type == "cpu" and takes_dtypes and takes_size:
        return _CatalogDot.apply(h_ND, table_VD, index_Nn)
    return row_dot(F.embedding(index_Nn, table_VD), h_ND)


class _CatalogDot(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h_ND: Tensor, table_VD: Tensor, index_Nn: Tensor) -> Tensor:
        index_Nn = index_Nn.int()
        ctx.save_for_backward(h_ND, table_VD, index_Nn)
        n_entries = index_Nn.numel()
        start_N = torch.arange(0, n_entries + 1, index_Nn.shape[1], dtype=torch.int32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls its support of sparse matrices beta
            pattern = torch.sparse_csr_tensor(
                start_N,
                index_Nn.flatten(),
                h_ND.new_zeros(n_entries),
                size=(len(h_ND), len(table_VD)),
                check_invariants=False,
            )
            product = torch.sparse.sampled_addmm(pattern, h_ND, table_VD.T, beta=0.0)
        return product.values().view_as(index_Nn)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_Nn: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        h_ND, table_VD, index_Nn = ctx.saved_tensors
        grad_Nn = grad_Nn.contiguous()
        d_h = None
        d_table = None
        if ctx.needs_input_grad[0]:
            d_h = F.embedding_bag(index_Nn, table_VD, mode="sum", per_sample_weights=grad_Nn)
        if ctx.needs_input_grad[1]:
            # The entries sorted by row of the table: a bag of vectors per row.
            index = index_Nn.flatten()
            order = index.argsort(stable=True)
            count_V = torch.bincount(index, minlength=len(table_VD))
            d_table = F.embedding_bag(
                order // index_Nn.shape[1],
                h_ND,
                count_V.cumsum(0) - count_V,
                mode="sum",
                per_sample_weights=grad_Nn.flatten()[order],
            )
        return d_h, d_table, None
