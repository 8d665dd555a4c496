"""Splits: who is held out, against hand-written cases and a plain reference on random data."""

from itertools import product

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from recexp.config import CONF
from recexp.data.split import Split
from recexp.errors import RecexpError
from tests.support.events import (
    BEHAVIORS,
    GLOBAL,
    P1,
    P2,
    P2_LATER,
    P3,
    Event,
    held_out,
    in_order,
    listed,
    merged,
    names,
    random_events,
    store,
    without,
)

SPLITS = {
    "p1": P1,
    "p1 without fallback": without(P1, fallback="none"),
    "p1 with histories only": without(P1, test_without_history=False),
    "p2": P2,
    "p2 later": P2_LATER,
    "p3": P3,
    "any, without history": Split(test_without_history=True),
    "explicit, nothing purged": Split(target="explicit"),
    "any, pairs purged": Split(purge="pair", fallback="any"),
    "global": GLOBAL,
    "global, explicit": without(GLOBAL, target="explicit"),
}
CASES = list(product(SPLITS, ("none", "pairs"), (False, True)))


def own(text, user="u"):
    """ "view a 1, buy b 2" -> events of one user, times in seconds."""
    return [
        Event(user, item, behavior, int(time) * 1000)
        for behavior, item, time in (part.split() for part in text.split(", "))
    ]


OTHERS = own(
    "view x 1, view y 2, view z 3, buy x 4, buy y 5", "other"
)  # so that there is always a user to evaluate


def split_of(tmp_path, text, split, **changes):
    """(training, validation, test) of the user with these events, as texts of ``own``."""
    opened = store(tmp_path, own(text) + OTHERS, split, **changes)

    def say(event):
        return f"{event.behavior} {event.item} {event.time // 1000}"

    held = [held_out(opened, name).get("u") for name in ("val", "test")]
    return ", ".join(map(say, listed(opened, opened.train)["u"])), *(
        say(h[0]) if h else None for h in held
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # second-last explicit pair validates, last explicit pair tests, each leaves whole: its
        # views with it, later ones too
        (
            "view a 1, view b 2, buy b 3, view c 4, buy c 5, view b 6, view c 7",
            ("view a 1", "buy b 3", "buy c 5"),
        ),
        # one explicit pair: the last event before it validates; what comes after it trains
        (
            "view a 1, view b 2, view c 3, cart c 4, view d 5",
            ("view a 1, view d 5", "view b 2", "cart c 4"),
        ),
        # no explicit pair: trains only
        ("view a 1, view b 2, view c 3", ("view a 1, view b 2, view c 3", None, None)),
        # nothing before the explicit pair: tested all the same, for b trains the user's vector
        ("view a 1, buy a 2, view b 3", ("view b 3", None, "buy a 2")),
        ("buy a 2, cart a 3, view b 3, view c 4", ("view b 3, view c 4", None, "cart a 3")),
        # nothing besides the explicit pair: trains only, its purged views come back
        ("view a 1, buy a 2, view a 3", ("view a 1, buy a 2, view a 3", None, None)),
        # one event before the test target: it trains, and no target validates
        ("view a 1, buy b 2", ("view a 1", None, "buy b 2")),
        # the second-last explicit pair is all there is before the last: held out, it would leave
        # nothing
        ("view a 1, buy a 2, buy b 3", ("view a 1, buy a 2", None, "buy b 3")),
        # it stands first, but a later event can validate
        ("buy a 1, view b 2, view c 3, buy d 4", ("buy a 1, view b 2", "view c 3", "buy d 4")),
    ],
)
def test_p1(tmp_path, text, expected):
    assert split_of(tmp_path, text, P1) == expected


def test_users_without_history_train_only_where_they_are_not_to_be_tested(tmp_path):
    text, strict = "view a 1, buy a 2, view b 3", without(P1, test_without_history=False)
    assert split_of(tmp_path, text, strict) == (text, None, None)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("p1_uniform999", P1),
        ("p2_uniform99", P2),
        ("p2_uniform99_later", P2_LATER),
        ("p3_popular100", P3),
        ("p5_sasrec100", P3),
        ("full", P3),
        ("full_unseen", P3),
    ],
)
def test_the_splits_of_these_tests_are_those_of_the_protocols(name, split):
    protocol = instantiate(OmegaConf.load(CONF / "protocol" / f"{name}.yaml"))
    assert (protocol.name, protocol.split) == (name, split)


