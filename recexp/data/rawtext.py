"""Raw text files as numbered lines and fields: plain or gzip, with or without BOM, any line ends."""

from __future__ import annotations

import ast
import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from recexp.types import RecexpError

BOM = b"\xef\xbb\xbf"
GZIP = b"\x1f\x8b"

# Line number (from 1); the fields, or None where there are none to use; what is wrong with the row as a whole, or "".
Row = tuple[int, Sequence[str | None] | None, str]


def numbered_lines(path: Path, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """(number, line with its end). Bytes that are no text survive as lone surrogates. RecexpError for a damaged file."""
    number = 0
    try:
        with _open(path) as file:
            for number, raw in enumerate(file, 1):
                yield number, (raw.removeprefix(BOM) if number == 1 else raw).decode(encoding, "surrogateescape")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise RecexpError(f"{path} is cut off or damaged after line {number} ({error}). Get it anew.") from None
    except OSError as error:
        raise RecexpError(f"{path} cannot be read: {error}") from None


def fields(path: Path, separator: str, quote: str | None, encoding: str = "utf-8") -> Iterator[Row]:
    """Every row but the blank ones, with the number of its first line. RecexpError where the quoting is broken."""
    if quote is None or len(separator) > 1:
        for number, text in numbered_lines(path, encoding):
            if text.strip():
                yield number, text.rstrip("\r\n").split(separator), ""
        return
    reader = csv.reader((text for _, text in numbered_lines(path, encoding)), delimiter=separator, quotechar=quote, strict=True)
    number = 1
    try:
        for row in reader:
            if len(row) > 1 or any(field.strip() for field in row):
                yield number, row, ""
            number = reader.line_num + 1
    except csv.Error as error:
        raise RecexpError(f"{path}, line {number}: the quoting is broken ({error}). Correct the file.") from None


def parse_record(text: str) -> dict:
    """A JSON object or a Python dictionary literal. ValueError for anything else."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        try:
            record = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise ValueError("is neither JSON nor a Python literal") from None
    if not isinstance(record, dict):
        raise ValueError("is not a record of keys and values")
    return record


def unpacked(path: Path, encoding: str) -> bytes:
    """The whole file in UTF-8, without BOM."""
    with _open(path) as file:
        content = file.read().removeprefix(BOM)
    return content if encoding == "utf-8" else content.decode(encoding).encode()


def _open(path: Path) -> BinaryIO:
    """Unpacked where it is a gzip file, whatever its name says."""
    with open(path, "rb") as file:
        packed = file.read(len(GZIP)) == GZIP
    return gzip.open(path, "rb") if packed else open(path, "rb")
