"""Attribute sequence files, as Zhou et al. 2020 (S3-Rec, arXiv:2008.07873) publish their data.

A line ``user item item ...`` per user in time order, and a JSON file of the items' attributes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from recexp.data.dataset import BadRows
from recexp.data.raw.columns import Column
from recexp.data.raw.folder import Folder
from recexp.data.raw.text import Row, shortened
from recexp.data.readers import ItemFeature, Raw

ORIGIN = "github.com/RUCAIBox/CIKM2020-S3Rec, folder data"


def read(
    raw_dir: str | Path,
    *,
    on_bad_rows: BadRows = "error",
    file: str = "Beauty.txt",
    attributes: str | None = None,
) -> Raw:
    """Read ``file``, and the feature "attribute" from the JSON file ``attributes``.

    The place of an event in the whole file is its time; every event is an "interaction".
    attributes: None for <stem of file>_item2attributes.json.
    """
    folder = Folder(raw_dir, ORIGIN, on_bad_rows)
    columns = [Column("user", 0, "int"), Column("item", 1, "int")]
    pairs = folder.table(file, columns, _pairs(folder, file))
    place = pl.int_range(1, pl.len() + 1, dtype=pl.Int64)
    events = pairs.with_columns(behavior=pl.lit("interaction"), timestamp=place)
    name = attributes or f"{Path(file).stem}_item2attributes.json"
    attribute = ItemFeature("multi_label", _attributes(folder, name).lazy())
    return Raw(
        events.lazy(), folder.files, {"attribute": attribute}, folder.dropped, has_times=False
    )


def _pairs(folder: Folder, file: str) -> Iterator[Row]:
    for line, text in folder.lines(file):
        user, *items = text.split()
        if not items:
            yield line, None, f"has a user ({shortened(user)!r}) and no item"
        for item in items:
            yield line, [user, item], ""


def _attributes(folder: Folder, name: str) -> pl.DataFrame:
    """Columns item, value: a row per attribute of an item."""
    content = folder.json(name, _is_map_to_lists, "a map of items to lists of attributes")
    columns = [Column("item", 0, "int"), Column("value", 1, "int")]

    def rows() -> Iterator[Row]:
        for number, (item, values) in enumerate(content.items(), 1):
            for value in values:
                yield number, [item, str(value)], ""

    return folder.table(name, columns, rows(), unit="entry")


def _is_map_to_lists(content: object) -> bool:
    if not isinstance(content, dict):
        return False
    return all(isinstance(values, list) for values in content.values())
