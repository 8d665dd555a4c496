import dataclasses

import pytest
import torch

from recexp.errors import RecexpError
from recexp.models import common as sequence
from recexp.models.bert4rec import BERT4Rec
from recexp.models.nova import SideBERT
from recexp.nn.attention import key_mask
from recexp.testing import toy

SCHEMA = toy.schema()
SMALL = dict(n_factors=8, n_layers=2, n_heads=2, max_len=6)
QUERY = toy.query([0, 3, 6, 5], [[1, 2, 9, 4, 7], [4], [], [3, 3, 8]])


def model(**options):
    return toy.randomise(SideBERT(SCHEMA, **(SMALL | options)))


def test_invasive_add_without_side_information_is_bert4rec():
    invasive = model(invasive=True, side=[])
    bert = toy.randomise(BERT4Rec(SCHEMA, token_type=False, **SMALL))
    bert.load_state_dict(invasive.state_dict())
    assert torch.allclose(invasive.score(QUERY), bert.score(QUERY), atol=1e-12)


def test_nova_without_positions_and_side_information_is_bert4rec():
    """Without anything to fuse, queries and keys are H."""
    nova = model(side=[], positions="none")
    bert = toy.randomise(BERT4Rec(SCHEMA, token_type=False, positions="none", **SMALL))
    bert.load_state_dict(nova.state_dict())
    assert torch.allclose(nova.score(QUERY), bert.score(QUERY), atol=1e-12)
    # The same holds when the position is added to H instead.
    nova = model(side=[], position_in_sides=False)
    bert = toy.randomise(BERT4Rec(SCHEMA, token_type=False, **SMALL))
    bert.load_state_dict(nova.state_dict())
    assert torch.allclose(nova.score(QUERY), bert.score(QUERY), atol=1e-12)


def test_nova_layer_whose_values_and_residual_are_the_fused_stream_is_an_invasive_layer():
    nova, invasive = (
        model(embedding_norm=False, invasive=invasive, n_layers=1) for invasive in (False, True)
    )
    invasive.load_state_dict(nova.state_dict())
    item_BL, mask = QUERY.item_BL, key_mask(QUERY.mask_BL)
    sides = [nova.position(QUERY.mask_BL), *nova.side(QUERY, item_BL)]
    r = nova.fusions[0]([nova.item(item_BL), *sides])
    assert torch.allclose(nova.layers[0](r, mask, r), invasive.encode(QUERY), atol=1e-12)
    assert not torch.allclose(nova.encode(QUERY), invasive.encode(QUERY))


def test_nova_keeps_side_information_out_of_the_values():
    """With one event all attention is on it, so other side information changes nothing; with
    invasive fusion it changes the state.
    """
    one, other = toy.query([0], [[4]]), toy.query([0], [[4]])
    other.value_BL, other.behavior_BL = other.value_BL % 5 + 1, 3 - other.behavior_BL
    nova, invasive = model(), model(invasive=True)
    assert torch.allclose(nova.encode(one), nova.encode(other), atol=1e-12)
    assert not torch.allclose(invasive.encode(one), invasive.encode(other))
    # With a second event, the attention weights change.
    one, other = toy.query([0], [[4, 5]]), toy.query([0], [[4, 5]])
    other.value_BL = other.value_BL % 5 + 1
    assert not torch.allclose(nova.encode(one), nova.encode(other))


@pytest.mark.parametrize("invasive", [False, True])
def test_features_of_a_masked_item_show_only_as_a_leak(invasive):
    m = model(invasive=invasive)
    masked = toy.query([0], [[1, 2, 9, 4, 7]])
    masked.item_BL[0, 2] = SCHEMA.V
    hidden = m.encode(masked)
    assert torch.allclose(m.encode(masked, side_item_BL=masked.item_BL), hidden)
    leaks = [
        m.encode(masked, side_item_BL=masked.item_BL.masked_fill(masked.item_BL == SCHEMA.V, v))
        for v in (5, 9)
    ]
    assert not torch.allclose(leaks[0], hidden) and not torch.allclose(leaks[0], leaks[1])


def test_a_leak_follows_its_rows_into_groups_by_length(monkeypatch):
    m = model()
    query = toy.query([0, 1, 2], [[1, 2, 9, 4, 7, 3, 2, 1], [3], [5, 6, 7]])
    query.item_BL[:, -1] = SCHEMA.V
    shown = query.item_BL.masked_fill(query.item_BL == SCHEMA.V, 5)
    leak = m.encode(query, side_item_BL=shown)
    monkeypatch.setattr(sequence, "group_size", lambda query: 1)
    assert torch.allclose(m.encode(query, side_item_BL=shown)[:, -1], leak[:, -1])
    assert not torch.allclose(m.encode(query)[0, -1], leak[0, -1])


