"""Tmall, IJCAI-15: clicks, carts, favorites and purchases of half a year before Double 11."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from recexp.data.dataset import BadRows
from recexp.data.raw.columns import Column, time_column
from recexp.data.raw.folder import Folder
from recexp.data.readers import ItemFeature, Raw

ORIGIN = "Tianchi: Repeat Buyers Prediction (dataset 42), data_format1.zip"
FEATURES = {"category": "cat_id", "seller": "seller_id", "brand": "brand_id"}


def read(
    raw_dir: str | Path,
    *,
    on_bad_rows: BadRows = "error",
    file: str = "user_log_format1.csv",
    features: bool = True,
) -> Raw:
    """Read ``user_log_format1.csv``. Behaviors are 0 click, 1 cart, 2 purchase, 3 favorite.

    features: "category", "seller" and "brand" of an item, those of its last row; reading them takes
        a second pass over the file.
    Times are days of the form MMDD, of the year 2000, since the file names none: ties keep the
    order of the file.
    """
    folder = Folder(raw_dir, ORIGIN, on_bad_rows)
    columns = [
        Column("user", "user_id", "int"),
        Column("item", "item_id", "int"),
        Column("behavior", "action_type", choices=("0", "1", "2", "3")),
        time_column("timestamp", "time_stamp", "%m%d"),
    ]
    events = folder.delimited(file, columns, header=True)
    found = _features(folder, file) if features else {}
    return Raw(events.lazy(), folder.files, found, folder.dropped)


def _features(folder: Folder, file: str) -> dict[str, ItemFeature]:
    """The features of the items. Rows that are bad as events do not count twice in ``dropped``."""
    columns = [Column("item", "item_id", "int")]
    columns += [Column(name, source, "int", nullable=True) for name, source in FEATURES.items()]
    dropped = dict(folder.dropped)
    frame = folder.delimited(file, columns, header=True)
    folder.dropped = dropped
    features = {}
    for name in FEATURES:
        values = frame.lazy().select("item", value=name).drop_nulls("value")
        last = values.group_by("item").agg(pl.col("value").last())
        features[name] = ItemFeature("categorical", last)
    return features
