"""Records of keys and values (JSON lines) as rows, and lists of names within them."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from recexp.data.raw.columns import Column
from recexp.data.raw.text import Row

UNIT = "\x1f"  # the ASCII unit separator, which no text of the data sets holds
MAX_BITS = 128  # a longer number is no id, and Python refuses to print the longest


def record_row(
    line: int, record: Mapping[str, object], columns: list[Column], *more: str | None
) -> Row:
    """The wanted entries of a record as a row for ``Folder.table``, followed by ``more`` texts."""
    values = []
    for column in columns:
        value = record.get(str(column.source))
        if not (value is None or type(value) is str or _is_number(value, column)):
            wanted = "a text nor a whole number" if column.kind == "id" else "a text nor a number"
            return line, None, f"has something at {column.source!r} that is neither {wanted}"
        values.append(None if value is None else str(value))
    return line, [*values, *more], ""


def joined(names: object) -> str | None:
    """A list of strings as one text, without blank and repeated ones; ``split_names`` undoes it.

    None for anything but a list of strings.
    """
    if not isinstance(names, list):
        return None
    if not all(isinstance(name, str) and UNIT not in name for name in names):
        return None
    return UNIT.join(dict.fromkeys(name for name in names if name.strip()))


def split_names(frame: pl.DataFrame, column: str) -> pl.LazyFrame:
    """Columns item, value: a row per name in a ``column`` of ``joined`` texts."""
    values = frame.lazy().select("item", value=column).drop_nulls("value")
    return values.with_columns(pl.col("value").str.split(UNIT)).explode("value")


def _is_number(value: object, column: Column) -> bool:
    """Is it a number that the column takes?"""
    if isinstance(value, int) and not isinstance(value, bool):
        return value.bit_length() <= MAX_BITS
    return isinstance(value, float) and column.kind != "id"
