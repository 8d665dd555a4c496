"""Frames that come in parts as one file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from recexp.io import atomic_write


def write_frames(frames: Iterator[pl.DataFrame], path: Path) -> int:
    """Write the frames as one .parquet or .csv file; returns the number of rows.

    Holds one frame at a time. There must be a frame, which may be empty.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    n_rows = 0
    with atomic_write(path) as temporary, tempfile.TemporaryDirectory(dir=path.parent) as folder:
        for number, frame in enumerate(frames):
            frame.write_parquet(Path(folder) / f"{number:09}.parquet")
            n_rows += len(frame)
        parts = pl.scan_parquet(Path(folder) / "*.parquet")
        if path.suffix == ".csv":
            parts.sink_csv(temporary)
        else:
            parts.sink_parquet(temporary)
    return n_rows
