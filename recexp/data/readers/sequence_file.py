"""Sequence files, as the code of SASRec and BERT4Rec publishes its data.

One ``user item`` pair per line, in time order, without times.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from recexp.data.dataset import BadRows
from recexp.data.raw.columns import Column
from recexp.data.raw.folder import Folder
from recexp.data.readers import Raw


def read(raw_dir: str | Path, *, file: str, on_bad_rows: BadRows = "error") -> Raw:
    """Read ``file``. The place of a pair is its time; every event is an "interaction"."""
    folder = Folder(raw_dir, f"the publisher of the sequence file {file}", on_bad_rows)
    columns = [Column("user", 0, "int"), Column("item", 1, "int")]
    pairs = folder.delimited(file, columns, header=False, separator=" ", quote=None)
    place = pl.int_range(1, pl.len() + 1, dtype=pl.Int64)
    events = pairs.with_columns(behavior=pl.lit("interaction"), timestamp=place)
    return Raw(events.lazy(), folder.files, {}, folder.dropped, has_times=False)
