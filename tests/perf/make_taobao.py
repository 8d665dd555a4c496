"""``python -m tests.perf.make_taobao FOLDER [EVENTS]``: a UserBehavior.csv of Taobao's shape,
SIMULATED, for measuring preparation.

At the full 100 150 807 events it has the published 987 994 users and 4 162 024 items; fewer events
have proportionally fewer of both. Every user and item occurs, popularity falls off like a power,
and users' rows lie scattered: harder to sort than the original, whose rows are grouped by user.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import polars as pl

from recexp.data.simulation.simulator import SETTING_FILE

EVENTS, USERS, ITEMS, CATEGORIES = 100_150_807, 987_994, 4_162_024, 9_439
BEHAVIORS, SHARES = ("pv", "fav", "cart", "buy"), (0.8958, 0.0288, 0.0553, 0.0201)
START, DAYS = 1_511_539_200, 9  # 2017-11-25
CHUNK = 4_000_000


def make(folder: Path, events: int = EVENTS, seed: int = 0) -> Path:
    """Write the file in chunks; returns its path."""
    users, items = (max(10, round(n * events / EVENTS)) for n in (USERS, ITEMS))
    rng, path = np.random.default_rng(seed), folder / "UserBehavior.csv"
    folder.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    with temporary.open("wb") as file:
        for first in range(0, events, CHUNK):
            row = np.arange(first, min(events, first + CHUNK))
            user = _skewed(rng, row, users, 1.5)
            item = _skewed(rng, row, items, 3.0)
            frame = pl.DataFrame(
                {"user": user + 1, "item": item + 1, "category": item * 7919 % CATEGORIES + 1}
            )
            code = rng.choice(len(BEHAVIORS), len(row), p=SHARES)
            frame = frame.with_columns(
                behavior=pl.Series(np.asarray(BEHAVIORS)[code]),
                timestamp=pl.Series(START + rng.integers(0, DAYS * 86_400, len(row))),
            )
            frame.write_csv(file, include_header=False)
    os.replace(temporary, path)
    (folder / SETTING_FILE).write_text('{"simulator": "tests.perf.make_taobao"}\n')
    return path


def _skewed(rng: np.random.Generator, row: np.ndarray, n: int, power: float) -> np.ndarray:
    """0..n-1: each once in the first n rows, in a scattered order, then the low numbers more often
    than the high ones.
    """
    drawn = (rng.random(len(row)) ** power * n).astype(np.int64)
    return np.where(row < n, row * 2_147_483_647 % n, drawn)


if __name__ == "__main__":
    make(Path(sys.argv[1]), *map(int, sys.argv[2:3]))
