import pytest
import torch

from recexp.nn.cpu import tower
from recexp.nn.mlp import PairMLP


@pytest.mark.parametrize("block", [1, 10, tower.BLOCK])  # of part of the items, of two users, whole
@pytest.mark.parametrize("widths", [(7, 4), (7, 4, 3), (7, 6, 4, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_dot_all_equals_the_towers_outputs_times_the_weights(monkeypatch, block, widths, dtype):
    monkeypatch.setattr(tower, "BLOCK", block)
    torch.manual_seed(0)
    mlp = PairMLP(widths).to(dtype)
    left, right = torch.randn(9, 3, dtype=dtype), torch.randn(5, 4, dtype=dtype)
    weight = torch.randn(widths[-1], dtype=dtype)
    plain = mlp(left[:, None], right) @ weight
    fast = mlp.dot_all(mlp.left(left), mlp.right(right), weight)
    torch.testing.assert_close(fast, plain)
    assert (plain != plain[:, :1]).any()


@torch.no_grad()
def test_dot_all_gives_equal_items_equal_scores_where_all_units_are_off():
    torch.manual_seed(0)
    mlp = PairMLP((64, 32, 16))
    mlp.layers[0].bias.fill_(-100.0)
    right = mlp.right(torch.randn(500, 32))
    score = mlp.dot_all(mlp.left(torch.randn(3, 32)), right, torch.randn(16))
    assert torch.equal(score, score[:, :1].expand_as(score))


@pytest.mark.parametrize("n_items", [500, 3416, 5000])  # multiples of 4: see tower_dot
@torch.no_grad()
def test_dot_all_gives_equal_items_equal_scores_at_every_position(n_items):
    torch.manual_seed(0)
    mlp = PairMLP((64, 128, 64))
    right = torch.randn(1, 32).expand(n_items, -1)
    score = mlp.dot_all(mlp.left(torch.randn(5, 32)), mlp.right(right), torch.randn(64))
    assert torch.equal(score, score[:, :1].expand_as(score))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_dot_all_does_not_depend_on_the_number_of_threads(mode):
    torch.manual_seed(0)
    mlp = PairMLP((8, 6, 4))
    with mode():
        left, right = mlp.left(torch.randn(50, 4)), mlp.right(torch.randn(3000, 4))
        weight = torch.randn(4)
        alone = mlp.dot_all(left, right, weight)
        torch.set_num_threads(3)
        try:
            together = mlp.dot_all(left, right, weight)
        finally:
            torch.set_num_threads(1)
    assert torch.equal(alone, together)


@torch.no_grad()
def test_dot_all_of_no_users_is_empty():
    mlp = PairMLP((4, 3, 2))
    left, right = mlp.left(torch.randn(2, 2)), mlp.right(torch.randn(5, 2))
    assert mlp.dot_all(left[:0], right, torch.ones(2)).shape == (0, 5)
