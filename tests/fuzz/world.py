"""Random events, and the description of a layout: how it is written, and what must be read from its
files.
"""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.fuzz.files import Refused

Files = dict[str, bytes]
NAMES = ["Action", "Drama", "Children's", "A, B", 'the "best"', "ÄÖ", "日本", "x"]


@dataclass
class World:
    """Random events to write: (user number, item number, behavior number, seconds)."""

    users: int
    items: int
    events: list[tuple[int, int, int, int]]

    @classmethod
    def random(cls, rng: random.Random) -> World:
        users, items = rng.choice([(1, 1), (1, 9), (9, 1), (3, 4), (8, 12)])
        if rng.random() < 0.1:  # every user has every item
            pairs = [(u, i) for u in range(users) for i in range(items)]
        else:
            pairs = [
                (rng.randrange(users), rng.randrange(items))
                for _ in range(rng.choice([1, 2, 5, 15, 40]))
            ]
        start, span = (
            rng.choice([0, 978_300_760, 1_470_700_000, 4_000_000_000]),
            rng.choice([1, 10, 500_000]),
        )
        return cls(
            users, items, [(u, i, rng.randrange(4), start + rng.randrange(span)) for u, i in pairs]
        )


@dataclass
class Expected:
    """What must be read: event rows (user, item, behavior, ms[, value]), rows per feature, the
    tree, bad rows per file.
    """

    events: list[tuple]
    features: dict[str, list[tuple]] = field(default_factory=dict)
    tree: list[tuple] = field(default_factory=list)
    bad: dict[str, int] = field(default_factory=dict)

    def take(self, name: str, rows: list[dict | None]) -> list[dict]:
        """The good rows; the bad ones are counted. A file must have a good row."""
        good = [row for row in rows if row is not None]
        self.bad[name] = len(rows) - len(good)
        if not good:
            raise Refused(f"{name}: no usable row")
        return good


@dataclass(frozen=True)
class Layout:
    """reader: below recexp.data.readers. kinds: feature -> its kind."""

    reader: str
    behaviors: tuple[str, ...]
    write: Callable[[random.Random, World], Files]
    expect: Callable[[Files], Expected]
    options: dict = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)


def written(
    rows: list,
    separator: str = ",",
    quote: bool = True,
    encoding: str = "utf-8",
    all_quoted: bool = False,
) -> bytes:
    """Rows as a delimited text."""
    if not quote:
        return "".join(separator.join(map(str, row)) + "\n" for row in rows).encode(encoding)
    out = io.StringIO()
    csv.writer(
        out,
        delimiter=separator,
        lineterminator="\n",
        quoting=csv.QUOTE_ALL if all_quoted else csv.QUOTE_MINIMAL,
    ).writerows(rows)
    return out.getvalue().encode(encoding)


def some(rng: random.Random, names: list = NAMES) -> list:
    return rng.sample(names, rng.choice([0, 1, 1, 2, 3]))


def number(rng_number: int) -> int:
    """Raw ids: small, negative, huge."""
    return {0: 0, 3: -1, 5: 2**63 - 1, 7: -(2**63)}.get(rng_number, rng_number * 10)


def word(rng_number: int) -> str:
    return {
        0: "a",
        1: "A, B",
        2: 'say "x"',
        3: "007",
        4: "7",
        5: "ü 日本",
        6: "-1",
        7: "u" * 300,
    }.get(rng_number, f"id{rng_number}")
