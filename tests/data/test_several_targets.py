"""Splits with several targets per user, against plain references on random data."""

from collections import Counter
from dataclasses import asdict
from math import floor

import numpy as np
import pytest

from recexp.data.split import LATER_OPTIONS, Split
from recexp.errors import RecexpError
from tests.support.events import (
    BEHAVIORS,
    Event,
    in_order,
    listed,
    merged,
    names,
    random_events,
    store,
    without,
)

ALL_LATER = Split(kind="global_time", later="all", test_share=0.2, val_share=0.2)
LEAVE_2 = Split(kind="leave_k_out", k=2)
RATIO = Split(kind="ratio", test_share=0.3, val_share=0.2)
RANDOM = Split(kind="ratio", test_share=0.3, val_share=0.2, order="random", seed=3)
FOLDS = Split(kind="user_folds", n_folds=4, fold=1, test_share=0.3)
WINDOW = Split(kind="global_time", later="all", n_windows=3, window=1, test_share=0.15)
SPLITS = {
    "global": ALL_LATER,
    "global, strongest": without(ALL_LATER, target="strongest"),
    "window": WINDOW,
    "leave 2": LEAVE_2,
    "leave 2, explicit": without(LEAVE_2, target="explicit"),
    "ratio": RATIO,
    "random": RANDOM,
    "folds": FOLDS,
    "random in folds": without(FOLDS, order="random"),
}
FEW = ("global", "random", "folds")  # in the default run
OTHERS = sorted(SPLITS.keys() - set(FEW))
EVENTS = random_events(3, n_users=40, n_items=25, n_events=600)


def lists(opened, split: str) -> dict[str, tuple[list[Event], list[Event]]]:
    """User -> (history, targets) of "val" or "test"."""
    users, targets = names(opened, "user"), opened.targets(split)
    past = [event for own in listed(opened, opened.past).values() for event in own]
    found = {}
    for n in range(targets.n_users):
        rows = range(targets.ptr[n], targets.ptr[n + 1])
        bounds = {(int(targets.start[q]), int(targets.end[q])) for q in rows}
        assert len(bounds) == 1
        ((start, end),) = bounds
        items = names(opened, "item")
        own = [past[targets.at[q]] for q in rows]
        assert [items[targets.item[q]] for q in rows] == [event.item for event in own]
        found[users[targets.user[rows[0]]]] = past[start:end], own
    return found


def can_be_target(event: Event, split: Split) -> bool:
    least = {"any": 0, "explicit": 1, "strongest": 2}[split.target]
    return BEHAVIORS.index(event.behavior) >= least


def first_of_items(events: list[Event]) -> list[Event]:
    return [e for n, e in enumerate(events) if e.item not in {x.item for x in events[:n]}]


def of_rows(own: list[Event], merge: str) -> list[Event]:
    return [event for event, _ in merged(own)] if merge == "pairs" else own


def split_of_user(own: list[Event], split: Split) -> tuple[list[Event], ...]:
    """(training, validation targets, test targets) of kinds that cut each user's own events."""
    eligible = [n for n, event in enumerate(own) if can_be_target(event, split)]
    if split.kind == "leave_k_out":
        n_test = split.k if len(eligible) >= split.k else 0
        n_val = split.k if len(eligible) >= 2 * split.k else 0
    else:
        n_test = floor(split.test_share * len(eligible) + 0.5)
        n_val = floor(split.val_share * len(eligible) + 0.5)
    test = eligible[len(eligible) - n_test :]
    if not test or test[0] == 0:
        return own, [], []
    val = eligible[len(eligible) - n_test - n_val : len(eligible) - n_test]
    if val and val[0] == 0:
        val = []
    held = [own[n] for n in val], [own[n] for n in test]
    return own[: (val or test)[0]], *map(first_of_items, held)


