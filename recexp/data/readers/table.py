"""Any table: a csv or parquet file with a row per event, and optionally one of item features."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import polars as pl

from recexp.data.dataset import BadRows
from recexp.data.raw.columns import Column, TimeUnit
from recexp.data.raw.folder import Folder
from recexp.data.readers import FeatureKind, ItemFeature, Raw
from recexp.errors import RecexpError

ORIGIN = "the publisher of the table; dataset.source.file names it"
KINDS: tuple[FeatureKind, ...] = get_args(FeatureKind)
NEEDED_KEYS = {"file", "item", "columns"}


def read(
    raw_dir: str | Path,
    *,
    file: str,
    on_bad_rows: BadRows = "error",
    user: str = "user",
    item: str = "item",
    behavior: str | None = None,
    value: str | None = None,
    timestamp: str | None = "timestamp",
    time_unit: TimeUnit = "s",
    separator: str = ",",
    features: Mapping[str, Any] | None = None,
) -> Raw:
    """Read ``file`` (.parquet, or delimited text with a header). Ids become strings.

    user, item, behavior, value, timestamp: names of the columns.
    behavior: None makes every event an "interaction".
    value: a number, may be blank.
    timestamp: None takes the row number as time.
    time_unit: s, ms (since 1970) or iso (dates with or without time and zone); a parquet column of
        dates or times needs none.
    separator: one character, or several, which exclude quotes.
    features: {file, item, columns: {column: categorical | multi_label | numeric},
        label_separator: "|"}: a table with one row per item; the labels of a multi_label column are
        joined by label_separator.
    """
    _check(time_unit, separator)
    folder = Folder(raw_dir, ORIGIN, on_bad_rows)
    columns = [Column("user", user), Column("item", item)]
    if behavior:
        columns.append(Column("behavior", behavior))
    if value:
        columns.append(Column("value", value, "number", nullable=True))
    if timestamp:
        columns.append(Column("timestamp", timestamp, time_unit))
    events = _read_table(folder, file, columns, separator)
    if not behavior:
        events = events.with_columns(behavior=pl.lit("interaction"))
    if value:
        events = events.with_columns(pl.col("value").cast(pl.Float32))
    if not timestamp:
        events = events.with_columns(timestamp=pl.int_range(1, pl.len() + 1, dtype=pl.Int64))
    item_features = _features(folder, dict(features), separator) if features else {}
    return Raw(events.lazy(), folder.files, item_features, folder.dropped)


def _check(time_unit: str, separator: str) -> None:
    if time_unit not in get_args(TimeUnit):
        raise RecexpError(f"time_unit={time_unit!r} is not known; choose s, ms or iso")
    is_ascii_or_long = separator.isascii() or len(separator) > 1
    if not separator or not is_ascii_or_long or set(separator) & set('"\r\n'):
        raise RecexpError(
            f"separator={separator!r} cannot separate: choose one ASCII character, or several, "
            "but no quote and no line end"
        )


def _read_table(folder: Folder, file: str, columns: list[Column], separator: str) -> pl.DataFrame:
    if Path(file).suffix == ".parquet":
        return folder.parquet(file, columns)
    return folder.delimited(file, columns, header=True, separator=separator)


def _features(folder: Folder, spec: dict[str, Any], separator: str) -> dict[str, ItemFeature]:
    """The features that the option ``features`` of ``read`` describes."""
    kinds = _kinds(spec)
    columns = [Column("_item", spec["item"])]
    for name, kind in kinds.items():
        columns.append(Column(name, name, "number" if kind == "numeric" else "text", nullable=True))
    frame = _read_table(folder, spec["file"], columns, separator)
    features = {}
    for name, kind in kinds.items():
        values = frame.select(item="_item", value=name).drop_nulls("value")
        if kind == "multi_label":
            labels = pl.col("value").str.split(spec.get("label_separator", "|"))
            values = values.with_columns(labels).explode("value").filter(pl.col("value") != "")
        features[name] = ItemFeature(kind, values.lazy())
    return features


def _kinds(spec: dict[str, Any]) -> dict[str, FeatureKind]:
    """The kind of each feature column. RecexpError for keys or kinds that are not known."""
    unknown = spec.keys() - NEEDED_KEYS - {"label_separator"}
    if unknown or not spec.keys() >= NEEDED_KEYS:
        raise RecexpError(
            "features needs the keys file, item and columns, and may have label_separator; "
            f"it has {', '.join(sorted(spec))}"
        )
    kinds: dict[str, FeatureKind] = dict(spec["columns"])
    for name, kind in kinds.items():
        if kind not in KINDS:
            raise RecexpError(
                f"features.columns.{name}={kind!r} is not a kind of feature; "
                f"choose {', '.join(KINDS)}"
            )
    return kinds
