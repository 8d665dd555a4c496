"""Opening raw files: plain, gzip or zstd, told apart by their content."""

from __future__ import annotations

import gzip
import zlib
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, cast

from recexp.errors import RecexpError

GZIP = b"\x1f\x8b"
ZSTD = b"\x28\xb5\x2f\xfd"
# Data that zstd passes over. They may stand before the first frame.
SKIPPABLE = tuple(bytes([first]) + b"\x2a\x4d\x18" for first in range(0x50, 0x60))
ARCHIVES = {
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!\x1a\x07": "rar",
    b"\xfd7zXZ\x00": "xz",
}
LONGEST = max(map(len, ARCHIVES))


def _zstd_module() -> Any:
    """Python's own module from 3.14 on, or the same one as a package; None where there is none."""
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return import_module(name)
        except ImportError:
            continue
    return None


zstd = _zstd_module()
# What reading a damaged packed file raises.
DAMAGED: tuple[type[Exception], ...] = (EOFError, zlib.error, gzip.BadGzipFile)
if zstd is not None:
    DAMAGED = (*DAMAGED, zstd.ZstdError)


def open_unpacked(path: Path) -> BinaryIO:
    """Open for reading, unpacked where the content is gzip or zstd; the name does not matter.

    Raises:
        RecexpError: it is an archive, or zstd that this Python cannot unpack.
    """
    start = _start(path)
    if start.startswith(GZIP):
        return cast(BinaryIO, gzip.open(path, "rb"))
    if start.startswith((ZSTD, *SKIPPABLE)):
        if zstd is None:
            raise RecexpError(
                f"{path} is packed with zstd, which Python reads from version 3.14 on. "
                "Run pip install backports.zstd, or unpack the file."
            )
        return cast(BinaryIO, zstd.open(path, "rb"))
    for magic, form in ARCHIVES.items():
        if start.startswith(magic):
            raise RecexpError(f"{path} is a {form} archive. Unpack it first.")
    return path.open("rb")


def is_packed(path: Path) -> bool:
    return _start(path).startswith((GZIP, ZSTD, *SKIPPABLE))


def polars_unpacks(path: Path) -> bool:
    """False for zstd that begins with a skippable frame: polars finds no row in it."""
    return not _start(path).startswith(SKIPPABLE)


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(LONGEST)
