"""Features in sequence models and FPMC, against models whose tables hold the features already."""

from __future__ import annotations

import copy

import pytest
import torch

from recexp.models.bert4rec import BERT4Rec
from recexp.models.bert_ite import BertITE
from recexp.models.fpmc import FPMC
from recexp.models.gru4rec import GRU4Rec
from recexp.models.ite import ITE
from recexp.models.nova import SideBERT
from recexp.models.sasrec import SASRec
from recexp.nn.traced import fold_all
from recexp.testing import toy
from tests.support import features

SCHEMA = features.schema()
QUERY = features.query([0, 1, 2, 6], [[3, 1, 7, 2], [5], [], [4, 9]])
ITEM = torch.tensor([[1, 4, 12], [2, 2, 3], [7, 8, 9], [11, 10, 1]])
SMALL = {"n_factors": 8, "item_side": "all"}
EVENTS = ["value", "behavior", "device", "dwell", "gap"]


def tables(model):
    """The models' tables of ids beside the encoders that add features to them."""
    if isinstance(model, FPMC):
        return [
            (model.item_user, model.user_items),
            (model.item_last, model.next_items),
            (model.last_item, model.last_items),
        ]
    if isinstance(model, GRU4Rec):
        pairs = [(model.item, model.output_items or model.input_items)]
        return pairs if model.input is None else [*pairs, (model.input, model.input_items)]
    pairs = [(model.item, model.items)]
    if isinstance(model, BERT4Rec) and model.output is not None:
        pairs.append((model.output, model.output_items))
    return pairs


MODELS = {
    "sasrec": (SASRec, {"max_len": 4}),
    "bert4rec": (BERT4Rec, {"max_len": 5}),
    "bert4rec with an output table": (BERT4Rec, {"max_len": 5, "tied": False}),
    "gru4rec": (GRU4Rec, {}),
    "gru4rec+": (GRU4Rec, {"input_table": "constrained"}),
    "torch's gru": (GRU4Rec, {"input_table": "separate", "cell": "torch"}),
    "fpmc": (FPMC, {}),
}


@pytest.mark.parametrize("vectors", ["frozen", "trained"])
@pytest.mark.parametrize("name", MODELS)
def test_item_features_equal_larger_tables(name, vectors):
    """A model without features, whose tables are the sums, gives the same scores."""
    cls, options = MODELS[name]
    model = toy.randomise(cls(SCHEMA, **SMALL, **options, side_vectors=vectors))
    plain = toy.randomise(cls(SCHEMA, n_factors=8, **options))
    own = dict(model.named_parameters())
    with torch.no_grad():
        for key, weight in own.items():
            if key.endswith("weight_VM"):
                weight[0] = 0  # padding
        for key, weight in plain.named_parameters():
            weight.copy_(own[key])
        for (_, encoder), (table, _) in zip(tables(model), tables(plain), strict=True):
            assert len(encoder.side) == 4
            table.weight[: SCHEMA.V] = encoder.table()
    for items in (None, ITEM):
        assert torch.allclose(model.score(QUERY, items), plain.score(QUERY, items), atol=1e-10)
    assert torch.allclose(model.item_embeddings(), plain.item_embeddings(), atol=1e-12)


@pytest.mark.parametrize("name", ["sasrec", "bert4rec", "gru4rec", "gru4rec+", "fpmc"])
def test_candidates_without_features_are_the_tables_rows(name):
    cls, options = MODELS[name]
    model = toy.randomise(cls(SCHEMA, **SMALL, **options, side_of_candidates=False))
    table = model.item_user if name == "fpmc" else model.item
    assert torch.equal(model.item_embeddings(), table.weight[1 : SCHEMA.V])
    with_side = toy.randomise(cls(SCHEMA, **SMALL, **options))
    assert not torch.equal(with_side.item_embeddings(), table.weight[1 : SCHEMA.V])


def test_without_features_a_model_draws_and_keeps_what_it_always_did():
    for cls, options in MODELS.values():
        names = {key for key, _ in cls(SCHEMA, **options).named_parameters()}
        assert not [key for key in names if "side" in key or "items" in key]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"input_table": "constrained", "n_layers": 2},
        {"cell": "torch", "input_table": "separate"},
    ],
    ids=str,
)
def test_states_with_event_features_are_the_same_however_they_are_computed(options):
    """All states of padded histories, the last ones alone, and event by event."""
    model = toy.randomise(GRU4Rec(SCHEMA, n_factors=8, event_side=EVENTS, **options))
    states = model.encode(QUERY)
    assert torch.allclose(model.encode(QUERY, last_only=True)[:, 0], states[:, -1], atol=1e-10)
    query = QUERY[torch.tensor([0])]
    hidden = model.initial_state(1)
    for at in range(4):
        two = query.change_columns(lambda x_BL, at=at: x_BL[:, max(0, at - 1) : at + 1])
        h_BD, hidden = model.step(query.item_BL[:, at], hidden, two)
        assert torch.allclose(h_BD, states[:1, at], atol=1e-10)


