"""The chunked softmax loss against the plain one: value, gradients, extreme inputs and
precisions.
"""

import pytest
import torch
import torch.nn.functional as F

from recexp.nn.cpu import linear_cross_entropy as module
from recexp.nn.cpu.linear_cross_entropy import linear_cross_entropy


def inputs(N=23, V=40, D=5, *, dtype=torch.float64, bias=True):
    g = torch.Generator().manual_seed(0)
    h, item = (
        torch.randn(n, D, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
        for n in (N, V)
    )
    b = (
        torch.randn(V, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
        if bias
        else None
    )
    return h, item, b, torch.randint(0, V, (N,), generator=g)


def plain(h, item, bias, target):
    return F.cross_entropy(h @ item.T + (0 if bias is None else bias), target)


def gradients(loss, *tensors):
    return torch.autograd.grad(loss, [x for x in tensors if x is not None])


@pytest.fixture(params=[1, 3, 7, 23, 100], ids=lambda rows: f"{rows} rows a chunk")
def chunked(request, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_BYTES", 4 * 40 * request.param)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.usefixtures("chunked")
def test_value_and_gradients_equal_the_plain_loss(bias):
    x = inputs(bias=bias)
    loss, expected = linear_cross_entropy(*x), plain(*x)
    torch.testing.assert_close(loss, expected)
    for a, b in zip(gradients(3 * loss, *x[:3]), gradients(3 * expected, *x[:3]), strict=True):
        torch.testing.assert_close(a, b)


def test_gradcheck(monkeypatch):
    h, item, bias, target = inputs(N=5, V=6, D=2)
    monkeypatch.setattr(module, "CHUNK_BYTES", 4 * 6 * 2)
    assert torch.autograd.gradcheck(lambda *x: linear_cross_entropy(*x, target), (h, item, bias))


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_only_wanted_gradients_are_computed(frozen):
    x = inputs()
    x[frozen].requires_grad_(False)
    linear_cross_entropy(*x).backward()
    grads = [t.grad for t in x[:3]]
    assert grads.pop(frozen) is None
    assert all(g is not None for g in grads)


def test_value_without_gradients():
    x = inputs()
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(*x), plain(*x))


def test_no_target_gives_zero_and_zero_gradients():
    h, item, bias, target = inputs(N=0)
    loss = linear_cross_entropy(h, item, bias, target)
    assert loss.item() == 0.0
    assert all(not g.any() for g in gradients(loss, item, bias))


def test_extreme_scores_stay_finite():
    h, item, bias, target = inputs(dtype=torch.float32)
    loss = linear_cross_entropy(1e4 * h, item, bias, target)
    torch.testing.assert_close(loss, plain(1e4 * h, item, bias, target))
    assert all(torch.isfinite(g).all() for g in gradients(loss, h, item, bias))


@pytest.mark.parametrize("table", [torch.bfloat16, torch.float32])
@pytest.mark.usefixtures("chunked")
def test_half_precision_states_keep_the_softmax_in_full(table):
    h, item, bias, target = inputs(dtype=torch.bfloat16)
    item, bias = (x.detach().to(table).requires_grad_() for x in (item, bias))
    loss = linear_cross_entropy(h, item, bias, target)
    exact = [x.detach().double().requires_grad_() for x in (h, item, bias)]
    expected = plain(*exact, target)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-2)
    for x, a, b in zip(
        (h, item, bias), gradients(loss, h, item, bias), gradients(expected, *exact), strict=True
    ):
        assert a.dtype == x.dtype
        assert (a.double() - b).norm() < 0.02 * b.norm()


def test_autocast_takes_the_products_in_half_precision():
    h, item, bias, target = inputs(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(h, item, bias, target)
    assert loss.dtype == torch.float32
    assert loss.item() != plain(h, item, bias, target).item()
    assert loss.item() == pytest.approx(plain(h, item, bias, target).item(), rel=1e-2)
    assert [g.dtype for g in gradients(loss, h, item, bias)] == [torch.float32] * 3
