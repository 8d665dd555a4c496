"""Diginetica: sessions of a shop, January to June 2016 (CIKM Cup 2016, track 2)."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from recexp.data.dataset import BadRows
from recexp.data.raw.columns import Column
from recexp.data.raw.delimited import Format
from recexp.data.raw.folder import Folder
from recexp.data.readers import ItemFeature, Raw

ORIGIN = "CIKM Cup 2016, track 2 (dataset-train-diginetica.zip)"
VIEWS = "train-item-views.csv"
PURCHASES = "train-purchases.csv"
CATEGORIES = "product-categories.csv"
PRODUCTS = "products.csv"
FORM = Format(header=True, separator=";")


def read(
    raw_dir: str | Path,
    *,
    on_bad_rows: BadRows = "error",
    purchases: bool = False,
    user: str = "sessionId",
) -> Raw:
    """Read ``train-item-views.csv``; a session is a user.

    purchases: also read ``train-purchases.csv``, events "purchase" beside "view".
    user: "userId" takes the users who were signed in; rows without one, NA, are dropped by
        ``dataset.missing_ids``.
    The time is the day (``eventdate``) plus the milliseconds since the session began
    (``timeframe``).
    Item features, where their files are present: "category" and "price" (``pricelog2``).
    """
    folder = Folder(raw_dir, ORIGIN, on_bad_rows)
    parts = [_events(folder, VIEWS, user, "view")]
    if purchases:
        parts.append(_events(folder, PURCHASES, user, "purchase"))
    features = {}
    if folder.has(CATEGORIES):
        columns = [Column("item", "itemId", "int"), Column("value", "categoryId", "int")]
        frame = folder.frame(CATEGORIES, columns, FORM)
        features["category"] = ItemFeature("categorical", frame.lazy())
    if folder.has(PRODUCTS):
        columns = [Column("item", "itemId", "int"), Column("value", "pricelog2", "number")]
        features["price"] = ItemFeature("numeric", folder.frame(PRODUCTS, columns, FORM).lazy())
    return Raw(pl.concat(parts).lazy(), folder.files, features, folder.dropped)


def _events(folder: Folder, file: str, user: str, behavior: str) -> pl.DataFrame:
    columns = [
        Column("user", user, "int" if user == "sessionId" else "id"),
        Column("item", "itemId", "int"),
        Column("day", "eventdate", "iso"),
        Column("offset", "timeframe", "int"),
    ]
    frame = folder.frame(file, columns, FORM)
    time = pl.col("day") + pl.col("offset")
    return frame.select("user", "item", behavior=pl.lit(behavior), timestamp=time)
