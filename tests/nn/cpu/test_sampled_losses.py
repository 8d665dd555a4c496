import pytest
import torch

from recexp.objectives import losses
from recexp.objectives.losses import bpr_max, top1, top1_max


def value_and_gradients(monkeypatch, closed, loss, positive, negative, **how):
    monkeypatch.setattr(losses, "closed_form_helps", lambda x: closed)
    value = loss(positive, negative, **how)
    return value, *torch.autograd.grad(3 * value, (positive, negative))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("mask", ["none", "some", "a row without a negative"])
@pytest.mark.parametrize("shape", [(5,), (2, 3)])
@pytest.mark.parametrize("loss", [bpr_max, top1, top1_max])
def test_closed_forms_equal_automatic_differentiation(monkeypatch, loss, shape, mask, weighted):
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    positive, negative = random(*shape).requires_grad_(), random(*shape, 7).requires_grad_()
    counts = None
    if mask != "none":
        counts = random(*shape, 7) > -0.5
        if mask == "a row without a negative":
            counts[0] = False
    how = {"mask": counts, "w": random(*shape).abs() if weighted else None}
    if loss is bpr_max:
        how["bpreg"] = 0.7
    plain, closed = (
        value_and_gradients(monkeypatch, form, loss, positive, negative, **how)
        for form in (False, True)
    )
    torch.testing.assert_close(closed, plain, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("loss", [bpr_max, top1, top1_max])
def test_large_scores_stay_finite(monkeypatch, loss):
    positive = torch.tensor([-60.0, 60.0, 0.0], requires_grad=True)
    negative = torch.tensor([[60.0, -60.0], [0.0, 60.0], [-60.0, -60.0]], requires_grad=True)
    mask = torch.tensor([[True, False], [True, True], [False, False]])
    found = value_and_gradients(monkeypatch, True, loss, positive, negative, mask=mask)
    assert all(x.isfinite().all() for x in found)
    plain = value_and_gradients(monkeypatch, False, loss, positive, negative, mask=mask)
    torch.testing.assert_close(found, plain)
