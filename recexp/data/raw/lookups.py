"""The files that a reader read and looked for, by which the cache notices changed raw data."""

from __future__ import annotations

import glob
from pathlib import Path


class RawFiles(list[Path]):
    """The raw files that were read, and what else decided that these were read.

    exists: file -> was it there? Optional files, such as item features, that may come later.
    matches: glob pattern -> the files that matched it, sorted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.exists: dict[str, bool] = {}
        self.matches: dict[str, list[str]] = {}


def matching(pattern: str) -> list[str]:
    """The files that match a glob pattern, sorted by name: "part-10" comes before "part-2"."""
    return sorted(path for path in glob.glob(pattern, recursive=True) if Path(path).is_file())
