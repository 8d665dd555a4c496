"""The table of data sets that papers print: a column per data set, a row per quantity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from recexp.data.store import Store
from recexp.data.times import time_facts
from recexp.report.formats import DASH, Cell, Table

MILLISECONDS_PER_DAY = 86_400_000
# Data whose times end before are numbered in the order of the events and have no dates.
END_OF_NUMBERS = 365 * MILLISECONDS_PER_DAY
NOTES = (
    "after dataset.filters and before the split, but for training events and targets",
    "density: share of all pairs of a user and an item that occur; length: events per user",
    "repeated: events of a pair of a user and an item after its first one; at a shared time: with "
    "another event of the user at the same time; cold: the item has no training event",
)

# Rows by the beginning of their titles, in the order of the table.
EVENTS_OF = "events: "
# By the list of features in meta.json.
WITH_FEATURE = {
    "features": "items with ",
    "user_features": "users with ",
    "event_features": "events with ",
}
ORDER = (
    "users",
    "items",
    "events",
    EVENTS_OF,
    "pairs",
    "density",
    "mean length",
    "median length",
    "repeated events",
    "first event (UTC)",
    "last event (UTC)",
    "days",
    "events at a shared time",
    "training events",
    "validation targets",
    "test targets",
    "cold test targets",
    "repeated test targets",
    *WITH_FEATURE.values(),
)


def dataset_table(
    stores: Sequence[Store], found: Sequence[Mapping[str, float]], protocols: Sequence[str] = ()
) -> Table:
    """stores: of the data sets. found: of each, as ``describe.facts`` gives it.

    protocols: the names of the protocols that split them, where they are known.
    """
    columns = [_column(store, facts) for store, facts in zip(stores, found, strict=True)]
    titles = dict.fromkeys(title for column in columns for title in column)
    rows = []
    for title in sorted(titles, key=_place):
        cells = [column.get(title, Cell(DASH)) for column in columns]
        rows.append((Cell(title), *cells))
    names = [_name(store, stores, protocols[n : n + 1]) for n, store in enumerate(stores)]
    notes = list(NOTES)
    earlier = [name for name, s in zip(names, stores, strict=True) if "times" not in s.meta]
    if earlier:
        notes.append(
            f"{', '.join(earlier)}: an earlier version prepared the data, so times are those of "
            "the events that training, validation and test use"
        )
    return Table("Data sets", "", ("", *names), tuple(rows), tuple(notes))


def _place(title: str) -> int:
    """The place of a row in ``ORDER``."""
    for start in (EVENTS_OF, *WITH_FEATURE.values()):
        if title.startswith(start):
            return ORDER.index(start)
    return ORDER.index(title)


def _name(store: Store, stores: Sequence[Store], protocol: Sequence[str]) -> str:
    """The data set's name; with its protocol where it is not the only one of that name."""
    name = str(store.meta["dataset"])
    if store.meta["simulated"]:
        name += " (simulated)"
    same = [other for other in stores if other.meta["dataset"] == store.meta["dataset"]]
    return f"{name}, {protocol[0]}" if len(same) > 1 and protocol else name


def _column(store: Store, facts: Mapping[str, float]) -> dict[str, Cell]:
    """The cells of one data set by the titles of their rows."""
    meta = store.meta
    cells = {name: _count(facts[name]) for name in ("users", "items", "events")}
    if len(meta["behaviors"]) > 1:
        for behavior in meta["behaviors"]:
            cells[f"{EVENTS_OF}{behavior}"] = _count(meta["events"][behavior])
    cells["pairs"] = _count(facts["pairs"])
    cells["density"] = _share(facts["density"], 3)
    cells["mean length"] = Cell(f"{facts['mean length']:.1f}", facts["mean length"])
    cells["median length"] = Cell(f"{facts['median length']:.1f}", facts["median length"])
    cells["repeated events"] = _share(1 - facts["pairs"] / facts["events"])
    past = store.past
    cells |= _times(meta.get("times") or time_facts(past.user.numpy(), past.time.numpy()))
    cells["training events"] = _count(facts["training events"])
    cells["validation targets"] = _count(len(store.val))
    cells["test targets"] = _count(len(store.test))
    if len(store.test):
        cells["cold test targets"] = _share(float(store.test.cold.double().mean()))
        cells["repeated test targets"] = _share(float(store.test.repeat.double().mean()))
    for key, start in WITH_FEATURE.items():
        for feature in meta.get(key, []):
            cells[f"{start}{feature['name']}"] = _share(feature["coverage"])
    return cells


def _times(times: Mapping[str, Any]) -> dict[str, Cell]:
    """Span and ties of times; no span where events are numbered."""
    tied = {"events at a shared time": _share(times["tied"])}
    if times["last"] < END_OF_NUMBERS:
        return tied
    days = (times["last"] - times["first"]) / MILLISECONDS_PER_DAY
    return {
        "first event (UTC)": Cell(_date(times["first"])),
        "last event (UTC)": Cell(_date(times["last"])),
        "days": Cell(f"{days:,.1f}", days),
        **tied,
    }


def _date(milliseconds: int) -> str:
    return f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%d}"


def _count(n: float) -> Cell:
    return Cell(f"{n:,.0f}", n)


def _share(share: float, decimals: int = 1) -> Cell:
    return Cell(f"{share:.{decimals}%}", share)
