"""Simulated events of any size for the benchmarks.

They measure speed and memory only; metrics on these events have no meaning.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import polars as pl

CHUNK = 5_000_000


def write_events(folder: Path, users: int, items: int, events: int, seed: int = 0) -> Path:
    """``folder/events.parquet`` (user, item, timestamp), made once: users' lengths are log-normal,
    at least five; items' popularity falls as 1/rank, and where there are twice as many events as
    items each occurs.

    Returns the folder. Drawn chunk by chunk of whole users, so that 10^8 events take no more memory
    than 10^7.
    """
    path = folder / "events.parquet"
    if path.is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    share = rng.lognormal(sigma=1.1, size=users)
    length = np.maximum(5, share / share.sum() * events).astype(np.int64)
    popularity = np.cumsum(1.0 / np.arange(1, items + 1))
    name = rng.permutation(items).astype(np.int32)  # popular items stand anywhere in the catalogue
    parts = []
    first = np.searchsorted(np.cumsum(length), np.arange(0, length.sum(), CHUNK))
    for number, (a, b) in enumerate(zip(first, [*first[1:], users], strict=True)):
        if a == b:
            continue
        user = np.repeat(np.arange(a, b, dtype=np.int32), length[a:b])
        item = name[np.searchsorted(popularity, rng.random(len(user)) * popularity[-1])]
        # Every item occurs, if there are events enough: each chunk brings its share of the
        # catalogue.
        low, high = (
            items * number * CHUNK // length.sum(),
            min(items, items * (number + 1) * CHUNK // length.sum()),
        )
        low, high = min(low, high), min(high, low + len(user) // 2)
        item[rng.choice(len(user), high - low, replace=False)] = np.arange(low, high)
        time = np.arange(len(user), dtype=np.int64) + number * CHUNK
        part = folder / f"part{number}.parquet"
        pl.DataFrame({"user": user, "item": item, "timestamp": time}).write_parquet(part)
        parts.append(part)
    pl.scan_parquet(parts).sink_parquet(folder / ".events.parquet")
    for part in parts:
        part.unlink()
    os.replace(folder / ".events.parquet", path)
    return folder


def overrides(folder: Path) -> list[str]:
    """The command-line words that make ``folder`` the data."""
    return [
        "dataset=table",
        f"dataset.name={folder.name}",
        f"dataset.raw_dir={folder}",
        "dataset.source.file=events.parquet",
    ]
