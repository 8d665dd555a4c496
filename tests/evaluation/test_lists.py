"""The best items of each user against a plain sort."""

from __future__ import annotations

import pytest
import torch

from recexp.evaluation.lists import top_k


def by_sorting(score_BC: torch.Tensor, k: int) -> list[list[int]]:
    rows = score_BC.tolist()
    return [sorted(range(len(row)), key=lambda c, row=row: (-row[c], c))[:k] for row in rows]


@pytest.mark.parametrize("n_levels", [1, 2, 5, 1000])
@pytest.mark.parametrize("k", [1, 3, 10, 40, 60])
def test_lists_are_those_of_a_stable_sort(n_levels, k):
    generator = torch.Generator().manual_seed(n_levels)
    score_BC = torch.randint(n_levels, (50, 40), generator=generator).float()
    best_BK, column_BK = top_k(score_BC, k)
    assert column_BK.tolist() == by_sorting(score_BC, k)
    assert torch.equal(best_BK, score_BC.gather(1, column_BK))


def test_removed_items_come_last_and_in_order():
    score_BC = torch.tensor([[1.0, float("-inf"), float("nan"), 2.0]])
    best_BK, column_BK = top_k(score_BC, 4)
    assert column_BK.tolist() == [[3, 0, 1, 2]]
    assert best_BK[0, 2:].tolist() == [float("-inf")] * 2


def test_no_items_give_empty_lists():
    best_BK, column_BK = top_k(torch.zeros(3, 0), 10)
    assert best_BK.shape == column_BK.shape == (3, 0)
    assert column_BK.dtype == torch.int64
