"""The value of a text, in plain Python: the reference for the readers. ``Bad`` where the text has
no value.
"""

from __future__ import annotations

import math
import re
import struct
from datetime import UTC, datetime, timedelta

SPACE = (
    " \t\n\v\f\r\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004"
    "\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)
NO_ID = (
    "",
    "na",
    "n/a",
    "#n/a",
    "<na>",
    "null",
    "<null>",
    "(null)",
    "none",
    "nil",
    "nan",
    "nat",
    "undefined",
    "\\n",
)
# polars lets space stand before each part
DATE = re.compile(
    r"\+?([0-9]{4})-\s*([0-9]{1,2}+)-\s*([0-9]{1,2}+)"
    r"(?:T?\s*([0-9]{1,2}+):\s*([0-9]{1,2}+)(?::\s*([0-9]{1,2}+)(\.[0-9]{1,9})?)?"
    r"\s*(?:([Zz])|([+-])([0-9]{2})(?::?([0-9]{2})|:)?)?)?(?: UTC)?"
)
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
END = 253_402_300_800_000


class Bad(Exception):
    """The text has no value of the wanted kind."""


def f32(number: float) -> float:
    """As 32 bits hold it."""
    return struct.unpack("f", struct.pack("f", number))[0]


def parsed(
    text: str | None, kind: str, nullable: bool = False, choices: tuple[str, ...] = ()
) -> object:
    """The value of a field of this kind (as ``recexp.data.raw.columns.Column`` calls them)."""
    if text is None or not text.strip(SPACE):
        if nullable:
            return None
        raise Bad("blank")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Bad("no UTF-8") from None
    if choices and text not in choices:
        raise Bad("no choice")
    return {
        "int": _int,
        "number": _number,
        "s": _seconds,
        "ms": _milliseconds,
        "iso": _date,
        "id": _id,
        "text": str,
    }[kind](text)


def _int(text: str) -> int:
    text = text.strip(SPACE)
    if (
        not re.fullmatch(r"[+-]?[0-9]+", text)
        or len(text) > 4000
        or not -(2**63) <= int(text) < 2**63
    ):
        raise Bad("no int")
    return int(text)


def _number(text: str) -> float:
    text = text.strip(SPACE)
    if not NUMBER.fullmatch(text) or abs(float(text)) > 3.4e38:
        raise Bad("no number")
    return float(text)


def _time(ms: float) -> int:
    if not math.isfinite(ms):
        raise Bad("no time")
    rounded = round(ms)
    if not 0 <= rounded < END:
        raise Bad("no time of ours")
    return rounded


def _seconds(text: str) -> int:
    return _time(_number(text) * 1000)


def _milliseconds(text: str) -> int:
    return _time(_number(text))


def _date(text: str) -> int:
    match = DATE.fullmatch(text.strip(SPACE))
    if not match:
        raise Bad("no date")
    *whole, fraction, _, sign, hours, minutes = match.groups()
    try:
        *whole, second = (int(part or 0) for part in whole)
        moment = datetime(*whole, min(second, 59), tzinfo=UTC) + timedelta(
            seconds=second == 60
        )  # a leap second is the next one
        if second > 60:
            raise Bad("no second")
        if sign:
            if int(hours) > 23 or int(minutes or 0) > 59:
                raise Bad("no zone")
            moment -= (1 if sign == "+" else -1) * timedelta(
                hours=int(hours), minutes=int(minutes or 0)
            )
    except (ValueError, OverflowError):
        raise Bad("no date") from None
    ms = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1) + (
        int((fraction[1:] + "00")[:3]) if fraction else 0
    )
    if not 0 <= ms < END:
        raise Bad("no time of ours")
    return ms


def _id(text: str) -> str:
    if "\n" in text or "\r" in text:
        raise Bad("no id")
    return text
