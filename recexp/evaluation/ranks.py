"""Where the target stands among the candidates: counts of strictly better and of equal scores, never a sort.

With G better and E equal candidates the target stands somewhere in ranks G+1 .. G+1+E (models.md §1.1); what to make of
a tie is the metric's choice, see ``recexp.evaluation.metrics``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recexp.types import RecexpError


def candidate_ranks(scores_BC: Tensor) -> tuple[Tensor, Tensor]:
    """Rank the target in column 0 against the candidates in the other columns.

    Returns ``(better_B, tied_B)``, int64: how many candidates score strictly higher than the target, and how many exactly
    the same (the target not counted). Scores are compared in float32.

    Raises RecexpError if a score is NaN or infinite.
    """
    scores_BC = _finite(scores_BC)
    target_B1 = scores_BC[:, :1]
    return (scores_BC > target_B1).sum(1), (scores_BC == target_B1).sum(1) - 1


def full_ranks(scores_BN: Tensor, target_B: Tensor, seen_BM: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Rank the target against the whole catalogue; column j of ``scores_BN`` belongs to item j+1.

    ``seen_BM`` holds items to take out of the ranking, padded with 0, repeats allowed. The target always stays in, also where
    it is among the seen.

    Returns ``(better_B, tied_B, candidates_B)``, int64; ``candidates_B`` counts the ranked items, the target included.

    Raises RecexpError if a score is NaN or infinite, also one of an item to be taken out, or if an id is not an item's.
    """
    scores_BN = _finite(scores_BN)
    n_items = scores_BN.shape[1]
    _in_range("target", target_B, 1, n_items)
    target_B1 = target_B[:, None]
    score_B1 = scores_BN.gather(1, target_B1 - 1)
    better_BN, tied_BN = scores_BN > score_B1, scores_BN == score_B1
    if seen_BM is None:
        return better_BN.sum(1), tied_BN.sum(1) - 1, torch.full_like(target_B, n_items)
    _in_range("seen", seen_BM, 0, n_items)
    ranked_BV = torch.ones(len(scores_BN), n_items + 1, dtype=torch.bool, device=scores_BN.device)
    ranked_BV.scatter_(1, seen_BM, False).scatter_(1, target_B1, True)
    ranked_BN = ranked_BV[:, 1:]  # column 0 took the padding
    return (better_BN & ranked_BN).sum(1), (tied_BN & ranked_BN).sum(1) - 1, ranked_BN.sum(1)


def _finite(scores: Tensor) -> Tensor:
    """The scores in float32, or an error: comparisons with NaN are all false and would read as a perfect rank."""
    scores = scores.float()
    bad = ~torch.isfinite(scores)
    if bad.any():
        bad_B = bad.sum(1)
        rows = bad_B.nonzero().flatten()
        raise RecexpError(
            f"scores are NaN or infinite in {len(rows)} of {len(scores)} rows; row {int(rows[0])} in {int(bad_B[rows[0]])} of "
            f"{scores.shape[1]} columns. The model has probably diverged: look at its training loss, lower the learning rate "
            "or clip the gradients."
        )
    return scores


def _in_range(what: str, item: Tensor, low: int, high: int) -> None:
    outside = (item < low) | (item > high)
    if outside.any():
        row = int(outside.nonzero()[0, 0])
        raise RecexpError(
            f"{what} item {int(item[outside][0])} in row {row} is outside {low}..{high}, the items that were scored. "
            "The model and the evaluated data do not come from the same prepared dataset: prepare it again, or retrain."
        )
