"""Small event tables on disk, prepared and opened; and plain references of what preparation must
do.
"""

from __future__ import annotations

import random
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import polars as pl

from recexp.data.cache import prepare
from recexp.data.dataset import Dataset
from recexp.data.split import Split
from recexp.data.store import Store

Event = namedtuple("Event", "user item behavior time value", defaults=(None,))
BEHAVIORS = ("view", "cart", "buy")
# As in conf/protocol (tests/data/test_split.py compares).
P1 = Split(target="explicit", purge="pair", fallback="any", test_without_history=True)
P2 = Split(target="strongest", purge="pair", fallback="any", test_without_history=True)
P2_LATER = Split(target="strongest", purge="later", fallback="any")
P3 = Split()
GLOBAL = Split(kind="global_time", test_share=0.2, val_share=0.2)


def write(folder: Path, events: list[Event], name: str = "events.csv") -> Path:
    """A csv file with a header; times in milliseconds."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["user,item,behavior,timestamp,value"]
    lines += [
        f"{e.user},{e.item},{e.behavior},{e.time},{'' if e.value is None else e.value}"
        for e in events
    ]
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder


def dataset(folder: Path, **changes) -> Dataset:
    """A data set over ``write``'s file.

    ``value="value"`` and ``features=...`` go to the reader, the rest to ``Dataset``.
    """
    source = {
        "_target_": "recexp.data.readers.table.read",
        "_partial_": True,
        "file": "events.csv",
        "behavior": "behavior",
        "time_unit": "ms",
    }
    source |= {key: changes.pop(key) for key in ("value", "features") if key in changes}
    return Dataset(
        **{
            "name": "shop",
            "raw_dir": str(folder),
            "source": source,
            "behaviors": BEHAVIORS,
            "explicit": BEHAVIORS[1:],
        }
        | changes
    )


def store(folder: Path, events: list[Event], split: Split = P3, **changes) -> Store:
    """Written, prepared and opened."""
    return Store.open(
        prepare(dataset(write(folder / "raw", events), **changes), split, folder / "cache")
    )


def random_events(
    seed: int, n_users: int = 25, n_items: int = 12, n_events: int = 250, n_times: int = 60
) -> list[Event]:
    """Random events, in no order of user or time, with repeated pairs and many ties in time."""
    rng = random.Random(seed)
    behaviors = rng.choices(BEHAVIORS, (6, 2, 2), k=n_events)
    return [
        Event(
            f"u{rng.randrange(n_users)}",
            f"i{rng.randrange(n_items)}",
            b,
            1000 * rng.randrange(n_times),
        )
        for b in behaviors
    ]


def in_order(events: list[Event]) -> dict[str, list[Event]]:
    """Per user, by time and then by the place in the file."""
    users = {
        user: [e for e in events if e.user == user] for user in sorted({e.user for e in events})
    }
    return {
        user: sorted(own, key=lambda e: e.time) for user, own in users.items()
    }  # sorted is stable


def merged(
    own: list[Event], explicit: tuple[str, ...] = BEHAVIORS[1:]
) -> list[tuple[Event, set[str]]]:
    """One user's events as pairs:

    (event with the strongest behavior at the last explicit time, all behaviors of the pair).
    """
    pairs = []
    for item in {e.item for e in own}:
        at = [n for n, e in enumerate(own) if e.item == item]
        last = max([n for n in at if own[n].behavior in explicit] or at)
        names = {own[n].behavior for n in at}
        pairs.append((last, own[last]._replace(behavior=max(names, key=BEHAVIORS.index)), names))
    return [(event, names) for _, event, names in sorted(pairs, key=lambda pair: pair[0])]


def names(store: Store, column: str) -> list[str]:
    """Raw ids by index; items start at 1."""
    frame = pl.read_parquet(store.folder / f"{column}s.parquet")
    return [""] * int(frame["index"][0]) + frame[column].to_list()


def listed(store: Store, events) -> dict[str, list[Event]]:
    """``Store.train`` or ``Store.past`` as events per user, in their order."""
    users, items = names(store, "user"), names(store, "item")
    columns = (events.user, events.item, events.behavior, events.time)
    out = {user: [] for user in users}
    for user, item, behavior, time in zip(*(c.tolist() for c in columns), strict=True):
        out[users[user]].append(Event(users[user], items[item], BEHAVIORS[behavior - 1], time))
    return out


def held_out(store: Store, split: str) -> dict[str, tuple[Event, list[Event]]]:
    """user -> (target, history) of "val" or "test"."""
    users, items, targets = names(store, "user"), names(store, "item"), store.targets(split)
    past = [event for own in listed(store, store.past).values() for event in own]
    out = {}
    for q in range(len(targets)):
        target = Event(
            users[targets.user[q]],
            items[targets.item[q]],
            BEHAVIORS[targets.behavior[q] - 1],
            int(targets.time[q]),
        )
        out[target.user] = target, past[targets.start[q] : targets.end[q]]
    return out


def without(split: Split, **changes) -> Split:
    """The split with other settings."""
    return replace(split, **changes)
