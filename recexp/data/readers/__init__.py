"""Readers: one module per raw layout, from raw files to one canonical form.

A reader is a function ``read(raw_dir, *, on_bad_rows="error", **options) -> Raw``. It knows file
names and columns. It filters, splits and indexes nothing; ``recexp.data.build`` does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import polars as pl

FeatureKind = Literal["categorical", "multi_label", "numeric", "vector"]
EventFeatureKind = Literal["categorical", "numeric"]
EVENT_PREFIX = "feature:"
"""Begins the names of the columns of ``Raw.events`` that are event features."""


@dataclass
class ItemFeature:
    """Side information about items in long form.

    frame: columns ``item``, ``value`` (integer or string for categorical and multi_label, float for
        numeric, a list or an array of numbers for vector) and, where the value changes over time,
        ``timestamp`` (int64 milliseconds, valid from). Preparation takes the last value at or
        before the end of training, else the first.
    tree: columns ``value``, ``parent`` (null at a root). Preparation adds every ancestor of a value
        (the category tree of the ITE paper).
    """

    kind: FeatureKind
    frame: pl.LazyFrame
    tree: pl.LazyFrame | None = None


@dataclass
class UserFeature:
    """Side information about users: as ``ItemFeature``, with a column ``user``."""

    kind: FeatureKind
    frame: pl.LazyFrame


@dataclass
class Raw:
    """What a reader returns.

    events: columns ``user``, ``item`` (string or int64), ``behavior`` (string), ``timestamp``
        (int64 milliseconds), optionally ``value`` (float32) and ``part`` (int8, TRAIN, VAL or TEST
        of ``recexp.data.rows``), in the row order of the source, which breaks ties in time. Of
        every event feature a column ``feature:NAME`` (``EVENT_PREFIX``), texts, integers or, for
        numeric, floats; null is unknown.
    files: every file that was read, for checksums: ``Folder.files``, by which the cache knows the
        files that matter. For a plain list it takes any file put beside these for a change.
    item_features, user_features, event_features: by name.
    dropped: reason -> (number of rows, first few examples "file:row column value"), filled with
        ``on_bad_rows="drop"``.
    has_times: False where the time of an event is its place in the source.
    decided: option that was "auto" -> the value that the reader found. It takes the place of "auto"
        in the fingerprint, which is thus the one of the same option given by hand.
    """

    events: pl.LazyFrame
    files: list[Path]
    item_features: dict[str, ItemFeature] = field(default_factory=dict)
    dropped: dict[str, tuple[int, list[str]]] = field(default_factory=dict)
    has_times: bool = True
    decided: dict[str, str] = field(default_factory=dict)
    user_features: dict[str, UserFeature] = field(default_factory=dict)
    event_features: dict[str, EventFeatureKind] = field(default_factory=dict)