@pytest.mark.parametrize("cls", [SASRec, GRU4Rec])
def test_states_of_causal_models_do_not_read_later_events(cls):
    model = toy.randomise(cls(SCHEMA, n_factors=8, event_side=EVENTS, item_side="all", max_len=9))
    query = features.query([0], [[3, 1, 7, 2]])
    before = model.encode(query)
    later = query.change_columns(lambda x_BL: x_BL)
    for column in (later.behavior_BL, later.value_BL, later.time_BL, *later.features_BL.values()):
        column[:, -1] += 1
    after = model.encode(later)
    assert torch.equal(before[:, :-1], after[:, :-1])
    assert not torch.allclose(before[:, -1], after[:, -1])


@pytest.mark.parametrize(
    "build",
    [
        lambda: SASRec(SCHEMA, n_factors=8, event_side=EVENTS),
        lambda: BERT4Rec(SCHEMA, n_factors=8, event_side=[*EVENTS, "time"]),
        lambda: FPMC(SCHEMA, n_factors=8, event_side=EVENTS),
        lambda: BertITE(SCHEMA, n_factors=8, event_side=[*EVENTS, "time"]),
        lambda: BertITE(SCHEMA, n_factors=8, event_side=EVENTS, pad="random", max_len=6),
        lambda: SideBERT(SCHEMA, n_factors=8, side=["text", *EVENTS, "time"]),
    ],
    ids=["sasrec", "bert4rec", "fpmc", "bert_ite", "bert_ite random pad", "nova"],
)
def test_every_event_feature_and_no_padding_decides_scores(build):
    model = toy.randomise(build())
    scores = model.score(QUERY, ITEM)
    assert torch.allclose(model.score(toy_padded(QUERY), ITEM), scores, atol=1e-10)
    for name in ("value_BL", "behavior_BL", "time_BL", "device", "dwell"):
        changed = QUERY.change_columns(torch.clone)
        column = changed.features_BL.get(name)
        column = getattr(changed, name) if column is None else column
        column[0, -1] += 2_000_000 if name == "time_BL" else 1
        assert not torch.allclose(model.score(changed, ITEM)[0], scores[0]), name


def toy_padded(query):
    return query.change_columns(lambda x_BL: torch.nn.functional.pad(x_BL, (2, 0)))


@pytest.mark.parametrize("cls", [ITE, BertITE, FPMC])
def test_attributes_of_users_equal_a_larger_table(cls):
    model = toy.randomise(cls(SCHEMA, n_factors=8, user_side=["city", "profile"]))
    plain = toy.randomise(cls(SCHEMA, n_factors=8))
    own = dict(model.named_parameters())
    with torch.no_grad():
        for key, weight in plain.named_parameters():
            weight.copy_(own[key])
        city, profile = (bag.table.weight for bag in model.users.side)
        sums = model.users.ids.weight.clone()
        for user in range(SCHEMA.n_users):
            sums[user] += city[SCHEMA.user_attributes["city"].id_VM[user, 0]]
            sums[user] += SCHEMA.user_attributes["profile"].weight_VM[user].double() @ profile[1:]
        plain.users.ids.weight.copy_(sums)
    assert torch.allclose(model.score(QUERY, ITEM), plain.score(QUERY, ITEM), atol=1e-10)


def test_vectors_in_nova_are_hidden_where_the_item_is_and_absent_where_unknown():
    model = toy.randomise(SideBERT(SCHEMA, n_factors=8, side=["text"]))
    side = model.side.items[0]
    table = side.table.weight
    vector_VW = SCHEMA.item_features["text"].weight_VM.double()
    found = side(torch.tensor([0, 2, 4, SCHEMA.V]))
    assert not found[0].any()
    assert torch.allclose(found[1], vector_VW[2] @ table[1:4])
    assert torch.equal(found[2], table[4])  # item 4 has no vector
    assert torch.equal(found[3], table[5])  # [MASK]


def test_trained_vectors_start_where_the_data_put_them_and_move():
    model = SASRec(SCHEMA, n_factors=8, item_side=["text"], side_vectors="trained")
    bag = model.items.side[0]
    vector_VW = SCHEMA.item_features["text"].weight_VM
    assert torch.equal(bag.weight_VM, vector_VW)
    model.score(QUERY).square().sum().backward()
    grad = bag.weight_VM.grad
    assert grad is not None
    assert not grad[0].any()
    assert grad[1:].any()
    frozen = SASRec(SCHEMA, n_factors=8, item_side=["text"])
    assert "weight_VM" not in " ".join(key for key, _ in frozen.named_parameters())


@pytest.mark.parametrize("name", MODELS)
def test_folded_for_a_graph_a_model_scores_alike(name):
    cls, options = MODELS[name]
    model = toy.randomise(cls(SCHEMA, **SMALL, **options)).requires_grad_(False)
    folded = copy.deepcopy(model)
    fold_all(folded)
    for items in (None, ITEM):
        assert torch.allclose(folded.score(QUERY, items), model.score(QUERY, items), atol=1e-10)
