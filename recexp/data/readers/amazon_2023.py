"""Amazon reviews of 1996 to 2023 (Hou et al. 2024, arXiv:2403.03952), one file per category."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from recexp.data.dataset import BadRows
from recexp.data.raw.columns import Column
from recexp.data.raw.folder import Folder
from recexp.data.raw.records import joined, record_row, split_names
from recexp.data.raw.text import Row
from recexp.data.readers import ItemFeature, Raw
from recexp.data.readers.amazon import dollars, first_present


def read(
    raw_dir: str | Path,
    *,
    on_bad_rows: BadRows = "error",
    name: str = "Video_Games",
    file: str | Sequence[str] | None = None,
    meta: bool = True,
) -> Raw:
    """Read the ratings ``<name>.csv`` of a benchmark folder, or the reviews ``<name>.jsonl``.

    file: other names, such as [X.train.csv, X.valid.csv, X.test.csv], which give all events of a
        published split. Files may be packed (.gz).
    meta: read the item features of ``meta_<name>.jsonl`` where it is present: "category" (every
        name of ``categories``), "store" and "price".
    An item is a ``parent_asin``, which the variants of a product share. Times are milliseconds.
    """
    origin = f"J. McAuley, UCSD: Amazon reviews (2023), category {name}"
    folder = Folder(raw_dir, origin, on_bad_rows)
    endings = (".csv", ".csv.gz", ".jsonl", ".jsonl.gz")
    columns = [
        Column("user", "user_id"),
        Column("item", "parent_asin"),
        Column("value", "rating", "number"),
        Column("timestamp", "timestamp", "ms"),
    ]
    events = folder.frame(
        file or first_present(folder, [name + ending for ending in endings]), columns
    )
    events = events.with_columns(pl.col("value").cast(pl.Float32), behavior=pl.lit("rating"))
    products = None
    if meta:
        names = (f"meta_{name}.jsonl.gz", f"meta_{name}.jsonl")
        products = next((each for each in names if folder.has(each)), None)
    features = {} if products is None else _features(folder, products)
    return Raw(events.lazy(), folder.files, features, folder.dropped)


def _features(folder: Folder, name: str) -> dict[str, ItemFeature]:
    """Category, store and price of the products in the file ``name``."""
    columns = [
        Column("item", "parent_asin"),
        Column("store", "store", "text", nullable=True),
        Column("price", "price", "text", nullable=True),
        Column("category", "categories", "text", nullable=True),
    ]

    def rows() -> Iterator[Row]:
        for line, record in folder.records(name):
            labels = joined(record.get("categories") or [])
            if labels is None:
                yield line, None, "has categories that are not a list of names"
            else:
                yield record_row(line, record, columns[:3], labels)

    frame = folder.table(name, columns, rows())
    store = frame.select("item", value="store").drop_nulls("value")
    price = frame.select("item", value=dollars(pl.col("price"))).drop_nulls("value")
    return {
        "category": ItemFeature("multi_label", split_names(frame, "category")),
        "store": ItemFeature("categorical", store.lazy()),
        "price": ItemFeature("numeric", price.lazy()),
    }
