"""Every model of conf/model fulfills the public contract, trained by the objective its YAML names.

Which tests apply follows from the model's base classes and its objective, never from its name. A
new YAML is tested without a change here.
"""

import dataclasses

import pytest
import torch

from recexp.config.build import build
from recexp.contracts import Encoder
from recexp.objectives.autoencode import Autoencode
from recexp.objectives.cloze import Cloze
from recexp.objectives.next_item import NextItem
from recexp.objectives.sequence import SequenceObjective
from recexp.objectives.session_parallel import SessionParallel
from recexp.testing import ModelContract
from tests.contracts.harness import EACH_MODEL, STORE, contestant, small_config


class TestModelsOfTheConfig(ModelContract):
    store = STORE

    @pytest.fixture(autouse=True, params=EACH_MODEL)
    def choose(self, request):
        cfg = small_config(request.param)
        self.model = lambda schema: build(cfg.model, schema=schema)
        self.objective = lambda: build(cfg.objective)


@pytest.mark.parametrize("name", EACH_MODEL)
def test_what_is_to_be_predicted_is_not_in_the_input(name):
    """Other items (so other side information), behaviors and values at the events to predict do not
    change the model's input, but for the behavior that a model asks for.
    """
    entry = contestant(name, STORE)
    if entry.closed_form:
        pytest.skip("fits without examples")
    if isinstance(entry.objective, Autoencode):
        pytest.skip("gives its input back")
    rows = STORE.train.ptr[1:11]  # one past every user's last event
    rows = (
        rows
        if isinstance(entry.objective, SequenceObjective)
        and not isinstance(entry.objective, SessionParallel)
        else rows - 1
    )
    before = entry.objective.batch(STORE, rows, torch.Generator().manual_seed(3))
    after = entry.objective.batch(
        other_at(events_to_predict(entry.objective, rows, before)),
        rows,
        torch.Generator().manual_seed(3),
    )
    if isinstance(entry.objective, SessionParallel):
        assert torch.equal(before.item_S, after.item_S)
        assert (before.target_S != after.target_S).all()
        return
    read = columns(after.query)
    asks = isinstance(entry.model, Encoder) and entry.model.asks_behavior
    for name, column in columns(before.query).items():
        is_asked = asks and name == "behavior_BL"
        assert torch.equal(column, read[name]) != is_asked, name
    target = next(
        f.name
        for f in dataclasses.fields(before)
        if f.name in ("target_BL", "item_BC", "positive_B")
    )
    assert not torch.equal(getattr(before, target), getattr(after, target))


def columns(query):
    """The query's tensors by name."""
    found = {field.name: getattr(query, field.name) for field in dataclasses.fields(query)}
    found |= found.pop("features_BL")
    return {name: column for name, column in found.items() if column is not None}


def events_to_predict(objective, rows, batch):
    """Rows of the store's training events that are in no input: the masked events, or the last
    event of each row.
    """
    if isinstance(objective, Cloze):
        masked_BL = batch.query.item_BL == STORE.schema.V
        assert masked_BL.any()
        length = masked_BL.shape[1]
        return (rows[:, None] - length + torch.arange(length))[masked_BL]
    return rows - 1 if isinstance(objective, NextItem) else rows


def other_at(rows):
    train, n_items = STORE.train, STORE.schema.n_items
    changed = {
        "item": 1 + train.item % n_items,
        "behavior": 3 - train.behavior,
        "value": 1 + train.value % 5,
    }
    hit = torch.zeros(len(train), dtype=torch.bool)
    hit[rows] = True
    return dataclasses.replace(
        STORE,
        train=dataclasses.replace(
            train, **{k: torch.where(hit, v, getattr(train, k)) for k, v in changed.items()}
        ),
    )
