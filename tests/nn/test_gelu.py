import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from recexp.nn.gelu import gelu_linear


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("shape", [(6, 4), (2, 3, 4)])
def test_gelu_linear_and_its_gradients_equal_the_plain_form(approximate, shape):
    torch.manual_seed(0)
    layer = nn.Linear(4, 3).double()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(*shape[:-1], 3, dtype=torch.float64)
    inputs = [x, layer.weight, layer.bias]
    plain = layer(F.gelu(x, approximate=approximate))
    fast = gelu_linear(x, layer, approximate)
    assert torch.equal(fast, plain)
    expected = torch.autograd.grad((plain * weight).sum(), inputs)
    for got, wanted in zip(
        torch.autograd.grad((fast * weight).sum(), inputs), expected, strict=True
    ):
        assert torch.equal(got, wanted)


def test_gelu_linear_in_half_precision_equals_the_plain_form():
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    x = torch.randn(5, 4, requires_grad=True)
    gradients = []
    for form in (gelu_linear, lambda x, layer: layer(F.gelu(x))):
        with torch.autocast("cpu", torch.bfloat16):
            out = form(x, layer)
        gradients.append(torch.autograd.grad(out.float().sum(), [x, layer.weight]))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("keeps", [True, False])
def test_gelu_linear_frees_the_activation_before_the_backward_pass(monkeypatch, keeps):
    made = []

    def seen_gelu(x, **options):
        made.append(StorageWeakRef((out := gelu(x, **options)).untyped_storage()))
        return out

    gelu = F.gelu
    monkeypatch.setattr(F, "gelu", seen_gelu)
    layer = nn.Linear(16, 4)
    x = torch.randn(100, 16, requires_grad=True)
    out = layer(F.gelu(x)) if keeps else gelu_linear(x, layer)
    assert made[0].expired() != keeps
    out.sum().backward()
