"""JData 2017: views, clicks, carts and orders of JD users, February to April 2016."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from recexp.data.dataset import BadRows
from recexp.data.raw.columns import Column
from recexp.data.raw.folder import Folder
from recexp.data.readers import ItemFeature, Raw

ORIGIN = "JD: JData algorithm competition 2017 (JData_Action_201602.csv and so on)"
BEHAVIORS = ("1", "2", "3", "4", "5", "6")


def read(
    raw_dir: str | Path,
    *,
    on_bad_rows: BadRows = "error",
    file: str | Sequence[str] = "JData_Action_*.csv",
) -> Raw:
    """Read the files of the months, with the features "category" and "brand" of the items.

    Behaviors are 1 view, 2 add to cart, 3 remove from cart, 4 order, 5 follow, 6 click. Users are
    written as 266079.0 in some files and as 266079 in others.
    """
    folder = Folder(raw_dir, ORIGIN, on_bad_rows)
    columns = [
        Column("user", "user_id", "number"),
        Column("item", "sku_id", "int"),
        Column("timestamp", "time", "iso"),
        Column("behavior", "type", choices=BEHAVIORS),
        Column("category", "cate", "int"),
        Column("brand", "brand", "int"),
    ]
    frame = folder.frame(file, columns).with_columns(pl.col("user").cast(pl.Int64))
    features = {}
    for name in ("category", "brand"):
        values = frame.lazy().group_by("item").agg(value=pl.col(name).last())
        features[name] = ItemFeature("categorical", values)
    events = frame.select("user", "item", "behavior", "timestamp")
    return Raw(events.lazy(), folder.files, features, folder.dropped)
