"""Graphs return the lists that their models give, for any number and length of histories."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from recexp.contracts import MultiBehavior
from recexp.errors import RecexpError
from recexp.evaluation.lists import top_k
from recexp.nn import traced
from recexp.runs.export import OUTPUTS, write_graph
from recexp.runs.exported import open_graph
from recexp.runs.graph import EVENT_COLUMNS, best_items, trace
from recexp.runs.histories import graph_inputs
from recexp.testing import toy
from recexp.types import Query
from tests.contracts.harness import MODELS, STORE, contestant

SCHEMA = STORE.schema
K = 6
MAX_LEN = 6
# Batch size and length of the histories. Graphs are traced with 3 and 7.
SHAPES = [(1, 1), (2, MAX_LEN), (5, 33), (3, 2), (1, 0)]
# One of each kind of graph; test_export.py has BPR-MF and SASRec. The others differ in settings, or
# are made of the same parts.
DEFAULT = {"gru4rec", "item_knn"}
# Settings whose scores take another way through the code than those of the YAML files.
SETTINGS = [
    ("nova_bert", "model.side=[time,behavior]"),
    ("nova_bert", "model.fusion=gating"),
    ("bert_ite", "model.pad=random"),
    ("bert_ite", "model.norm=pre"),
    ("bert_ite", "model.positions=right"),
    ("bert_ite", "model.positions=left"),
    ("gru4rec", "model.n_layers=2", "model.max_len=4"),
    ("gru4rec", "model.cell=torch", "model.input_table=constrained", "model.max_len=6"),
    ("item_knn", "model.behaviors=strongest"),
]
READ = {
    "bpr_mf": ("user_B", "seen_BL"),
    "pop": ("seen_BL",),
    "fpmc": ("user_B", "item_BL"),
    "sasrec": ("item_BL",),
    "bert_ite_si": ("user_B", "item_BL"),
    "nova_bert": ("item_BL", "behavior_BL", "value_BL"),
    "replay": ("item_BL", "behavior_BL"),
}


def with_parameters(name, *overrides):
    """The model of the harness; with random parameters, whose scores are of the size of 1."""
    entry = contestant(name, STORE, *overrides, max_len=MAX_LEN)
    if entry.closed_form:
        entry.model.fit_pass(STORE)
        return entry.model.eval()
    return toy.randomise(entry.model, scale=0.3).float()


def whole_histories(batch, length):
    """Histories of up to this length, with repeated items, and users."""
    generator = torch.Generator().manual_seed(100 * batch + length)
    item_BL = torch.randint(1, SCHEMA.n_items + 1, (batch, length), generator=generator)
    padding_B1 = torch.randint(0, length + 1, (batch, 1), generator=generator)
    padding_B1[0] = 0
    item_BL = item_BL * (torch.arange(length) >= padding_B1)
    is_real_BL = (item_BL != 0).long()
    return Query(
        user_B=torch.randint(0, SCHEMA.n_users, (batch,), generator=generator),
        item_BL=item_BL,
        behavior_BL=(1 + item_BL % 3) * is_real_BL,
        time_BL=1000 * 3 ** (torch.arange(length) % 12) * is_real_BL,
        value_BL=(1 + item_BL % 5) * is_real_BL,
    )


def newest(query, length):
    """What evaluation asks a model: the events that it reads and no others."""
    start = max(0, query.item_BL.shape[1] - length)
    columns = {name: getattr(query, name)[:, start:] for name in EVENT_COLUMNS}
    return Query(query.user_B, **columns)


def expected_scores(model, query):
    """The model's own scores [B, V], column 0 and the items of the history at -inf."""
    with torch.inference_mode():
        score_BC = model.score(newest(query, model.history)).float()
    return F.pad(score_BC, (1, 0)).scatter(1, F.pad(query.item_BL, (1, 0)), -torch.inf)


def check_lists(item_BK, score_BK, expected_BV):
    """The items' own scores are those of the list, and no better item was left out."""
    best_BK, _ = top_k(expected_BV, item_BK.shape[1])
    for found in (score_BK, expected_BV.gather(1, item_BK)):
        assert torch.equal(found == -torch.inf, best_BK == -torch.inf)
        torch.testing.assert_close(found, best_BK, rtol=1e-5, atol=1e-5)
    for items in item_BK.tolist():
        real = [item for item in items if item]
        assert len(set(real)) == len(real)


def check_graph(model, tmp_path):
    graph = trace(model, SCHEMA, K, include_seen=False)
    for name, file in (("onnx", "model.onnx"), ("pt2", "model.pt2")):
        write_graph(graph, tmp_path / file, name)
        run = open_graph(tmp_path / file, name)
        for shape in SHAPES:
            query = whole_histories(*shape)
            arrays = graph_inputs(query)
            item_BK, score_BK = run([arrays[column] for column in graph.inputs])
            assert item_BK.shape == score_BK.shape == (shape[0], K)
            lists = torch.from_numpy(np.array(item_BK)), torch.from_numpy(np.array(score_BK))
            check_lists(*lists, expected_scores(model, query))
    return graph


