"""Times of raw files: numbers since 1970, ISO texts, and texts of a pattern.

All become int64 milliseconds since 1970, in UTC where no zone is given.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TypeVar

import polars as pl

from recexp.errors import RecexpError

END_OF_TIME = 253_402_300_800_000  # the year 10 000 in milliseconds
# Milliseconds per unit.
UNITS = {"s": 1000.0, "ms": 1.0, "us": 1e-3, "ns": 1e-6}
UNIT_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
ISO_FORMATS = (
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%d %H:%M:%S%.f%#z",
    "%Y-%m-%d",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d %H:%M%#z",
)
ZONE_NAME = " UTC"  # no ISO, but written by many programs
YEAR = 2000  # of times whose pattern has none: a leap year
YEAR_CODES = re.compile(r"%[YyGgCcDFxs]")
DIGITS_ONLY = re.compile(r"(?:%[YmdHMS])+")
Text = TypeVar("Text", pl.Series, pl.Expr)
EXAMPLE = datetime(2014, 5, 15, 16, 40, 30, tzinfo=UTC)


def from_numbers(number: pl.Expr, unit: str) -> pl.Expr:
    """Milliseconds of numbers in a unit of ``UNITS``, rounded."""
    if unit in ("us", "ns"):
        return (number / (1000 if unit == "us" else 1_000_000)).round()
    return (number * UNITS[unit]).round()


def from_iso(text: pl.Expr) -> pl.Expr:
    """Milliseconds of ISO dates, or dates and times; null for other texts."""
    return text.map_batches(_iso_series, return_dtype=pl.Int64, is_elementwise=True)


def from_pattern(text: pl.Expr, pattern: str) -> pl.Expr:
    """Milliseconds of texts of a pattern, as ``datetime.strptime`` takes it; null for other texts.

    A pattern without a year gets ``YEAR``. Where it consists of digits only, such as %m%d, zeros
    that were lost at the front are put back: 829 is 0829.
    """
    if DIGITS_ONLY.fullmatch(pattern):
        text = text.str.zfill(sum(4 if code == "Y" else 2 for code in pattern[1::2]))
    # polars takes Rust's codes, and no hours without minutes.
    form = pattern.replace(".%f", "%.f").replace("%z", "%#z")
    if re.search("%[HI]", form) and "%M" not in form:
        form += " %M"
        text = text + " 00"
    if not has_year(pattern):
        form = f"%Y {form}"
        text = f"{YEAR} " + text
    return _milliseconds(text, form)


def has_year(pattern: str) -> bool:
    return YEAR_CODES.search(pattern) is not None


def check_time_unit(time_unit: object) -> None:
    """Raise RecexpError unless it is auto, a unit of ``UNITS``, iso or a pattern."""
    if isinstance(time_unit, str) and "%" in time_unit:
        check_pattern(time_unit)
    elif time_unit not in (*UNITS, "iso", "auto"):
        raise RecexpError(
            f"time_unit={time_unit!r} is not known; choose auto, {', '.join(UNITS)}, iso or a "
            "pattern such as %Y%m%d"
        )


def check_pattern(pattern: str) -> None:
    """Raise RecexpError for a pattern that cannot be read, not even what Python writes by it."""
    try:
        written = pl.DataFrame({"time": [EXAMPLE.strftime(pattern)]})
        if written.select(from_pattern(pl.col("time"), pattern)).item() is not None:
            return
    except (pl.exceptions.PolarsError, ValueError):
        pass
    raise RecexpError(
        f"time_unit={pattern!r} is no pattern of a date: use the codes of Python's strptime, such "
        "as %Y%m%d or '%d.%m.%Y %H:%M'."
    )


def detected_unit(times: Sequence[str | None]) -> str:
    """The unit of some times: a unit of ``UNITS`` where most are numbers, else "iso".

    The size of numbers decides: the unit is the largest in which the middle one lies before the
    year 10 000. It is thus wrong for milliseconds before 1978. "s" where there is no time at all.
    """
    texts = pl.Series(times, dtype=pl.String).str.strip_chars()
    texts = texts.filter(texts != "")
    numbers = texts.cast(pl.Float64, strict=False).drop_nulls().drop_nans().abs()
    if texts.is_empty() or 2 * len(numbers) < len(texts):
        return "s" if texts.is_empty() else "iso"
    middle = float(numbers.quantile(0.5, "lower"))  # type: ignore[arg-type]
    fitting = [unit for unit, factor in UNITS.items() if middle * factor < END_OF_TIME]
    return fitting[0] if fitting else "ns"


def _iso_series(text: pl.Series) -> pl.Series:
    times = _by_formats(text)
    if times.null_count() == text.null_count():
        return times
    named = text.set(times.is_not_null() | ~text.str.ends_with(ZONE_NAME), None)
    return times.fill_null(_by_formats(named.str.strip_suffix(ZONE_NAME)))


def _by_formats(text: pl.Series) -> pl.Series:
    """Milliseconds by the first of ``ISO_FORMATS`` that fits; each reads what is left."""
    rest = text.str.replace("T", " ", literal=True)
    times = _milliseconds(rest, ISO_FORMATS[0])
    for form in ISO_FORMATS[1:]:
        if times.null_count() == text.null_count():
            break
        rest = rest.set(times.is_not_null(), None)
        times = times.fill_null(_milliseconds(rest, form))
    return times


def _milliseconds(text: Text, form: str) -> Text:
    zone = "UTC" if "%#z" in form else None
    time = text.str.to_datetime(form, strict=False, time_unit="ms", time_zone=zone)
    return time.dt.timestamp("ms")
