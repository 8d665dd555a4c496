"""Columns of raw files: how a text is parsed, and what counts as a fault."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

END_OF_TIME = 253_402_300_800_000  # the year 10 000 in milliseconds
MAX_NUMBER = 3.4e38  # values are kept in 32 bits
NO_ID = ("null", "NULL", "None", "nan", "NaN", "\\N")  # what other programs write for a missing id
ISO_FORMATS = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%d")


@dataclass(frozen=True)
class Column:
    """One wanted column of a raw file.

    source: its name in the header, or its position (from 0) in a file without one.
    kind: "int", "id" (any text but the usual spellings of null), "text", "number" (finite, within 32 bits), or a time: "s" and "ms" (seconds
    or milliseconds since 1970, fractions allowed) or "iso" (a date, or date and time; UTC where no zone is given). Times
    come out as int64 milliseconds.
    choices: the only texts allowed, where given. nullable: may be blank, which gives null.
    """

    name: str
    source: str | int
    kind: str = "id"
    choices: tuple[str, ...] = ()
    nullable: bool = False

    @property
    def label(self) -> str:
        """How an error names it."""
        return (
            f"column {self.source!r}"
            if isinstance(self.source, str)
            else f"column {self.source + 1} ({self.name})"
        )

    @property
    def dtype(self) -> pl.DataType:
        """What polars parses the raw text as."""
        return {
            "int": pl.Int64(),
            "number": pl.Float64(),
            "s": pl.Float64(),
            "ms": pl.Float64(),
        }.get(self.kind, pl.String())


def judge(frame: pl.DataFrame, columns: list[Column]) -> pl.DataFrame:
    """Parsed columns, and ``_reason``: "<index of the column> <what is wrong with it>", null for a good row."""
    reasons = []
    for i, column in enumerate(columns):
        raw, value = pl.col(f"_raw_{column.name}"), pl.col(column.name)
        blank = (
            raw.is_null() | (raw.str.strip_chars() == "")
            if frame.schema[column.name] == pl.String
            else raw.is_null()
        )
        reason = (
            pl.lit(None, pl.String)
            if column.nullable
            else pl.when(blank).then(pl.lit(f"{i} is missing"))
        )
        for bad, words in _faults(column, value):
            reason = pl.coalesce(reason, pl.when(~blank & bad).then(pl.lit(f"{i} {words}")))
        reasons.append(reason)
    parsed = [
        _parse(column, frame.schema[column.name] == pl.String).alias(column.name)
        for column in columns
    ]
    raws = [pl.col(column.name).alias(f"_raw_{column.name}") for column in columns]
    return frame.select(*parsed, *raws).select(
        *(column.name for column in columns), _reason=pl.coalesce(reasons)
    )


def _parse(column: Column, is_text: bool) -> pl.Expr:
    raw = pl.col(column.name)
    if is_text and column.kind in ("int", "number", "s", "ms", "iso"):
        raw = raw.str.strip_chars()
    if column.kind == "int":
        return raw.cast(pl.Int64, strict=False)
    if column.kind == "number":
        return raw.cast(pl.Float64, strict=False)
    if column.kind in ("s", "ms"):
        ms = raw.cast(pl.Float64, strict=False) * (1000 if column.kind == "s" else 1)
        return ms.round().cast(pl.Int64, strict=False)
    if column.kind == "iso":
        text = raw.str.replace("T", " ", literal=True)
        utc = [
            text.str.to_datetime(
                form, strict=False, time_unit="ms", time_zone="UTC" if "z" in form else None
            )
            for form in ISO_FORMATS
        ]
        return pl.coalesce(time.dt.timestamp("ms") for time in utc)
    return pl.when(raw.str.strip_chars() != "").then(raw) if column.nullable else raw


def _faults(column: Column, value: pl.Expr) -> list[tuple[pl.Expr, str]]:
    """What can be wrong with a value that is not blank."""
    if column.kind == "int":
        return [(value.is_null(), "is not a whole number")]
    if column.kind == "number":
        return [
            (value.is_null() | ~value.is_finite(), "is not a number"),
            (value.abs() > MAX_NUMBER, f"lies beyond {MAX_NUMBER:g}"),
        ]
    if column.kind in ("s", "ms", "iso"):
        late = "lies beyond the year 9999" + (
            ": are the times in milliseconds?" if column.kind == "s" else ""
        )
        what = "date (YYYY-MM-DD, or with HH:MM:SS)" if column.kind == "iso" else "number"
        return [
            (value.is_null(), f"is not a {what}"),
            (value < 0, "is a time before 1970"),
            (value >= END_OF_TIME, late),
        ]
    faults = []
    if column.kind == "id":
        faults = [(value.is_in(list(NO_ID)), "stands for a missing id")]
        faults.append(
            (value.str.contains("[\r\n]"), "runs over several lines: a quote is likely unbalanced")
        )
    if column.choices:
        faults.append(
            (~value.is_in(list(column.choices)), f"is not one of {', '.join(column.choices)}")
        )
    return faults
