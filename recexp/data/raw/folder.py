"""Strict reading of raw files, shared by the readers in ``recexp.data.readers``.

A file is first read the fast way: polars parses the typed columns at once. Only where that fails,
or leaves a value missing or out of range, is the file read again line by line, to say which line,
column and text is wrong or to leave exactly those rows out. Both ways judge rows by the same
expressions, and both give the same rows for a good file.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl
from tqdm import tqdm

from recexp.data.dataset import BadRows
from recexp.data.raw.columns import TIMES, Column, judge
from recexp.data.raw.delimited import DelimitedFile, Format, find_column, open_delimited
from recexp.data.raw.lookups import RawFiles, matching
from recexp.data.raw.packed import DAMAGED
from recexp.data.raw.records import record_row
from recexp.data.raw.text import Row, numbered_lines, parse_record, shortened
from recexp.errors import RecexpError

EXAMPLES = 5  # bad rows listed per reason
CHUNK = 200_000  # rows judged at a time
FIRST = 1000  # rows that decide how times are read
# A panic of polars' Rust parts is neither a PolarsError nor an Exception.
FAILED = (pl.exceptions.PolarsError, pl.exceptions.PanicException)
UNREADABLE: tuple[type[BaseException], ...] = (*FAILED, OSError, *DAMAGED)
# How the name of a file tells its format.
PARQUET = (".parquet", ".pq")
RECORDS = (".jsonl", ".ndjson", ".jl", ".json")
PACKED = (".gz", ".gzip", ".zst", ".zstd")
WITH_HEADER = Format(header=True)


@dataclass(frozen=True)
class Fault:
    """What is wrong with a row.

    label: the column, "" for the whole row. text: the field, None where it is blank or unknown.
    """

    line: int
    reason: str
    label: str = ""
    text: str | None = None


class MissingFile(RecexpError):
    """A raw file is not there. what: the sentence that says so; advice: what to do about it."""

    def __init__(self, what: str, advice: str) -> None:
        super().__init__(f"{what}. {advice}")
        self.what = what
        self.advice = advice


class Folder:
    """A folder of raw files, with the account of what was read and what was left out.

    origin: where to get the files, for the error of a missing one.
    on_bad_rows: "error" raises at the first bad row; "drop" leaves bad rows out and lists them in
        ``dropped`` (reason -> (number of rows, first few examples)).
    files: every file that was read, and what was looked for.
    """

    def __init__(self, raw_dir: str | Path, origin: str, on_bad_rows: BadRows = "error") -> None:
        if on_bad_rows not in ("error", "drop"):
            raise RecexpError(f"on_bad_rows={on_bad_rows!r} is not known; choose error or drop")
        self.path = Path(raw_dir)
        self.origin = origin
        self.on_bad_rows = on_bad_rows
        self.files = RawFiles()
        self.dropped: dict[str, tuple[int, list[str]]] = {}

    def has(self, name: str) -> bool:
        """Is there such a file? The cache asks again: optional files may come later."""
        path = self.path / name
        exists = path.is_file()
        self.files.exists[str(path)] = exists
        return exists

    def names(self, file: str | Sequence[str]) -> list[str]:
        """The files that an option names: a name, a glob pattern, or a list of these.

        The list keeps its order. The matches of a pattern are sorted by name. A file that is named
        twice is read once. A file whose own name holds *, ? or [ is meant by that name.

        Raises:
            RecexpError: nothing matches a pattern, or nothing is named.
        """
        names: dict[str, None] = {}
        for name in [file] if isinstance(file, str) else file:
            if not isinstance(name, str) or not name:
                raise RecexpError(f"{name!r} is no name of a file in {self.path}.")
            is_name = not glob.has_magic(name) or (self.path / name).is_file()
            names |= dict.fromkeys([name] if is_name else self._matching(name))
        if not names:
            raise RecexpError(f"No file is named of those in {self.path}: the list is empty.")
        return list(names)

    def found(self, pattern: str) -> list[str]:
        """The files that match a glob pattern, sorted by name; there may be none.

        The cache asks again: a file that matches later is a change.
        """
        place = "" if Path(pattern).is_absolute() else f"{glob.escape(str(self.path))}/"
        paths = matching(place + pattern)
        self.files.matches[place + pattern] = paths
        return [path.removeprefix(f"{self.path}/") for path in paths]

    def _matching(self, pattern: str) -> list[str]:
        if names := self.found(pattern):
            return names
        where = "" if self.path.is_dir() else f" (there is no folder {self.path})"
        raise MissingFile(
            f"No file of {self.path} matches {pattern!r}{where}",
            f"Get the files from {self.origin}, or set dataset.raw_dir.",
        )

    def file(self, name: str) -> Path:
        """The path of a file to read, noted in ``files``.

        Raises:
            RecexpError: the file is missing (MissingFile) or empty.
        """
        path = self.path / name
        if not path.is_file():
            where = "" if self.path.is_dir() else f" (there is no folder {self.path})"
            raise MissingFile(
                f"{path} is missing{where}",
                f"Get it from {self.origin}, "
                f"and put {name} into {self.path} or set dataset.raw_dir.",
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
        """The wanted columns of a delimited text file (plain or packed), rows in file order.

        separator: several characters exclude quotes.
        only: (header name, text): rows whose field is another text are passed over unread.

        Raises:
            RecexpError: naming file, line, column and text.
        """
        form = Format(header, separator, quote, encoding)
        file = self._open(name, columns, form, only)
        return self._nonempty(file.path, self._read(name, file))

    def _open(
        self,
        name: str,
        columns: list[Column],
        form: Format,
        only: tuple[str, str] | None = None,
    ) -> DelimitedFile:
        if len(form.separator) > 1:
            form = replace(form, quote=None)
        return open_delimited(self.file(name), self.origin, columns, form, only)

    def _read(self, name: str, file: DelimitedFile) -> pl.DataFrame:
        try:
            frame = file.read_fast()
            if frame is not None and (good := _all_good(judge(frame, file.columns))) is not None:
                return good
        except UNREADABLE:
            pass  # read again below, to say what is wrong
        return self._judged(file.path, file.columns, file.rows())

    def frame(
        self, file: str | Sequence[str], columns: list[Column], form: Format = WITH_HEADER
    ) -> pl.DataFrame:
        """The wanted columns of all files that ``file`` names (``names``), in that order.

        The name of a file tells how it is read: .parquet (.pq), one JSON object per line (.jsonl,
        .ndjson, .jl, .json), else text of separated fields (``form``). Texts may be packed
        (name.gz, name.zst). The columns of a file with names may stand in any order.

        Raises:
            RecexpError: as the methods for single files, and where files without a header have
                different numbers of columns. Some of several files may have no row.
        """
        names = self.names(file)
        texts = {name: self._open(name, columns, form) for name in names if _is_delimited(name)}
        if not form.header:
            _check_positions(self.path, names, texts)
        frames = []
        for name in names:
            if name in texts:
                frames.append(self._read(name, texts[name]))
            elif _suffix(name) in PARQUET:
                frames.append(self._parquet(name, columns))
            else:
                frames.append(self._record_table(name, columns))
        if len(names) == 1:
            return self._nonempty(self.path / names[0], frames[0])
        return self._nonempty(f"{self.path}, in {len(names)} files,", pl.concat(frames))

    def first_texts(
        self, file: str | Sequence[str], column: Column, form: Format = WITH_HEADER
    ) -> list[str | None]:
        """The texts of a column in the first rows (``FIRST``) of the first file that has rows.

        Bad rows are passed over. Empty for a parquet column of dates.

        Raises:
            RecexpError: as ``frame`` for the files that are opened.
        """
        for name in self.names(file):
            if _suffix(name) in PARQUET:
                texts = _first_of_parquet(self.file(name), column)
            elif _is_delimited(name):
                rows = self._open(name, [column], form).rows()
                texts = [row[0] for _, row, _ in islice(rows, FIRST) if row]
            else:
                texts = [*islice(self._texts_of_records(name, column), FIRST)]
            if texts:
                return texts
        return []

    def _texts_of_records(self, name: str, column: Column) -> Iterator[str | None]:
        for line, text in self.lines(name):
            with suppress(ValueError):
                _, row, _ = record_row(line, parse_record(text), [column])
                if row:
                    yield row[0]

    def parquet(self, name: str, columns: list[Column]) -> pl.DataFrame:
        """The wanted columns of a parquet file.

        Ids become strings; a time column of a date type needs no unit.

        Raises:
            RecexpError: naming file, row, column and text.
        """
        return self._nonempty(self.path / name, self._parquet(name, columns))

    def _parquet(self, name: str, columns: list[Column]) -> pl.DataFrame:
        path = self.file(name)
        try:
            frame, columns = _parquet_texts(path, columns)
        except (*FAILED, OSError) as error:
            first_line = (str(error).splitlines() or ["it is damaged"])[0]
            raise RecexpError(f"{path} cannot be read as parquet: {first_line}") from None
        if (good := _all_good(judge(frame, columns))) is not None:
            return good
        rows = ((number, list(values), "") for number, values in enumerate(frame.iter_rows(), 1))
        return self._judged(path, columns, rows, unit="row")

    def table(
        self, name: str, columns: list[Column], rows: Iterable[Row], unit: str = "line"
    ) -> pl.DataFrame:
        """The wanted columns from rows that are taken apart already.

        rows: (line, a text or None per column, fault of the whole row or ""). unit: what errors
        call the number of a row.
        """
        path = self.file(name)
        return self._nonempty(path, self._judged(path, columns, rows, unit))

    def _judged(
        self, path: Path, columns: list[Column], rows: Iterable[Row], unit: str = "line"
    ) -> pl.DataFrame:
        rows = iter(rows)
        good = [_empty(columns)]
        while chunk := list(islice(rows, CHUNK)):
            frame, faults = _judge_rows(chunk, columns)
            self._account(path, faults, unit)
            good.append(frame)
        return pl.concat(good)

    def records(self, name: str) -> Iterator[tuple[int, dict[str, object]]]:
        """(line, record) of a file with one JSON object or Python literal per line.

        A line that is neither is a bad row.
        """
        path = self.file(name)
        # These files take minutes, so the progress is shown.
        for line, text in tqdm(self.lines(name), desc=path.name, unit=" lines", disable=None):
            try:
                record = parse_record(text)
            except ValueError as error:
                fault = Fault(line, str(error), text=shortened(text.strip()))
                self._account(path, [fault])
                continue
            yield line, record

    def record_table(self, name: str, columns: list[Column]) -> pl.DataFrame:
        """The wanted entries of every record of such a file; ``source`` names their keys."""
        return self._nonempty(self.path / name, self._record_table(name, columns))

    def _record_table(self, name: str, columns: list[Column]) -> pl.DataFrame:
        rows = (record_row(line, record, columns) for line, record in self.records(name))
        return self._judged(self.path / name, columns, rows)

    def lines(self, name: str) -> Iterator[tuple[int, str]]:
        """(line, text) of the non-blank lines of a text file."""
        return ((line, text) for line, text in numbered_lines(self.file(name)) if text.strip())

    def json(self, name: str, check: Callable[[object], bool], form: str) -> Any:
        """A whole JSON file that must satisfy ``check``; ``form`` says in words what that is."""
        path = self.file(name)
        try:
            content = json.loads("".join(text for _, text in numbered_lines(path)))
        except (ValueError, RecursionError) as error:
            raise RecexpError(f"{path} is not valid JSON: {error}") from None
        if not check(content):
            raise RecexpError(f"{path} is not {form}")
        return content

    def _account(self, path: Path, faults: list[Fault], unit: str = "line") -> None:
        """Raise the first fault, or note all of them in ``dropped``."""
        if faults and self.on_bad_rows == "error":
            raise _bad_row(path, faults, unit)
        for fault in faults:
            reason = f"{path.name}: {_spaced(fault.label, fault.reason)}"
            n_rows, examples = self.dropped.get(reason, (0, []))
            if n_rows < EXAMPLES:
                text = repr(fault.text) if fault.text else ""
                examples.append(_spaced(f"{path.name}:{fault.line}", fault.label, text))
            self.dropped[reason] = (n_rows + 1, examples)

    def _nonempty(self, path: Path | str, frame: pl.DataFrame) -> pl.DataFrame:
        if frame.is_empty():
            raise RecexpError(f"{path} holds no usable row. Get it anew from {self.origin}.")
        return frame


def _suffix(name: str) -> str:
    """The ending of a file's name that tells its format, in lower case: ".csv" of "a.csv.gz"."""
    path = Path(name.lower())
    return path.with_suffix("").suffix if path.suffix in PACKED else path.suffix


def _is_delimited(name: str) -> bool:
    return _suffix(name) not in (*PARQUET, *RECORDS)


def _check_positions(
    folder: Path, names: Sequence[str], texts: Mapping[str, DelimitedFile]
) -> None:
    """Files whose columns are told by position must agree in their number of columns."""
    for name in names:
        if name not in texts:
            raise RecexpError(
                f"{folder / name} names its columns; header=false is for text files of separated "
                "fields."
            )
    first = texts[names[0]]
    for file in texts.values():
        if file.n_fields != first.n_fields:
            raise RecexpError(
                f"{file.path} has {file.n_fields} columns and {first.path} {first.n_fields}: "
                "without headers their columns must be the same."
            )


def _bad_row(path: Path, faults: list[Fault], unit: str) -> RecexpError:
    """The error for the first fault, with the number of the others."""
    first = faults[0]
    place = f"{path}, {unit} {first.line}"
    if first.label:
        place += f", {first.label}"
    found = "" if first.text is None else f"{first.text!r} "
    more = f" (and {len(faults) - 1:,} more bad rows soon after)" if len(faults) > 1 else ""
    return RecexpError(
        f"{place}: {found}{first.reason}{more}. "
        "Correct the file, or set dataset.on_bad_rows=drop to leave such rows out."
    )


def _spaced(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _all_good(judged: pl.DataFrame) -> pl.DataFrame | None:
    """The parsed columns, or None where a row is faulty."""
    if judged["_reason"].null_count() < judged.height:
        return None
    return judged.drop("_reason")


def _first_of_parquet(path: Path, column: Column) -> list[str | None]:
    try:
        scan = pl.scan_parquet(path, glob=False).head(FIRST)
        names: list[str | int] = list(scan.collect_schema().names())
        find_column(path, names, column.source, column.label)
        values = scan.select(str(column.source)).collect().to_series()
        if values.dtype in (pl.Date, pl.Datetime):
            return []
        return values.cast(pl.String).to_list()
    except (*FAILED, OSError):
        return []  # ``Folder.parquet`` says what is wrong


def _parquet_texts(path: Path, columns: list[Column]) -> tuple[pl.DataFrame, list[Column]]:
    """The wanted columns as strings; and the columns, with kind "ms" where polars knows dates."""
    scan = pl.scan_parquet(path, glob=False)
    names: list[str | int] = list(scan.collect_schema().names())
    for column in columns:
        find_column(path, names, column.source, column.label)
    frame = scan.select(pl.col(str(c.source)).alias(c.name) for c in columns).collect()
    read = []
    for column in columns:
        dtype = frame.schema[column.name]
        if dtype.is_nested() or (dtype.is_float() and column.kind == "id"):
            wanted = "whole numbers or texts" if column.kind == "id" else "plain values"
            raise RecexpError(
                f"{path}, {column.label}: its type is {dtype}; it must hold {wanted}."
            )
        if dtype in (pl.Date, pl.Datetime) and column.kind in TIMES:
            frame = frame.with_columns(pl.col(column.name).dt.epoch("ms"))
            column = replace(column, kind="ms")
        read.append(column)
    return frame.cast(pl.String), read


def _judge_rows(chunk: list[Row], columns: list[Column]) -> tuple[pl.DataFrame, list[Fault]]:
    """The parsed good rows, and the faults of the others in the order of lines."""
    faults = [Fault(line, fault) for line, _, fault in chunk if fault]
    rows = [(line, row) for line, row, fault in chunk if row is not None and not fault]
    try:
        frame = _frame(rows, columns)
    except UnicodeEncodeError:
        faults += [Fault(line, "is not valid UTF-8") for line, row in rows if not _is_utf8(row)]
        rows = [(line, row) for line, row in rows if _is_utf8(row)]
        frame = _frame(rows, columns)
    judged = judge(frame, columns)
    bad = judged.with_row_index("_row").filter(pl.col("_reason").is_not_null())
    for number, reason in bad.select("_row", "_reason").iter_rows():
        index, words = reason.split(" ", 1)
        line, row = rows[number]
        text = row[int(index)]
        shown = shortened(text) if text and text.strip() else None
        faults.append(Fault(line, words, columns[int(index)].label, shown))
    good = judged.filter(pl.col("_reason").is_null()).drop("_reason")
    return good, sorted(faults, key=lambda fault: fault.line)


def _frame(rows: list[tuple[int, Sequence[str | None]]], columns: list[Column]) -> pl.DataFrame:
    """The texts of rows (line, texts). UnicodeEncodeError where one is not valid UTF-8."""
    series = {}
    for i, column in enumerate(columns):
        series[column.name] = pl.Series([row[i] for _, row in rows], dtype=pl.String)
    return pl.DataFrame(series)


def _empty(columns: list[Column]) -> pl.DataFrame:
    """No row, with the types of the parsed columns."""
    return judge(_frame([], columns), columns).drop("_reason")


def _is_utf8(fields: Sequence[str | None]) -> bool:
    """False where a text holds a lone surrogate, which stands for a byte that is not valid."""
    try:
        "".join(text for text in fields if text).encode()
    except UnicodeEncodeError:
        return False
    return True
