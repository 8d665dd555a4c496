"""Weighted least squares of many rows over one table of vectors.

Row r has pairs (r, s) of confidence 1 + alpha * count_rs; every other column s has confidence 1.
Given the vectors y of all columns, the best vector x of a row fulfills A x = b with

    A = G + sum over its pairs of alpha * count_rs * y_s y_s^T,    G = Y^T Y + regularization * I,
    b = sum over its pairs of (1 + alpha * count_rs) * y_s.

The coordinates are changed so that G, which all rows share, becomes the identity. With G = L L^T,
z_s = L^-1 y_s and x' = L^T x, that is

    (I + sum over its pairs of alpha * count_rs * z_s z_s^T) x' = sum of (1 + alpha * count_rs) z_s.

No eigenvalue of the matrix is below 1, and none is above 1 + sum of alpha * count_rs * |z_s|^2.
This bounds the rounding errors of single precision before anything is solved.

Where rows differ in their regularization (``RowRegularizedTable``), the coordinates are those of
the smallest one along the eigenvectors of Y^T Y, and each row scales them.

Extra shape symbols: R rows, S columns, P pairs sorted by row, r rows of a block or batch, L pairs
of a row with padding.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from recexp.nn.cpu.threads import map_in_threads

# Numbers gathered at a time: few enough for a processor's last cache. A GPU takes 64 times as many.
BLOCK = 1 << 19
# Pairs, and numbers in the vectors of their rows, that conjugate gradient works on at a time.
CG_BLOCK = 1 << 22
# Single precision serves where the bound on the eigenvalues, times the root of G's condition
# number, is at most this. Rounding errors of a vector are then below 0.4 % of its length; in
# sweeps over MovieLens-1M they stay below 1e-5 of it.
MAX_SINGLE = 1 << 15


@dataclass
class SparseRows:
    """The pairs of all rows.

    ptr_R: row r owns pairs ptr_R[r]..ptr_R[r + 1]; int64, [R + 1]. column_P: int32. count_P: int32;
    None where every count is 1.
    """

    ptr_R: Tensor
    column_P: Tensor
    count_P: Tensor | None
    _batches: tuple[tuple[int, int], list[tuple[Tensor, Tensor, Tensor | None]]] | None = None

    @classmethod
    def of_pairs(
        cls, row_P: Tensor, column_P: Tensor, count_P: Tensor | None, n_rows: int
    ) -> SparseRows:
        """The pairs in any order."""
        ptr_R = F.pad(torch.bincount(row_P, minlength=n_rows).cumsum(0), (1, 0))
        order_P = row_P.argsort(stable=True)
        column_P = column_P[order_P].int()
        return cls(ptr_R, column_P, None if count_P is None else count_P[order_P].int())

    @cached_property
    def length_R(self) -> Tensor:
        return self.ptr_R.diff()

    def padded_batches(self, most: int, padding: int) -> list[tuple[Tensor, Tensor, Tensor | None]]:
        """Batches of rows of similar length: the rows [r], the columns of their pairs, int32
        [r, L], and the counts of the pairs or None. Made once.

        most: entries of a batch that has several rows. padding: the column of entries beyond a
        row's length; their count is 1.
        """
        if self._batches is None or self._batches[0] != (most, padding):
            batches = [self._padded(row_r, padding) for row_r in self._similar_rows(most)]
            self._batches = (most, padding), batches
        return self._batches[1]

    def _similar_rows(self, most: int) -> Iterator[Tensor]:
        """The rows that have pairs in batches [r], the longest first."""
        order_R = self.length_R.argsort(descending=True, stable=True)
        lengths = self.length_R[order_R].tolist()
        n_rows = int((self.length_R > 0).sum())
        first = 0
        while first < n_rows:
            last = min(n_rows, first + max(1, most // lengths[first]))
            yield order_R[first:last]
            first = last

    def _padded(self, row_r: Tensor, padding: int) -> tuple[Tensor, Tensor, Tensor | None]:
        length_r1 = self.length_R[row_r].unsqueeze(1)
        step_L = torch.arange(int(length_r1.max()), device=row_r.device)
        is_padding_rL = step_L >= length_r1
        pair_rL = (self.ptr_R[row_r].unsqueeze(1) + step_L).masked_fill_(is_padding_rL, 0)
        column_rL = self.column_P.take(pair_rL).masked_fill_(is_padding_rL, padding)
        if self.count_P is None:
            return row_r, column_rL, None
        return row_r, column_rL, self.count_P.take(pair_rL).masked_fill_(is_padding_rL, 1)

    def blocks(self, width: int) -> Iterator[tuple[slice, SparseRows]]:
        """Ranges of adjacent rows with at most ``CG_BLOCK`` pairs and numbers in their vectors."""
        n_rows = len(self.ptr_R) - 1
        most_rows = max(1, CG_BLOCK // width)
        first = 0
        while first < n_rows:
            start = int(self.ptr_R[first])
            fitting = int(torch.searchsorted(self.ptr_R, start + CG_BLOCK, right=True)) - 1
            last = min(max(fitting, first + 1), first + most_rows, n_rows)
            pairs = slice(start, int(self.ptr_R[last]))
            count_P = None if self.count_P is None else self.count_P[pairs]
            ptr_R = self.ptr_R[first : last + 1] - start
            yield slice(first, last), SparseRows(ptr_R, self.column_P[pairs], count_P)
            first = last


class WhitenedTable:
    """The vectors y of all columns, and z, in whose coordinates G is the identity.

    z_SD: in the precision of y, which is single at least; one row of zeros follows, for padding.
    square_sum: of all numbers of y.
    """

    def __init__(self, y_SD: Tensor, regularization: float) -> None:
        self.y_SD = y_SD
        gram_DD = y_SD.new_zeros(y_SD.shape[1], y_SD.shape[1], dtype=torch.float64)
        for part_sD in self._double_parts():
            gram_DD += part_sD.T @ part_sD
        self.square_sum = gram_DD.trace()
        gram_DD.diagonal().add_(regularization)
        eigenvalue_D = self._factorize(gram_DD)
        self.root_condition = (eigenvalue_D[-1] / eigenvalue_D[0]).sqrt()
        self.z_SD = self.whitened(torch.promote_types(y_SD.dtype, torch.float32))

    def _factorize(self, gram_DD: Tensor) -> Tensor:
        """Set L and its inverse; returns the eigenvalues of G, ascending."""
        self.factor_DD = torch.linalg.cholesky(gram_DD)
        identity_DD = torch.eye(len(gram_DD), dtype=gram_DD.dtype, device=gram_DD.device)
        self.inverse_DD = torch.linalg.solve_triangular(self.factor_DD, identity_DD, upper=False)
        return torch.linalg.eigvalsh(gram_DD)

    def scale(self, rows: Tensor | slice) -> Tensor | None:
        """What the coordinates of each row are multiplied by, [r, D]; None: they are the table's.

        rows: numbers of the rows, or their range.
        """
        return None

    @property
    def padding(self) -> int:
        """The column whose vector is 0."""
        return len(self.y_SD)

    def largest_eigenvalues(self, rows: SparseRows, alpha: float) -> Tensor:
        """An upper bound for the matrix of each row, [R]."""
        square_S1 = self.z_SD.square().sum(1, keepdim=True)
        sums = [sum_of_vectors(block, square_S1, block.count_P) for _, block in rows.blocks(1)]
        return 1 + alpha * torch.cat(sums).squeeze(1)

    def to_whitened(self, x_rD: Tensor) -> Tensor:
        """x' of x, in the precision of ``z_SD``."""
        return (x_rD.double() @ self.factor_DD).to(self.z_SD.dtype)

    def from_whitened(self, x_rD: Tensor) -> Tensor:
        """x of x', in the precision of y."""
        return (x_rD.double() @ self.inverse_DD).to(self.y_SD.dtype)

    def _double_parts(self) -> Iterator[Tensor]:
        """y in double precision, some rows at a time."""
        for part_sD in self.y_SD.split(max(1, CG_BLOCK // self.y_SD.shape[1])):
            yield part_sD.double()

    def whitened(self, dtype: torch.dtype) -> Tensor:
        """z and the row of zeros."""
        z_SD = self.y_SD.new_zeros(len(self.y_SD) + 1, self.y_SD.shape[1], dtype=dtype)
        first = 0
        for part_sD in self._double_parts():
            z_SD[first : first + len(part_sD)] = part_sD @ self.inverse_DD.T
            first += len(part_sD)
        return z_SD


class RowRegularizedTable(WhitenedTable):
    """A table for rows that differ in their regularization: G_r = Y^T Y + regularization_r * I.

    With the eigenvalues e of Y^T Y + least * I, where least is the smallest regularization, the
    coordinates of row r are those of the table times sqrt(e / (e + regularization_r - least)).

    regularization_R: double.
    """

    def __init__(self, y_SD: Tensor, regularization_R: Tensor) -> None:
        least = float(regularization_R.min())
        self._excess_R = regularization_R - least
        super().__init__(y_SD, least)

    def _factorize(self, gram_DD: Tensor) -> Tensor:
        self._eigenvalue_D, vector_DD = torch.linalg.eigh(gram_DD)
        root_D = self._eigenvalue_D.sqrt()
        self.factor_DD = vector_DD * root_D
        self.inverse_DD = (vector_DD / root_D).T
        return self._eigenvalue_D

    def scale(self, rows: Tensor | slice) -> Tensor:
        excess_r1 = self._excess_R[rows, None]
        return (self._eigenvalue_D / (self._eigenvalue_D + excess_r1)).sqrt()


def solve_exactly(out_RD: Tensor, rows: SparseRows, table: WhitenedTable, alpha: float) -> float:
    """Write the best vectors of all rows into out_RD; rows without a pair get 0.

    Returns the sum of x^T A x - 2 b^T x over all rows.
    """
    is_single = table.z_SD.dtype != torch.float64
    needs_double_R = ~(table.largest_eigenvalues(rows, alpha) * table.root_condition <= MAX_SINGLE)
    scaled_SD = table.z_SD * alpha**0.5
    double_SD = scaled_SD
    if is_single and bool(needs_double_R.any()):
        double_SD = table.whitened(torch.float64).mul_(alpha**0.5)
    most = _most_pairs(out_RD)
    out_RD.zero_()

    def solve(rows_of_batch: tuple[Tensor, Tensor, Tensor | None]) -> Tensor:
        row_r, column_rL, count_rL = rows_of_batch
        vectors_SD = double_SD if bool(needs_double_R[row_r].any()) else scaled_SD
        scale_rD = table.scale(row_r)
        batch = _PaddedBatch(vectors_SD, column_rL, count_rL, alpha, scale_rD)
        by_pairs = column_rL.shape[1] < out_RD.shape[1]
        x_rD, b_rD = batch.solve_by_pairs() if by_pairs else batch.solve_by_width(most)
        out_RD[row_r] = table.from_whitened(x_rD if scale_rD is None else x_rD * scale_rD)
        return (b_rD * x_rD).sum(dtype=torch.float64)  # at the solution A x = b

    batches = rows.padded_batches(most, table.padding)
    if out_RD.device.type == "cpu":
        products = map_in_threads(solve, batches)
    else:
        products = list(map(solve, batches))
    return -float(sum(products))


def _most_pairs(out_RD: Tensor) -> int:
    """How many vectors are gathered at a time."""
    block = BLOCK if out_RD.device.type == "cpu" else BLOCK << 6
    return max(1, block // out_RD.shape[1])


class _PaddedBatch:
    """Rows that are solved together.

    With Z the vectors sqrt(alpha * count) z of a row's pairs and w the pairs' values of
    (1 + alpha * count) / sqrt(alpha * count), a row's solution is (I + Z^T Z)^-1 b, b = Z^T w.

    scaled_SD: sqrt(alpha) z of all columns. scale_rD: of ``WhitenedTable.scale``.
    """

    def __init__(
        self,
        scaled_SD: Tensor,
        column_rL: Tensor,
        count_rL: Tensor | None,
        alpha: float,
        scale_rD: Tensor | None,
    ) -> None:
        self.scaled_SD = scaled_SD
        self.scale_rD = None if scale_rD is None else scale_rD.to(scaled_SD.dtype)
        self.column_rL = column_rL
        if count_rL is None:
            self.root_rL = None
            weight = (1 + alpha) / alpha**0.5
            self.weight_rL = torch.full_like(column_rL, weight, dtype=scaled_SD.dtype)
        else:
            count_rL = count_rL.to(scaled_SD.dtype)
            self.root_rL = count_rL.sqrt()
            self.weight_rL = (1 + alpha * count_rL) / (alpha * count_rL).sqrt()

    def vectors(self, columns: slice) -> Tensor:
        """Part of Z of each row, [r, l, D]."""
        column_rl = self.column_rL[:, columns]
        z_rlD = self.scaled_SD.index_select(0, column_rl.flatten()).view(*column_rl.shape, -1)
        if self.scale_rD is not None:
            z_rlD.mul_(self.scale_rD.unsqueeze(1))
        return z_rlD if self.root_rL is None else z_rlD.mul_(self.root_rL[:, columns, None])

    def solve_by_width(self, most: int) -> tuple[Tensor, Tensor]:
        """x' and b of each row, [r, D]. most: pairs of a row gathered at a time."""
        z_rlD = self.vectors(slice(most))
        matrix_rDD = z_rlD.mT @ z_rlD
        b_r1D = self.weight_rL[:, None, :most] @ z_rlD
        for first in range(most, self.column_rL.shape[1], most):
            part = slice(first, first + most)
            z_rlD = self.vectors(part)
            matrix_rDD.baddbmm_(z_rlD.mT, z_rlD)
            b_r1D.baddbmm_(self.weight_rL[:, None, part], z_rlD)
        return _solve_plus_identity(matrix_rDD, b_r1D.mT).squeeze(2), b_r1D.squeeze(1)

    def solve_by_pairs(self) -> tuple[Tensor, Tensor]:
        """The same as Z^T (I + Z Z^T)^-1 w, by a smaller matrix where a row has few pairs."""
        z_rLD = self.vectors(slice(None))
        weight_r1L = self.weight_rL.unsqueeze(1)
        solution_rL1 = _solve_plus_identity(z_rLD @ z_rLD.mT, weight_r1L.mT)
        return (solution_rL1.mT @ z_rLD).squeeze(1), (weight_r1L @ z_rLD).squeeze(1)


def _solve_plus_identity(matrix_rMM: Tensor, right_rM1: Tensor) -> Tensor:
    """(I + matrix)^-1 right; the matrices are symmetric and have no negative eigenvalue. Changes
    matrix_rMM.
    """
    matrix_rMM.diagonal(dim1=1, dim2=2).add_(1)
    lower_rMM, failed_r = torch.linalg.cholesky_ex(matrix_rMM)
    if bool(failed_r.any()):  # eigenvalues so large that 1 is lost in rounding
        return torch.linalg.solve_ex(matrix_rMM, right_rM1).result
    half_rM1 = torch.linalg.solve_triangular(lower_rMM, right_rM1, upper=False)
    return torch.linalg.solve_triangular(lower_rMM.mT, half_rM1, upper=True)


def _extra(rows: SparseRows, alpha: float, dtype: torch.dtype) -> Tensor:
    """alpha * count of each pair, [P]."""
    if rows.count_P is None:
        return torch.full_like(rows.column_P, alpha, dtype=dtype)
    return rows.count_P.to(dtype) * alpha


def solve_by_conjugate_gradient(
    out_RD: Tensor, rows: SparseRows, table: WhitenedTable, alpha: float, n_steps: int
) -> float:
    """Improve the vectors of all rows in out_RD by steps of conjugate gradient; rows without a pair
    get 0. The change of coordinates makes G the preconditioner.

    Returns the sum of x^T A x - 2 b^T x over all rows.
    Takács, Pilászy and Tikk 2011, https://doi.org/10.1145/2043932.2043987.
    """
    total = out_RD.new_zeros((), dtype=torch.float64)
    for part, block in rows.blocks(out_RD.shape[1]):
        start_rD = table.to_whitened(out_RD[part])
        start_rD[block.length_R == 0] = 0.0
        scale_rD = table.scale(part)
        if scale_rD is not None:
            scale_rD = scale_rD.to(start_rD.dtype)
            start_rD /= scale_rD
        x_rD, value = _conjugate_gradient(start_rD, block, table.z_SD, alpha, n_steps, scale_rD)
        out_RD[part] = table.from_whitened(x_rD if scale_rD is None else x_rD * scale_rD)
        total += value
    return float(total)


def _conjugate_gradient(
    x_rD: Tensor,
    rows: SparseRows,
    z_SD: Tensor,
    alpha: float,
    n_steps: int,
    scale_rD: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """x' after the steps, and the sum of x^T A x - 2 b^T x, a double."""
    extra_P = _extra(rows, alpha, z_SD.dtype)

    def scaled(v_rD: Tensor) -> Tensor:
        return v_rD if scale_rD is None else v_rD * scale_rD

    def times_matrix(v_rD: Tensor) -> Tensor:
        products_P = inner_products(rows, scaled(v_rD), z_SD).mul_(extra_P)
        return v_rD + scaled(sum_of_vectors(rows, z_SD, products_P))

    tiny = torch.finfo(z_SD.dtype).tiny  # a row that is solved, or has no pair, divides 0 by it
    b_rD = scaled(sum_of_vectors(rows, z_SD, 1 + extra_P))
    residual_rD = b_rD - times_matrix(x_rD)
    direction_rD = residual_rD.clone()
    square_r1 = residual_rD.square().sum(1, keepdim=True)
    for _ in range(n_steps):
        image_rD = times_matrix(direction_rD)
        curvature_r1 = (direction_rD * image_rD).sum(1, keepdim=True)
        size_r1 = square_r1 / curvature_r1.clamp_(min=tiny)
        x_rD.addcmul_(size_r1, direction_rD)
        residual_rD.addcmul_(size_r1, image_rD, value=-1)
        before_r1 = square_r1.clamp(min=tiny)
        square_r1 = residual_rD.square().sum(1, keepdim=True)
        direction_rD.mul_(square_r1 / before_r1).add_(residual_rD)
    return x_rD, -(x_rD * (b_rD + residual_rD)).sum(dtype=torch.float64)


def sum_of_vectors(rows: SparseRows, table_SD: Tensor, weight_P: Tensor | None) -> Tensor:
    """The weighted sums of the vectors of each row's columns, [R, D]."""
    if weight_P is not None:
        weight_P = weight_P.to(table_SD.dtype)
    ptr_R = rows.ptr_R[:-1].int()
    return F.embedding_bag(rows.column_P, table_SD, ptr_R, mode="sum", per_sample_weights=weight_P)


def inner_products(rows: SparseRows, x_RD: Tensor, table_SD: Tensor) -> Tensor:
    """x_r . z_s of all pairs, [P]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its support of sparse matrices beta
        pattern = torch.sparse_csr_tensor(
            rows.ptr_R.int(),
            rows.column_P,
            torch.zeros_like(rows.column_P, dtype=x_RD.dtype),
            size=(len(x_RD), len(table_SD)),
        )
        return torch.sparse.sampled_addmm(pattern, x_RD, table_SD.T, beta=0.0).values()
