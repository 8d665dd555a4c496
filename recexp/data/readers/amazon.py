"""Amazon product reviews of 1996 to 2014, one file per department."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from recexp.data.dataset import BadRows
from recexp.data.raw.columns import Column
from recexp.data.raw.folder import Folder, MissingFile
from recexp.data.raw.records import joined, record_row, split_names
from recexp.data.raw.text import Row
from recexp.data.readers import ItemFeature, Raw

FIVE_CORE = "_5"  # at the end of a name


def read(
    raw_dir: str | Path, *, on_bad_rows: BadRows = "error", name: str = "Beauty", meta: bool = True
) -> Raw:
    """Read ``ratings_<name>.csv``, or else ``reviews_<name>.json.gz``.

    name: a department, or its 5-core, such as Beauty_5.
    meta: read the item features of ``meta_<department>.json.gz`` where it is present: "category"
        (every name in ``categories``), "brand" and "price".
    Times are whole days: ties keep the order of the file.
    """
    origin = f"J. McAuley, UCSD: Amazon product data (2014), department {name}"
    folder = Folder(raw_dir, origin, on_bad_rows)
    ratings = f"ratings_{name}.csv"
    reviews = f"reviews_{name}.json.gz"
    products = f"meta_{name.removesuffix(FIVE_CORE)}.json.gz"
    if first_present(folder, [ratings, reviews]) == ratings:
        events = folder.delimited(ratings, _columns(0, 1, 2, 3), header=False)
    else:
        columns = _columns("reviewerID", "asin", "overall", "unixReviewTime")
        events = folder.record_table(reviews, columns)
    events = events.with_columns(pl.col("value").cast(pl.Float32), behavior=pl.lit("rating"))
    features = _features(folder, products) if meta and folder.has(products) else {}
    return Raw(events.lazy(), folder.files, features, folder.dropped)


def first_present(folder: Folder, names: Sequence[str]) -> str:
    """The first of the names that a file has. MissingFile where none has."""
    for name in names:
        if folder.has(name):
            return name
    where = "" if folder.path.is_dir() else f" (there is no folder {folder.path})"
    raise MissingFile(
        f"{folder.path} holds none of {', '.join(names)}{where}",
        f"Get one of them from {folder.origin}, or set dataset.raw_dir.",
    )


def dollars(text: pl.Expr) -> pl.Expr:
    """A single price, such as "$1,299.00" or "12.5"; null for ranges and other texts."""
    number = text.str.strip_chars().str.extract(r"^\$?([0-9][0-9,]*(?:\.[0-9]+)?)$")
    return number.str.replace_all(",", "").cast(pl.Float64, strict=False)


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
    """Category, brand and price of the products in the file ``name``."""
    columns = [
        Column("item", "asin"),
        Column("brand", "brand", "text", nullable=True),
        Column("price", "price", "number", nullable=True),
        Column("category", "categories", "text", nullable=True),
    ]

    def rows() -> Iterator[Row]:
        for line, record in folder.records(name):
            labels = joined(_flattened(record.get("categories")))
            if labels is None:
                yield line, None, "has categories that are not lists of names"
            else:
                yield record_row(line, record, columns[:3], labels)

    frame = folder.table(name, columns, rows())
    brand = frame.lazy().select("item", value="brand").drop_nulls("value")
    price = frame.lazy().select("item", value="price").drop_nulls("value")
    return {
        "category": ItemFeature("multi_label", split_names(frame, "category")),
        "brand": ItemFeature("categorical", brand),
        "price": ItemFeature("numeric", price),
    }


def _flattened(paths: object) -> list[object] | None:
    """The names of a list of category paths; None for anything but a list of lists."""
    if not paths:
        return []
    if not isinstance(paths, list) or not all(isinstance(path, list) for path in paths):
        return None
    return [name for path in paths for name in path]
