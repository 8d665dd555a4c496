"""Readers: one function per raw layout, from raw files to one canonical form.

A reader is ``read(raw_dir, on_bad_rows="error", **options) -> Raw``. It knows file names and columns; it filters nothing,
splits nothing and indexes nothing (``recexp.data.cache`` does).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import polars as pl


@dataclass
class ItemFeature:
    """Side information about items in long form.

    frame: columns ``item``, ``value`` (any integer or string for categorical and multi_label, a float for numeric) and,
    where the value changes over time, ``timestamp`` (int64 milliseconds, valid from). Preparation takes the last value at or
    before the end of training, the first if none is.
    tree: columns ``value``, ``parent`` (null at a root): preparation adds every ancestor of a value (S000: category tree).
    """

    kind: str  # categorical | multi_label | numeric
    frame: pl.LazyFrame
    tree: pl.LazyFrame | None = None


@dataclass
class Raw:
    """What a reader returns.

    events: columns ``user``, ``item`` (string or int64), ``behavior`` (string), ``timestamp`` (int64 milliseconds),
    optionally ``value`` (float32), in the row order of the source: ties in time are broken by it.
    files: every file that was read, for checksums. dropped: reason -> (rows, first few examples "file:row column value"),
    filled under ``on_bad_rows="drop"``.
    """

    events: pl.LazyFrame
    files: list[Path]
    item_features: dict[str, ItemFeature] = field(default_factory=dict)
    dropped: dict[str, tuple[int, list[str]]] = field(default_factory=dict)
