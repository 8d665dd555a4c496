"""Large text files without holding them in memory: polars reads them anew in every pass."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from recexp.data.raw.columns import Column, judge
from recexp.data.raw.delimited import COUNTED
from recexp.data.raw.folder import UNREADABLE, Folder
from recexp.data.raw.packed import is_packed
from recexp.data.raw.text import BOM, fields

LARGE = 100_000_000  # bytes; smaller files are read at once
BLOCK = 1 << 24  # bytes read at a time


def scan(folder: Folder, name: str, columns: list[Column]) -> pl.LazyFrame:
    """The wanted columns of a comma-separated file without a header, as ``Folder.delimited`` gives.

    A first pass judges every row by the same expressions. Where it finds a fault, or where the file
    is small, packed or quoted, ``Folder.delimited`` reads the file and says what is wrong.
    """
    path = folder.file(name)
    if path.stat().st_size >= LARGE and _is_simple(path):
        try:
            if (judged := _scan_good(path, columns)) is not None:
                return judged
        except UNREADABLE:
            pass  # read again below, to say what is wrong
    return folder.delimited(name, columns, header=False).lazy()


def _scan_good(path: Path, columns: list[Column]) -> pl.LazyFrame | None:
    """The parsed columns, lazily; None where a row is faulty or there is none."""
    _, first_row, _ = next(fields(path, ",", '"'), (1, [], ""))
    typed = {column.source: column.dtype for column in columns}
    raw = pl.scan_csv(
        path,
        glob=False,
        has_header=False,
        quote_char=None,
        schema={f"c{i}": typed.get(i, pl.String()) for i in range(len(first_row or []))},
    )
    judged = judge(raw.select(pl.col(f"c{c.source}").alias(c.name) for c in columns), columns)
    counts = judged.select(pl.col("_reason").is_not_null().sum(), pl.len())
    n_faults, n_rows = counts.collect(engine="streaming", optimizations=COUNTED).row(0)
    return judged.drop("_reason") if n_rows and not n_faults else None


def _is_simple(path: Path) -> bool:
    """Is it plain text in which a line is a row: not packed, no BOM, quotes or carriage returns?"""
    if is_packed(path):
        return False
    with path.open("rb") as file:
        if file.peek(len(BOM)).startswith(BOM):
            return False
        while block := file.read(BLOCK):
            if b'"' in block or b"\r" in block:
                return False
    return True
