"""Raw files taken apart in plain Python, a list of rows at a time: the slow, simple counterpart of
``recexp.data.raw.folder``.
"""

from __future__ import annotations

import ast
import csv
import gzip
import io
import json
import zlib
from dataclasses import dataclass, field

from recexp.data.raw import packed
from tests.fuzz.values import Bad, parsed

# name -> (header name, key or position; kind; options of ``parsed``)
Columns = dict[str, tuple]


class Refused(Exception):
    """The file as a whole cannot be used: the reader must raise an error."""


def text_of(content: bytes, encoding: str = "utf-8") -> str:
    """Unpacked, without BOM."""
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise Refused("damaged") from error
    elif content[:4] == packed.ZSTD and packed.zstd is not None:
        try:
            content = packed.zstd.open(io.BytesIO(content)).read()
        except (EOFError, packed.zstd.ZstdError) as error:
            raise Refused("damaged") from error
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise Refused("UTF-16")
    return content.removeprefix(b"\xef\xbb\xbf").decode(encoding, "surrogateescape")


def row_of(fields: dict | list, columns: Columns) -> dict | None:
    """The wanted values, None where one is bad."""
    try:
        return {
            name: parsed(_at(fields, source), kind, **(more[0] if more else {}))
            for name, (source, kind, *more) in columns.items()
        }
    except Bad:
        return None


def _at(fields: dict | list, source: str | int) -> str | None:
    if isinstance(fields, dict):
        return fields.get(source)
    return fields[source] if source < len(fields) else None


@dataclass(frozen=True)
class Delimited:
    """A file of separated fields."""

    columns: Columns
    separator: str = ","
    quote: bool = True
    encoding: str = "utf-8"
    header: tuple[str, ...] = ()
    only: tuple[str, str] | None = None

    def rows(self, content: bytes) -> list[dict | None]:
        """One entry per row, None for a bad one."""
        table = self._table(text_of(content, self.encoding))
        if not table or table[0] is None:
            raise Refused("empty")
        first, position = table[0], {}
        names = [name.strip() for name in first] if self.header else list(range(len(first)))
        sources = {name: column[0] for name, column in self.columns.items()} | (
            {"_only": self.only[0]} if self.only else {}
        )
        for name, source in sources.items():
            if names.count(source) != 1:
                raise Refused("columns")
            position[name] = names.index(source)
        rows = []
        columns = {name: (position[name], *rest) for name, (_, *rest) in self.columns.items()}
        for fields in table[bool(self.header) :]:
            if fields is None or len(fields) > len(first):
                rows.append(None)
            elif not self.only or _at(fields, position["_only"]) == self.only[1]:
                rows.append(row_of(fields, columns))
        return rows

    def width(self, content: bytes) -> int:
        """The number of columns."""
        return len(self._table(text_of(content, self.encoding))[0] or [])

    def _table(self, text: str) -> list[list[str] | None]:
        if not self.quote:
            return [
                line.rstrip("\r\n").split(self.separator)
                for line in text.split("\n")
                if line.strip()
            ]
        table: list[list[str] | None] = []
        reader = csv.reader(_lines(text), delimiter=self.separator, strict=True)
        while True:
            try:
                fields = next(reader)
            except StopIteration:
                return table
            except csv.Error as error:
                if "new-line" not in str(error):
                    raise Refused("quoting") from error
                table.append(None)
                continue
            if len(fields) > 1 or any(field.strip() for field in fields):
                table.append(fields)


def _lines(text: str) -> list[str]:
    return io.StringIO(text, newline="\n").readlines()


@dataclass(frozen=True)
class Records:
    """A JSON object or Python literal per line. lists: key -> depth of the lists of names there."""

    columns: Columns
    lists: dict[str, int] = field(default_factory=dict)
    may_lack: str = ""  # a record without this key is passed over

    def rows(self, content: bytes) -> list[dict | None]:
        """One entry per record, None for a bad one."""
        rows = []
        for line in _lines(text_of(content)):
            if line.strip():
                record = self._record(line)
                if (
                    record is None
                    or not self.may_lack
                    or record.get("\0lists") is None
                    or record.get(self.may_lack) is not None
                ):
                    rows.append(record if record is None else self._row(record))
        return rows

    def _record(self, line: str) -> dict | None:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            try:
                record = ast.literal_eval(line.strip())
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                return None
        if not isinstance(record, dict):
            return None
        names = {}
        for key, depth in self.lists.items():
            found = record.get(key) or []
            if depth == 2:
                if not isinstance(found, list) or not all(
                    isinstance(inner, list) for inner in found
                ):
                    return None
                found = [name for inner in found for name in inner]
            if not isinstance(found, list) or not all(
                isinstance(name, str) and "\x1f" not in name for name in found
            ):
                return None
            names[key] = [name for name in dict.fromkeys(found) if name.strip()]
        return record | {"\0lists": names}

    def _row(self, record: dict) -> dict | None:
        fields = {}
        for source, kind, *_ in self.columns.values():
            value = record.get(source)
            if (isinstance(value, float) and kind == "id") or (
                isinstance(value, int) and value.bit_length() > 128
            ):
                return None
            if value is not None and type(value) not in (str, int, float):
                return None
            fields[source] = None if value is None else str(value)
        row = row_of(fields, self.columns)
        lists = record["\0lists"]
        if row is not None and any(
            "\udc80" <= c <= "\udfff" or "\ud800" <= c < "\udc80"
            for names in lists.values()
            for name in names
            for c in name
        ):
            return None  # no UTF-8
        return row if row is None else row | lists


def sequences(content: bytes) -> list[dict | None]:
    """Lines ``user item item ...``."""
    rows = []
    for line in _lines(text_of(content)):
        user, *items = line.split() or [None]
        if user is not None and not items:
            rows.append(None)
        rows += [row_of([user, item], {"user": (0, "int"), "item": (1, "int")}) for item in items]
    return rows


def attributes(content: bytes) -> list[dict | None]:
    """A JSON map of items to lists."""
    try:
        found = json.loads(text_of(content))
    except (ValueError, RecursionError) as error:
        raise Refused("JSON") from error
    if not isinstance(found, dict) or not all(
        isinstance(values, list) for values in found.values()
    ):
        raise Refused("form")
    pairs = [[item, str(value)] for item, values in found.items() for value in values]
    return [row_of(pair, {"item": (0, "int"), "value": (1, "int")}) for pair in pairs]
