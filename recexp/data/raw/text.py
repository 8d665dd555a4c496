"""Raw text files as numbered lines and fields: plain or packed, with or without BOM."""

from __future__ import annotations

import ast
import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from recexp.data.raw.packed import DAMAGED, open_unpacked
from recexp.errors import RecexpError

BOM = b"\xef\xbb\xbf"
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
MAX_LINE = 1 << 28  # bytes; no line of a data file is so long
MAX_LITERAL = 1 << 20  # characters; Python's parser takes a hundred times the memory
# A packed file may unpack to FREE bytes, or to MAX_RATIO times its size: texts pack 3 to 30 times.
MAX_RATIO = 200
FREE = 1 << 30
CHUNK = 1 << 22  # bytes
SHOWN = 80  # characters of a text that an error shows
csv.field_size_limit(MAX_LINE)

# Line number (from 1); the fields, or None where none are usable; the fault of the row, or "".
Row = tuple[int, Sequence[str | None] | None, str]


def numbered_lines(path: Path, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """(number, line with its end). Bytes that are not valid text become lone surrogates.

    Raises:
        RecexpError: the file is damaged, is UTF-16, or unpacks to an absurd size.
    """
    number = 0
    n_bytes = 0
    most_bytes = _most_bytes(path)
    try:
        with open_unpacked(path) as file:
            lines = iter(partial(file.readline, MAX_LINE), b"")
            for number, raw in enumerate(lines, 1):
                n_bytes += len(raw)
                if len(raw) == MAX_LINE:
                    raise RecexpError(
                        f"{path}, line {number} is longer than {MAX_LINE >> 20} MiB: "
                        "this is no text of lines."
                    )
                if n_bytes > most_bytes:
                    raise _unpacks_to_too_much(path)
                if number == 1 and raw.startswith(UTF_16):
                    raise RecexpError(f"{path} is UTF-16 text. Save it as UTF-8.")
                if number == 1:
                    raw = raw.removeprefix(BOM)
                yield number, raw.decode(encoding, "surrogateescape")
    except DAMAGED as error:
        raise RecexpError(
            f"{path} is cut off or damaged after line {number} ({error}). Get it anew."
        ) from None
    except OSError as error:
        raise RecexpError(f"{path} cannot be read: {error}") from None


def fields(path: Path, separator: str, quote: str | None, encoding: str = "utf-8") -> Iterator[Row]:
    """Every row that is not blank, with the number of its first line.

    quote: None reads quotes as text, and so does a separator of several characters.

    Raises:
        RecexpError: as ``numbered_lines``, and where the quoting is broken.
    """
    if quote is None or len(separator) > 1:
        for number, text in numbered_lines(path, encoding):
            if text.strip():
                yield number, text.rstrip("\r\n").split(separator), ""
    else:
        yield from _quoted_fields(path, separator, quote, encoding)


def _quoted_fields(path: Path, separator: str, quote: str, encoding: str) -> Iterator[Row]:
    lines = (text for _, text in numbered_lines(path, encoding))
    reader = csv.reader(lines, delimiter=separator, quotechar=quote, strict=True)
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
    """What decides whether polars may read a file.

    lines: their number. quotes: there are some. odd: the file holds something that polars and
    ``fields`` may read differently.
    """

    lines: int
    quotes: bool
    odd: bool


def survey(path: Path, separator: str, quote: str | None) -> Survey:
    """Survey a file in one pass over its bytes.

    Odd are a carriage return that ends no line, a second BOM, a separator at the very end, an
    extremely long line, and quotes that neither enclose a field nor stand doubled in one.

    Raises:
        RecexpError: a packed file unpacks to an absurd size. Damaged ones raise ``packed.DAMAGED``.
    """
    most_bytes = _most_bytes(path)
    n_bytes = 0
    n_lines = 0
    quotes = False
    inside = False
    odd = False
    with open_unpacked(path) as file:
        while chunk := file.read(CHUNK):
            if not chunk.endswith(b"\n"):
                chunk += file.readline(CHUNK)
            is_first = n_bytes == 0
            n_bytes += len(chunk)
            if n_bytes > most_bytes:
                raise _unpacks_to_too_much(path)
            odd = odd or (is_first and chunk.startswith(BOM * 2)) or _is_odd(chunk, separator)
            byte = np.frombuffer(chunk, dtype=np.uint8)
            n_lines += int(np.count_nonzero(byte == ord("\n"))) + (not chunk.endswith(b"\n"))
            if quote and quote.encode() in chunk:
                quotes = True
                strict, inside = _are_quotes_strict(chunk, separator, quote, inside)
                odd = odd or not strict
    return Survey(n_lines, quotes, odd or inside)


def _is_odd(chunk: bytes, separator: str) -> bool:
    """Is a chunk of whole lines odd, quotes aside? See ``survey``."""
    if len(chunk) >= 2 * CHUNK:  # its last line is as long as a chunk
        return True
    if chunk.endswith(separator.encode()):
        return True
    return b"\r" in chunk and chunk.count(b"\r") > chunk.count(b"\r\n")


def _are_quotes_strict(chunk: bytes, separator: str, quote: str, inside: bool) -> tuple[bool, bool]:
    """Does every quote of these whole lines open or close a field, or stand doubled in one?

    inside: the chunk begins within a quoted field. The second result says the same of its end.
    """
    byte = np.frombuffer(b"\n" + chunk.removeprefix(BOM) + b"\n", dtype=np.uint8)
    is_quote = byte == ord(quote)
    is_end = (byte == ord("\n")) | (byte == ord("\r")) | (byte == ord(separator))
    is_edge = is_quote | is_end
    # Inside a field after this byte? A doubled quote closes the field and opens it again.
    is_inside = np.bitwise_xor.accumulate(is_quote) ^ inside
    opens = is_quote & is_inside
    closes = is_quote & ~is_inside
    opens_within_text = (opens[1:-1] & ~is_edge[:-2]).any()
    closes_within_text = (closes[1:-1] & ~is_edge[2:]).any()
    return not (opens_within_text or closes_within_text), bool(is_inside[-1])


def parse_record(text: str) -> dict[str, object]:
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
    with open_unpacked(path) as file:
        content = file.read().removeprefix(BOM)
    return content if encoding == "utf-8" else content.decode(encoding).encode()


def _most_bytes(path: Path) -> int:
    """How many bytes the file may hold, unpacked."""
    return max(FREE, MAX_RATIO * path.stat().st_size)


def _unpacks_to_too_much(path: Path) -> RecexpError:
    return RecexpError(
        f"{path} unpacks to more than {MAX_RATIO} times its size: hardly data. "
        "If you trust it, unpack it first."
    )


def shortened(text: str) -> str:
    """At most SHOWN characters of a text, printable in any encoding of a screen or file."""
    text = text.encode(errors="backslashreplace").decode()
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