SLOW = pytest.mark.slow
MERGES = ["none", pytest.param("pairs", marks=SLOW)]


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("merge_val", [False, True])
@pytest.mark.parametrize(
    "name", ["leave 2, explicit", pytest.param("leave 2", marks=SLOW), "ratio"]
)
def test_the_last_events_of_each_user_are_held_out(tmp_path, name, merge, merge_val):
    split = without(SPLITS[name], merge_val=merge_val)
    opened = store(tmp_path, EVENTS, split, merge=merge)
    train, val, test = listed(opened, opened.train), lists(opened, "val"), lists(opened, "test")
    for user, own in in_order(EVENTS).items():
        own = of_rows(own, merge)
        own_train, own_val, own_test = split_of_user(own, split)
        if merge_val and own_test:
            own_train, own_val = own[: own.index(own_test[0])], []
        assert (train[user], val.get(user, ([], []))[1]) == (own_train, own_val)
        assert test.get(user, ([], []))[1] == own_test
        for found, targets in ((val, own_val), (test, own_test)):
            if targets:
                assert found[user][0] == own[: len(found[user][0])]
                assert own[len(found[user][0])] == targets[0]


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize(
    "name", [pytest.param("global", marks=SLOW), "global, strongest", "window"]
)
def test_all_later_events_of_a_cut_are_targets(tmp_path, name, merge):
    split = SPLITS[name]
    opened = store(tmp_path, EVENTS, split, merge=merge)
    rows = [event for own in in_order(EVENTS).values() for event in of_rows(own, merge)]
    times = sorted(event.time for event in rows)
    n_later = split.n_windows - 1 - split.window

    def cut(share: float) -> int:
        return times[min(len(times) - 1, round((1 - share) * len(times)))]

    test_cut = cut((n_later + 1) * split.test_share)
    val_cut = cut((n_later + 1) * split.test_share + split.val_share)
    end = cut(n_later * split.test_share) if n_later else times[-1] + 1
    assert {e.time for own in listed(opened, opened.train).values() for e in own} <= set(
        range(val_cut)
    )
    found = {"val": lists(opened, "val"), "test": lists(opened, "test")}
    n_train = 0
    for user, own in in_order(EVENTS).items():
        own = of_rows(own, merge)
        train = [event for event in own if event.time < val_cut]
        n_train += len(train)
        assert listed(opened, opened.train)[user] == train
        for name_, low, high in (("val", val_cut, test_cut), ("test", test_cut, end)):
            inside = [e for e in own if low <= e.time < high and can_be_target(e, split)]
            expected = first_of_items(inside) if train else []
            history, targets = found[name_].get(user, ([], []))
            assert targets == expected
            if expected:
                assert history == own[: own.index(expected[0])]
    assert n_train == len(opened.train)
    assert max(e.time for own in listed(opened, opened.past).values() for e in own) < end


def test_windows_are_leak_free_and_their_test_periods_follow_each_other(tmp_path):
    ends = []
    for window in range(3):
        split = without(WINDOW, window=window)
        opened = store(tmp_path / str(window), EVENTS, split)
        assert opened.train.time.max() < opened.val.time.min()
        assert opened.val.time.max() < opened.test.time.min()
        ends.append((int(opened.test.time.min()), int(opened.past.time.max())))
        assert opened.meta["audit"]["future_events"] == 0
        assert opened.meta["audit"]["trained_after_first_target"] == 0
        assert opened.meta["audit"]["tested_users_trained"] == 1
    assert ends[0][1] < ends[1][0] <= ends[1][1] < ends[2][0]
    last = store(tmp_path / "one", EVENTS, without(WINDOW, n_windows=1, window=0))
    assert last.test.time.min() == ends[2][0]


@pytest.mark.parametrize("merge_val", [False, True])
def test_random_targets_are_the_same_share_of_each_user(tmp_path, merge_val):
    opened = store(tmp_path, EVENTS, without(RANDOM, merge_val=merge_val))
    train, test, val = listed(opened, opened.train), lists(opened, "test"), lists(opened, "val")
    whole = store(tmp_path / "first", EVENTS, RANDOM)
    assert {user: targets for user, (_, targets) in test.items()} == {
        user: targets for user, (_, targets) in lists(whole, "test").items()
    }
    n_in_order = 0
    for user, own in in_order(EVENTS).items():
        history, targets = test.get(user, ([], []))
        history_val, targets_val = val.get(user, ([], []))
        assert train[user] == [event for event in own if event in train[user]]
        if targets:
            # The history is the training events, then the validation targets.
            assert history == train[user] + targets_val
            n_in_order += targets == own[-len(targets) :]
        assert history_val == (train[user] if targets_val else [])
        held = [*targets, *targets_val]
        assert not Counter(train[user] + held) - Counter(own)
        n_test = floor(RANDOM.test_share * len(own) + 0.5)
        assert len(targets) <= n_test
    assert n_in_order < len(test) / 2


@pytest.mark.parametrize("name", ["folds", pytest.param("random in folds", marks=SLOW)])
def test_no_event_of_a_held_out_user_is_trained_on(tmp_path, name):
    tested = []
    for fold in range(4):
        split = without(SPLITS[name], fold=fold)
        opened = store(tmp_path / str(fold), EVENTS, split)
        train, val, test = listed(opened, opened.train), lists(opened, "val"), lists(opened, "test")
        assert test
        assert val
        assert not test.keys() & val.keys()
        assert opened.meta["audit"]["tested_users_trained"] == 0
        for user, (history, targets) in (val | test).items():
            assert not train[user]
            own = in_order(EVENTS)[user]
            assert not Counter(history + targets) - Counter(own)
            wanted = max(1, floor(0.3 * len(own) + 0.5))
            assert 1 <= len(targets) <= wanted
            if name == "folds":
                assert history == own[: -wanted or None]
                assert targets == first_of_items(own[-wanted:])
        tested.append(set(test))
        second = store(tmp_path / f"{fold} merged", EVENTS, without(split, merge_val=True))
        assert lists(second, "test") == test
        assert {u for u, own in listed(second, second.train).items() if own} >= val.keys()
    assert len(set.union(*tested)) == sum(map(len, tested)) > 30


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("name", SPLITS)
def test_left_out_users_and_kinds_of_targets_add_up(tmp_path, name, merge):
    opened = store(tmp_path, EVENTS, SPLITS[name], merge=merge)
    for words, split in (("not tested", "test"), ("not validated", "val")):
        reasons = opened.meta["left_out"].items()
        n_left_out = sum(n for reason, n in reasons if reason.startswith(words))
        assert n_left_out == opened.schema.n_users - opened.targets(split).n_users
        targets = opened.targets(split)
        key = targets.user * opened.schema.V + targets.item
        assert len(key.unique()) == len(key)
        assert (targets.user.diff() >= 0).all()
        trained = set(opened.train.item.tolist())
        assert targets.cold.tolist() == [item not in trained for item in targets.item.tolist()]


