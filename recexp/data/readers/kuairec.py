"""KuaiRec: which part of short videos users watched (Gao et al. 2022, arXiv:2202.10842)."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from recexp.data.dataset import BadRows
from recexp.data.raw.columns import Column
from recexp.data.raw.folder import Folder
from recexp.data.readers import ItemFeature, Raw

ORIGIN = "Zenodo: KuaiRec (record 18164998), folder KuaiRec 2.0/data of KuaiRec.zip"
CATEGORIES = "item_categories.csv"


def read(
    raw_dir: str | Path, *, on_bad_rows: BadRows = "error", file: str = "big_matrix.csv"
) -> Raw:
    """Read ``file``: the value of an event "watch" is the watched part (1: the whole video once).

    file: small_matrix.csv is the fully observed part; some of its rows have no time and need
        on_bad_rows="drop".
    The item feature "category" comes from ``item_categories.csv`` where it is present.
    """
    folder = Folder(raw_dir, ORIGIN, on_bad_rows)
    columns = [
        Column("user", "user_id", "int"),
        Column("item", "video_id", "int"),
        Column("value", "watch_ratio", "number"),
        Column("timestamp", "timestamp", "s"),
    ]
    events = folder.delimited(file, columns, header=True)
    events = events.with_columns(pl.col("value").cast(pl.Float32), behavior=pl.lit("watch"))
    features = {"category": _category(folder)} if folder.has(CATEGORIES) else {}
    return Raw(events.lazy(), folder.files, features, folder.dropped)


def _category(folder: Folder) -> ItemFeature:
    """The numbers of lists that are written as "[27, 9]"."""
    columns = [Column("item", "video_id", "int"), Column("value", "feat", "text", nullable=True)]
    frame = folder.delimited(CATEGORIES, columns, header=True)
    numbers = frame.lazy().with_columns(pl.col("value").str.extract_all(r"\d+"))
    values = numbers.explode("value").drop_nulls("value")
    return ItemFeature("multi_label", values.with_columns(pl.col("value").cast(pl.Int64)))
