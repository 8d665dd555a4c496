"""The best items of each user, by score."""

from __future__ import annotations

import torch
from torch import Tensor


def top_k(score_BC: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Scores and columns of the k best entries per row, best first; float and int64 [B, k].

    Equal scores are ordered by column, the smaller one first, in the list and at its end. NaN
    counts as the lowest score. k is at most C.
    """
    score_BC = score_BC.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    k = min(k, score_BC.shape[1])
    if k == 0:
        empty_BK = score_BC[:, :0]
        return empty_BK, empty_BK.long()
    best_BK, column_BK = score_BC.topk(k, dim=1)
    last_B1 = best_BK[:, -1:]
    # Only where entries outside the list equal its last one does the choice of topk matter.
    n_at_least_B = (score_BC >= last_B1).sum(1)
    ambiguous = (n_at_least_B > k).nonzero().flatten()
    if len(ambiguous):
        column_BK[ambiguous] = _chosen_columns(score_BC[ambiguous], last_B1[ambiguous], k)
    column_BK = column_BK.sort(dim=1).values
    best_BK = score_BC.gather(1, column_BK)
    best_BK, order_BK = best_BK.sort(dim=1, descending=True, stable=True)
    return best_BK, column_BK.gather(1, order_BK)


def _chosen_columns(score_BC: Tensor, last_B1: Tensor, k: int) -> Tensor:
    """Columns [B, k], ascending: all scores above the last one, and the first that equal it."""
    is_above = score_BC > last_B1
    is_equal = score_BC == last_B1
    n_free_B1 = k - is_above.sum(1, keepdim=True)
    is_chosen = is_above | (is_equal & (is_equal.cumsum(1) <= n_free_B1))
    columns: Tensor = is_chosen.nonzero()[:, 1]
    return columns.view(len(score_BC), k)