def marked(name):
    slow = pytest.mark.slow  # two exports take 2 to 8 seconds
    return name if name in DEFAULT else pytest.param(name, marks=slow)


@pytest.mark.parametrize("name", [marked(name) for name in MODELS])
def test_a_graph_returns_the_models_lists(name, tmp_path):
    graph = check_graph(with_parameters(name), tmp_path)
    assert graph.inputs == READ.get(name, graph.inputs)


@pytest.mark.slow  # two exports each
@pytest.mark.parametrize("words", SETTINGS, ids=" ".join)
def test_a_graph_of_other_settings_returns_the_models_lists(words, tmp_path):
    check_graph(with_parameters(*words), tmp_path)


@pytest.mark.parametrize(
    "name",
    ["neumf"]
    + [
        pytest.param(name, marks=pytest.mark.slow)  # as above
        for name in ("nmtr", "mf_mmlp", "ite_si", "bert_ite", "bert_ite_authors", "bert_ite_si")
    ],
)
def test_a_graph_scores_a_large_catalog_in_blocks(name, tmp_path, monkeypatch):
    monkeypatch.setattr(traced, "ROW_BLOCK", 200)
    graph = check_graph(with_parameters(name), tmp_path)
    assert any("scan" in str(node.target) for node in graph.program.graph.nodes)


def test_a_graph_holds_no_parameter_that_it_does_not_use():
    """Side features and the parts of bags are folded into tables."""
    graph = trace(with_parameters("ite_si"), SCHEMA, K, include_seen=False)
    nodes = [node for node in graph.program.graph.nodes if node.op == "placeholder"]
    assert [node.name for node in nodes if not node.users] == []


def test_tracing_leaves_the_model_as_it_was():
    model = with_parameters("mfpr")
    before = {name: x.clone() for name, x in model.state_dict().items()}
    trace(model, SCHEMA, K, include_seen=False)
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(x, after[name]) for name, x in before.items())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", ["item_knn", "pop"])
def test_seen_items_stay_where_they_are_asked_for(name):
    model = with_parameters(name)
    graph = trace(model, SCHEMA, SCHEMA.n_items, include_seen=True)
    assert "seen_BL" not in graph.inputs
    query = whole_histories(3, 5)
    arrays = graph_inputs(query)
    with torch.no_grad():
        item_BK, _ = graph.program.module()(*(torch.from_numpy(arrays[n]) for n in graph.inputs))
    every_item = torch.arange(1, SCHEMA.n_items + 1).expand(3, -1)
    assert torch.equal(item_BK.sort(1).values, every_item)


def test_fewer_items_than_places_leave_zeros():
    model = with_parameters("bpr_mf")
    graph = trace(model, SCHEMA, SCHEMA.n_items, include_seen=False)
    seen_BL = torch.arange(SCHEMA.n_items - 1)[None]  # all items but the last two, and a 0
    with torch.no_grad():
        item_BK, score_BK = graph.program.module()(torch.tensor([4]), seen_BL)
    assert sorted(item_BK[0, :2].tolist()) == [SCHEMA.n_items - 1, SCHEMA.n_items]
    assert not item_BK[0, 2:].any()
    assert (score_BK[0, 2:] == -torch.inf).all()


@pytest.mark.parametrize("seed", range(20))
def test_best_items_are_those_of_evaluation_in_the_same_order(seed):
    """Also among equal scores, NaN and infinities."""
    generator = torch.Generator().manual_seed(seed)
    score_BV = torch.randint(0, 5, (8, 40), generator=generator).float()
    score_BV[score_BV == 0] = torch.nan if seed % 2 else torch.inf
    score_BV[:, 0] = -torch.inf
    k = 1 + 3 * seed % 39
    item_BK, score_BK = best_items(score_BV, k)
    expected_BK, column_BK = top_k(score_BV, k)
    assert torch.equal(score_BK, expected_BK)
    assert torch.equal(item_BK, torch.where(expected_BK > -torch.inf, column_BK, 0))


class OfTheBatch(MultiBehavior):
    """Its scores depend on a number that tracing would freeze."""

    n_behaviors = 1
    needs_user = False
    history = 5

    def score(self, query, item_BC=None):
        steps = int(query.mask_BL.sum(1).max())
        return torch.zeros(len(query), SCHEMA.n_items) + steps

    def logits(self, query, item_BC):
        raise NotImplementedError


def test_a_model_that_cannot_be_traced_is_named(caplog):
    caplog.set_level(logging.CRITICAL)
    with pytest.raises(RecexpError, match="OfTheBatch cannot be exported, since torch cannot"):
        trace(OfTheBatch(), SCHEMA, K, include_seen=False)


def test_outputs_have_the_names_of_the_signature(tmp_path):
    import onnxruntime

    write_graph(trace(with_parameters("pop"), SCHEMA, K, False), tmp_path / "model.onnx", "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert [port.name for port in session.get_outputs()] == list(OUTPUTS)
    assert session.get_inputs()[0].shape == ["batch", "length"]
