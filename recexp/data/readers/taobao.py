"""Taobao UserBehavior: page views, carts, favorites and purchases of nine days in 2017."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from recexp.data.dataset import BadRows
from recexp.data.raw.columns import Column
from recexp.data.raw.folder import Folder
from recexp.data.raw.scanning import scan
from recexp.data.readers import ItemFeature, Raw

ORIGIN = "Tianchi: User Behavior Data from Taobao (dataset 649)"
BEHAVIORS = ("pv", "fav", "cart", "buy")


def read(
    raw_dir: str | Path, *, on_bad_rows: BadRows = "error", file: str = "UserBehavior.csv"
) -> Raw:
    """Read ``UserBehavior.csv``. The feature "category" is that of an item's last row."""
    folder = Folder(raw_dir, ORIGIN, on_bad_rows)
    columns = [
        Column("user", 0, "int"),
        Column("item", 1, "int"),
        Column("category", 2, "int"),
        Column("behavior", 3, choices=BEHAVIORS),
        Column("timestamp", 4, "s"),
    ]
    events = scan(folder, file, columns)  # 100 million rows are not held in memory
    category = events.group_by("item").agg(value=pl.col("category").last())
    features = {"category": ItemFeature("categorical", category)}
    return Raw(events.drop("category"), folder.files, features, folder.dropped)
