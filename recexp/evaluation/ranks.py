"""The targets' ranks among the candidates: counts of better and equal scores, without sorting.

With G better and E equal candidates the target has one of the ranks G+1 .. G+1+E. How a tie counts
is the metric's choice, see ``recexp.evaluation.metrics``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from recexp.errors import RecexpError

_BLOCK_SIZE = 2**18  # scores that are compared at a time
_EXACT_IN_FLOAT32 = 2**24  # sums of ones are exact below


def candidate_ranks(scores_BC: Tensor) -> tuple[Tensor, Tensor]:
    """Rank the target in column 0 against the candidates in the other columns.

    Returns ``(better_B, tied_B)``, int64: how many candidates score strictly higher than the
    target, and how many exactly the same (the target not counted). Scores are compared in float32.

    Raises RecexpError if a score is NaN or infinite.
    """
    scores_BC = _finite(scores_BC)
    target_B1 = scores_BC[:, :1]
    better_B = _count(torch.gt, scores_BC, target_B1)
    tied_B = _count(torch.eq, scores_BC, target_B1) - 1
    return better_B, tied_B


def full_ranks(
    scores_BN: Tensor, target_B: Tensor, seen: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Rank the target against all items; column j of ``scores_BN`` belongs to item j+1.

    seen: rows and items, int64 [M] each, to leave out of the ranking; repeats are allowed. The
    target is always ranked, also where it is among them.

    Returns ``(better_B, tied_B, candidates_B)``, int64; ``candidates_B`` counts the ranked items,
    the target included.

    Raises RecexpError if a score is NaN or infinite, also one of an item that is left out, or if an
    id is not that of an item.
    """
    scores_BN = _finite(scores_BN)
    n_items = scores_BN.shape[1]
    _in_range("target", target_B, torch.arange(len(target_B), device=target_B.device), n_items)
    at_B1 = target_B[:, None] - 1
    score_B1 = scores_BN.gather(1, at_B1)
    candidates_B = torch.full_like(target_B, n_items)
    if seen is not None:
        row_M, item_M = seen
        _in_range("seen", item_M, row_M, n_items)
        # A copy, because the scores may be the model's own table.
        scores_BN = scores_BN.clone(memory_format=torch.contiguous_format)
        scores_BN.view(-1)[row_M * n_items + item_M - 1] = -torch.inf
        scores_BN.scatter_(1, at_B1, score_B1)
        candidates_B = _count(torch.gt, scores_BN, torch.full_like(score_B1, -torch.inf))
    better_B = _count(torch.gt, scores_BN, score_B1)
    tied_B = _count(torch.eq, scores_BN, score_B1) - 1
    return better_B, tied_B, candidates_B


