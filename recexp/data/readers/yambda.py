"""Yambda: listens, likes and dislikes of Yandex Music (Ploshkin et al. 2025, arXiv:2505.22238)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import polars as pl
from pydantic import Field

from recexp.data.dataset import BadRows
from recexp.data.raw.delimited import find_column
from recexp.data.raw.folder import FAILED, Folder
from recexp.data.readers import Raw
from recexp.errors import RecexpError

ORIGIN = "Hugging Face: yandex/yambda, folder flat/50m, flat/500m or flat/5b"
COLUMNS = {"user": "uid", "item": "item_id", "behavior": "event_type", "timestamp": "timestamp"}


def read(
    raw_dir: str | Path,
    *,
    on_bad_rows: BadRows = "error",
    file: str = "multi_event.parquet",
    min_played: Annotated[int, Field(ge=0, le=100)] | None = None,
) -> Raw:
    """Read the flat ``multi_event.parquet``: events listen, like, dislike, unlike and undislike.

    min_played: listens of which less than so many percent were played are left out; None keeps all.
    Times are seconds since the start of the log, in steps of 5. Rows are not held in memory.
    """
    folder = Folder(raw_dir, ORIGIN, on_bad_rows)
    path = folder.file(file)
    try:
        scan = pl.scan_parquet(path, glob=False)
        schema = scan.collect_schema()
    except (*FAILED, OSError) as error:
        first_line = (str(error).splitlines() or ["it is damaged"])[0]
        raise RecexpError(f"{path} cannot be read as parquet: {first_line}") from None
    names: list[str | int] = list(schema.names())
    for column in COLUMNS.values():
        find_column(path, names, column, f"column {column!r}")
        if schema[column].is_nested():
            raise RecexpError(
                f"{path}, column {column!r} holds lists: this is the sequential form. Take the "
                "file of the same name from a folder flat."
            )
    if min_played is not None:
        is_skipped = (pl.col("event_type").cast(pl.String) == "listen") & (
            pl.col("played_ratio_pct").fill_null(0) < min_played
        )
        scan = scan.filter(~is_skipped)
    events = scan.select(
        user=pl.col("uid").cast(pl.Int64),
        item=pl.col("item_id").cast(pl.Int64),
        behavior=pl.col("event_type").cast(pl.String),
        timestamp=pl.col("timestamp").cast(pl.Int64) * 1000,
    )
    return Raw(_complete(folder, path, events), folder.files, {}, folder.dropped)


def _complete(folder: Folder, path: Path, events: pl.LazyFrame) -> pl.LazyFrame:
    """The events without a blank cell; one is an error unless bad rows are dropped."""
    is_blank = pl.any_horizontal(pl.all().is_null())
    try:
        counts = events.select(blank=is_blank.sum(), rows=pl.len()).collect(engine="streaming")
    except (*FAILED, OSError) as error:
        first_line = (str(error).splitlines() or ["it is damaged"])[0]
        raise RecexpError(f"{path} cannot be read as parquet: {first_line}") from None
    n_blank, n_rows = counts.row(0)
    if n_rows == n_blank:
        raise RecexpError(f"{path} holds no usable row. Get it anew from {ORIGIN}.")
    if n_blank and folder.on_bad_rows == "error":
        raise RecexpError(
            f"{path}: {n_blank:,} rows have no user, item, event or time. "
            "Set dataset.on_bad_rows=drop to leave such rows out."
        )
    if n_blank:
        folder.dropped[f"{path.name}: a cell is missing"] = (n_blank, [])
    return events.filter(~is_blank)
