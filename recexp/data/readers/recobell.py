"""Recobell: views and orders of a Korean shop in August and September 2016."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated

import polars as pl
from pydantic import Field

from recexp.data.dataset import BadRows
from recexp.data.raw.columns import Column
from recexp.data.raw.folder import Folder
from recexp.data.readers import ItemFeature, Raw
from recexp.errors import RecexpError

ORIGIN = "pakdd2017.recobell.io (the PAKDD 2017 e-commerce data)"


def read(
    raw_dir: str | Path,
    *,
    on_bad_rows: BadRows = "error",
    views: str = "site_view_log.csv000",
    orders: str = "site_order_log.csv000",
    products: str | None = "site_product.csv000",
    category_columns: Sequence[Annotated[int, Field(ge=0)]] = (2, 3, 4, 5),
    start: str | date | None = "2016-08-08",
    end: str | date | None = "2016-08-15",
) -> Raw:
    """Both logs, cut to start <= time < end, and the feature "category" of the products.

    Each level of a product's category has values of its own. Where a view and an order share their
    time, the view comes first. The files may be packed (gzip).

    products: None reads no categories. category_columns: where (from 0) the product file holds the
    levels. start, end: dates, None for open; the defaults are the week that the code of the ITE
    paper keeps.
    """
    folder = Folder(raw_dir, ORIGIN, on_bad_rows)
    columns = [Column("user", 3), Column("item", 4), Column("timestamp", 0, "iso")]
    viewed = folder.delimited(views, columns, header=False)
    ordered = folder.delimited(orders, columns, header=False)
    events = pl.concat(
        [
            viewed.with_columns(behavior=pl.lit("view")),
            ordered.with_columns(behavior=pl.lit("order")),
        ]
    )
    if start is not None:
        events = events.filter(pl.col("timestamp") >= _milliseconds(start))
    if end is not None:
        events = events.filter(pl.col("timestamp") < _milliseconds(end))
    if events.is_empty():
        raise RecexpError(
            f"{folder.path / views} and {orders}: no row lies in start={start} to end={end}; "
            "set dataset.source.start and end."
        )
    features = {}
    if products is not None:
        features["category"] = _category(folder, products, category_columns)
    events = events.select("user", "item", "behavior", "timestamp")
    return Raw(events.lazy(), folder.files, features, folder.dropped)


def _category(folder: Folder, products: str, category_columns: Sequence[int]) -> ItemFeature:
    levels = []
    prefixed = []
    for i, position in enumerate(category_columns, 1):
        name = f"cat{i}"
        levels.append(Column(name, position, "text", nullable=True))
        # The level's number keeps equal names of different levels apart.
        prefixed.append(pl.format("{}:{}", pl.lit(i), pl.col(name)).alias(name))
    frame = folder.delimited(products, [Column("item", 0), *levels], header=False)
    long = frame.with_columns(prefixed).unpivot(index="item", variable_name="level")
    values = long.drop_nulls("value").select("item", "value")
    return ItemFeature("multi_label", values.lazy())


def _milliseconds(day: str | date) -> int:
    """The date in milliseconds since 1970; UTC where it names no zone."""
    try:
        moment = datetime.fromisoformat(str(day))
    except ValueError:
        raise RecexpError(f"start and end are dates such as 2016-08-08, not {day!r}") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)
