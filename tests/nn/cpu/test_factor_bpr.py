"""BPR of inner products in closed form, against autograd through the plain formula."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from recexp.nn.cpu import factor_bpr as module
from recexp.nn.cpu.factor_bpr import factor_bpr

N_USERS = 30
N_ITEMS = 20
WIDTH = 8


def tables(dtype=torch.float64, *, bias=True, sparse=False):
    torch.manual_seed(0)
    user = nn.Embedding(N_USERS, WIDTH, dtype=dtype, sparse=sparse)
    item = nn.Embedding(N_ITEMS + 1, WIDTH, padding_idx=0, dtype=dtype, sparse=sparse)
    bias_V = nn.Parameter(torch.randn(N_ITEMS + 1, dtype=dtype)) if bias else None
    return user, item, bias_V


def ids(n_rows, n_negatives):
    generator = torch.Generator().manual_seed(1)
    user_B = torch.randint(N_USERS, (n_rows,), generator=generator)
    item_BC = torch.randint(1, N_ITEMS + 1, (n_rows, 1 + n_negatives), generator=generator)
    return user_B, item_BC


def plain(user, item, bias_V, user_B, item_BC):
    score_BC = (user(user_B)[:, None] * item(item_BC)).sum(-1)
    if bias_V is not None:
        score_BC = score_BC + bias_V[item_BC]
    return -F.logsigmoid(score_BC[:, :1] - score_BC[:, 1:]).mean()


def gradients(loss, user, item, bias_V):
    parameters = [user.weight, item.weight, *([] if bias_V is None else [bias_V])]
    return torch.autograd.grad(loss, parameters)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize(("n_rows", "n_negatives"), [(1, 1), (7, 1), (200, 1), (200, 3)])
def test_loss_and_gradients_equal_the_plain_formula(bias, sparse, n_rows, n_negatives, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 16 * WIDTH)  # several blocks, the last one shorter
    batch = ids(n_rows, n_negatives)
    reference = tables(bias=bias)
    expected = plain(*reference, *batch)
    own = tables(bias=bias, sparse=sparse)
    loss = factor_bpr(*own, *batch)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for ours, theirs in zip(
        gradients(3 * loss, *own), gradients(3 * expected, *reference), strict=True
    ):
        dense = ours.to_dense() if ours.is_sparse else ours
        torch.testing.assert_close(dense, theirs, rtol=1e-10, atol=1e-14)


def test_a_sparse_gradient_holds_the_rows_of_the_batch_once():
    user, item, bias_V = tables(sparse=True)
    user_B, item_BC = ids(9, 2)
    d_user, d_item, _ = gradients(
        factor_bpr(user, item, bias_V, user_B, item_BC), user, item, bias_V
    )
    assert d_user.is_coalesced() and d_item.is_coalesced()
    assert d_user.indices()[0].tolist() == sorted(set(user_B.tolist()))
    assert d_item.indices()[0].tolist() == sorted(set(item_BC.flatten().tolist()))


def test_ids_beyond_16_bits_are_sorted_as_they_are():
    """Ids are sorted as integers of 16 bits only where they fit."""
    n_items = 40_000
    torch.manual_seed(0)
    user = nn.Embedding(3, 4, dtype=torch.float64)
    item = nn.Embedding(n_items + 1, 4, padding_idx=0, dtype=torch.float64)
    batch = torch.tensor([0, 2, 2]), torch.tensor([[n_items, 1], [32_768, 39_999], [5, 32_767]])
    ours = gradients(factor_bpr(user, item, None, *batch), user, item, None)
    theirs = gradients(plain(user, item, None, *batch), user, item, None)
    for own, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-10, atol=1e-14)
