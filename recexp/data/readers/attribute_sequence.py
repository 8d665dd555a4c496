"""Attribute sequence files as S3-Rec publishes its data: a line ``user item item ...`` per user, and the items' attributes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from recexp.data.raw.columns import Column
from recexp.data.raw.folder import Folder, shortened
from recexp.data.raw.text import Row
from recexp.data.readers import ItemFeature, Raw

ORIGIN = "github.com/RUCAIBox/CIKM2020-S3Rec, folder data"


def read(
    raw_dir: str | Path,
    *,
    on_bad_rows: str = "error",
    file: str = "Beauty.txt",
    attributes: str | None = None,
) -> Raw:
    """``file``, and the feature "attribute" of the JSON file ``attributes`` (<stem of file>_item2attributes.json where
    None).

    The number of an item in the whole file stands for its time, and "interaction" for its behaviour.
    """
    folder = Folder(raw_dir, ORIGIN, on_bad_rows)
    columns = [Column("user", 0, "int"), Column("item", 1, "int")]
    events = folder.table(file, columns, _pairs(folder, file)).with_columns(
        behavior=pl.lit("interaction"), timestamp=pl.int_range(1, pl.len() + 1, dtype=pl.Int64)
    )
    name = attributes or f"{Path(file).stem}_item2attributes.json"
    attribute = ItemFeature("multi_label", _attributes(folder, name).lazy())
    return Raw(events.lazy(), folder.files, {"attribute": attribute}, folder.dropped)


def _pairs(folder: Folder, file: str) -> Iterator[Row]:
    for line, text in folder.lines(file):
        user, *items = text.split()
        if not items:
            yield line, None, f"has a user ({shortened(user)!r}) and no item"
        for item in items:
            yield line, [user, item], ""


def _attributes(folder: Folder, name: str) -> pl.DataFrame:
    def is_map(content: object) -> bool:
        return isinstance(content, dict) and all(
            isinstance(values, list) for values in content.values()
        )

    content = folder.json(name, is_map, "a map of items to lists of attributes")
    columns = [Column("item", 0, "int"), Column("value", 1, "int")]
    rows = (
        (n, [item, str(value)], "")
        for n, (item, values) in enumerate(content.items(), 1)
        for value in values
    )
    return folder.table(name, columns, rows, unit="entry")
