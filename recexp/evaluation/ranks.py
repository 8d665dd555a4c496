"""The target's rank among the candidates: counts of better and of equal scores, without sorting.

With G better and E equal candidates the target has one of the ranks G+1 .. G+1+E. How a tie counts
is the metric's choice, see ``recexp.evaluation.metrics``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recexp.errors import RecexpError


def candidate_ranks(scores_BC: Tensor) -> tuple[Tensor, Tensor]:
    """Rank the target in column 0 against the candidates in the other columns.

    Returns ``(better_B, tied_B)``, int64: how many candidates score strictly higher than the
    target, and how many exactly the same (the target not counted). Scores are compared in float32.

    Raises RecexpError if a score is NaN or infinite.
    """
    scores_BC = _finite(scores_BC)
    target_B1 = scores_BC[:, :1]
    return _count(scores_BC > target_B1), _count(scores_BC == target_B1) - 1


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
        candidates_B = n_items - _count(scores_BN == -torch.inf)
    return _count(scores_BN > score_B1), _count(scores_BN == score_B1) - 1, candidates_B


def _count(true_BN: Tensor) -> Tensor:
    """How many are true in each row, int64 [B].

    Bytes are added into int32, because torch adds booleans at a third of that speed.
    """
    return true_BN.view(torch.uint8).sum(1, dtype=torch.int32).long()


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
