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


def hard_scores(n_columns: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Rows with few and with many equal scores, NaN, both infinities, and nothing but -inf."""
    generator = torch.Generator().manual_seed(seed)
    score_BC = torch.randn(12, n_columns, generator=generator).to(dtype)
    score_BC[2:5] = score_BC[2:5].round()
    score_BC[5] = 0.0
    for row, value in ((6, float("nan")), (7, -torch.inf), (8, torch.inf), (9, float("nan"))):
        score_BC[row, torch.randperm(n_columns, generator=generator)[: n_columns // 2]] = value
    score_BC[9] = score_BC[9].round()
    score_BC[10] = -torch.inf
    score_BC[11] = float("nan")
    return score_BC


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("n_columns", [1, 31, 640, 641, 700, 3_416])
@pytest.mark.parametrize("k", [1, 10, 20, 100])
def test_lists_from_blocks_of_columns_are_those_of_a_stable_sort(dtype, n_columns, k):
    score_BC = hard_scores(n_columns, dtype, seed=k)
    lowest_BC = torch.where(score_BC.isnan(), -torch.inf, score_BC)
    expected_BK, order_BK = (x[:, :k] for x in lowest_BC.sort(dim=1, descending=True, stable=True))
    before_BC = score_BC.clone()
    best_BK, column_BK = top_k(score_BC, k)
    assert torch.equal(column_BK, order_BK)
    assert torch.equal(best_BK, expected_BK) and best_BK.dtype == dtype
    assert torch.equal(score_BC.nan_to_num(), before_BC.nan_to_num())  # the input is untouched


def test_lists_of_transposed_scores_are_those_of_a_stable_sort():
    score_BC = hard_scores(3_416, torch.float32, seed=0)[:5]
    expected_BK = score_BC.sort(dim=1, descending=True, stable=True).indices[:, :10]
    assert torch.equal(top_k(score_BC.T.contiguous().T, 10)[1], expected_BK)


def test_removed_items_come_last_and_in_order():
    score_BC = torch.tensor([[1.0, float("-inf"), float("nan"), 2.0]])
    best_BK, column_BK = top_k(score_BC, 4)
    assert column_BK.tolist() == [[3, 0, 1, 2]]
    assert best_BK[0, 2:].tolist() == [float("-inf")] * 2


def test_no_items_give_empty_lists():
    best_BK, column_BK = top_k(torch.zeros(3, 0), 10)
    assert best_BK.shape == column_BK.shape == (3, 0)
    assert column_BK.dtype == torch.int64