def test_p1_on_pairs(tmp_path):
    """The ITE paper: the pair's time is its last explicit time, its behavior the strongest."""
    text = "view a 1, buy a 2, view b 3, buy c 4, cart c 5, view a 6, view d 7"
    assert split_of(tmp_path / "first", text, P1, merge="pairs") == (
        "buy a 2, view d 7",
        "view b 3",
        "buy c 5",
    )
    assert split_of(tmp_path / "second", "view e 0, " + text, P1, merge="pairs") == (
        "view e 0, view b 3, view d 7",
        "buy a 2",
        "buy c 5",
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # weaker events of the pair before the purchase stay, those at or after it go
        (
            "view a 1, view b 2, cart b 3, buy b 4, view b 4, view b 5, view c 6",
            ("view a 1, view b 2, view c 6", "cart b 3", "buy b 4"),
        ),
        # at the time of the purchase: before or after it in the file
        (
            "view b 1, view a 2, buy b 4, view b 4, view c 5",
            ("view b 1, view c 5", "view a 2", "buy b 4"),
        ),
        (
            "view b 1, view a 2, view b 4, buy b 4, view c 5",
            ("view b 1, view c 5", "view a 2", "buy b 4"),
        ),
        # the second-last purchase validates
        ("view a 1, buy b 2, cart c 3, buy d 4", ("view a 1, cart c 3", "buy b 2", "buy d 4")),
        # carts are explicit, but no targets
        ("view a 1, cart b 2, view c 3", ("view a 1, cart b 2, view c 3", None, None)),
    ],
)
def test_p2_later(tmp_path, text, expected):
    assert split_of(tmp_path, text, P2_LATER) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # the whole pair leaves, also what came before the purchase
        (
            "view a 1, view b 2, cart b 3, buy b 4, view b 5, view c 6",
            ("view a 1, view c 6", None, "buy b 4"),
        ),
        ("view z 0, view a 1, cart b 3, buy b 4", ("view z 0", "view a 1", "buy b 4")),
        # so does the validation pair
        (
            "view a 1, view b 2, buy b 3, cart c 4, buy c 5, view b 6",
            ("view a 1", "buy b 3", "buy c 5"),
        ),
        # the earlier purchase of another item validates; an earlier purchase of the same item
        # leaves
        ("view a 1, buy c 2, buy b 3, buy c 4", ("view a 1", "buy b 3", "buy c 4")),
        # nothing else before the purchase
        ("cart a 1, buy a 2, view b 3", ("view b 3", None, "buy a 2")),
    ],
)
def test_p2(tmp_path, text, expected):
    assert split_of(tmp_path, text, P2) == expected


def test_p2_later_on_pairs(tmp_path):
    """Merged between the held-out events, and nowhere across; the equal event before them
    makes the target a repeat.
    """
    opened = store(
        tmp_path,
        own("buy b 1, cart b 2, view a 3, view c 4, buy b 5, view d 6") + OTHERS,
        P2_LATER,
        merge="pairs",
    )
    assert [(e.item, e.behavior, e.time // 1000) for e in listed(opened, opened.past)["u"]] == [
        *(("b", "buy", 2), ("a", "view", 3)),
        ("c", "view", 4),  # validates
        *(("b", "buy", 5), ("d", "view", 6)),
    ]
    u = opened.test.user == names(opened, "user").index("u")
    assert opened.test.repeat[u].tolist() == [True] and not opened.test.seen[u].any()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("view a 1, buy b 2, view a 3, view c 4", ("view a 1, buy b 2", "view a 3", "view c 4")),
        ("view a 1, view b 2", ("view a 1", None, "view b 2")),
        ("view a 1", ("view a 1", None, None)),
        # ties in time: the order of the file
        ("view c 1, view b 1, view d 1, view a 1", ("view c 1, view b 1", "view d 1", "view a 1")),
    ],
)
def test_p3(tmp_path, text, expected):
    assert split_of(tmp_path, text, P3) == expected