@pytest.mark.parametrize("invasive", [False, True])
@pytest.mark.parametrize("leak", [False, True])
def test_wanted_states_are_those_among_all_states(invasive, leak, monkeypatch):
    m, query = model(invasive=invasive), QUERY
    shown = torch.where(query.item_BL != 0, 5, 0) if leak else None
    wanted = query.mask_BL & (
        torch.rand(query.item_BL.shape, generator=torch.Generator().manual_seed(2)) < 0.5
    )
    expected = m.encode(query, side_item_BL=shown)[wanted[:, -m.max_len :]]
    for group in (1, 2, 100):
        monkeypatch.setattr(sequence, "group_size", lambda query, group=group: group)
        assert torch.allclose(m.encode_at(query, wanted, side_item_BL=shown), expected)


@pytest.mark.parametrize("invasive", [False, True])
@pytest.mark.parametrize("name", ["category", "genres", "price", "value", "behavior", "time"])
def test_each_feature_alone_counts(invasive, name):
    m = model(invasive=invasive, side=name)
    assert len(m.side) == 1
    score = m.score(QUERY)
    table = (*m.side.items, *m.side.events)[0].table
    with torch.no_grad():
        table.weight[1:] += torch.randn_like(table.weight[1:])
    changed = m.score(QUERY)
    assert not torch.allclose(changed[0], score[0])


def test_unknown_padding_and_mask_are_three_things():
    values = model(side=["value"]).side
    query = toy.query([0], [[0, 5, 6, 7]])
    query.item_BL[0, 3] = SCHEMA.V
    query.value_BL[0] = torch.tensor([0, 3, 0, 2])
    table = values.events[0].table.weight
    assert torch.equal(next(iter(values(query, query.item_BL)))[0], table[[0, 3, 6, 7]])
    query.value_BL = None
    assert torch.equal(next(iter(values(query, query.item_BL)))[0], table[[0, 6, 6, 7]])


def test_time_is_an_age_by_powers_of_two_and_hidden_where_masked():
    side = model(side=["time"]).side
    query = toy.query([0], [[0, 5, 6, 7, 8, 3]])
    second = 1000
    query.time_BL[0] = torch.tensor([0, -5, 0, 3, 4, 99]) * second
    query.item_BL[0, 5] = SCHEMA.V
    ages = side.events[0]
    assert ages.codes(query, SCHEMA.V).tolist() == [[0, 5, 4, 2, 1, 0]]  # 9, 4, 1 and 0 seconds
    vectors = next(iter(side(query, query.item_BL)))
    assert not vectors[0, 0].any()
    assert torch.equal(vectors[0, 5], ages.table.weight[ages.masked])
    query.time_BL[0, 5] = 0  # a masked event's time changes nothing
    query.time_BL[0, 1:] += 10**12  # a shift of all times changes nothing
    assert torch.equal(next(iter(side(query, query.item_BL))), vectors)


def test_time_counts_where_it_is_named_only():
    assert len(model(side=[*SCHEMA.item_features, "value", "behavior"]).side) == len(model().side)
    later = dataclasses.replace(QUERY, time_BL=QUERY.time_BL * 7)
    assert torch.equal(model().score(later), model().score(QUERY))
    named = model(side=["time"])
    assert not torch.equal(named.score(later), named.score(QUERY))


def test_items_without_a_label_have_a_vector_of_their_own():
    feature = SCHEMA.item_features["genres"]
    absent = [v for v in range(1, SCHEMA.V) if not feature.id_VM[v].any()]
    assert absent
    side = model(side=["genres"]).side.items[0]
    out, table = side(torch.tensor([0, absent[0], SCHEMA.V])), side.table.weight
    assert not out[0].any()
    assert torch.equal(out[1], table[feature.cardinality]) and torch.equal(
        out[2], table[feature.cardinality + 1]
    )


def test_sizes_of_the_variants():
    def size(**options):
        return sum(p.numel() for p in model(**options).parameters())

    assert (
        size(invasive=True) + 2 * 8 == size()
    )  # add has no weights; NOVA has a norm for the second stream
    features = 7  # item, position, category, genres, price, value, behavior
    concat = features * 8 * 8 + 8
    assert size(fusion="concat") - size() == 2 * concat
    assert size(fusion="concat", shared_fusion=True) - size() == concat
    assert size(fusion="gating") - size() == 2 * 8


def test_side_information_the_data_has_not_is_refused():
    bare = dataclasses.replace(
        toy.schema(side=False), n_values=0, behaviors=("view",), explicit=(False,)
    )
    with pytest.raises(RecexpError, match="no side information"):
        SideBERT(bare, **SMALL)
    with pytest.raises(RecexpError, match=r"\['year'\].*category"):
        SideBERT(SCHEMA, side=["category", "year"], **SMALL)
    with pytest.raises(RecexpError, match=r"\['behavior'\]"):
        SideBERT(bare, side="behavior", **SMALL)
    with pytest.raises(RecexpError, match="shared_fusion"):
        SideBERT(SCHEMA, invasive=True, shared_fusion=True, **SMALL)
    assert SideBERT(bare, side=[], **SMALL).score(QUERY).shape == (4, bare.n_items)
