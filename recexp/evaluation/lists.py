"""The best items of each user, by score."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Columns whose maximum is taken in one piece; narrower blocks do not fill vector registers.
MIN_BLOCK = 32


def without_seen(
    score_BN: Tensor,
    targets: tuple[Tensor, Tensor],
    seen: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Scores of all items with -inf for those that are left out, but never for the targets.

    Column j belongs to item j+1. targets, seen: rows and items, int64 each; seen None: nothing is
    left out. The scores given are not changed.
    """
    if seen is None:
        return score_BN
    seen_row_M, seen_item_M = seen
    row_T, item_T = targets
    kept_BN = score_BN.clone(memory_format=torch.contiguous_format)
    kept_BN[seen_row_M, seen_item_M - 1] = -torch.inf
    kept_BN[row_T, item_T - 1] = score_BN[row_T, item_T - 1]
    return kept_BN


def best_candidates(score_BC: Tensor, item_BC: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Scores and items of the k best candidates, [B, k]; equal scores are ordered by item.

    An item that stands twice in a row is padding (``Targets.items_of_users``): one of the two gets
    the score -inf.
    """
    item_BC, order_BC = item_BC.sort(dim=1)
    score_BC = score_BC.gather(1, order_BC)
    is_padding_BC = F.pad(item_BC[:, 1:] == item_BC[:, :-1], (1, 0))
    best_BK, column_BK = top_k(score_BC.masked_fill(is_padding_BC, -torch.inf), k)
    return best_BK, item_BC.gather(1, column_BK)


def top_k(score_BC: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Scores and columns of the k best entries per row, best first; float and int64 [B, k].

    Equal scores are ordered by column, the smaller one first, in the list and at its end. NaN
    counts as the lowest score. k is at most C.
    """
    # NaN, or infinities of both signs, make the sum NaN; a sum is cheaper than a copy.
    if bool(score_BC.sum().isnan()):
        score_BC = score_BC.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    k = min(k, score_BC.shape[1])
    if k == 0:
        empty_BK = score_BC[:, :0]
        return empty_BK, empty_BK.long()
    return _top_k(score_BC, k)


def _top_k(score_BC: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As ``top_k``, of scores without NaN. On a CPU, torch takes long over wide rows."""
    n_columns = score_BC.shape[1]
    width = max(MIN_BLOCK, math.isqrt(n_columns // k))
    if score_BC.device.type == "cpu" and 2 * k * width <= n_columns:
        return _top_k_of_blocks(score_BC, k, width)
    return _top_k_of_columns(score_BC, k)


def _top_k_of_blocks(score_BC: Tensor, k: int, width: int) -> tuple[Tensor, Tensor]:
    """As ``top_k``, searching only the blocks of ``width`` columns that have the k best maxima.

    Each of them has an entry that comes before every entry of the other blocks: a larger one, or
    an equal one in a smaller column. So the k best entries are in them, or in the columns after the
    last whole block.

    Extra shape symbols: N blocks, K chosen blocks, W columns of a block, M columns searched.
    """
    n_blocks = score_BC.shape[1] // width
    score_BNW = score_BC[:, : n_blocks * width].unflatten(1, (n_blocks, width))
    _, block_BK = _top_k(score_BNW.amax(2), k)
    block_BK = block_BK.sort(dim=1).values  # ascending, so that smaller columns stay first
    chosen_BKW = score_BNW.gather(1, block_BK.unsqueeze(2).expand(-1, -1, width))
    rest_BM = score_BC[:, n_blocks * width :]
    best_BK, place_BK = _top_k_of_columns(torch.cat([chosen_BKW.flatten(1), rest_BM], 1), k)
    # Places in the chosen blocks, then places after them.
    number_BK = (place_BK // width).clamp_(max=k - 1)
    start_BK = block_BK.gather(1, number_BK) * width
    after_BK = place_BK - k * width
    in_block_BK = start_BK + place_BK % width
    return best_BK, torch.where(after_BK < 0, in_block_BK, n_blocks * width + after_BK)


def _top_k_of_columns(score_BC: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As ``top_k``, searching all columns."""
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
