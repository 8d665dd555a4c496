"""Recobell: views and orders of a Korean shop in August and September 2016."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl

from recexp.data.raw.columns import Column
from recexp.data.raw.folder import Folder
from recexp.data.readers import ItemFeature, Raw
from recexp.errors import RecexpError

ORIGIN = "pakdd2017.recobell.io (the PAKDD 2017 e-commerce data)"


def read(
    raw_dir: str | Path,
    *,
    on_bad_rows: str = "error",
    views: str = "site_view_log.csv000",
    orders: str = "site_order_log.csv000",
    products: str | None = "site_product.csv000",
    category_columns: tuple[int, ...] = (2, 3, 4, 5),
    start: str | date | None = "2016-08-08",
    end: str | date | None = "2016-08-15",
) -> Raw:
    """Both logs, cut to start <= time < end, and the feature "category": each of the product's levels with values of its own.

    The files may be packed (gzip). products: None reads no categories. category_columns: where (from 0) the product file
    holds the levels. start, end: dates, None for open; the defaults are the week that S000's code keeps.
    Where a view and an order share their time, the view comes first.
    """
    folder = Folder(raw_dir, ORIGIN, on_bad_rows)
    columns = [Column("user", 3), Column("item", 4), Column("timestamp", 0, "iso")]
    logs = [
        folder.delimited(name, columns, header=False).with_columns(behavior=pl.lit(behavior))
        for name, behavior in ((views, "view"), (orders, "order"))
    ]
    time = pl.col("timestamp")
    events = pl.concat(logs)
    if start is not None:
        events = events.filter(time >= _ms(start))
    if end is not None:
        events = events.filter(time < _ms(end))
    if events.is_empty():
        raise RecexpError(
            f"{folder.path / views} and {orders}: no row lies in start={start} to end={end}; set dataset.source.start and end."
        )
    features = (
        {} if products is None else {"category": _category(folder, products, category_columns)}
    )
    return Raw(
        events.select("user", "item", "behavior", "timestamp").lazy(),
        folder.files,
        features,
        folder.dropped,
    )


def _category(folder: Folder, products: str, category_columns: tuple[int, ...]) -> ItemFeature:
    levels = [
        Column(f"cat{i}", column, "text", nullable=True)
        for i, column in enumerate(category_columns, 1)
    ]
    frame = folder.delimited(products, [Column("item", 0), *levels], header=False)
    prefixed = [
        pl.format("{}:{}", pl.lit(i), pl.col(level.name)).alias(level.name)
        for i, level in enumerate(levels, 1)
    ]
    values = (
        frame.with_columns(prefixed)
        .unpivot(index="item", variable_name="level")
        .drop_nulls("value")
        .select("item", "value")
    )
    return ItemFeature("multi_label", values.lazy())


def _ms(day: str | date) -> int:
    try:
        moment = datetime.fromisoformat(str(day))
    except ValueError:
        raise RecexpError(f"start and end are dates such as 2016-08-08, not {day!r}") from None
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
