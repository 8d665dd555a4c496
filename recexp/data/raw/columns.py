"""Columns of raw files: how a text is parsed, and what counts as a fault."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

import polars as pl

END_OF_TIME = 253_402_300_800_000  # the year 10 000 in milliseconds
MAX_NUMBER = 3.4e38  # values are kept in 32 bits
ISO_FORMATS = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%d")

Kind = Literal["int", "id", "text", "number", "s", "ms", "iso"]
TimeUnit = Literal["s", "ms", "iso"]
TIMES = ("s", "ms", "iso")

Frame = TypeVar("Frame", pl.DataFrame, pl.LazyFrame)


@dataclass(frozen=True)
class Column:
    """One wanted column of a raw file.

    name: of the parsed column.
    source: name in the header, or position (from 0) in a file without a header.
    kind: "int"; "id" (a text of one line); "text"; "number" (finite, within
        32 bits); or a time: "s" and "ms" (seconds or milliseconds since 1970, fractions allowed) or
        "iso" (a date, or date and time; UTC where no zone is given). Times become int64
        milliseconds.
    choices: the only texts allowed; empty allows all.
    nullable: may be blank, which gives null.
    """

    name: str
    source: str | int
    kind: Kind = "id"
    choices: tuple[str, ...] = ()
    nullable: bool = False

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
        if self.kind in ("number", "s", "ms"):
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
    if column.kind in ("s", "ms"):
        milliseconds = raw.cast(pl.Float64, strict=False) * (1000 if column.kind == "s" else 1)
        return milliseconds.round().cast(pl.Int64, strict=False)
    if column.kind == "iso":
        return _parse_iso(raw)
    return pl.when(raw.str.strip_chars() != "").then(raw) if column.nullable else raw


def _parse_iso(raw: pl.Expr) -> pl.Expr:
    """Milliseconds since 1970 of the first format that fits; null for none."""
    text = raw.str.replace("T", " ", literal=True)
    times = []
    for form in ISO_FORMATS:
        zone = "UTC" if "z" in form else None
        time = text.str.to_datetime(form, strict=False, time_unit="ms", time_zone=zone)
        times.append(time.dt.timestamp("ms"))
    return pl.coalesce(times)


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
    wanted = "date (YYYY-MM-DD, or with HH:MM:SS)" if column.kind == "iso" else "number"
    late = "lies beyond the year 9999"
    if column.kind == "s":
        late += ": are the times in milliseconds?"
    return [
        (value.is_null(), f"is not a {wanted}"),
        (value < 0, "is a time before 1970"),
        (value >= END_OF_TIME, late),
    ]
