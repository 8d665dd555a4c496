"""The users that preparation leaves out are counted by reason, in the report and in meta.json."""

from __future__ import annotations

import json

import numpy as np
import pytest

from recexp.data import cache as prepare_module
from recexp.data.cache import prepare, read_meta
from recexp.data.split import Split
from tests.support.events import (
    GLOBAL,
    P1,
    P2,
    P2_LATER,
    P3,
    Event,
    dataset,
    held_out,
    in_order,
    random_events,
    store,
    without,
    write,
)

STRICT = without(P1, test_without_history=False)
SPLITS = [
    P1,
    STRICT,
    P2,
    P2_LATER,
    P3,
    GLOBAL,
    without(GLOBAL, target="explicit"),
    Split(fallback="any"),
]


@pytest.mark.parametrize("merge_val", [False, True])
@pytest.mark.parametrize("merge", ["none", "pairs"])
@pytest.mark.parametrize("split", SPLITS)
def test_the_reasons_account_for_every_user(tmp_path, split, merge, merge_val):
    events = random_events(11, n_users=60)
    opened = store(tmp_path, events, without(split, merge_val=merge_val), merge=merge)
    counted, n_users = opened.meta["left_out"], opened.schema.n_users
    of = {
        k: sum(n for reason, n in counted.items() if reason.startswith(k))
        for k in ("not tested", "not validated")
    }
    assert of["not tested"] == n_users - len(opened.test) > 0
    assert of["not validated"] == (0 if merge_val else n_users - len(opened.val))
    assert all(n > 0 for n in counted.values())
    line = next(line for line in opened.meta["report"] if line.startswith("users left out: "))
    assert all(f"{n:,} {reason}" in line for reason, n in counted.items())


def test_reasons_of_a_split_by_user(tmp_path):
    events = [Event("fine", i, "buy", t) for t, i in enumerate("abcd")]
    events += [Event("viewer", i, "view", t) for t, i in enumerate("ab")]
    events += [Event("first", "a", "buy", 0), Event("first", "b", "view", 1)]
    events += [Event("only", "a", "view", 0), Event("only", "a", "buy", 1)]
    events += [Event("two", "a", "view", 0), Event("two", "b", "buy", 1)]
    no_validation = (
        "not validated: no target before the test target leaves a training event before it"
    )
    strict = store(tmp_path / "strict", events, STRICT)
    assert set(held_out(strict, "test")) == {"fine", "two"}
    assert strict.meta["left_out"] == {
        "not tested: no event that can be a target": 1,
        "not tested: no training event before the target": 2,
        "not validated: not tested": 3,
        no_validation: 1,
    }
    opened = store(tmp_path / "all", events, P1)
    assert set(held_out(opened, "test")) == {"fine", "two", "first"}
    assert held_out(opened, "test")["first"][1] == []
    assert opened.meta["left_out"] == {
        "not tested: no event that can be a target": 1,
        "not tested: no training event besides the target's pair": 1,
        "not validated: not tested": 2,
        no_validation: 2,
    }


def test_reasons_of_a_global_split(tmp_path):
    events = [Event("u", f"i{t}", "view", t) for t in (1, 2, 3, 4, 5, 6, 7, 9)]
    events += [Event("new", "i1", "view", 8), Event("gone", "i1", "view", 1)]
    reasons = {}
    for merge_val in (False, True):
        opened = store(tmp_path / str(merge_val), events, without(GLOBAL, merge_val=merge_val))
        reasons[merge_val] = opened.meta["left_out"]
    tested = {
        "not tested: no event before the first cut": 1,
        "not tested: no event that can be a target after the test cut": 1,
    }
    assert reasons[True] == tested
    assert reasons[False] == tested | {
        "not validated: no event before the first cut": 1,
        "not validated: no event that can be a target between the cuts": 1,
    }


def test_users_lost_before_the_split(tmp_path):
    events = [
        *random_events(4),
        Event("lonely", "i1", "view", 5),
        Event("late", "i1", "view", 10**6),
    ]
    kept = {e.user for e in events if e.time < 50_000}
    changes = {
        "filters": [{"user_min": 2, "count": "items"}],
        "window": {"start": "1970-01-01", "end": "1970-01-01T00:00:50"},
    }
    opened = store(tmp_path, events, P3, **changes)
    assert "late" not in kept and "lonely" in kept
    assert opened.meta["left_out"]["removed by dataset.window"] == len(in_order(events)) - len(kept)
    assert (
        opened.meta["left_out"]["removed by dataset.filters"]
        == len(kept) - opened.schema.n_users
        > 0
    )


def test_users_lost_with_their_behaviors(tmp_path):
    events = [*random_events(4), Event("sharer", "i1", "share", 5, 1)]
    opened = store(tmp_path / "a", events, P3, on_bad_rows="drop")
    assert opened.meta["left_out"]["removed by dataset.behaviors"] == 1
    events = [e._replace(value=1 if e.user == "u3" else 5) for e in random_events(4)]
    changes = {"value": "value", "value_behaviors": {"liked": 4}, "explicit": ["liked"]}
    opened = store(tmp_path / "b", events, P3, **changes)
    assert opened.meta["left_out"]["removed by dataset.value_behaviors"] == 1


def test_events_by_behavior_are_those_after_filters(tmp_path):
    events = random_events(5)
    for merge in ("none", "pairs"):
        meta = store(tmp_path / merge, events, P1, merge=merge).meta
        assert meta["events"] == {
            b: sum(e.behavior == b for e in events) for b in ("view", "cart", "buy")
        }


def test_data_prepared_before_meta_changed_are_made_again_under_the_same_fingerprint(
    tmp_path, monkeypatch
):
    """So that protocol ids stay: the arrays are the same."""
    shop, cache = dataset(write(tmp_path / "raw", random_events(0))), tmp_path / "cache"
    monkeypatch.setattr(prepare_module, "META_VERSION", 1)
    folder = prepare(shop, P3, cache)
    meta = read_meta(folder)
    old = {k: v for k, v in meta.items() if k != "left_out"}
    (folder / "meta.json").write_text(json.dumps(old))
    monkeypatch.undo()
    again = prepare(shop, P3, cache)
    assert again != folder and read_meta(again) == meta
    arrays = {path.name: np.load(path) for path in again.glob("*.npy")}
    assert arrays and read_meta(again)["settings"]["split"] == P3.identity()
