"""Products of items over their users: rows of X^T X of a sparse matrix X of users and items."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

# Numbers of X^T X made at a time: 64 MB in single precision.
BLOCK = 1 << 24


def item_products(
    user_P: Tensor, item_P: Tensor, weight_P: Tensor, n_users: int, V: int
) -> Iterator[tuple[slice, Tensor]]:
    """Rows of X^T X: ranges of items and their rows [r, V].

    user_P, item_P: the distinct pairs of X, int64, by user. weight_P: their values, float.

    Counted by a sparse product on the CPU, wherever the pairs are: that takes the sum over users of
    the square of their number of items. Rows come in the dtype and on the device of weight_P.

    Extra shape symbols: P pairs, r items of a block.
    """
    device = weight_P.device
    user_P = user_P.cpu()
    item_P = item_P.cpu()
    weight_P = weight_P.cpu()
    order_P = item_P.argsort(stable=True)
    users_of_items = _csr(item_P[order_P], user_P[order_P], weight_P[order_P], V, n_users)
    items_of_users = _csr(user_P, item_P, weight_P, n_users, V)
    n_rows = max(1, BLOCK // V)
    for first in range(0, V, n_rows):
        rows = slice(first, min(V, first + n_rows))
        part = _rows_of(users_of_items, rows)
        yield rows, (part @ items_of_users).to_dense().to(device)


def _csr(row_P: Tensor, column_P: Tensor, value_P: Tensor, n_rows: int, n_columns: int) -> Tensor:
    """A sparse matrix. row_P ascends."""
    ptr = F.pad(torch.bincount(row_P, minlength=n_rows).cumsum(0), (1, 0))
    return _matrix(ptr, column_P, value_P, n_rows, n_columns)


def _rows_of(matrix: Tensor, rows: slice) -> Tensor:
    ptr = matrix.crow_indices()[rows.start : rows.stop + 1]
    pairs = slice(int(ptr[0]), int(ptr[-1]))
    column_P = matrix.col_indices()[pairs]
    n_rows = rows.stop - rows.start
    return _matrix(ptr - ptr[0], column_P, matrix.values()[pairs], n_rows, matrix.shape[1])


def _matrix(ptr: Tensor, column_P: Tensor, value_P: Tensor, n_rows: int, n_columns: int) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its support of sparse matrices beta
        return torch.sparse_csr_tensor(ptr.int(), column_P.int(), value_P, size=(n_rows, n_columns))


def largest(x_BN: Tensor, k: int) -> Tensor:
    """Columns of the k largest numbers of each row, ascending, int64 [B, k].

    Of equal numbers those of the lower columns. k: at most N.
    """
    least_B1 = x_BN.topk(k, dim=1).values[:, -1:]
    is_above_BN = x_BN > least_B1
    is_equal_BN = x_BN == least_B1
    n_free_B1 = k - is_above_BN.sum(1, keepdim=True)
    n_equal_BN = is_equal_BN.cumsum(1, dtype=torch.int32)
    is_chosen_BN = is_above_BN | (is_equal_BN & (n_equal_BN <= n_free_B1))
    if not torch.compiler.is_exporting():
        return is_chosen_BN.nonzero()[:, 1].view(-1, k)
    n_columns = x_BN.shape[1]
    # The first column has the largest number.
    from_end_N = torch.arange(n_columns, 0, -1, device=x_BN.device)
    return n_columns - (is_chosen_BN * from_end_N).topk(k, dim=1).values
