"""Raw text files as numbered lines and fields: plain or gzip, with or without BOM, any line ends."""

from __future__ import annotations

import ast
import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from recexp.errors import RecexpError

BOM = b"\xef\xbb\xbf"
GZIP = b"\x1f\x8b"
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
MAX_LINE = 1 << 28  # bytes; no line of a data file is so long
MAX_LITERAL = 1 << 20  # characters; Python's parser takes a hundred times the memory
MAX_RATIO, FREE = (
    200,
    1 << 30,
)  # a packed file may unpack to FREE bytes, or to MAX_RATIO times its size: texts pack 3 to 30 times
CHUNK = 1 << 22
csv.field_size_limit(MAX_LINE)

# Line number (from 1); the fields, or None where there are none to use; what is wrong with the row as a whole, or "".
Row = tuple[int, Sequence[str | None] | None, str]


def numbered_lines(path: Path, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """(number, line with its end). Bytes that are no text survive as lone surrogates. RecexpError for a damaged file."""
    number, size, most = 0, 0, _most(path)
    try:
        with _open(path) as file:
            for number, raw in enumerate(iter(partial(file.readline, MAX_LINE), b""), 1):
                size += len(raw)
                if len(raw) == MAX_LINE:
                    raise RecexpError(
                        f"{path}, line {number} is longer than {MAX_LINE >> 20} MiB: this is no text of lines."
                    )
                if size > most:
                    raise _bomb(path)
                if number == 1 and raw.startswith(UTF_16):
                    raise RecexpError(f"{path} is UTF-16 text. Save it as UTF-8.")
                yield (
                    number,
                    (raw.removeprefix(BOM) if number == 1 else raw).decode(
                        encoding, "surrogateescape"
                    ),
                )
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise RecexpError(
            f"{path} is cut off or damaged after line {number} ({error}). Get it anew."
        ) from None
    except OSError as error:
        raise RecexpError(f"{path} cannot be read: {error}") from None


def fields(path: Path, separator: str, quote: str | None, encoding: str = "utf-8") -> Iterator[Row]:
    """Every row but the blank ones, with the number of its first line. RecexpError where the quoting is broken."""
    if quote is None or len(separator) > 1:
        for number, text in numbered_lines(path, encoding):
            if text.strip():
                yield number, text.rstrip("\r\n").split(separator), ""
        return
    reader = csv.reader(
        (text for _, text in numbered_lines(path, encoding)),
        delimiter=separator,
        quotechar=quote,
        strict=True,
    )
    number = 1
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            if not str(error).startswith("new-line character"):
                raise RecexpError(
                    f"{path}, line {number}: the quoting is broken ({error}). Correct the file."
                ) from None
            yield number, None, "holds a carriage return that ends no line"
        else:
            if row is None:
                return
            if len(row) > 1 or any(field.strip() for field in row):
                yield number, row, ""
        number = reader.line_num + 1


@dataclass(frozen=True)
class Survey:
    """What decides whether a file may be read the fast way. odd: it holds what polars and ``fields`` may take for different things."""

    lines: int
    quotes: bool
    odd: bool


def survey(path: Path, separator: str, quote: str | None) -> Survey:
    """One pass over the bytes. RecexpError for a packed file that unpacks to absurd lengths; damaged ones raise what gzip raises.

    Odd are a carriage return that ends no line, a second BOM, a separator at the very end, and quotes that are not strictly in their places.
    """
    most, size, lines, quotes, inside, odd = _most(path), 0, 0, False, False, False
    with _open(path) as file:
        while chunk := file.read(CHUNK):
            chunk += b"" if chunk.endswith(b"\n") else file.readline(CHUNK)
            odd = (
                odd or (not size and chunk.startswith(BOM * 2)) or len(chunk) >= 2 * CHUNK
            )  # a line of its length is odd, too
            size += len(chunk)
            if size > most:
                raise _bomb(path)
            byte = np.frombuffer(chunk, dtype=np.uint8)
            lines += int(np.count_nonzero(byte == 10)) + (not chunk.endswith(b"\n"))
            odd = (
                odd
                or chunk.endswith(separator.encode())
                or (b"\r" in chunk and chunk.count(b"\r") > chunk.count(b"\r\n"))
            )
            if quote and quote.encode() in chunk:
                quotes = True
                strict, inside = _strict(chunk, separator, quote, inside)
                odd = odd or not strict
    return Survey(lines, quotes, odd or inside)


def _strict(chunk: bytes, separator: str, quote: str, inside: bool) -> tuple[bool, bool]:
    """Does every quote of these whole lines open or close a field, or stand doubled in one? And are we inside one at the end?"""
    byte = np.frombuffer(b"\n" + chunk.removeprefix(BOM) + b"\n", dtype=np.uint8)
    marks = byte == ord(quote)
    edges = marks | (byte == 10) | (byte == 13) | (byte == ord(separator))
    after = (
        np.bitwise_xor.accumulate(marks) ^ inside
    )  # inside a field after this byte; a doubled quote closes and opens
    opens, closes = marks & after, marks & ~after
    strict = not ((opens[1:-1] & ~edges[:-2]).any() or (closes[1:-1] & ~edges[2:]).any())
    return strict, bool(after[-1])


def parse_record(text: str) -> dict:
    """A JSON object or a Python dictionary literal. ValueError for anything else."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        if len(text) > MAX_LITERAL:
            raise ValueError("is not JSON, and too long for a Python literal") from None
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


def _most(path: Path) -> float:
    """How many bytes the file may hold, unpacked."""
    return max(FREE, MAX_RATIO * path.stat().st_size)


def _bomb(path: Path) -> RecexpError:
    return RecexpError(
        f"{path} unpacks to more than {MAX_RATIO} times its size: hardly data. If you trust it, unpack it first."
    )


def _open(path: Path) -> BinaryIO:
    """Unpacked where it is a gzip file, whatever its name says."""
    with open(path, "rb") as file:
        packed = file.read(len(GZIP)) == GZIP
    return gzip.open(path, "rb") if packed else open(path, "rb")
