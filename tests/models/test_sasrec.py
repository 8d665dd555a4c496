import pytest
import torch

from recexp.errors import RecexpError
from recexp.models.hstu import HSTU
from recexp.models.sasrec import SASRec
from recexp.testing import toy

SCHEMA = toy.schema()
QUERY = toy.query([0, 1], [[1, 2, 9, 4, 7], [4]])


def test_one_table_serves_both_ends_and_its_padding_stays_zero():
    m = SASRec(SCHEMA, n_factors=8, max_len=6)
    vectors, bias = m.item_vectors()
    assert bias is None and vectors.data_ptr() == m.item.weight[1:].data_ptr()
    optimizer = torch.optim.Adam(m.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        m.score(QUERY).square().sum().backward()
        optimizer.step()
    assert not m.item.weight[0].any()


def test_without_dropout_training_and_evaluation_agree():
    m = toy.randomise(SASRec(SCHEMA, n_factors=8, max_len=6, dropout=0.0))
    assert torch.equal(m.train().score(QUERY), m.eval().score(QUERY))
    m = toy.randomise(SASRec(SCHEMA, n_factors=8, max_len=6, dropout=0.0, attention_dropout=0.5))
    torch.manual_seed(0)
    assert not torch.allclose(m.train().score(QUERY), m.eval().score(QUERY))


def test_attention_dropout_follows_dropout_unless_given():
    assert SASRec(SCHEMA, dropout=0.3).layers[0].attention.p == 0.3
    assert SASRec(SCHEMA, dropout=0.3, attention_dropout=0.0).layers[0].attention.p == 0.0


def test_size_is_that_of_the_paper():
    """V d for items, N d positions, per block q, k, v and two maps of d x d with four biases (keys
    need none) and two norms.
    """
    d, n, layers = 50, 200, 2
    m = SASRec(SCHEMA)
    block = 5 * d * d + 4 * d + 4 * d
    assert sum(p.numel() for p in m.parameters()) == SCHEMA.V * d + n * d + layers * block + 2 * d


def test_starting_values_are_glorot_uniform():
    torch.manual_seed(0)
    m = SASRec(SCHEMA, n_factors=64)
    for weight, fans in ((m.layers[0].inner.weight, 128), (m.position.table.weight, 264)):
        bound = (6 / fans) ** 0.5
        assert 0.95 * bound < weight.abs().max() <= bound
    assert not m.layers[0].inner.bias.any() and not m.item.weight[0].any()


def test_unknown_residual_is_refused():
    with pytest.raises(RecexpError, match="residual='both'"):
        SASRec(SCHEMA, residual="both")


def test_an_inner_width_is_for_gated_layers():
    with pytest.raises(RecexpError, match=r"n_inner=12 is for residual=gated"):
        SASRec(toy.schema(), n_factors=8, n_inner=12)


def test_heads_divide_the_width_of_hstu_too():
    with pytest.raises(RecexpError, match="n_heads=3 does not divide"):
        HSTU(toy.schema(), n_factors=8, n_heads=3)
