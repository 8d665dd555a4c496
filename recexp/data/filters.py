"""Filters that drop users and items with too little data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from recexp.errors import RecexpError

KEYS = {"user_min", "item_min", "user_max", "count"}


def apply_filters(
    events: pl.DataFrame, steps: Sequence[Mapping], iterate: bool = False
) -> tuple[pl.DataFrame, list[str]]:
    """Apply the steps in order; each counts once, then drops what falls short, jointly for its keys.

    A step is a mapping with ``user_min`` and/or ``item_min`` (least count kept), ``user_max`` (most), and ``count``: "events" (default) or "items"
    (distinct items of a user, distinct users of an item). With ``iterate`` the whole list is repeated until nothing changes (k-core).

    Returns the events that stay and one line per step that says what went. Raises RecexpError on an unknown key or when nothing is left.
    """
    lines: list[str] = []
    for step in steps:
        if unknown := set(step) - KEYS:
            raise RecexpError(
                f"dataset.filters: unknown key {sorted(unknown)}; a filter step knows {sorted(KEYS)}."
            )
        if step.get("count", "events") not in ("events", "items"):
            raise RecexpError(
                f"dataset.filters: count={step['count']!r} is neither 'events' nor 'items'."
            )
    while True:
        before_all = events.height
        for step in steps:
            before = events.height
            events = _apply(events, step)
            text = ", ".join(f"{k}={v}" for k, v in step.items())
            lines.append(
                f"filter ({text}): {before - events.height:,} of {before:,} events dropped"
            )
            if events.height == 0:
                raise RecexpError(
                    f"The filter ({text}) left no event of {before:,}: lower it in dataset.filters, or check the input."
                )
        if not iterate or events.height == before_all:
            return events, lines


def _apply(events: pl.DataFrame, step: Mapping) -> pl.DataFrame:
    distinct = step.get("count", "events") == "items"
    keep = pl.lit(True)
    for key, other, least in (
        ("user", "item", step.get("user_min")),
        ("item", "user", step.get("item_min")),
    ):
        if least is not None:
            n = pl.col(other).n_unique() if distinct else pl.len()
            keep = keep & (n.over(key) >= least)
    if step.get("user_max") is not None:
        n = pl.col("item").n_unique() if distinct else pl.len()
        keep = keep & (n.over("user") <= step["user_max"])
    return events.filter(keep)