def test_global_time(tmp_path):
    # Times 1..10, one event each: the cuts fall between 6 and 7 and between 8 and 9.
    events = [Event("u", f"i{t}", "view", t) for t in (1, 3, 7, 8, 9, 10)] + [
        Event("v", f"i{t}", "view", t) for t in (2, 4, 5, 6)
    ]
    opened = store(tmp_path, events, GLOBAL)
    assert [e.time for e in listed(opened, opened.train)["u"]] == [1, 3]
    (val, val_history), (test, test_history) = (
        held_out(opened, name)["u"] for name in ("val", "test")
    )
    assert (val.time, [e.time for e in val_history]) == (7, [1, 3])
    assert (test.time, [e.time for e in test_history]) == (
        9,
        [1, 3, 7, 8],
    )  # what lies between the cuts is read, never trained on
    both = store(tmp_path, events, without(GLOBAL, merge_val=True))
    assert [e.time for e in listed(both, both.train)["u"]] == [1, 3, 7, 8]
    assert held_out(both, "test") == held_out(opened, "test") and len(both.val) == 0


def test_users_who_appear_after_the_first_cut_are_not_evaluated(tmp_path):
    events = [Event("u", f"i{t}", "view", t) for t in (1, 2, 3, 4, 5, 6, 9)] + [
        Event("new", f"i{t}", "view", t) for t in (7, 8, 10)
    ]
    for merge_val in (False, True):
        assert set(
            held_out(store(tmp_path, events, without(GLOBAL, merge_val=merge_val)), "test")
        ) == {"u"}


def reference(events, split, merge):
    """user -> (training, validation, test), by the words of the Split's docstring, one event at a
    time.
    """

    def eligible(behaviors):
        wanted = {"any": BEHAVIORS, "explicit": BEHAVIORS[1:], "strongest": BEHAVIORS[2:]}[
            split.target
        ]
        return any(b in wanted for b in behaviors)

    def remaining(rows, left, target, anywhere=False):
        """Training rows once the target is held out, None where none is left before it (or
        anywhere).
        """
        item, time = rows[target][0].item, rows[target][0].time

        def purged(n):
            return rows[n][0].item == item and (
                split.purge == "pair" or (split.purge == "later" and rows[n][0].time >= time)
            )

        left = [n for n in left if n != target and not purged(n)]
        return left if left and (anywhere or left[0] < target) else None

    out = {}
    everything = {
        user: merged(own) if merge else [(e, {e.behavior}) for e in own]
        for user, own in in_order(events).items()
    }
    times = sorted(e.time for own in everything.values() for e, _ in own)
    first, second = (
        times[round(len(times) * before)]
        for before in (1 - split.val_share - split.test_share, 1 - split.test_share)
    )
    for user, rows in everything.items():
        left, val, test = list(range(len(rows))), None, None
        if split.kind == "global_time":
            if any(e.time < first for e, _ in rows):
                val = next(
                    (
                        n
                        for n, (e, b) in enumerate(rows)
                        if first <= e.time < second and eligible(b)
                    ),
                    None,
                )
                test = next(
                    (n for n, (e, b) in enumerate(rows) if e.time >= second and eligible(b)), None
                )
            left = [n for n in left if rows[n][0].time < (second if split.merge_val else first)]
            val = None if split.merge_val else val
        else:
            candidates = [n for n in left if eligible(rows[n][1])]
            if candidates and remaining(rows, left, candidates[-1], split.test_without_history):
                test = candidates[-1]
                left = remaining(rows, left, test, split.test_without_history)
                seconds = [n for n in left if n < test and eligible(rows[n][1])][-1:]
                seconds += [n for n in left if n < test][-1:] if split.fallback == "any" else []
                for n in seconds if not split.merge_val else ():
                    if val is None and remaining(rows, left, n):
                        val, left = n, remaining(rows, left, n)
        out[user] = (
            [rows[n][0] for n in left],
            None if val is None else rows[val][0],
            None if test is None else rows[test][0],
        )
    return out


