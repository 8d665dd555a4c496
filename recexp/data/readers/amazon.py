"""Amazon product reviews of 1996 to 2014, one file per department."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from recexp.data.raw.columns import Column
from recexp.data.raw.folder import Folder, joined, record_row, split_names
from recexp.data.raw.text import Row
from recexp.data.readers import ItemFeature, Raw
from recexp.errors import RecexpError


def read(
    raw_dir: str | Path, *, on_bad_rows: str = "error", name: str = "Beauty", meta: bool = True
) -> Raw:
    """``ratings_<name>.csv`` or, where that is not there, ``reviews_<name>.json.gz``; and ``meta_<name>.json.gz`` if there.

    Item features: "category" (every name in ``categories``), "brand", "price". meta: False leaves them out.
    The times are whole days: ties keep the order of the file that was read.
    """
    folder = Folder(
        raw_dir, f"J. McAuley, UCSD: Amazon product data (2014), department {name}", on_bad_rows
    )
    ratings, reviews = f"ratings_{name}.csv", f"reviews_{name}.json.gz"
    if folder.has(ratings):
        events = folder.delimited(ratings, _columns(0, 1, 2, 3), header=False)
    elif folder.has(reviews):
        columns = _columns("reviewerID", "asin", "overall", "unixReviewTime")
        events = folder.record_table(reviews, columns)
    else:
        raise RecexpError(
            f"{folder.path} holds neither {ratings} nor {reviews}. Get one of them from {folder.origin}, or set dataset.raw_dir."
        )
    events = events.with_columns(pl.col("value").cast(pl.Float32), behavior=pl.lit("rating"))
    features = (
        _features(folder, f"meta_{name}.json.gz")
        if meta and folder.has(f"meta_{name}.json.gz")
        else {}
    )
    return Raw(events.lazy(), folder.files, features, folder.dropped)


def _columns(
    user: str | int, item: str | int, value: str | int, timestamp: str | int
) -> list[Column]:
    return [
        Column("user", user),
        Column("item", item),
        Column("value", value, "number"),
        Column("timestamp", timestamp, "s"),
    ]


def _features(folder: Folder, name: str) -> dict[str, ItemFeature]:
    columns = [
        Column("item", "asin"),
        Column("brand", "brand", "text", nullable=True),
        Column("price", "price", "number", nullable=True),
        Column("category", "categories", "text", nullable=True),
    ]

    def is_lists(value: object) -> bool:
        return isinstance(value, list) and all(isinstance(path, list) for path in value)

    def rows() -> Iterator[Row]:
        for line, record in folder.records(name):
            paths = record.get("categories") or []
            labels = (
                joined([label for path in paths for label in path]) if is_lists(paths) else None
            )
            if labels is not None:
                yield record_row(line, record, columns[:3], labels)
            else:
                yield line, None, "has categories that are not lists of names"

    frame = folder.table(name, columns, rows())

    values = {
        column.name: frame.lazy().select("item", value=column.name).drop_nulls("value")
        for column in columns[1:3]
    }
    return {
        "category": ItemFeature("multi_label", split_names(frame, "category")),
        "brand": ItemFeature("categorical", values["brand"]),
        "price": ItemFeature("numeric", values["price"]),
    }
