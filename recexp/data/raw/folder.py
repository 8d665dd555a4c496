"""Strict reading of raw files, shared by the readers in recexp.data.readers.

A file is first read the fast way: polars parses the typed columns in one go. Only where that fails, or leaves a value
missing or out of range, is the file read again line by line, to say which line, column and text is to blame or to leave
exactly those rows out. Both ways judge rows by the same expressions, and both give the same rows for a good file.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from operator import itemgetter
from pathlib import Path

import polars as pl

from recexp.data.raw.columns import Column, judge
from recexp.data.raw.text import Row, fields, numbered_lines, parse_record, survey, unpacked
from recexp.errors import RecexpError

UNIT = "\x1f"  # stands in for separators of several characters, which polars does not take
EXAMPLES = 5
SHOWN = 80  # characters of a text that an error shows
CHUNK = 200_000
FAILED = (
    pl.exceptions.PolarsError,
    pl.exceptions.PanicException,
)  # a panic of its Rust parts is no PolarsError, and no Exception
COUNTED = pl.QueryOptFlags(
    projection_pushdown=False
)  # with it polars overlooks rows of too many fields


class Folder:
    """A folder of raw files being read, with the account of what was read and what was left out.

    origin: where the files can be had, for the error of a missing one. on_bad_rows: "error", or "drop" to leave bad rows out
    and list them in ``dropped`` (reason -> (rows, first few examples)).
    """

    def __init__(self, raw_dir: str | Path, origin: str, on_bad_rows: str = "error"):
        if on_bad_rows not in ("error", "drop"):
            raise RecexpError(f"on_bad_rows={on_bad_rows!r} is not known; choose error or drop")
        self.path = Path(raw_dir)
        self.origin = origin
        self.on_bad_rows = on_bad_rows
        self.files: list[Path] = []
        self.dropped: dict[str, tuple[int, list[str]]] = {}

    def has(self, name: str) -> bool:
        """Is there such a file?"""
        return (self.path / name).is_file()

    def file(self, name: str) -> Path:
        """The path of a file to read, noted in ``files``. RecexpError where it is missing or empty."""
        path = self.path / name
        if not path.is_file():
            where = "" if self.path.is_dir() else f" (there is no folder {self.path})"
            raise RecexpError(
                f"{path} is missing{where}. Get it from {self.origin}, and put {name} into {self.path} or set dataset.raw_dir."
            )
        if path.stat().st_size == 0:
            raise RecexpError(f"{path} is empty. Get it anew from {self.origin}.")
        if path not in self.files:
            self.files.append(path)
        return path

    def delimited(
        self,
        name: str,
        columns: list[Column],
        *,
        header: bool,
        separator: str = ",",
        quote: str | None = '"',
        encoding: str = "utf-8",
        only: tuple[str, str] | None = None,
    ) -> pl.DataFrame:
        """The wanted columns of a delimited text file (plain or gzip), rows in file order.

        only: (header name, text): every row whose field is another text is passed over unread.
        A separator of several characters goes without quotes. Raises RecexpError naming file, line, column and text.
        """
        path = self.file(name)
        quote = quote if len(separator) == 1 else None
        start, first, fault = next(fields(path, separator, quote, encoding), (1, None, ""))
        if fault:
            raise RecexpError(f"{path}, line {start} {fault}. Correct the file.")
        if not first:
            raise RecexpError(f"{path} is empty. Get it anew from {self.origin}.")
        names = [field.strip() for field in first] if header else list(range(len(first)))
        position = {
            column.name: _position(path, names, column.source, column.label) for column in columns
        }
        if only:
            position["_only"] = _position(path, names, only[0], f"column {only[0]!r}")

        def fast() -> pl.DataFrame | None:
            found = survey(path, separator, quote)
            if (
                start != 1 or found.odd or (found.quotes and only)
            ):  # polars would take a blank first line for the header
                return None
            plain = len(separator) == 1 and encoding == "utf-8"
            source = path if plain else unpacked(path, encoding)
            if not plain:
                if UNIT.encode() in source:
                    return None  # it would separate, too
                source = source.replace(separator.encode(), UNIT.encode())
            typed = (
                {position[column.name]: column.dtype for column in columns} if only is None else {}
            )
            frame = pl.scan_csv(
                source,
                glob=False,
                has_header=False,
                skip_rows=int(header),
                separator=separator if plain else UNIT,
                quote_char=quote,
                schema={f"c{i}": typed.get(i, pl.String()) for i in range(len(first))},
            ).select(pl.col(f"c{i}").alias(name) for name, i in position.items())
            if only:
                frame = frame.filter(pl.col("_only") == only[1]).drop("_only")
            frame = frame.collect(optimizations=COUNTED)
            # where rows are fewer than lines, polars may have taken a quote for an opening one and swallowed some
            return frame if not found.quotes or frame.height + header == found.lines else None

        def slow() -> Iterator[Row]:
            pick = itemgetter(
                *position.values(), 0
            )  # one more, so that it is a tuple even for one column
            for line, row, fault in islice(
                fields(path, separator, quote, encoding), int(header), None
            ):
                if fault or len(row) > len(first):
                    yield (
                        line,
                        None,
                        fault or f"has {len(row)} fields where {len(first)} are expected",
                    )
                    continue
                picked = pick(row + [None] * (len(first) - len(row)))
                if only is None or picked[len(columns)] == only[1]:
                    yield line, picked, ""

        try:
            frame = fast()
            judged = None if frame is None else judge(frame, columns)
            if judged is not None and judged["_reason"].null_count() == judged.height:
                return self._nonempty(path, judged.drop("_reason"))
        except (*FAILED, OSError, EOFError, zlib.error):
            pass  # read again below, to say what is wrong
        return self.table(name, columns, slow())

    def parquet(self, name: str, columns: list[Column]) -> pl.DataFrame:
        """The wanted columns of a parquet file. Ids become strings; a time column of a date type needs no unit."""
        path = self.file(name)
        try:
            scan = pl.scan_parquet(path, glob=False)
            schema = scan.collect_schema()
            for column in columns:
                _position(path, schema.names(), column.source, column.label)
            frame = scan.select(
                pl.col(column.source).alias(column.name) for column in columns
            ).collect()
            for i, column in enumerate(columns):
                dtype = frame.schema[column.name]
                if dtype.is_nested() or (dtype.is_float() and column.kind == "id"):
                    wanted = "whole numbers or texts" if column.kind == "id" else "plain values"
                    raise RecexpError(
                        f"{path}, {column.label}: its type is {dtype}; it must hold {wanted}."
                    )
                if dtype in (pl.Date, pl.Datetime) and column.kind in ("s", "ms", "iso"):
                    columns = [*columns[:i], replace(column, kind="ms"), *columns[i + 1 :]]
                    frame = frame.with_columns(pl.col(column.name).dt.epoch("ms"))
            frame = frame.cast(pl.String)
        except (*FAILED, OSError) as error:
            raise RecexpError(
                f"{path} cannot be read as parquet: {(str(error).splitlines() or ['it is damaged'])[0]}"
            ) from None
        judged = judge(frame, columns)
        if judged["_reason"].null_count() == judged.height:
            return self._nonempty(path, judged.drop("_reason"))
        return self.table(
            name,
            columns,
            ((row, list(values), "") for row, values in enumerate(frame.iter_rows(), 1)),
            unit="row",
        )

    def table(
        self, name: str, columns: list[Column], rows: Iterable[Row], unit: str = "line"
    ) -> pl.DataFrame:
        """The same from rows already taken apart: (line, one text or None per column, fault of the whole row or "").

        unit: what an error calls the number of a row.
        """
        path, rows = self.file(name), iter(rows)
        good = [_empty(columns)]
        while chunk := list(islice(rows, CHUNK)):
            faults = [(line, "", None, fault) for line, _, fault in chunk if fault]
            kept = [row for row in chunk if not row[2]]
            try:
                frame = _frame(kept, columns)
            except UnicodeEncodeError:
                faults += [
                    (line, "", None, "is not valid UTF-8")
                    for line, fields, _ in kept
                    if not _is_utf8(fields)
                ]
                kept = [row for row in kept if _is_utf8(row[1])]
                frame = _frame(kept, columns)
            judged = judge(frame, columns).with_columns(
                pl.Series("_line", [row[0] for row in kept], dtype=pl.Int64)
            )
            bad = judged.with_row_index("_row").filter(pl.col("_reason").is_not_null())
            for row, line, reason in bad.select("_row", "_line", "_reason").iter_rows():
                i, reason = reason.split(" ", 1)
                text = kept[row][1][int(i)]
                faults.append(
                    (
                        line,
                        columns[int(i)].label,
                        shortened(text) if text and text.strip() else None,
                        reason,
                    )
                )
            self._account(path, sorted(faults, key=lambda fault: fault[0]), unit)
            good.append(judged.filter(pl.col("_reason").is_null()).drop("_reason", "_line"))
        return self._nonempty(path, pl.concat(good))

    def records(self, name: str) -> Iterator[tuple[int, dict]]:
        """(line, record) of a file with one JSON object or Python literal per line. A line that is neither is a bad row."""
        from tqdm import tqdm  # these files take minutes: say how far it is

        path = self.file(name)
        for line, text in tqdm(self.lines(name), desc=path.name, unit=" lines", disable=None):
            try:
                record = parse_record(text)
            except ValueError as error:
                self._account(path, [(line, "", shortened(text.strip()), str(error))])
                continue
            yield line, record

    def record_table(self, name: str, columns: list[Column]) -> pl.DataFrame:
        """The wanted entries of every record of such a file; ``source`` names their keys."""
        return self.table(
            name,
            columns,
            (record_row(line, record, columns) for line, record in self.records(name)),
        )

    def lines(self, name: str) -> Iterator[tuple[int, str]]:
        """(line, text) of the non-blank lines of a text file."""
        return ((line, text) for line, text in numbered_lines(self.file(name)) if text.strip())

    def json(self, name: str, check: Callable[[object], bool], form: str) -> object:
        """A whole JSON file that must satisfy ``check``; ``form`` says in words what that is."""
        path = self.file(name)
        try:
            content = json.loads("".join(text for _, text in numbered_lines(path)))
        except (ValueError, RecursionError) as error:
            raise RecexpError(f"{path} is not valid JSON: {error}") from None
        if not check(content):
            raise RecexpError(f"{path} is not {form}")
        return content

    def _account(
        self, path: Path, faults: list[tuple[int, str, str | None, str]], unit: str = "line"
    ) -> None:
        if faults and self.on_bad_rows == "error":
            line, label, text, reason = faults[0]
            place = ", ".join(part for part in (f"{path}, {unit} {line}", label) if part)
            found = "" if text is None else f"{text!r} "
            more = f" (and {len(faults) - 1:,} more bad rows soon after)" if len(faults) > 1 else ""
            cure = "Correct the file, or set dataset.on_bad_rows=drop to leave such rows out."
            raise RecexpError(f"{place}: {found}{reason}{more}. {cure}")
        for line, label, text, reason in faults:
            key = f"{path.name}: " + " ".join(part for part in (label, reason) if part)
            rows, examples = self.dropped.get(key, (0, []))
            if rows < EXAMPLES:
                examples.append(
                    " ".join(
                        part for part in (f"{path.name}:{line}", label, text and repr(text)) if part
                    )
                )
            self.dropped[key] = rows + 1, examples

    def _nonempty(self, path: Path, frame: pl.DataFrame) -> pl.DataFrame:
        if frame.is_empty():
            raise RecexpError(f"{path} holds no usable row. Get it anew from {self.origin}.")
        return frame


def record_row(line: int, record: dict, columns: list[Column], *more: str) -> Row:
    """The wanted entries of a record as a row that ``Folder.table`` takes, and ``more`` texts after them."""
    values = [record.get(column.source) for column in columns]
    for column, value in zip(columns, values, strict=True):
        if not (value is None or type(value) is str or _plain(value, column.kind == "id")):
            return (
                line,
                None,
                f"has something at {column.source!r} that is neither a text nor a {'whole ' * (column.kind == 'id')}number",
            )
    return line, [*(None if value is None else str(value) for value in values), *more], ""


def joined(names: object) -> str | None:
    """A list of strings as one text, blank ones left out; ``split_names`` undoes it. None for anything else."""
    if isinstance(names, list) and all(
        isinstance(name, str) and UNIT not in name for name in names
    ):
        return UNIT.join(dict.fromkeys(name for name in names if name.strip()))
    return None


def split_names(frame: pl.DataFrame, column: str) -> pl.LazyFrame:
    """Columns item, value: a row per name in a ``column`` of ``joined`` texts."""
    values = frame.lazy().select("item", value=column).drop_nulls("value")
    return values.with_columns(pl.col("value").str.split(UNIT)).explode("value")


def shortened(text: str) -> str:
    """At most SHOWN characters of it, fit for any screen or file."""
    text = text.encode(errors="backslashreplace").decode()
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _plain(value: object, whole: bool) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return (
            value.bit_length() <= 128
        )  # a longer one is no id, and Python refuses to print the longest
    return isinstance(value, float) and not whole


def _empty(columns: list[Column]) -> pl.DataFrame:
    return judge(pl.DataFrame(schema={column.name: pl.String for column in columns}), columns).drop(
        "_reason"
    )


def _position(path: Path, names: list, source: str | int, label: str) -> int:
    if names.count(source) == 1:
        return names.index(source)
    if isinstance(source, int):
        raise RecexpError(f"{path}, line 1: there are {len(names)} columns; {label} is missing")
    found = "twice in" if source in names else "not in"
    raise RecexpError(
        f"{path}, line 1: {label} is {found} the header: {shortened(', '.join(names))}"
    )


def _frame(rows: list[Row], columns: list[Column]) -> pl.DataFrame:
    """UnicodeEncodeError where a text is not UTF-8."""
    return pl.DataFrame(
        {
            column.name: pl.Series([row[1][i] for row in rows], dtype=pl.String)
            for i, column in enumerate(columns)
        }
    )


def _is_utf8(fields: Sequence[str | None]) -> bool:
    try:
        "".join(text for text in fields if text).encode()
    except UnicodeEncodeError:
        return False
    return True
