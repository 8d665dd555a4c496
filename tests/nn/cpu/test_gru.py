import pytest
import torch

from recexp.models import gru4rec
from recexp.models.gru4rec import GRULayer


def value_and_gradients(monkeypatch, closed, layer, x, h):
    monkeypatch.setattr(gru4rec, "closed_form_helps", lambda x: closed)
    state = layer.step(layer.project(x), h)
    weight = torch.linspace(-1, 1, state.numel(), dtype=state.dtype).view_as(state)
    inputs = [t for t in (x, h, *layer.parameters()) if t.requires_grad]
    return [state, *torch.autograd.grad((state * weight).sum(), inputs)]


@pytest.mark.parametrize("h_learns", [True, False])
@pytest.mark.parametrize("n_inputs", [None, 5])
@pytest.mark.parametrize("n_rows", [1, 6])
def test_a_step_in_closed_form_equals_the_plain_formulas(monkeypatch, n_inputs, n_rows, h_learns):
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    layer = GRULayer(n_inputs, 4).double()
    for p in layer.parameters():
        p.data = random(*p.shape)
    x = random(n_rows, n_inputs or 12).requires_grad_()
    h = random(n_rows, 4).requires_grad_(h_learns)
    plain, closed = (value_and_gradients(monkeypatch, how, layer, x, h) for how in (False, True))
    assert len(plain) == len(closed) >= 5
    torch.testing.assert_close(closed, plain, rtol=1e-10, atol=1e-12)
