import pytest
import torch

from recexp.nn.cpu.catalog_dot import catalog_dot


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rows", [9, 1])
@pytest.mark.parametrize("items", [15, 40])
def test_it_equals_looking_up_and_multiplying(dtype, rows, items):
    """Row 0 counts like any other, rows may repeat, and some occur nowhere. There may be fewer
    items than products.
    """
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(rows, 5, generator=generator, dtype=dtype, requires_grad=True)
    table = torch.randn(items, 5, generator=generator, dtype=dtype, requires_grad=True)
    index = torch.randint(0, 10, (rows, 20), generator=generator)
    assert (index == 0).any() and not (index == 10).any()
    weight = torch.randn(rows, 20, generator=generator, dtype=dtype)
    gradients = []
    for products in (catalog_dot(h, table, index), (table[index] * h[:, None]).sum(-1)):
        gradients.append(
            [products.detach(), *torch.autograd.grad((products * weight).sum(), (h, table))]
        )
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted)


def test_nothing_is_computed_for_what_does_not_learn():
    h = torch.ones(2, 3)
    table = torch.ones(4, 3, requires_grad=True)
    catalog_dot(h, table, torch.tensor([[1, 2], [3, 3]])).sum().backward()
    assert table.grad[:, 0].tolist() == [0, 1, 1, 2] and h.grad is None
    assert catalog_dot(h[:0], table, torch.zeros(0, 2, dtype=torch.int64)).shape == (0, 2)
