"""Large text files without holding them: polars reads them in passes, every time somebody asks."""

from __future__ import annotations

import warnings
import zlib
from pathlib import Path

import polars as pl

from recexp.data.raw.columns import Column, judge
from recexp.data.raw.folder import COUNTED, Folder
from recexp.data.raw.text import GZIP, fields

LARGE = 100_000_000  # bytes: below, the whole file is read at once
BLOCK = 1 << 24


def scan(folder: Folder, name: str, columns: list[Column]) -> pl.LazyFrame:
    """The wanted columns of a comma-separated file without header: what ``Folder.delimited`` gives, read anew in every pass over it.

    A first pass judges every row by the same expressions. Where it finds a fault, or the file is small, packed or quoted,
    ``Folder.delimited`` reads it and says what is wrong.
    """
    path = folder.file(name)
    if path.stat().st_size >= LARGE and _simple(path):
        width = len(next(fields(path, ",", '"'), (1, [], ""))[1] or [])
        typed = {column.source: column.dtype for column in columns}
        raw = pl.scan_csv(
            path,
            glob=False,
            has_header=False,
            quote_char=None,
            schema={f"c{i}": typed.get(i, pl.String()) for i in range(width)},
        )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore", pl.exceptions.PerformanceWarning
                )  # asking a lazy frame for its schema
                judged = judge(
                    raw.select(
                        pl.col(f"c{column.source}").alias(column.name) for column in columns
                    ),
                    columns,
                )
            faults, rows = (
                judged.select(pl.col("_reason").is_not_null().sum(), pl.len())
                .collect(engine="streaming", optimizations=COUNTED)
                .row(0)
            )
            if rows and not faults:
                return judged.drop("_reason")
        except (pl.exceptions.PolarsError, OSError, EOFError, zlib.error):
            pass  # read again below, to say what is wrong
    return folder.delimited(name, columns, header=False).lazy()


def _simple(path: Path) -> bool:
    """Plain text in which a line is a row: no packing, no byte order mark, no quotes, no carriage returns."""
    with path.open("rb") as file:
        if file.peek(3)[:2] == GZIP or file.peek(3)[:3] == b"\xef\xbb\xbf":
            return False
        while block := file.read(BLOCK):
            if b'"' in block or b"\r" in block:
                return False
    return True
