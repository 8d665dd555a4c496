"""DIF-SR against numpy in float64, one history without padding at a time, on the same weights."""

import math

import numpy as np
import pytest
import torch

from recexp.errors import RecexpError
from recexp.models.dif_sr import DIFSR
from recexp.objectives.next_item import NextItem
from recexp.objectives.samplers import NoSampler
from recexp.testing import toy, worlds
from tests.parity.test_parity_nova import item_feature
from tests.support.numpy_ops import gelu, layer_norm, linear, softmax, weights

SCHEMA, N, HEADS, EPS = toy.schema(), 5, 2, 1e-12
NAMES = ["genres", "price", "value"]
ROWS = [[1, 2, 9, 4, 7, 5, 3], [4], [3, 3, 8]]
FUSIONS = ["add", "concat", "gating"]


def made(fusion, schema=SCHEMA, **options):
    sizes = {"n_factors": 8, "n_side_factors": 4, "n_layers": 2, "n_heads": HEADS, "max_len": N}
    rates = {"dropout": 0.0, "attention_dropout": 0.0}
    return toy.randomise(DIFSR(schema, fusion=fusion, **{"side": NAMES} | sizes | rates | options))


def fused(scores, w, name, fusion):
    """Rows of scores [S, t] of the keys 0..t - 1 to one row [t]."""
    t = scores.shape[1]
    if fusion == "add":
        return scores.sum(0)
    whole = np.zeros((len(scores), N))
    whole[:, :t] = scores
    if fusion == "concat":
        return linear(whole.reshape(-1), w, f"{name}.mix")[:t]
    hidden = np.maximum(linear(whole, w, f"{name}.hidden"), 0)
    gates = softmax(linear(hidden, w, f"{name}.gate")[:, 0])
    return gates @ scores


def layer(h, sides, w, name, fusion):
    attention = f"{name}.attention"
    size = h.shape[1] // HEADS
    value = linear(h, w, f"{attention}.value")
    out = np.zeros_like(h)
    for head in range(HEADS):
        for t in range(len(h)):
            rows = []
            for s, source in enumerate([h, *sides]):
                part = slice(head * source.shape[1] // HEADS, (head + 1) * source.shape[1] // HEADS)
                q = linear(source, w, f"{attention}.queries.{s}")[t, part]
                k = linear(source, w, f"{attention}.keys.{s}")[: t + 1, part]
                rows.append(k @ q)
            logits = fused(np.stack(rows), w, f"{attention}.fusion", fusion) / math.sqrt(size)
            part = slice(head * size, (head + 1) * size)
            out[t, part] = softmax(logits) @ value[: t + 1, part]
    a = layer_norm(h + linear(out, w, f"{attention}.output"), w, f"{name}.norm1", 1e-12)
    inner = gelu(linear(a, w, f"{name}.inner"))
    return layer_norm(a + linear(inner, w, f"{name}.outer"), w, f"{name}.norm2", 1e-12)


def states(query, b, w, fusion):
    """Of the newest N events, oldest first."""
    length = query.item_BL.shape[1]
    events = [i for i in range(length) if query.item_BL[b, i] != 0][-N:]
    items = query.item_BL[b, events].tolist()
    sides = [w["position.weight"][: len(items)]]
    for i, name in enumerate(NAMES[:2]):
        table = w[f"side.items.{i}.table.weight"]
        sides.append(np.stack([item_feature(v, SCHEMA.item_features[name], table) for v in items]))
    sides.append(w["side.events.0.table.weight"][query.value_BL[b, events].tolist()])
    h = layer_norm(w["item.weight"][items], w, "norm", EPS)
    for i in range(2):
        h = layer(h, sides, w, f"layers.{i}", fusion)
    return h


@pytest.mark.parametrize("fusion", FUSIONS)
def test_states_and_scores_follow_the_formulas(fusion):
    """In training the state of every event, in scoring that of the last."""
    model = made(fusion)
    query = toy.query([0, 1, 2], ROWS)
    w = weights(model)
    found_BLD = model.encode(query).detach().numpy()
    score_BV = model.score(query).detach().numpy()
    for b in range(len(ROWS)):
        expected = states(query, b, w, fusion)
        np.testing.assert_allclose(found_BLD[b, -len(expected) :], expected, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(
            score_BV[b], w["item.weight"][1:] @ expected[-1], rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_state_of_an_event_is_that_of_a_history_that_ends_there(fusion):
    model = made(fusion)
    whole_BLD = model.encode(toy.query([0], [ROWS[0][:N]]))
    for t in range(1, N):
        part_BLD = model.encode(toy.query([0], [ROWS[0][:t]]))
        torch.testing.assert_close(part_BLD[0, -1], whole_BLD[0, t - 1])


def test_the_attributes_of_the_next_item_are_predicted():
    """The loss is cross-entropy of items plus 3 times those of the values of genres."""
    store = worlds.random_store(side=True)
    model = made("gating", store.schema, attribute_weight=3.0).train()
    objective = NextItem(NoSampler())
    objective.bind(model, store)
    batch = objective.batch(store, objective.rows(store)[:5], torch.Generator())
    found = objective.losses(model, batch)
    wanted_BL = batch.target_BL != 0
    h_ND = model.encode(batch.query)[wanted_BL].detach()
    target_N = batch.target_BL[wanted_BL]
    logits = h_ND @ model.item.weight[1:].detach().T
    of_items = torch.nn.functional.cross_entropy(logits, target_N - 1)

    feature = store.schema.item_features["genres"]
    label_NC = torch.zeros(len(target_N), feature.cardinality, dtype=torch.float64)
    for n, item in enumerate(target_N.tolist()):
        for value in feature.id_VM[item].tolist():
            label_NC[n, value] = 1
    (predictor,) = model.predictors  # price is a number, value a feature of events
    of_genres = torch.nn.functional.binary_cross_entropy_with_logits(
        predictor.map(h_ND), label_NC[:, 1:]
    )
    torch.testing.assert_close(found["item_loss"], of_items)
    torch.testing.assert_close(found["loss"], of_items + 3 * of_genres)


def test_without_a_weight_or_a_feature_nothing_is_predicted():
    assert made("add", attribute_weight=0.0).extra_loss(torch.zeros(1, 8), torch.ones(1)) is None
    assert made("add", side=["price"]).extra_loss(torch.zeros(1, 8), torch.ones(1)) is None


def test_an_age_which_later_events_decide_is_refused():
    made("add", side=["gap"])
    with pytest.raises(RecexpError, match=r"side names \['time'\], but the prepared data has"):
        made("add", side=["time"])


def test_heads_divide_every_width():
    with pytest.raises(RecexpError, match="n_heads=2 does not divide the width 3 of n_factors or"):
        made("add", n_side_factors=3)
