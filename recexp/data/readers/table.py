"""Any table: files with a row per event, and optionally one of item features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import polars as pl
from pydantic import Field

from recexp.data.dataset import BadRows
from recexp.data.raw.columns import Column, time_column
from recexp.data.raw.delimited import Format
from recexp.data.raw.folder import Folder
from recexp.data.raw.times import check_time_unit, detected_unit
from recexp.data.readers import Raw
from recexp.data.readers.feature_tables import FeatureTables
from recexp.errors import RecexpError

ORIGIN = "the publisher of the table; dataset.source.file names it"
Source = str | Annotated[int, Field(ge=0, le=100_000)]  # the name of a column, or its number
SEPARATOR_NAMES = {"tab": "\t", "\\t": "\t", "space": " "}


def read(
    raw_dir: str | Path,
    *,
    file: str | Sequence[str],
    on_bad_rows: BadRows = "error",
    header: bool = True,
    user: Source = "user",
    item: Source = "item",
    behavior: Source | None = None,
    value: Source | None = None,
    timestamp: Source | None = "timestamp",
    time_unit: str = "s",
    separator: str = ",",
    features: Mapping[str, Any] | None = None,
) -> Raw:
    """Read the events of ``file``. Ids become strings.

    file: a name, a glob pattern, or a list of these, read one after the other (``Folder.names``):
        parquet, JSON lines or delimited text, by the name (``Folder.frame``).
    header: the first row of a text names its columns. False: columns are numbered from 0.
    user, item, behavior, value, timestamp: names of the columns, or their numbers.
    behavior: None makes every event an "interaction".
    value: a number, may be blank.
    timestamp: None takes the row number as time.
    time_unit: s, ms, us or ns (since 1970), iso (dates with or without time and zone), a pattern
        such as %Y%m%d (``times.from_pattern``), or auto: the first rows decide between numbers of
        some size and iso. A parquet column of dates or times needs none.
    separator: one character, or several, which exclude quotes; "tab" for a tab.
    features: of items, users and events; see ``feature_tables.FeatureTables.of``.
    """
    separator = SEPARATOR_NAMES.get(separator, separator)
    tables = FeatureTables.of(features)
    check_time_unit(time_unit)
    _check_separator(separator)
    folder = Folder(raw_dir, ORIGIN, on_bad_rows)
    form = Format(header, separator)
    columns = [Column("user", user), Column("item", item)]
    if behavior is not None:
        columns.append(Column("behavior", behavior))
    if value is not None:
        columns.append(Column("value", value, "number", nullable=True))
    decided = {}
    if time_unit == "auto":
        time_unit = decided["time_unit"] = _detected_unit(folder, file, timestamp, form)
    if timestamp is not None:
        columns.append(time_column("timestamp", timestamp, time_unit))
    columns += tables.event_columns()
    events = completed(folder.frame(file, _numbered(columns, header), form))
    return Raw(
        events.lazy(),
        folder.files,
        dropped=folder.dropped,
        has_times=timestamp is not None,
        decided=decided,
        **tables.read(folder, partial(_read_table, folder, separator=separator)),
    )


def completed(events: pl.DataFrame) -> pl.DataFrame:
    """The events with the columns that a file may lack, and values as float32.

    Without behaviors every event is an "interaction"; without times the row number is the time.
    """
    if "behavior" not in events.columns:
        events = events.with_columns(behavior=pl.lit("interaction"))
    if "value" in events.columns:
        events = events.with_columns(pl.col("value").cast(pl.Float32))
    if "timestamp" not in events.columns:
        events = events.with_columns(timestamp=pl.int_range(1, pl.len() + 1, dtype=pl.Int64))
    return events


def _check_separator(separator: str) -> None:
    is_ascii_or_long = separator.isascii() or len(separator) > 1
    if not separator or not is_ascii_or_long or set(separator) & set('"\r\n'):
        raise RecexpError(
            f"separator={separator!r} cannot separate: choose one ASCII character, or several, "
            "but no quote and no line end"
        )


def _detected_unit(
    folder: Folder, file: str | Sequence[str], timestamp: str | int | None, form: Format
) -> str:
    if timestamp is None:
        return "s"  # not used
    [column] = _numbered([Column("timestamp", timestamp, "text")], form.header)
    return detected_unit(folder.first_texts(file, column, form))


def _numbered(columns: list[Column], header: bool) -> list[Column]:
    """The columns with the kind of source that the file needs: names, or numbers from 0."""
    if header:
        return [replace(column, source=str(column.source)) for column in columns]
    for column in columns:
        if not str(column.source).isdecimal():
            raise RecexpError(
                f"dataset.source.{column.name}={column.source!r} must be the number of a column, "
                "counted from 0, since header=false."
            )
    return [replace(column, source=int(column.source)) for column in columns]


def _read_table(folder: Folder, file: str, columns: list[Column], separator: str) -> pl.DataFrame:
    """A table of features."""
    return folder.frame(file, columns, Format(True, separator))