def full_ranks_of_several(
    scores_BN: Tensor, row_M: Tensor, item_M: Tensor, seen: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Rank several targets per row against all items, the other targets among them.

    row_M, item_M: the targets, int64 [M]; the rows ascend, each has at least one target, and no
    target stands twice. seen: as in ``full_ranks``; all targets are always ranked.

    Returns ``(better_M, tied_M, candidates_M)``, int64. Raises RecexpError as ``full_ranks`` does.
    """
    scores_BN = _finite(scores_BN)
    n_rows, n_items = scores_BN.shape
    _in_range("target", item_M, row_M, n_items)
    score_M = scores_BN[row_M, item_M - 1]
    candidates_B = torch.full((n_rows,), n_items, device=row_M.device)
    order_B, score_BT, n_targets_B = _in_columns(score_M, row_M, n_rows)
    scores_BN = scores_BN[order_B]
    if seen is not None:
        place_B = order_B.argsort()
        _in_range("seen", seen[1], seen[0], n_items)
        scores_BN[place_B[seen[0]], seen[1] - 1] = -torch.inf
        scores_BN[place_B[row_M], item_M - 1] = score_M
        lowest_B1 = scores_BN.new_full((n_rows, 1), -torch.inf)
        candidates_B[order_B] = _count(torch.gt, scores_BN, lowest_B1)
    better_M, tied_M = _count_columns(scores_BN, order_B, score_BT, n_targets_B, row_M)
    return better_M, tied_M, candidates_B[row_M]


def candidate_ranks_of_several(
    scores_BC: Tensor, n_targets_B: Tensor, n_columns: int
) -> tuple[Tensor, Tensor]:
    """Rank several targets per row against drawn candidates, the other targets among them.

    The first ``n_columns`` columns hold the targets, of which row b has ``n_targets_B[b]``; what
    stands in the others of these columns is not ranked. The candidates follow.

    Returns ``(better_M, tied_M)``, int64, row by row. Raises RecexpError as ``candidate_ranks``.
    """
    scores_BC = _finite(scores_BC)
    is_target_BT = torch.arange(n_columns, device=scores_BC.device) < n_targets_B[:, None]
    row_M, column_M = is_target_BT.nonzero(as_tuple=True)
    score_M = scores_BC[row_M, column_M]
    order_B, score_BT, n_sorted_B = _in_columns(score_M, row_M, len(scores_BC))
    scores_BC = scores_BC[order_B]
    scores_BC[:, :n_columns].masked_fill_(~is_target_BT[order_B], -torch.inf)
    return _count_columns(scores_BC, order_B, score_BT, n_sorted_B, row_M)


def _in_columns(score_M: Tensor, row_M: Tensor, n_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """The targets' scores with a column for the first, the second, ... target of each row.

    Rows with many targets come first, so that the rows with a t-th target are the first ones.
    Returns the rows in that order, the scores, NaN where a row has fewer targets, and their number.
    """
    n_targets_B = torch.bincount(row_M, minlength=n_rows)
    n_targets_sorted_B, order_B = n_targets_B.sort(descending=True, stable=True)
    width = int(n_targets_sorted_B[0]) if n_rows else 0
    score_BT = score_M.new_full((n_rows, width), torch.nan)
    score_BT[row_M, _ordinal(row_M, n_targets_B)] = score_M
    return order_B, score_BT[order_B], n_targets_sorted_B


def _count_columns(
    scores_BN: Tensor, order_B: Tensor, score_BT: Tensor, n_targets_B: Tensor, row_M: Tensor
) -> tuple[Tensor, Tensor]:
    """Better and tied items of every target, a column of targets at a time, int64 [M].

    Takes no more memory than to rank one target per row. Rows as ``_in_columns`` sorts them.
    """
    n_rows, width = score_BT.shape
    better_BT = torch.zeros(n_rows, width, dtype=torch.int64, device=scores_BN.device)
    tied_BT = torch.zeros_like(better_BT)
    # The numbers of rows are read at once: on a device, reading waits for it.
    n_rows_T = (n_targets_B[:, None] > torch.arange(width, device=n_targets_B.device)).sum(0)
    for t, n in enumerate(n_rows_T.tolist()):
        score_b1 = score_BT[:n, t : t + 1]
        better_BT[order_B[:n], t] = _count(torch.gt, scores_BN[:n], score_b1)
        tied_BT[order_B[:n], t] = _count(torch.eq, scores_BN[:n], score_b1) - 1
    ordinal_M = _ordinal(row_M, torch.bincount(row_M, minlength=n_rows))
    return better_BT[row_M, ordinal_M], tied_BT[row_M, ordinal_M]


def _ordinal(row_M: Tensor, n_targets_B: Tensor) -> Tensor:
    """The number of each target within its row, from 0. row_M: ascending."""
    start_B = n_targets_B.cumsum(0) - n_targets_B
    return torch.arange(len(row_M), device=row_M.device) - start_B[row_M]


def _count(compare: Callable[..., Tensor], scores_BN: Tensor, score_B1: Tensor) -> Tensor:
    """How many scores of each row compare so with the row's score, int64 [B].

    On a CPU the results of comparisons are written as floats into a block that stays in its cache:
    torch adds floats several times as fast as booleans, and makes no table of booleans.
    """
    B, N = scores_BN.shape
    if scores_BN.device.type != "cpu" or N >= _EXACT_IN_FLOAT32:
        return compare(scores_BN, score_B1).sum(1)
    n_rows = max(1, _BLOCK_SIZE // max(1, N))
    true_RN = scores_BN.new_empty(min(n_rows, B), N)
    count_B = scores_BN.new_empty(B)
    for first in range(0, B, n_rows):
        rows = slice(first, first + n_rows)
        block_RN = scores_BN[rows]
        compare(block_RN, score_B1[rows], out=true_RN[: len(block_RN)])
        torch.sum(true_RN[: len(block_RN)], 1, out=count_B[rows])
    return count_B.long()


def _finite(scores: Tensor) -> Tensor:
    """The scores in float32. Raises RecexpError unless all are finite.

    Comparisons with NaN are all false, so NaN would look like a perfect rank.
    """
    scores = scores.float()
    if torch.isfinite(scores.sum()):  # NaN and infinities survive every sum
        return scores
    bad = ~torch.isfinite(scores)
    if bad.any():
        bad_B = bad.sum(1)
        rows = bad_B.nonzero().flatten()
        raise RecexpError(
            f"scores are NaN or infinite in {len(rows)} of {len(scores)} rows; row {int(rows[0])} "
            f"in {int(bad_B[rows[0]])} of {scores.shape[1]} columns. The model has probably "
            "diverged: look at its training loss, lower the learning rate or clip the gradients."
        )
    return scores


def _in_range(what: str, item_M: Tensor, row_M: Tensor, n_items: int) -> None:
    outside = (item_M < 1) | (item_M > n_items)
    if outside.any():
        first = int(outside.nonzero()[0, 0])
        raise RecexpError(
            f"{what} item {int(item_M[first])} in row {int(row_M[first])} is outside 1..{n_items}, "
            "the items that were scored. The model and the evaluated data do not come from the "
            "same prepared dataset: prepare it again, or retrain."
        )
