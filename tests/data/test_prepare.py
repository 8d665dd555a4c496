"""What preparation keeps, and what it reports."""

from collections import Counter

import numpy as np
import pytest

from recexp.data.cache import prepare, read_meta
from recexp.errors import RecexpError
from tests.support.events import (
    BEHAVIORS,
    GLOBAL,
    P1,
    P2,
    P2_LATER,
    P3,
    Event,
    dataset,
    held_out,
    in_order,
    listed,
    merged,
    names,
    random_events,
    store,
    write,
)


@pytest.mark.parametrize("merge", ["none", "pairs"])
def test_arrays_hold_the_events(tmp_path, merge):
    events = random_events(1)
    opened = store(tmp_path, events, P3, merge=merge)
    own = {
        user: merged(e) if merge == "pairs" else [(x, {x.behavior}) for x in e]
        for user, e in in_order(events).items()
    }
    assert listed(opened, opened.past) == {user: [e for e, _ in rows] for user, rows in own.items()}
    bits = [
        sum(1 << BEHAVIORS.index(b) for b in behaviors)
        for rows in own.values()
        for _, behaviors in rows
    ]
    assert opened.past.mask.tolist() == bits
    assert names(opened, "user") == sorted(own) and names(opened, "item")[1:] == sorted(
        {e.item for e in events}
    )
    counts = Counter(e.item for rows in own.values() for e, _ in rows)
    assert opened.item_count.tolist() == [0] + [counts[i] for i in names(opened, "item")[1:]]
    assert (opened.schema.n_users, opened.schema.n_items, opened.schema.behaviors) == (
        len(own),
        len(counts),
        BEHAVIORS,
    )
    assert opened.schema.explicit == (False, True, True)


@pytest.mark.parametrize("split", [P1, P2, P2_LATER, P3, GLOBAL])
def test_pairs_hold_masks_and_counts(tmp_path, split):
    events = random_events(2)
    opened = store(tmp_path, events, split)
    users, items = names(opened, "user"), names(opened, "item")
    everything = [e for own in in_order(events).values() for e in own]
    train = [e for own in listed(opened, opened.train).values() for e in own]
    for pairs, own in ((opened.all_pairs, everything), (opened.train_pairs, train)):
        found = zip(
            pairs.user.tolist(),
            pairs.item.tolist(),
            pairs.mask.tolist(),
            pairs.count.tolist(),
            strict=True,
        )
        count = Counter((e.user, e.item) for e in own)
        mask = Counter(
            (u, i, 1 << BEHAVIORS.index(b))
            for u, i, b in {(e.user, e.item, e.behavior) for e in own}
        )
        expected = sorted(
            (u, i, sum(b for (x, y, b) in mask if (x, y) == (u, i)), n)
            for (u, i), n in count.items()
        )
        assert [(users[u], items[i], m, n) for u, i, m, n in found] == sorted(
            expected, key=lambda p: (p[0], items.index(p[1]))
        )


