"""Systems that read the behavior of each event, in worlds in which only behaviors tell the item."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from recexp.errors import RecexpError
from recexp.models.bert4rec import BERT4Rec
from recexp.testing import toy, worlds
from recexp.types import Schema
from tests.contracts.harness import contestant

N_USERS, N_ITEMS, LENGTH = 400, 40, 8
HALF = N_ITEMS // 2  # the items 1..HALF are the first group, the others the second
QUERY = toy.query([0, 1, 2], [[1, 2, 9, 4], [4], []])
SMALL = {"n_factors": 8, "max_len": 5, "event_side": ["behavior"]}


def world(*, of_previous: bool):
    """Random behaviors; the group of an item is that of a behavior.

    of_previous: of the event before it. Otherwise of its own event; held-out ones are bought.
    """
    g = torch.Generator().manual_seed(0)
    code_UL = torch.randint(1, 3, (N_USERS, LENGTH + 1), generator=g)
    code_UL[:, -1] = 2
    telling_UL = code_UL.roll(1, 1) if of_previous else code_UL
    item_UL = 1 + torch.randint(0, HALF, code_UL.shape, generator=g) + HALF * (telling_UL - 1)
    rows = [
        (user, int(item_UL[user, at]), int(code_UL[user, at]))
        for user in range(N_USERS)
        for at in range(LENGTH)
    ]
    return worlds.store(rows, N_USERS, N_ITEMS, held_out=item_UL[:, -1].tolist())


AFTER_BEHAVIOR = world(of_previous=True)
OF_BEHAVIOR = world(of_previous=False)


def trained(name, store, *overrides, epochs=10):
    """By the softmax over all items: no negative depends on what a user has."""
    overrides = ("loss=ce", "sampler=none", *overrides)
    entry = contestant(name, store, *overrides, max_len=LENGTH, dropout=False)
    optimizer = torch.optim.Adam(entry.model.parameters(), lr=1e-2)
    entry.model.train()
    for epoch in range(epochs):
        for batch in entry.batches(epoch, 100):
            optimizer.zero_grad()
            entry.objective.losses(entry.model, batch)["loss"].backward()
            optimizer.step()
    return entry.model.eval()


def share_in_group(model, store) -> float:
    """The share of the first HALF items of the lists that are of the held-out item's group."""
    query = store.query_held_out(store.val, torch.arange(N_USERS), model.history)
    with torch.no_grad():
        best_UC = model.score(query).topk(HALF).indices + 1
    is_second_U1 = store.val.item[:, None] > HALF
    return float(((best_UC > HALF) == is_second_U1).float().mean())


@pytest.mark.parametrize(
    ("blind", "reading"),
    [
        ("sasrec", "sasrec_b"),
        pytest.param("bert4rec", "bert4rec_b", marks=pytest.mark.slow),
        pytest.param("bert4rec", "mb_str", marks=pytest.mark.slow),
    ],
)
def test_the_behavior_of_the_last_event_tells_the_next_item(blind, reading):
    epochs = 10 if reading == "sasrec_b" else 30
    reader = trained(reading, AFTER_BEHAVIOR, epochs=epochs)
    assert share_in_group(reader, AFTER_BEHAVIOR) > 0.9
    assert share_in_group(trained(blind, AFTER_BEHAVIOR), AFTER_BEHAVIOR) < 0.65


def test_trained_on_explicit_events_alone_a_model_predicts_these():
    assert share_in_group(trained("sasrec_b", OF_BEHAVIOR), OF_BEHAVIOR) > 0.9
    every = trained("sasrec_b", OF_BEHAVIOR, "objective.positives=any")
    assert share_in_group(every, OF_BEHAVIOR) < 0.7


@pytest.mark.parametrize("name", ["bert4rec_b", "mb_str"])
def test_a_masked_event_is_one_of_the_asked_behavior(name):
    model = trained(name, OF_BEHAVIOR)
    assert share_in_group(model, OF_BEHAVIOR) > 0.9
    model.asked_code = 1
    assert share_in_group(model, OF_BEHAVIOR) < 0.1


def test_without_an_asked_behavior_events_of_all_behaviors_are_predicted():
    hiding = trained("bert4rec_b", OF_BEHAVIOR, "model.asked_behavior=null")
    assert 0.2 < share_in_group(hiding, OF_BEHAVIOR) < 0.8


def test_scores_ask_for_the_named_behavior():
    """As where the behavior of [MASK] is written into the query."""
    models = {
        name: toy.randomise(BERT4Rec(toy.schema(), **SMALL, asked_behavior=name))
        for name in ("view", "buy", "strongest")
    }
    score = {name: model.score(QUERY) for name, model in models.items()}
    assert torch.equal(score["buy"], score["strongest"])
    assert not torch.isclose(score["buy"], score["view"]).any()
    assert all(model.asks_behavior for model in models.values())
    assert not BERT4Rec(toy.schema(), **SMALL).asks_behavior


def test_what_is_not_one_behavior_of_the_data_is_refused():
    with pytest.raises(RecexpError, match="'cart' is not a behavior"):
        BERT4Rec(toy.schema(), **SMALL, asked_behavior="cart")
    schema = toy.schema()
    three = Schema(7, 12, ("view", "cart", "buy"), (False, True, True))
    with pytest.raises(RecexpError, match="stands for several behaviors"):
        BERT4Rec(three, **SMALL, asked_behavior="explicit")
    with pytest.raises(RecexpError, match="lacks"):
        BERT4Rec(schema, n_factors=8, event_side=["value"], asked_behavior="buy")
    with pytest.raises(RecexpError, match="event_side names"):
        one = replace(schema, behaviors=("buy",), explicit=(True,))
        BERT4Rec(one, **SMALL, asked_behavior="buy")
