"""Texts as ids: blanks around them do not count, and what stands for a missing id is none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from recexp.data.audit import Report
from recexp.errors import RecexpError

COLUMNS = ("user", "item")
SHOWN = 10  # spellings that the report lists


def clean_ids(
    events: pl.DataFrame, missing: Sequence[str], report: Report
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Events whose user and item are known, with text ids freed of blanks around them.

    missing: texts that stand for a missing id, in upper or lower case; where there are none, texts
    are taken as they stand. Numbers are taken as they are; null is no id of any type.

    Returns the events, and what was done to them, empty where nothing was:
        dropped: number of events without a user or an item.
        missing: "user" and "item" -> spelling -> number of events.
        stripped: "user" and "item" -> number of events whose id had blanks around it.

    Raises:
        RecexpError: no event is left.
    """
    ids = {name: _id(events, name, missing) for name in COLUMNS}
    is_missing = {name: _is_missing(events, name, missing) for name in COLUMNS}
    has_blanks = {name: pl.col(name) != ids[name] for name in COLUMNS}
    without = pl.any_horizontal(*is_missing.values())
    counts = events.select(
        without.sum().alias("dropped"),
        *(expression.sum().alias(name) for name, expression in has_blanks.items()),
    ).row(0, named=True)
    stripped = {name: counts[name] for name in COLUMNS if counts[name]}
    n_dropped = counts["dropped"]
    done: dict[str, Any] = {}
    if stripped:
        done["stripped"] = stripped
        places = " and ".join(f"{n:,} {name} ids" for name, n in stripped.items())
        report.add(f"blanks around {places} removed")
    if n_dropped:
        done["dropped"] = n_dropped
        done["missing"] = {
            name: found
            for name in COLUMNS
            if (found := _spellings(events.filter(is_missing[name]).select(ids[name])))
        }
        report.add(_dropped_line(n_dropped, done["missing"]))
        known_users = events.filter(~is_missing["user"]).select(ids["user"])
        events = events.filter(~without)
        if events.is_empty():
            raise RecexpError(
                "No event has both a user and an item: all hold a text of dataset.missing_ids. "
                "Check the columns that the reader takes them from."
            )
        n_users = events.select(ids["user"].n_unique()).item()
        report.leave_out("removed by dataset.missing_ids", known_users["user"].n_unique() - n_users)
    if stripped:
        events = events.with_columns(*ids.values())
    return events, done


def is_text(frame: pl.DataFrame, column: str) -> bool:
    return frame.schema[column] == pl.String


def _id(events: pl.DataFrame, column: str, missing: Sequence[str]) -> pl.Expr:
    """The id without blanks around it."""
    id_ = pl.col(column)
    return id_.str.strip_chars() if missing and is_text(events, column) else id_


def _is_missing(events: pl.DataFrame, column: str, missing: Sequence[str]) -> pl.Expr:
    is_null = pl.col(column).is_null()
    if not missing or not is_text(events, column):
        return is_null
    # One pattern takes a third of the time of lower case and a look-up.
    texts = "|".join(pl.escape_regex(text.strip()) for text in missing)
    pattern = rf"(?i)^\s*(?:{texts})\s*$"
    return is_null | pl.col(column).str.contains(pattern)


def _spellings(ids: pl.DataFrame) -> dict[str, int]:
    """Text -> number of events, the most frequent first; null counts as ""."""
    texts = ids.to_series().cast(pl.String).fill_null("")
    counts = texts.value_counts(name="n").sort("n", texts.name, descending=[True, False])
    return dict(counts.rows())


def _dropped_line(n_dropped: int, missing: dict[str, dict[str, int]]) -> str:
    spelled: dict[str, int] = {}
    for counts in missing.values():
        for text, n in counts.items():
            spelled[text] = spelled.get(text, 0) + n
    shown = [f"{text!r} {n:,} times" for text, n in [*spelled.items()][:SHOWN]]
    more = ", ..." if len(spelled) > SHOWN else ""
    return (
        f"{n_dropped:,} events dropped: they have no user or no item "
        f"({', '.join(shown)}{more}; dataset.missing_ids)"
    )
