import pytest
import torch

from recexp.errors import RecexpError
from recexp.nn.embeddings import ItemEncoder, UserEncoder
from recexp.nn.mlp import MLP, PairMLP
from recexp.testing import toy

SCHEMA = toy.schema()


def indicators(name):
    """Feature as a dense matrix [V, cardinality], as it is concatenated to the one-hot id."""
    f = SCHEMA.item_features[name]
    dense = torch.zeros(SCHEMA.V, f.cardinality, dtype=torch.float64)
    for v in range(SCHEMA.V):
        for i, w in zip(f.id_VM[v].tolist(), f.weight_VM[v].tolist(), strict=True):
            dense[v, i] += w
    return dense


def test_side_features_equal_concat_then_linear():
    encoder = toy.randomise(ItemEncoder(SCHEMA, 4, side="all"))
    one_hot = torch.eye(SCHEMA.V, dtype=torch.float64)
    x = torch.cat([one_hot, *(indicators(name) for name in SCHEMA.item_features)], 1)
    linear = torch.cat([encoder.id.weight, *(bag.table.weight for bag in encoder.side)])
    assert torch.allclose(encoder.table(), x @ linear, atol=1e-12)


def test_half_is_the_mean_of_id_and_side_vectors():
    whole = toy.randomise(ItemEncoder(SCHEMA, 4, side=["category", "price"]))
    half = toy.randomise(ItemEncoder(SCHEMA, 4, side=["category", "price"], scale="half"))
    assert torch.allclose(half.table(), whole.table() / 2)


@pytest.mark.parametrize("fusion", ["add", "concat", "gate"])
def test_item_encoder_keeps_shape_padding_and_gradient(fusion):
    encoder = toy.randomise(ItemEncoder(SCHEMA, 4, side="all", fusion=fusion))
    item = torch.tensor([[0, 3, 12], [1, 0, 5]])
    out = encoder(item)
    assert out.shape == (2, 3, 4)
    assert torch.equal(out, encoder.table()[item])
    assert torch.equal(out[0, 0], torch.zeros(4, dtype=torch.float64))
    assert encoder(torch.zeros(2, 0, dtype=torch.int64)).shape == (2, 0, 4)
    encoder.table().square().sum().backward()
    assert toy.without_gradient(encoder) == []


def test_gate_starts_uniform_and_weighs_by_softmax():
    encoder = ItemEncoder(SCHEMA, 4, side=["category"], fusion="gate").double()
    vectors = torch.stack([encoder.id.weight, encoder.side[0](torch.arange(SCHEMA.V))], 1)
    assert torch.allclose(encoder.table(), vectors.mean(1))
    toy.randomise(encoder)
    for v in range(1, SCHEMA.V):
        f = torch.stack([encoder.id.weight[v], encoder.side[0](torch.tensor(v))])
        g = (f @ encoder.mix.weight[0]).exp()
        assert torch.allclose(encoder(torch.tensor(v)), (g / g.sum()) @ f)


def user_reference(encoder, name, u, items):
    f = SCHEMA.item_features[name]
    carries = (indicators(name) > 0).double()
    a = sum((carries[i] for i in items), torch.zeros(f.cardinality, dtype=torch.float64))
    table = encoder.side[list(SCHEMA.user_features).index(name)].table.weight
    return (a / a.sum() if a.sum() > 0 else a) @ table


def test_user_vector_is_id_plus_normalized_bags():
    encoder = toy.randomise(UserEncoder(SCHEMA, 4, side="all"))
    items = toy.training_items()
    user_B = torch.tensor([3, 6, 0, 5, 3])
    for row, u in zip(encoder(user_B), user_B.tolist(), strict=True):
        expected = encoder.id.weight[u] + sum(
            user_reference(encoder, name, u, items[u]) for name in SCHEMA.user_features
        )
        assert torch.allclose(row, expected, atol=1e-12)
    assert torch.equal(encoder(torch.tensor([6])), encoder.id.weight[6:])  # a user without items
    assert encoder(user_B[:0]).shape == (0, 4)


def test_leaving_an_item_out_equals_a_bag_made_without_it():
    encoder = toy.randomise(UserEncoder(SCHEMA, 4, side="all"))
    items = toy.training_items()
    user_B = torch.tensor([0, 1, 2, 3, 4, 5])  # user 5 has a single item, so no value is left
    without_B = torch.tensor([items[u][-1] for u in user_B.tolist()])
    for row, u in zip(encoder(user_B, without_B), user_B.tolist(), strict=True):
        expected = encoder.id.weight[u] + sum(
            user_reference(encoder, n, u, items[u][:-1]) for n in SCHEMA.user_features
        )
        assert torch.allclose(row, expected, atol=1e-12)
    assert torch.equal(encoder(user_B, torch.zeros(6, dtype=torch.int64)), encoder(user_B))


def test_a_value_that_only_the_item_left_out_carries_gets_no_gradient():
    """Not even a rounding error: Adam would make a full step for it."""
    encoder = toy.randomise(UserEncoder(SCHEMA, 4, side="all"))
    items, row = toy.training_items(), 0
    for name, side in zip(SCHEMA.user_features, encoder.side, strict=True):
        carries = indicators(name) > 0
        rest = carries[items[row][:-1]].any(0)
        encoder.zero_grad()
        encoder(torch.tensor([row]), torch.tensor(items[row][-1:])).sum().backward()
        assert torch.equal(side.table.weight.grad.any(1), rest)


def test_ids_only_is_a_plain_table():
    users, items = UserEncoder(SCHEMA, 4), ItemEncoder(SCHEMA, 4)
    assert torch.equal(users(torch.tensor([2])), users.id.weight[2:3])
    assert torch.equal(items.table(), items.id.weight)
    assert len(list(items.parameters())) == 1


def test_side_values_are_not_saved_with_the_weights():
    assert set(ItemEncoder(SCHEMA, 4, side="all").state_dict()) == {
        "id.weight",
        *(f"side.{i}.table.weight" for i in range(3)),
    }


@pytest.mark.parametrize("make", [ItemEncoder, UserEncoder])
def test_unknown_and_missing_features_are_named(make):
    with pytest.raises(RecexpError, match=r"color.*category"):
        make(SCHEMA, 4, side=["color"])
    with pytest.raises(RecexpError, match="no side features"):
        make(toy.schema(side=False), 4, side="all")
    with pytest.raises(RecexpError, match="scale='third'"):
        make(SCHEMA, 4, side="all", scale="third")


def test_half_does_not_go_with_other_fusions():
    with pytest.raises(RecexpError, match="half"):
        ItemEncoder(SCHEMA, 4, side="all", fusion="gate", scale="half")


def test_pair_mlp_equals_mlp_on_the_concatenation():
    pair, plain = PairMLP((7, 4, 3)).double(), MLP((7, 4, 3)).double()
    plain.load_state_dict(pair.state_dict())
    left, right = (
        torch.randn(2, 1, 3, dtype=torch.float64),
        torch.randn(2, 5, 4, dtype=torch.float64),
    )
    assert torch.allclose(pair(left, right), plain(torch.cat([left.expand(-1, 5, -1), right], -1)))
