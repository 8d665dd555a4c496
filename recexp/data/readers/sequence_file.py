"""Sequence files as SASRec and BERT4Rec publish their data: one ``user item`` pair per line, in time order, without times."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from recexp.data.raw.columns import Column
from recexp.data.raw.folder import Folder
from recexp.data.readers import Raw


def read(raw_dir: str | Path, *, file: str, on_bad_rows: str = "error") -> Raw:
    """``file``; the number of a pair stands for its time, and "interaction" for its behaviour."""
    folder = Folder(raw_dir, f"whoever published the sequence file {file}", on_bad_rows)
    pairs = folder.delimited(
        file,
        [Column("user", 0, "int"), Column("item", 1, "int")],
        header=False,
        separator=" ",
        quote=None,
    )
    events = pairs.with_columns(
        behavior=pl.lit("interaction"), timestamp=pl.int_range(1, pl.len() + 1, dtype=pl.Int64)
    )
    return Raw(events.lazy(), folder.files, {}, folder.dropped)
