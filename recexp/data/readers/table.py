"""Any table: a csv or parquet file with a row per event, columns named by options; optionally a table of item features."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from recexp.data.raw.columns import Column
from recexp.data.raw.folder import Folder
from recexp.data.readers import ItemFeature, Raw
from recexp.errors import RecexpError

KINDS = ("categorical", "multi_label", "numeric")


def read(
    raw_dir: str | Path,
    *,
    file: str,
    on_bad_rows: str = "error",
    user: str = "user",
    item: str = "item",
    behavior: str | None = None,
    value: str | None = None,
    timestamp: str | None = "timestamp",
    time_unit: str = "s",
    separator: str = ",",
    features: Mapping | None = None,
) -> Raw:
    """``file`` (.parquet, or delimited text with a header), columns named by the options.

    behavior: None makes every event an "interaction". value: a number, may be blank.
    timestamp: None lets the row number stand for the time. time_unit: s, ms (since 1970) or iso (dates with or without time
    and zone); a parquet column of dates or times needs none.
    features: {file, item, columns: {column: categorical | multi_label | numeric}, label_separator: "|"}: one row per item;
    the labels of a multi_label column are joined by label_separator. Ids become strings.
    separator: one character; or several, and then quotes mean nothing.
    """
    if time_unit not in ("s", "ms", "iso"):
        raise RecexpError(f"time_unit={time_unit!r} is not known; choose s, ms or iso")
    if (
        not separator
        or (len(separator) == 1 and not separator.isascii())
        or set(separator) & set('"\r\n')
    ):
        raise RecexpError(
            f"separator={separator!r} cannot separate: choose one ASCII character, or several, but no quote and no line end"
        )
    folder = Folder(raw_dir, "whoever made the table; dataset.source.file names it", on_bad_rows)
    columns = [
        Column("user", user),
        Column("item", item),
        *([Column("behavior", behavior)] if behavior else []),
        *([Column("value", value, "number", nullable=True)] if value else []),
        *([Column("timestamp", timestamp, time_unit)] if timestamp else []),
    ]
    events = _named(folder, file, columns, separator)
    if not behavior:
        events = events.with_columns(behavior=pl.lit("interaction"))
    if value:
        events = events.with_columns(pl.col("value").cast(pl.Float32))
    if not timestamp:
        events = events.with_columns(timestamp=pl.int_range(1, pl.len() + 1, dtype=pl.Int64))
    return Raw(
        events.lazy(),
        folder.files,
        _features(folder, dict(features), separator) if features else {},
        folder.dropped,
    )


def _named(folder: Folder, file: str, columns: list[Column], separator: str) -> pl.DataFrame:
    if Path(file).suffix == ".parquet":
        return folder.parquet(file, columns)
    return folder.delimited(file, columns, header=True, separator=separator)


def _features(folder: Folder, spec: dict, separator: str) -> dict[str, ItemFeature]:
    unknown = sorted(spec.keys() - {"file", "item", "columns", "label_separator"})
    if unknown or not {"file", "item", "columns"} <= spec.keys():
        raise RecexpError(
            f"features needs the keys file, item and columns, and may have label_separator; it has {', '.join(sorted(spec))}"
        )
    kinds = dict(spec["columns"])
    for name, kind in kinds.items():
        if kind not in KINDS:
            raise RecexpError(
                f"features.columns.{name}={kind!r} is not a kind of feature; choose {', '.join(KINDS)}"
            )
    columns = [
        Column(name, name, "number" if kind == "numeric" else "text", nullable=True)
        for name, kind in kinds.items()
    ]
    frame = _named(folder, spec["file"], [Column("_item", spec["item"]), *columns], separator)
    features = {}
    for name, kind in kinds.items():
        values = frame.select(item="_item", value=name).drop_nulls("value")
        if kind == "multi_label":
            labels = pl.col("value").str.split(spec.get("label_separator", "|"))
            values = values.with_columns(labels).explode("value").filter(pl.col("value") != "")
        features[name] = ItemFeature(kind, values.lazy())
    return features