@pytest.mark.parametrize("name", [name for name in SPLITS if "window" not in name])
def test_repeats_are_targets_that_the_history_holds(tmp_path, name):
    opened = store(tmp_path, EVENTS, SPLITS[name])
    n_repeats = 0
    for split in ("val", "test"):
        targets = opened.targets(split)
        found = lists(opened, split)
        number = 0
        for history, own in found.values():
            for target in own:
                strengths = [
                    BEHAVIORS.index(event.behavior)
                    for event in history
                    if event.item == target.item
                ]
                strength = BEHAVIORS.index(target.behavior)
                is_repeat = any(s >= strength for s in strengths)
                assert bool(targets.repeat[number]) == is_repeat
                assert bool(targets.seen[number]) == (bool(strengths) and not is_repeat)
                n_repeats += is_repeat
                number += 1
    assert n_repeats > 0
    audit = opened.meta["audit"]
    assert audit["repeat_targets"] == pytest.approx(float(opened.test.repeat.float().mean()))


@pytest.mark.parametrize("name", [*FEW, *(pytest.param(name, marks=SLOW) for name in OTHERS)])
@pytest.mark.parametrize("option", ["cold_targets", "repeat_targets"])
def test_unwanted_targets_can_be_dropped(tmp_path, name, option):
    events = random_events(7, n_users=40, n_items=90, n_events=500)
    kept = store(tmp_path / "kept", events, SPLITS[name])
    dropped = store(tmp_path / "dropped", events, without(SPLITS[name], **{option: "drop"}))
    kind = option.removesuffix("_targets")
    n_dropped = 0
    for split in ("val", "test"):
        before, after = kept.targets(split), dropped.targets(split)
        wanted = ~getattr(before, kind)
        n_dropped += int((~wanted).sum())
        for column in ("user", "item", "time", "cold"):
            assert np.array_equal(getattr(after, column), getattr(before, column)[wanted])
        assert not getattr(after, kind).any()
    assert n_dropped > 0
    assert listed(dropped, dropped.train) == listed(kept, kept.train)


def test_single_target_splits_drop_repeats_too(tmp_path):
    for kind in ("leave_one_out", "global_time"):
        split = Split(kind=kind, test_share=0.2, val_share=0.2)
        kept = store(tmp_path / kind, EVENTS, split)
        dropped = store(tmp_path / kind, EVENTS, without(split, repeat_targets="drop"))
        expected = kept.test.user[~kept.test.repeat]
        assert np.array_equal(dropped.test.user, expected)
        reason = "not tested: the target repeats a pair of an equal or stronger behavior"
        assert dropped.meta["left_out"][reason] == len(kept.test) - len(expected) > 0


def test_options_are_part_of_ids_only_where_they_are_set():
    plain = Split().identity()
    assert not plain.keys() & set(LATER_OPTIONS)
    assert asdict(Split()).keys() == plain.keys() | set(LATER_OPTIONS)
    splits = [*SPLITS.values(), without(WINDOW, window=2), without(FOLDS, fold=0), Split()]
    splits += [without(RANDOM, seed=4), Split(repeat_targets="drop")]
    assert len({str(split.identity()) for split in splits}) == len(splits)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 2}, "protocol.split.k belongs to kind=leave_k_out"),
        ({"later": "all"}, "protocol.split.later belongs to kind=global_time"),
        ({"kind": "ratio", "fold": 1}, "protocol.split.fold belongs to kind=user_folds"),
        ({"kind": "ratio", "purge": "pair"}, "purge and fallback belong to kind=leave_one_out"),
        ({"kind": "user_folds", "fold": 5}, "protocol.split.fold=5 must be one of 0 to 4"),
        ({"kind": "user_folds", "n_folds": 2}, "protocol.split.n_folds=2 must be at least 3"),
        ({"kind": "global_time", "window": 1}, "protocol.split.window=1 must be one of 0 to 0"),
        ({"kind": "global_time", "n_windows": 9}, "leave none to train on"),
        ({"kind": "leave_k_out", "k": 0}, "protocol.split.k=0 must be at least 1"),
        ({"kind": "ratio", "order": "new"}, "protocol.split.order='new'"),
        ({"repeat_targets": "keep"}, "protocol.split.repeat_targets='keep'"),
    ],
)
def test_wrong_options_are_errors(settings, message):
    with pytest.raises(RecexpError, match=message):
        Split(**settings)