def between_targets(opened):
    """user -> the runs of training events before, between and after the targets."""
    out = {}
    for user, (name, own) in enumerate(listed(opened, opened.past).items()):
        at = sorted(
            int(t.end[t.user == user] - t.start[t.user == user])
            for t in (opened.val, opened.test)
            if (t.user == user).any()
        )
        out[name] = [
            own[a:b] for a, b in zip([0, *(n + 1 for n in at)], [*at, len(own)], strict=True)
        ]
    return out


@pytest.mark.parametrize(("name", "merge", "merge_val"), CASES)
def test_equals_the_reference_and_never_leaks(tmp_path, name, merge, merge_val):
    split = without(SPLITS[name], merge_val=merge_val)
    for seed in range(3):
        events = random_events(seed)
        opened = store(tmp_path / str(seed), events, split, merge=merge)
        train, val, test = (
            listed(opened, opened.train),
            held_out(opened, "val"),
            held_out(opened, "test"),
        )
        if not (split.purge == "later" and merge == "pairs"):
            expected = reference(events, split, merge == "pairs")
            assert train == {user: parts[0] for user, parts in expected.items()}
            for n, found in ((1, val), (2, test)):
                assert {user: target for user, (target, _) in found.items()} == {
                    u: parts[n] for u, parts in expected.items() if parts[n]
                }
        elif not merge_val:  # single events are held out, and what lies between them is merged
            plain = store(tmp_path / f"{seed} events", events, split)
            assert {u: t for u, (t, _) in test.items()} == {
                u: t for u, (t, _) in held_out(plain, "test").items()
            }
            assert train == {
                user: [e for piece in pieces for e, _ in merged(piece)]
                for user, pieces in between_targets(plain).items()
            }
        assert test and (merge_val or val) and not (merge_val and val)
        row = {
            user: at
            for user, at in zip(opened.val.user.tolist(), opened.val.end.tolist(), strict=True)
        }
        assert all(
            row[u] < end
            for u, end in zip(opened.test.user.tolist(), opened.test.end.tolist(), strict=True)
            if u in row
        )
        assert set(opened.test.user.tolist()) >= (
            set(row) if split.kind == "leave_one_out" else set()
        )
        for user, (target, history) in [*val.items(), *test.items()]:
            may_be_empty = split.test_without_history and user in test and target == test[user][0]
            assert history or may_be_empty
            assert all(e.user == user and e.time <= target.time for e in history)
            assert train[user]
            if split.purge == "pair":
                assert target.item not in {e.item for e in train[user] + history}
        if split.kind == "global_time":
            last = max(e.time for own in train.values() for e in own)
            assert all(last < target.time for target, _ in [*val.values(), *test.values()])


def test_the_order_does_not_depend_on_item_ids(tmp_path):
    """Renaming the items in reverse renames the targets and nothing else."""
    events = random_events(5, n_times=4)
    renamed = [e._replace(item=f"i{99 - int(e.item[1:])}") for e in events]
    a, b = (
        held_out(store(tmp_path / name, e, P3), "test")
        for name, e in (("a", events), ("b", renamed))
    )
    assert {u: f"i{99 - int(t.item[1:])}" for u, (t, _) in a.items()} == {
        u: t.item for u, (t, _) in b.items()
    }


def test_the_order_follows_the_file_on_ties(tmp_path):
    events = random_events(6, n_times=3)
    opened = store(tmp_path, events, P3)
    past = listed(opened, opened.past)
    assert past == in_order(events)


def test_no_user_to_evaluate_is_an_error(tmp_path):
    with pytest.raises(
        RecexpError, match="No user has a test target: the split wants 'strongest' events"
    ):
        store(tmp_path, [Event("u", "a", "view", 1), Event("u", "b", "cart", 2)], P2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "random"}, "protocol.split.kind='random'"),
        ({"target": "bought"}, "protocol.split.target='bought'"),
        ({"purge": "all"}, "protocol.split.purge='all'"),
        ({"fallback": "last"}, "protocol.split.fallback='last'"),
        ({"test_share": 0.6, "val_share": 0.4}, "sum to less than 1"),
        ({"test_share": 0.0}, "positive"),
        ({"kind": "global_time", "purge": "pair"}, "belong to kind=leave_one_out"),
    ],
)
def test_wrong_settings_are_errors(settings, message):
    with pytest.raises(RecexpError, match=message):
        Split(**settings)
