"""Features that ``recexp.fit`` is given as frames, as files beside the frame of events."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recexp.data.readers.feature_tables import OWNERS, FeatureTables
from recexp.errors import RecexpError
from recexp.io import atomic_write
from recexp.runs.histories import read_table, to_polars

Table = pl.DataFrame | np.ndarray[Any, Any]


class FrameFeatures:
    """The option ``features`` of the table reader, where files may be frames, arrays and paths.

    settings: the option, with names of files in place of the frames. tables: the frames by these
    names. events: columns of the events.

    Raises RecexpError for settings that the reader does not take, and for files that cannot be
    read.
    """

    def __init__(self, features: Mapping[str, Any] | None) -> None:
        self.tables: dict[str, Table] = {}
        given = dict(features or {})
        is_one_table = bool(given) and not set(given) & {*OWNERS, "events"}
        if is_one_table:
            given = {"items": given}
        self.settings: dict[str, Any] = {
            key: [self._named(key, table) for table in _several(value)] if key in OWNERS else value
            for key, value in given.items()
        }
        self.events = list(FeatureTables.of(self.settings).events)

    def _named(self, key: str, table: Any) -> Any:
        """The settings of a table with names of files."""
        if not isinstance(table, Mapping):
            return table  # the reader says what is wrong
        named = dict(table)
        if "file" in named:
            named["file"] = self._keep(key, named["file"])
        owner = OWNERS[key]
        ids = named.get(owner)
        if isinstance(ids, Mapping) and "file" in ids:
            named[owner] = {**ids, "file": self._keep(key, ids["file"])}
        elif ids is not None and not isinstance(ids, str):  # the ids of an array's rows
            frame = pl.DataFrame({owner: pl.Series(list(ids))})
            named[owner] = {"file": self._keep(key, frame), owner: owner}
        return named

    def _keep(self, key: str, file: Any) -> str:
        """The name of the file that is to hold the frame."""
        table: Table
        if isinstance(file, np.ndarray):
            table = file
        elif isinstance(file, str | Path) and Path(file).suffix == ".npy":
            try:
                table = np.load(file, allow_pickle=False)
            except (OSError, ValueError) as error:
                raise RecexpError(f"{file} cannot be read as .npy: {error}") from None
        else:
            is_path = isinstance(file, str | Path)
            table = read_table(Path(file)) if is_path else to_polars(file)
        suffix = "npy" if isinstance(table, np.ndarray) else "parquet"
        name = f"{key}-{len(self.tables)}.{suffix}"
        self.tables[name] = table
        return name

    def checksum_into(self, digest: Any) -> None:
        """Add the content of all tables to a hash."""
        digest.update(str(self.settings).encode() if self.settings else b"")
        for name, table in self.tables.items():
            digest.update(name.encode())
            if isinstance(table, np.ndarray):
                digest.update(str((table.dtype, table.shape)).encode() + table.tobytes())
            else:
                digest.update(str(table.schema).encode() + table.write_ndjson().encode())

    def write(self, folder: Path) -> None:
        """Write the tables that are not there yet."""
        for name, table in self.tables.items():
            if (folder / name).exists():
                continue
            with atomic_write(folder / name) as temporary:
                if isinstance(table, np.ndarray):
                    with Path(temporary).open("wb") as file:
                        np.save(file, table)
                else:
                    table.write_parquet(temporary)


def _several(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
