"""Yoochoose: clicks and purchases of sessions of a shop, April to September 2014 (RecSys 2015)."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from recexp.data.dataset import BadRows
from recexp.data.raw.columns import Column
from recexp.data.raw.folder import Folder
from recexp.data.readers import ItemFeature, Raw

ORIGIN = "RecSys Challenge 2015 (yoochoose-data.7z)"
CLICKS = "yoochoose-clicks.dat"
BUYS = "yoochoose-buys.dat"
NO_CATEGORY = "0"


def read(
    raw_dir: str | Path,
    *,
    on_bad_rows: BadRows = "error",
    clicks: str = CLICKS,
    buys: str | None = None,
    category: bool = False,
) -> Raw:
    """Read the file ``clicks``; a session is a user.

    buys: the file of purchases, such as yoochoose-buys.dat; None leaves them out.
    category: the last category of an item's clicks as an item feature. "S" is a special offer, 1 to
        12 are categories, longer numbers are brands; 0 is unknown.
    """
    folder = Folder(raw_dir, ORIGIN, on_bad_rows)
    columns = [
        Column("user", 0, "int"),
        Column("timestamp", 1, "iso"),
        Column("item", 2, "int"),
    ]
    last = [Column("category", 3, "text")] if category else []
    events = folder.delimited(clicks, [*columns, *last], header=False)
    features = {}
    if category:
        known = events.lazy().filter(pl.col("category") != NO_CATEGORY)
        values = known.group_by("item").agg(value=pl.col("category").last())
        features["category"] = ItemFeature("categorical", values)
    parts = [events.select("user", "item", "timestamp", behavior=pl.lit("click"))]
    if buys is not None:
        bought = folder.delimited(buys, columns, header=False)
        parts.append(bought.select("user", "item", "timestamp", behavior=pl.lit("buy")))
    return Raw(pl.concat(parts).lazy(), folder.files, features, folder.dropped)
