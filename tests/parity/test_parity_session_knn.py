"""Session neighbors against loops over sessions, in the order of the papers' formulas."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from recexp.models import session_neighbors
from recexp.models.session_knn import STAN, SessionKNN
from recexp.testing import toy, worlds

DAY = 86_400_000


def store_of_days():
    """Sessions that end up to 40 days apart, in another order than that of the users."""
    store = worlds.random_store(40, 25, seed=2)
    generator = torch.Generator().manual_seed(0)
    day_U = torch.rand(40, generator=generator) * 40
    step_E = torch.arange(len(store.train)) - store.train.ptr[store.train.user]
    time_E = (day_U[store.train.user] * DAY).long() + 60_000 * step_E
    return dataclasses.replace(store, train=dataclasses.replace(store.train, time=time_E))


STORE = store_of_days()
SCHEMA = STORE.schema
HISTORIES = [[1, 2, 5], [], [3, 3, 9, 2, 12, 4, 3, 8], [7], [20, 21, 4, 20, 6, 11]]
QUERY = toy.query([0, 1, 2, 3, 4], HISTORIES)
QUERY.time_BL = (QUERY.item_BL != 0) * (20 * DAY + 1000 * torch.arange(8))


def sessions(max_len, codes=(1, 2)):
    """(items, time of the last event), the most recent session first."""
    train = STORE.train
    found = []
    for u in range(SCHEMA.n_users):
        rows = range(int(train.ptr[u]), int(train.ptr[u + 1]))
        rows = [row for row in rows if int(train.behavior[row]) in codes][-max_len:]
        if rows:
            found.append(([int(train.item[row]) for row in rows], int(train.time[rows[-1]])))
    return sorted(found, key=lambda session: -session[1])


def last_position(items):
    return {item: number for number, item in enumerate(items, start=1)}


def plain_scores(history, time, options, similarity, event_weight):
    """Scores of the items 1..V-1.

    similarity(positions of the history's items, shared items, session, days)
    event_weight(position of the latest shared item, places in the session, it, item)
    """
    length = options["max_len"]
    history = history[-length:]
    where = last_position(history)
    candidates = [s for s in sessions(length) if set(s[0]) & where.keys()][: options["sample"]]
    valued = []
    for items, ended in candidates:
        shared = set(items) & where.keys()
        days = abs(time - ended) / DAY
        value = similarity(where, shared, len(history), len(set(items)), days)
        valued.append((value, items, max(shared, key=where.get)))
    valued.sort(key=lambda entry: -entry[0])  # stable: of equal ones the most recent
    scores = np.zeros(SCHEMA.V)
    for value, items, latest in valued[: options["k"]]:
        places = last_position(items)
        for item in places:
            w = event_weight(where[latest] / len(history), abs(places[item] - places[latest]))
            scores[item] += value * w
    events = np.zeros(SCHEMA.V)
    for items, _ in sessions(length):
        for item in set(items):
            events[item] += 1
    return scores[1:] + options["popularity"] * events[1:] / events.max()


def cosine(where, shared, length, size, days):
    return len(shared) / math.sqrt(len(where) * size)


def linear(where, shared, length, size, days):
    return sum(where[item] / length for item in shared)


def stan(where, shared, length, size, days):
    weights = sum(math.exp((where[item] - length) / 1.5) for item in shared)
    return weights / math.sqrt(len(where) * size) * math.exp(-days / 6.0)


SCALES = {"recency_scale": 1.5, "age_scale": 6.0, "distance_scale": 2.5}
NO_SCALES = dict.fromkeys(SCALES)
VARIANTS = {
    "sknn": (SessionKNN, {"variant": "sknn"}, cosine, lambda x, d: 1.0),
    "s_sknn": (SessionKNN, {"variant": "s_sknn"}, cosine, lambda x, d: x),
    "v_sknn": (SessionKNN, {"variant": "v_sknn"}, linear, lambda x, d: 1.0),
    "stan": (STAN, SCALES, stan, lambda x, d: math.exp(-d / 2.5)),
    "stan without scales": (STAN, NO_SCALES, cosine, lambda x, d: 1.0),
}
OPTIONS = [
    {"k": 6, "sample": 12, "max_len": 30, "popularity": 0.01},
    {"k": 100, "sample": 100, "max_len": 4, "popularity": 0.0},
    {"k": 3, "sample": 5, "max_len": 6, "popularity": 0.0},
]


@pytest.mark.parametrize("compact", [0, 1 << 30], ids=["numbered", "all sessions"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", VARIANTS)
def test_scores_are_those_of_the_formulas(name, options, compact, monkeypatch):
    monkeypatch.setattr(session_neighbors, "COMPACT", compact)
    kind, own, similarity, event_weight = VARIANTS[name]
    model = kind(SCHEMA, **own, **options).double().eval()
    model.fit_pass(STORE)
    times = QUERY.time_BL.amax(1).tolist()
    expected = np.stack(
        [
            plain_scores(history, time, options, similarity, event_weight)
            for history, time in zip(HISTORIES, times, strict=True)
        ]
    )
    assert (expected > 0.001).sum() > 20
    np.testing.assert_allclose(model.score(QUERY).numpy(), expected, rtol=1e-9, atol=1e-12)
    single = kind(SCHEMA, **own, **options).eval()
    single.fit_pass(STORE)
    np.testing.assert_allclose(single.score(QUERY).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_only_events_of_chosen_behaviors_count():
    options = {"k": 6, "sample": 12, "max_len": 5, "popularity": 0.0}
    model = SessionKNN(SCHEMA, behaviors="strongest", **options).double()
    model.fit_pass(STORE)
    ended = {items[-1] for items, _ in sessions(5, codes=(2,))}
    assert len(model.time_S) - 1 == len(sessions(5, codes=(2,)))
    assert ended <= set(model.item_E.tolist())
    kept = [item for item in HISTORIES[4] if 1 + item % 2 == 2]  # the behaviors of toy.query
    query = toy.query([0], [kept])
    query.behavior_BL = torch.full_like(query.item_BL, 2)
    torch.testing.assert_close(model.score(query)[0], model.score(QUERY)[4])


def test_sessions_come_from_the_data_and_not_from_the_checkpoint():
    model = SessionKNN(SCHEMA)
    assert model.state_dict().keys() == {"prior_V"}
    model.bind(STORE)
    assert model.score(QUERY)[0].max() > 0.1


def test_data_without_a_training_event_of_the_behavior_have_no_neighbors():
    store = worlds.store([(0, 3, 1), (1, 4, 1)], 2, 6)
    model = STAN(store.schema, behaviors="strongest")
    model.fit_pass(store)
    assert model.score(toy.query([0], [[3]])).count_nonzero() == 0
