"""Columns of raw files: how a text is parsed, and what counts as a fault."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar, cast

import polars as pl

from recexp.data.raw.times import END_OF_TIME, UNITS, from_iso, from_numbers, from_pattern

MAX_NUMBER = 3.4e38  # values are kept in 32 bits

Kind = Literal["int", "id", "text", "number", "s", "ms", "us", "ns", "iso", "pattern"]
TIMES = (*UNITS, "iso", "pattern")

Frame = TypeVar("Frame", pl.DataFrame, pl.LazyFrame)


@dataclass(frozen=True)
class Column:
    """One wanted column of a raw file.

    name: of the parsed column.
    source: name in the header, or position (from 0) in a file without a header.
    kind: "int"; "id" (a text of one line); "text"; "number" (finite, within
        32 bits); or a time: "s", "ms", "us", "ns" (since 1970, fractions allowed), "iso" (a date,
        or date and time; UTC where no zone is given) or "pattern". Times become int64
        milliseconds.
    choices: the only texts allowed; empty allows all.
    nullable: may be blank, which gives null.
    pattern: of kind "pattern", as ``times.from_pattern`` takes it.
    """

    name: str
    source: str | int
    kind: Kind = "id"
    choices: tuple[str, ...] = ()
    nullable: bool = False
    pattern: str = ""

    @property
    def label(self) -> str:
        """How errors name the column."""
        if isinstance(self.source, str):
            return f"column {self.source!r}"
        return f"column {self.source + 1} ({self.name})"

    @property
    def dtype(self) -> pl.DataType:
        """The type as which polars parses the raw text."""
        if self.kind == "int":
            return pl.Int64()
        if self.kind == "number" or self.kind in UNITS:
            return pl.Float64()
        return pl.String()


def judge(frame: Frame, columns: list[Column]) -> Frame:
    """Parse the columns and find the fault of each row.

    Returns the parsed columns, and ``_reason``: null for a good row, else "<index of the column>
    <what is wrong with it>".
    """
    schema = frame.collect_schema()
    parsed = []
    raw = []
    reasons = []
    for i, column in enumerate(columns):
        is_text = schema[column.name] == pl.String
        parsed.append(_parse(column, is_text).alias(column.name))
        raw.append(pl.col(column.name).alias(f"_raw_{column.name}"))
        reasons.append(_reason(i, column, is_text))
    names = [column.name for column in columns]
    return frame.select(*parsed, *raw).select(*names, _reason=pl.coalesce(reasons))


def _reason(i: int, column: Column, is_text: bool) -> pl.Expr:
    """The first fault of column i, over the parsed column and its ``_raw_`` copy; null for none."""
    raw = pl.col(f"_raw_{column.name}")
    is_blank = raw.is_null()
    if is_text:
        is_blank = is_blank | (raw.str.strip_chars() == "")
    if column.nullable:
        reason = pl.lit(None, pl.String)
    else:
        reason = pl.when(is_blank).then(pl.lit(f"{i} is missing"))
    for is_bad, words in _faults(column, pl.col(column.name)):
        fault = pl.when(~is_blank & is_bad).then(pl.lit(f"{i} {words}"))
        reason = pl.coalesce(reason, fault)
    return reason


def _parse(column: Column, is_text: bool) -> pl.Expr:
    raw = pl.col(column.name)
    if is_text and column.kind not in ("id", "text"):
        raw = raw.str.strip_chars()
    if column.kind == "int":
        return raw.cast(pl.Int64, strict=False)
    if column.kind == "number":
        return raw.cast(pl.Float64, strict=False)
    if column.kind in UNITS:
        number = raw.cast(pl.Float64, strict=False)
        return from_numbers(number, column.kind).cast(pl.Int64, strict=False)
    if column.kind == "iso":
        return from_iso(raw)
    if column.kind == "pattern":
        return from_pattern(raw, column.pattern)
    return pl.when(raw.str.strip_chars() != "").then(raw) if column.nullable else raw


def _faults(column: Column, value: pl.Expr) -> list[tuple[pl.Expr, str]]:
    """What can be wrong with a value that is not blank: conditions and their words."""
    if column.kind == "int":
        return [(value.is_null(), "is not a whole number")]
    if column.kind == "number":
        return [
            (value.is_null() | ~value.is_finite(), "is not a number"),
            (value.abs() > MAX_NUMBER, f"lies beyond {MAX_NUMBER:g}"),
        ]
    if column.kind in TIMES:
        return _time_faults(column, value)
    faults = []
    if column.kind == "id":
        several_lines = "runs over several lines: a quote is likely unbalanced"
        faults.append((value.str.contains("[\r\n]"), several_lines))
    if column.choices:
        not_allowed = ~value.is_in(list(column.choices))
        faults.append((not_allowed, f"is not one of {', '.join(column.choices)}"))
    return faults


def _time_faults(column: Column, value: pl.Expr) -> list[tuple[pl.Expr, str]]:
    wanted = {
        "iso": "date (YYYY-MM-DD, or with HH:MM:SS)",
        "pattern": f"time of the form {column.pattern}",
    }.get(column.kind, "number")
    late = "lies beyond the year 9999"
    if column.kind == "s":
        late += ": are the times in milliseconds?"
    return [
        (value.is_null(), f"is not a {wanted}"),
        (value < 0, "is a time before 1970"),
        (value >= END_OF_TIME, late),
    ]


def time_column(name: str, source: str | int, time_unit: str) -> Column:
    """A column of times. time_unit: a kind of time, or a pattern of ``times.from_pattern``."""
    if "%" in time_unit:
        return Column(name, source, "pattern", pattern=time_unit)
    return Column(name, source, cast(Kind, time_unit))
