import pytest
import torch
import torch.nn.functional as F

from recexp.nn.cpu import lookup
from recexp.nn.cpu.lookup import row_dot, table_dot
from recexp.nn.lookup import Embedding, Rows


def gradients(loss, *inputs):
    for x in inputs:
        x.grad = None
    loss.backward()
    return [x.grad.clone() for x in inputs]


@pytest.mark.parametrize("block", [1, 40, lookup.BLOCK])
@pytest.mark.parametrize("columns", [3, lookup.NARROW + 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_table_dot_equals_looking_up_and_multiplying(monkeypatch, block, columns, dtype):
    monkeypatch.setattr(lookup, "BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(9, 5, generator=generator, dtype=dtype, requires_grad=True)
    table = torch.randn(7, 5, generator=generator, dtype=dtype, requires_grad=True)
    index = torch.randint(0, 7, (9, columns), generator=generator)
    assert (index == 0).any()
    weight = torch.randn(9, columns, generator=generator, dtype=dtype)
    plain, fast = (
        row_dot(F.embedding(index, table, padding_idx=0), one),
        table_dot(one, table, index),
    )
    torch.testing.assert_close(fast, plain)
    expected = gradients((plain * weight).sum(), one, table)
    for got, wanted in zip(gradients((fast * weight).sum(), one, table), expected, strict=True):
        torch.testing.assert_close(got, wanted)
    assert not table.grad[0].any()


@pytest.mark.parametrize("columns", [3, lookup.NARROW + 2])
def test_sparse_gradients_of_table_dot_are_those_of_its_rows(columns):
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(9, 5, generator=generator, requires_grad=True)
    table = torch.randn(200, 5, generator=generator, requires_grad=True)
    index = torch.randint(0, 40, (9, columns), generator=generator)
    weight = torch.randn(9, columns, generator=generator)
    found, expected = (
        gradients((table_dot(one, table, index, sparse) * weight).sum(), one, table)
        for sparse in (True, False)
    )
    assert found[1].is_sparse and not expected[1].is_sparse
    torch.testing.assert_close([found[0], found[1].to_dense()], expected)
    longer = torch.randint(0, 200, (9, 30), generator=generator)
    assert not gradients(table_dot(one, table, longer, True).sum(), table)[0].is_sparse


def test_nothing_is_computed_for_what_does_not_learn():
    one, table = torch.ones(2, 3), torch.ones(4, 3, requires_grad=True)
    table_dot(one, table, torch.tensor([[1, 2], [3, 3]])).sum().backward()
    assert table.grad[:, 0].tolist() == [0, 1, 1, 2] and one.grad is None
    assert table_dot(one[:0], table, torch.zeros(0, 2, dtype=torch.int64)).shape == (0, 2)


@pytest.mark.parametrize("padding", [None, 0])
def test_our_embedding_is_torchs(padding):
    ours, theirs = (
        Embedding(6, 4, padding_idx=padding),
        torch.nn.Embedding(6, 4, padding_idx=padding),
    )
    theirs.load_state_dict(ours.state_dict())
    index = torch.tensor([[0, 1, 1], [5, 0, 1]])
    for module in (ours, theirs):
        module(index).square().sum().backward()
    assert torch.equal(ours(index), theirs(index))
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)


@pytest.mark.parametrize("shape", [(3,), (4, 5)])
@pytest.mark.parametrize("padding", [None, 0])
def test_rows_through_a_layer(shape, padding):
    """Fewer ids than the table has rows, and more: the same values and gradients."""
    torch.manual_seed(0)
    table, layer = (
        Embedding(6, 4, padding_idx=padding).double(),
        torch.nn.Linear(4, 2, bias=False).double(),
    )
    id = torch.randint(6, shape)
    id.view(-1)[0] = 0
    asked = []

    def f(x):
        asked.append(x.shape)
        return layer(x)

    through, plain = Rows(table, id).through(f), layer(table(id))
    assert asked == [(*shape, 4) if id.numel() < 6 else (6, 4)]
    torch.testing.assert_close(through, plain)
    weights = [table.weight, layer.weight]
    expected = gradients(plain.square().sum(), *weights)
    for got, wanted in zip(gradients(through.square().sum(), *weights), expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_rows_dot():
    table, one = Embedding(6, 4, padding_idx=0), torch.randn(2, 4)
    each, shared = torch.tensor([[1, 5, 0], [2, 2, 3]]), torch.tensor([4, 1])
    torch.testing.assert_close(
        Rows(table, each).dot(one), torch.einsum("bd,bcd->bc", one, table(each))
    )
    torch.testing.assert_close(Rows(table, shared).dot(one), one @ table(shared).T)


@pytest.mark.parametrize("padding", [None, 0])
def test_a_sparse_gradient_is_the_dense_one(padding):
    """An item twice in the index, and the padding among it."""
    table = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([[0, 1, 1], [5, 0, 1]])
    dense, sparse = (
        torch.autograd.grad(lookup.look_up(table, index, padding, how).square().sum(), table)[0]
        for how in (False, True)
    )
    assert sparse.is_sparse and not dense.is_sparse
    torch.testing.assert_close(sparse.to_dense(), dense)
    rows = sparse.coalesce().indices()[0].tolist()
    assert rows == ([0, 1, 5] if padding is None else [1, 5])


def test_in_half_precision_the_gradient_stays_dense():
    """A sparse one would be summed in half precision, where 256 + 1 is 256."""
    table = torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True)
    index = torch.ones(300, dtype=torch.int64)
    lookup.look_up(table, index, None, True).sum().backward()
    assert not table.grad.is_sparse
    assert table.grad[1, 0] == 300