@pytest.mark.parametrize("merge", ["none", "pairs"])
@pytest.mark.parametrize("split", [P1, P2, P2_LATER, P3, GLOBAL])
def test_seen_and_audit(tmp_path, split, merge):
    """A target repeats a pair if an equal or stronger behavior on its item stands before it, and
    was seen if only weaker ones do; a merged pair stands where its last explicit event stood.
    """
    events = random_events(3, n_times=15)
    opened = store(tmp_path, events, split, merge=merge)
    tests, past = held_out(opened, "test"), listed(opened, opened.past)
    seen, repeat = [], []
    for user, (target, _) in tests.items():
        own = in_order(events)[user]
        pair = [n for n, e in enumerate(own) if e.item == target.item]
        explicit = [n for n in pair if own[n].behavior != "view"]
        single = merge == "none" or split is P2_LATER
        equal = [n for n in pair if own[n] == target]  # of one time, too
        at = (equal[0] if split is GLOBAL else equal[-1]) if single else max(explicit or pair)
        strength = BEHAVIORS.index(own[at].behavior)
        before = [BEHAVIORS.index(own[n].behavior) for n in pair if n < at]
        repeat.append(any(b >= strength for b in before))
        seen.append(bool(before) and not repeat[-1])
    assert opened.test.seen.tolist() == seen and opened.test.repeat.tolist() == repeat
    new = [not (s or r) for s, r in zip(seen, repeat, strict=True)]
    assert any(seen) and any(repeat) and any(new)
    audit = opened.meta["audit"]
    for kind, flags in (("seen", seen), ("repeat", repeat), ("new", new)):
        assert audit[f"{kind}_targets"] == pytest.approx(np.mean(flags))
    tied = [
        sum(e.time == target.time for e in past[user]) > 1 for user, (target, _) in tests.items()
    ]
    assert audit["tied_targets"] == pytest.approx(np.mean(tied)) and any(tied)
    train = [e for own in listed(opened, opened.train).values() for e in own]
    future = [e.user in tests and e.time > tests[e.user][0].time for e in train]
    assert audit["future_events"] == pytest.approx(np.mean(future))
    assert (
        f"{audit['tied_targets']:.1%} of test targets share their time" in opened.meta["report"][-1]
    )


def test_the_report_accounts_for_every_event(tmp_path, capsys):
    events = [*random_events(4), Event("lonely", "i1", "view", 5)]
    opened = store(
        tmp_path,
        events,
        P1,
        filters=[{"user_min": 2, "count": "items"}],
        window={"start": "1970-01-01", "end": "1970-01-01T00:00:50"},
    )
    err = capsys.readouterr().err
    outside = sum(e.time >= 50_000 for e in events)
    assert f"shop: {len(events):,} events read from 1 file(s)" in err
    assert f"window 1970-01-01 to 1970-01-01T00:00:50: {outside:,} events outside dropped" in err
    assert f"filter (user_min=2, count=items): 1 of {len(events) - outside:,} events dropped" in err
    purged = len(events) - outside - 1 - len(opened.past)
    assert (
        purged > 0
        and f"{purged:,} events of held-out (user, item) pairs purged from training (purge=pair)"
        in err
    )
    kept = (
        f"{len(opened.past):,} rows: {len(opened.train):,} to train, "
        f"{len(opened.val):,} validation and {len(opened.test):,} test targets"
    )
    assert kept in err and len(opened.past) == len(opened.train) + len(opened.val) + len(
        opened.test
    )


def test_ratings_as_behaviors(tmp_path):
    events = [
        Event("u", f"i{n}", "rating", n, value)
        for n, value in enumerate([5, 0.5, None, 3, 4, 2.9, 3.5])
    ]
    changes = {
        "value": "value",
        "value_behaviors": {"liked": 4, "rated": 1, "known": 3},
        "explicit": ["liked"],
    }
    opened = store(tmp_path, events, P3, **changes)
    assert opened.schema.behaviors == ("rated", "known", "liked") and opened.schema.explicit == (
        False,
        False,
        True,
    )
    assert opened.past.behavior.tolist() == [3, 2, 3, 1, 2]  # 0.5 and the missing one are gone
    assert "2 events dropped: their value is missing or below every threshold" in "\n".join(
        opened.meta["report"]
    )
    assert opened.meta["levels"] == pytest.approx(
        [2.9, 3, 3.5, 4, 5]
    ) and opened.past.value.tolist() == [5, 2, 4, 1, 3]
    assert opened.schema.n_values == 5


def test_values_have_levels(tmp_path):
    events = [Event("u", f"i{n}", "view", n, value) for n, value in enumerate([3, None, 1, 3, 2])]
    opened = store(tmp_path, events, P3, value="value")
    assert opened.past.value.tolist() == [3, 0, 1, 3, 2] and opened.train.value.tolist() == [
        3,
        0,
        1,
    ]
    assert store(tmp_path / "without", events, P3).past.value is None
    prices = [Event("u", f"i{n}", "view", n, n / 7) for n in range(1001)]
    assert store(tmp_path / "prices", prices, P3, value="value").schema.n_values == 0


