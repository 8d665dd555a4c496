"""Amazon product reviews of 1996 to 2018 (Ni et al. 2019, EMNLP), one file per department."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from recexp.data.dataset import BadRows
from recexp.data.raw.columns import Column
from recexp.data.raw.delimited import Format
from recexp.data.raw.folder import Folder
from recexp.data.raw.records import joined, record_row, split_names
from recexp.data.raw.text import Row
from recexp.data.readers import ItemFeature, Raw
from recexp.data.readers.amazon import FIVE_CORE, dollars, first_present

# Some names of brands keep the line "by" of the web page.
BY = r"^by\s*\n\s*"


def read(
    raw_dir: str | Path,
    *,
    on_bad_rows: BadRows = "error",
    name: str = "Video_Games",
    file: str | None = None,
    meta: bool = True,
) -> Raw:
    """Read the ratings ``<name>.csv``, or the reviews ``<name>.json.gz``.

    name: a department, or its 5-core, such as Video_Games_5.
    file: another name of the file.
    meta: read the item features of ``meta_<department>.json.gz`` where it is present: "category"
        (every name of ``category``), "brand" and "price" (of a single price in dollars).
    Times are whole days: ties keep the order of the file.
    """
    origin = f"J. McAuley, UCSD: Amazon review data (2018), department {name}"
    folder = Folder(raw_dir, origin, on_bad_rows)
    endings = (".csv", ".csv.gz", ".json.gz", ".json")
    file = file or first_present(folder, [name + ending for ending in endings])
    is_csv = file.removesuffix(".gz").endswith(".csv")
    # The order of the columns differs from that of 2014: the item comes first.
    sources = (1, 0, 2, 3) if is_csv else ("reviewerID", "asin", "overall", "unixReviewTime")
    columns = [
        Column("user", sources[0]),
        Column("item", sources[1]),
        Column("value", sources[2], "number"),
        Column("timestamp", sources[3], "s"),
    ]
    events = folder.frame(file, columns, Format(header=not is_csv))
    events = events.with_columns(pl.col("value").cast(pl.Float32), behavior=pl.lit("rating"))
    products = next((n for n in _meta_names(name) if folder.has(n)), None) if meta else None
    features = {} if products is None else _features(folder, products)
    return Raw(events.lazy(), folder.files, features, folder.dropped)


def _meta_names(name: str) -> tuple[str, str]:
    department = name.removesuffix(FIVE_CORE)
    return f"meta_{department}.json.gz", f"meta_{department}.json"


def _features(folder: Folder, name: str) -> dict[str, ItemFeature]:
    """Category, brand and price of the products in the file ``name``."""
    columns = [
        Column("item", "asin"),
        Column("brand", "brand", "text", nullable=True),
        Column("price", "price", "text", nullable=True),
        Column("category", "category", "text", nullable=True),
    ]

    def rows() -> Iterator[Row]:
        for line, record in folder.records(name):
            labels = joined(record.get("category") or [])
            if labels is None:
                yield line, None, "has a category that is not a list of names"
            else:
                yield record_row(line, record, columns[:3], labels)

    frame = folder.table(name, columns, rows())
    brand = frame.select("item", value=pl.col("brand").str.replace(BY, "").str.strip_chars())
    category = split_names(frame, "category").filter(~pl.col("value").str.contains("<"))  # markup
    price = frame.select("item", value=dollars(pl.col("price"))).drop_nulls("value")
    return {
        "category": ItemFeature("multi_label", category),
        "brand": ItemFeature("categorical", brand.filter(pl.col("value") != "").lazy()),
        "price": ItemFeature("numeric", price.lazy()),
    }
