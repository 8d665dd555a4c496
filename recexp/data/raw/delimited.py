"""One delimited text file, read in two ways that give the same rows for a good file.

``read_fast`` lets polars parse the typed columns at once. ``rows`` reads line by line and tells
what is wrong with each row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter
from pathlib import Path

import polars as pl

from recexp.data.raw.columns import Column
from recexp.data.raw.packed import polars_unpacks
from recexp.data.raw.records import UNIT
from recexp.data.raw.text import Row, fields, shortened, survey, unpacked
from recexp.errors import RecexpError

# With projection pushdown polars overlooks rows of too many fields.
COUNTED = pl.QueryOptFlags(projection_pushdown=False)


@dataclass(frozen=True)
class Format:
    """How fields are separated. A separator of several characters excludes quotes.

    header: the first row names the columns; False: ``Column.source`` is a position.
    """

    header: bool
    separator: str = ","
    quote: str | None = '"'
    encoding: str = "utf-8"

    @property
    def is_plain(self) -> bool:
        """Can polars read it directly?"""
        return len(self.separator) == 1 and self.encoding == "utf-8"


@dataclass(frozen=True)
class DelimitedFile:
    """A file whose first row has been read (``open_delimited``).

    start: line of its first row. n_fields: in the first row. position: name -> place of the field,
    from 0; the entry "_only" is the field that ``only`` is compared with.
    """

    path: Path
    columns: list[Column]
    format: Format
    only: str | None  # rows whose "_only" field is another text are passed over
    start: int
    n_fields: int
    position: dict[str, int]

    def read_fast(self) -> pl.DataFrame | None:
        """The wanted columns, parsed by polars; None where it might read the file differently.

        Raises whatever polars raises for faulty files, and ``packed.DAMAGED``.
        """
        found = survey(self.path, self.format.separator, self.format.quote)
        # polars would take a blank first line for the header.
        if self.start != 1 or found.odd or (found.quotes and self.only is not None):
            return None
        source: Path | bytes = self.path
        separator = self.format.separator
        if not self.format.is_plain:
            content = unpacked(self.path, self.format.encoding)
            if UNIT.encode() in content:  # it would separate fields, too
                return None
            source = content.replace(separator.encode(), UNIT.encode())
            separator = UNIT
        elif not polars_unpacks(self.path):
            source = unpacked(self.path, self.format.encoding)
        frame = self._scan(source, separator).collect(optimizations=COUNTED)
        # Where rows are fewer than lines, polars may have read text after a quote as one field.
        if found.quotes and frame.height + self.format.header != found.lines:
            return None
        return frame

    def _scan(self, source: Path | bytes, separator: str) -> pl.LazyFrame:
        typed: dict[int, pl.DataType] = {}
        if self.only is None:  # other rows may hold anything
            typed = {self.position[column.name]: column.dtype for column in self.columns}
        raw = pl.scan_csv(
            source,
            glob=False,
            has_header=False,
            skip_rows=int(self.format.header),
            separator=separator,
            quote_char=self.format.quote,
            schema={f"c{i}": typed.get(i, pl.String()) for i in range(self.n_fields)},
        )
        frame = raw.select(pl.col(f"c{i}").alias(name) for name, i in self.position.items())
        if self.only is None:
            return frame
        return frame.filter(pl.col("_only") == self.only).drop("_only")

    def rows(self) -> Iterator[Row]:
        """Rows for ``Folder.table``: the wanted fields as texts, or the fault of the whole row."""
        # The last one makes it a tuple even for one column.
        pick = itemgetter(*self.position.values(), 0)
        for line, row, fault in islice(self._fields(), int(self.format.header), None):
            if fault or row is None:
                yield line, None, fault
                continue
            if len(row) > self.n_fields:
                yield line, None, f"has {len(row)} fields where {self.n_fields} are expected"
                continue
            picked = pick([*row, *[None] * (self.n_fields - len(row))])
            if self.only is None or picked[len(self.columns)] == self.only:
                yield line, picked, ""

    def _fields(self) -> Iterator[Row]:
        form = self.format
        return fields(self.path, form.separator, form.quote, form.encoding)


def open_delimited(
    path: Path,
    origin: str,
    columns: list[Column],
    form: Format,
    only: tuple[str, str] | None = None,
) -> DelimitedFile:
    """Read the first row and find the columns. only: (header name, text), see ``DelimitedFile``.

    Raises:
        RecexpError: the first row is broken or missing, or lacks a column.
    """
    first_rows = fields(path, form.separator, form.quote, form.encoding)
    start, first, fault = next(first_rows, (1, None, ""))
    if fault:
        raise RecexpError(f"{path}, line {start} {fault}. Correct the file.")
    if not first:
        raise RecexpError(f"{path} is empty. Get it anew from {origin}.")
    names: list[str | int] = list(range(len(first)))
    if form.header:
        names = [(field or "").strip() for field in first]
    position = {c.name: find_column(path, names, c.source, c.label) for c in columns}
    if only is not None:
        position["_only"] = find_column(path, names, only[0], f"column {only[0]!r}")
    text = None if only is None else only[1]
    return DelimitedFile(path, columns, form, text, start, len(first), position)


def find_column(path: Path, names: list[str | int], source: str | int, label: str) -> int:
    """The place of a column among ``names``. RecexpError where it is missing or there twice."""
    if names.count(source) == 1:
        return names.index(source)
    if isinstance(source, int):
        raise RecexpError(f"{path}, line 1: there are {len(names)} columns; {label} is missing")
    found = "twice in" if source in names else "not in"
    listed = shortened(", ".join(map(str, names)))
    raise RecexpError(f"{path}, line 1: {label} is {found} the header: {listed}")