def test_unknown_behaviors(tmp_path):
    events = [*random_events(0), Event("u1", "i1", "wishlist", 1), Event("u1", "i2", "share", 1)]
    with pytest.raises(
        RecexpError,
        match=r"events\.csv: unknown behavior 'wishlist' in event 251 "
        r"\(user u1, item i1\).*on_bad_rows=drop",
    ):
        store(tmp_path, events)
    opened = store(tmp_path, events, on_bad_rows="drop")
    assert len(opened.past) == 250
    assert "2 events dropped: behavior among ['share', 'wishlist']" in "\n".join(
        opened.meta["report"]
    )


def test_bad_rows_are_dropped_and_listed(tmp_path):
    folder = write(tmp_path / "raw", random_events(0))
    with (folder / "events.csv").open("a") as f:
        f.write("u1,i1,view,noon,\n")
    with pytest.raises(RecexpError, match=r"events\.csv.*252.*timestamp"):
        prepare(dataset(folder), P3, tmp_path / "cache")
    meta = read_meta(prepare(dataset(folder, on_bad_rows="drop"), P3, tmp_path / "cache"))
    assert any(line.startswith("1 bad rows dropped") and "252" in line for line in meta["report"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"behaviors": ["purchase"], "explicit": [], "on_bad_rows": "drop"},
            "no event has one of the behaviors",
        ),
        (
            {"window": {"start": "2020-01-01", "end": "2021-01-01"}},
            "window left no event: the data run from 1970-01-01T00:00:0",
        ),
        (
            {"window": {"start": "yesterday", "end": "2021-01-01"}},
            "dataset.window.start must be an ISO date",
        ),
        ({"window": {"start": "2020-01-01"}}, r"dataset\.window=.*\{start, end\} with ISO dates"),
        ({"value_behaviors": {"buy": 4, "cart": 0}}, "the events carry no value"),
        (
            {"value_behaviors": {"buy": 4, "cart": 0}, "value": "value"},
            "no event's value reaches a threshold",
        ),
        ({"filters": [{"user_min": 1000}]}, "left no event"),
        ({"behaviors": ["view", "view"], "explicit": []}, "distinct names"),
        ({"behaviors": ["view"]}, "dataset.explicit names"),
        ({"merge": "all"}, "dataset.merge='all'"),
        ({"on_bad_rows": "skip"}, "dataset.on_bad_rows='skip'"),
        ({"name": "my/shop"}, "dataset.name='my/shop'"),
    ],
)
def test_wrong_settings_are_errors(tmp_path, changes, message):
    with pytest.raises(RecexpError, match=message):
        store(tmp_path, random_events(0), **changes)
    assert not list(tmp_path.glob("cache/shop-*"))


@pytest.mark.parametrize("split", [P1, P2, P2_LATER, P3, GLOBAL])
def test_cold_targets_are_those_without_a_training_event(tmp_path, split):
    opened = store(tmp_path, random_events(3, n_items=90), split)
    trained = {e.item for own in listed(opened, opened.train).values() for e in own}
    for name, key in (("val", "val_cold_targets"), ("test", "cold_targets")):
        cold = [target.item not in trained for target, _ in held_out(opened, name).values()]
        assert opened.targets(name).cold.tolist() == cold and any(cold) and not all(cold)
        assert opened.meta["audit"][key] == pytest.approx(np.mean(cold))


def test_the_report_tells_repeats_and_cold_items(tmp_path):
    report = store(tmp_path, random_events(3, n_items=90), P3).meta["report"]
    (line,) = [line for line in report if line.startswith("audit of leaks")]
    assert "repeat a pair of an equal or stronger behavior" in line and "(cold)" in line
