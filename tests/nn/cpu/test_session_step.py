"""Gradients of looked-up rows; those of the whole step are in tests/objectives."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from recexp.nn.cpu.sampled_losses import SampledForm, top1
from recexp.nn.cpu.session_step import session_step
from recexp.types import GRULayers

WIDTH = 4
ITEM_S = torch.tensor([7, 3, 7])
NEGATIVE_n = torch.tensor([3, 9, 3, 9, 1])


def gradients(n_items, *, sparse):
    torch.manual_seed(0)
    table = nn.Embedding(n_items, WIDTH, sparse=sparse, dtype=torch.float64)
    bias_V = nn.Parameter(torch.randn(n_items, dtype=torch.float64))
    shapes = (3 * WIDTH, WIDTH), (3 * WIDTH,), (2 * WIDTH, WIDTH), (WIDTH, WIDTH)
    layer = tuple(nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in shapes)
    layers = GRULayers(table, bias_V, table, [layer], 0.0, 0.0, "linear", 1.0)
    counts_Sn = (NEGATIVE_n != NEGATIVE_n[:3, None]).double()
    h = torch.randn(1, 3, WIDTH, dtype=torch.float64)
    loss, _ = session_step(layers, SampledForm(top1, False), ITEM_S, NEGATIVE_n, counts_Sn, h)
    return torch.autograd.grad(3 * loss, [table.weight, bias_V, *layer])


@pytest.mark.parametrize("n_items", [12, 1000])
def test_sparse_gradients_hold_the_rows_of_the_batch_once(n_items):
    sparse, dense = (gradients(n_items, sparse=sparse) for sparse in (True, False))
    table, bias, *_ = sparse
    assert table._indices()[0].tolist() == [1, 3, 7, 9]
    assert bias.is_sparse == (n_items == 1000), "the biases of few items are updated at once"
    for one, other in zip(sparse, dense, strict=True):
        torch.testing.assert_close(one.to_dense() if one.is_sparse else one, other)
