"""Which events count: known behaviors, the time window, and enough data per user and item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import polars as pl

from recexp.data.audit import Report
from recexp.data.dataset import Dataset, check_filters, iso_milliseconds
from recexp.errors import RecexpError

DAY = 86_400_000  # milliseconds
YEAR_1980 = 315_532_800_000


def behavior_codes(
    events: pl.LazyFrame, dataset: Dataset, file: Path, report: Report
) -> pl.LazyFrame:
    """Replace the names in column ``behavior`` by int8 codes 1..K, weak to strong.

    With ``dataset.value_behaviors`` the codes come from the column ``value``. Behaviors that
    ``dataset.keep_behaviors`` leaves out are dropped. file: for errors.

    Raises:
        RecexpError: an unknown behavior (unless on_bad_rows="drop"), or no event is left.
    """
    if dataset.value_behaviors:
        return _codes_from_values(events, dataset, dataset.value_behaviors, report)
    code_of = _code_of_texts(dataset)
    known = _known_behaviors(events, list(code_of), dataset, file, report)
    code = pl.lit(None, dtype=pl.Int8)
    # A chain of conditions: replace_strict would gather all events before it replaces.
    for text, number in code_of.items():
        code = pl.when(pl.col("behavior") == text).then(_int8(number)).otherwise(code)
    return known.with_columns(behavior=code)


def within_window(events: pl.DataFrame, dataset: Dataset, report: Report) -> pl.DataFrame:
    """Events with start <= timestamp < end of ``dataset.window``; all where it is None.

    Raises:
        RecexpError: a date that is missing or not ISO, or no event is left.
    """
    window = dataset.window
    if not window:
        return events
    start = iso_milliseconds(window, "start")
    end = iso_milliseconds(window, "end")
    kept = events.filter((pl.col("timestamp") >= start) & (pl.col("timestamp") < end))
    report.add(
        f"window {window['start']} to {window['end']}: "
        f"{events.height - kept.height:,} events outside dropped"
    )
    n_removed = events["user"].n_unique() - kept["user"].n_unique()
    report.leave_out("removed by dataset.window", n_removed)
    if kept.height == 0:
        first = _iso_date(cast(int, events["timestamp"].min()))
        last = _iso_date(cast(int, events["timestamp"].max()))
        raise RecexpError(f"dataset.window left no event: the data run from {first} to {last}.")
    return kept


def report_times(events: pl.DataFrame, has_times: bool, report: Report) -> None:
    """Say which times the events have, and warn of those that a wrong unit gives."""
    if not has_times:
        report.add("the events have no times: their place in the files is their order")
        return
    time = events["timestamp"]
    first, last = cast(int, time.min()), cast(int, time.max())
    report.add(f"times run from {_minute(first)} to {_minute(last)} (UTC)")
    advice = "check the unit of the times"
    if _are_dates(first) and _are_dates(last):
        advice = f"numbers such as {first // 1000} are dates: dataset.source.time_unit=%Y%m%d"
    now = int(datetime.now(UTC).timestamp() * 1000)
    for n_events, where in (
        (int((time < YEAR_1980).sum()), "before 1980"),
        (int((time > now + DAY).sum()), "in the future"),
    ):
        if n_events:
            report.add(f"warning: {n_events:,} event(s) lie {where}: {advice}")


def split_sessions(
    events: pl.DataFrame, sessions: Mapping[str, Any] | None, report: Report
) -> pl.DataFrame:
    """Make each session of a user a user of its own, "<user>#<number from 1>"; the rows keep order.

    sessions: {gap_minutes}: a session ends where the user's next event is more than so many minutes
        later. None: nothing changes.
    """
    if sessions is None:
        return events
    n_users = events["user"].n_unique()
    gap = float(sessions["gap_minutes"]) * 60_000
    # Sorting is stable: events of the same time stay in the order of the files.
    rows = events.select("user", "timestamp").with_row_index("row")
    rows = rows.sort("user", "timestamp", maintain_order=True)
    starts = pl.col("timestamp").diff().over("user").fill_null(0) > gap
    number = 1 + starts.cum_sum().over("user")
    name = pl.concat_str(pl.col("user").cast(pl.String), pl.lit("#"), number)
    users = rows.select("row", user=name).sort("row")["user"]
    report.add(f"dataset.sessions: {n_users:,} users have {users.n_unique():,} sessions")
    return events.with_columns(users)


def owners_of_sessions(sessions: pl.DataFrame) -> pl.DataFrame:
    """The frame with users in place of the names that ``split_sessions`` gave their sessions."""
    return sessions.with_columns(pl.col("user").str.replace(r"#[0-9]+$", ""))


def apply_filters(
    events: pl.DataFrame, steps: Sequence[Mapping[str, Any]], iterate: bool = False
) -> tuple[pl.DataFrame, list[str]]:
    """Apply the steps in order. Each counts once, then drops jointly what any of its keys rejects.

    steps: mappings with ``user_min`` and ``item_min`` (least count kept), ``user_max`` (largest
        count kept), and ``count``: "events" (default) or "items" (distinct items of a user,
        distinct users of an item).
    iterate: repeat all steps until nothing changes (k-core).

    Returns the events that stay, and one line per step that tells what was dropped.

    Raises:
        RecexpError: an unknown key, or no event is left.
    """
    check_filters(steps)
    lines: list[str] = []
    while True:
        n_before_all = events.height
        for step in steps:
            n_before = events.height
            events = _apply(events, step)
            text = ", ".join(f"{k}={v}" for k, v in step.items())
            n_dropped = n_before - events.height
            lines.append(f"filter ({text}): {n_dropped:,} of {n_before:,} events dropped")
            if events.height == 0:
                raise RecexpError(
                    f"The filter ({text}) left no event of {n_before:,}: "
                    "lower it in dataset.filters, or check the input."
                )
        if not iterate or events.height == n_before_all:
            return events, lines


def _apply(events: pl.DataFrame, step: Mapping[str, Any]) -> pl.DataFrame:
    distinct = step.get("count", "events") == "items"

    def count_per(key: str) -> pl.Expr:
        other = "item" if key == "user" else "user"
        counted = pl.col(other).n_unique() if distinct else pl.len()
        return counted.over(key)

    keep = pl.lit(True)
    if step.get("user_min") is not None:
        keep = keep & (count_per("user") >= step["user_min"])
    if step.get("item_min") is not None:
        keep = keep & (count_per("item") >= step["item_min"])
    if step.get("user_max") is not None:
        keep = keep & (count_per("user") <= step["user_max"])
    return events.filter(keep)


def _codes_from_values(
    events: pl.LazyFrame, dataset: Dataset, thresholds: Mapping[str, float], report: Report
) -> pl.LazyFrame:
    """The strongest behavior whose threshold the value reaches; events below all are dropped."""
    if "value" not in events.collect_schema():
        raise RecexpError(
            "dataset.value_behaviors is set, but the events carry no value to read behaviors from."
        )
    code = _int8(0)
    for number, name in enumerate(dataset.behaviors, 1):  # ascending thresholds
        reaches = pl.col("value") >= thresholds[name]
        code = pl.when(reaches).then(_int8(number)).otherwise(code)
    events = events.with_columns(behavior=code)
    n_below = count_events(events.filter(pl.col("behavior") == 0))
    n_events = count_events(events)
    if n_below:
        report.add(
            f"{n_below:,} events dropped: their value is missing or below every threshold of "
            "dataset.value_behaviors"
        )
    if n_below == n_events:
        raise RecexpError(
            f"{dataset.name}: no event's value reaches a threshold of "
            f"dataset.value_behaviors {dict(thresholds)}."
        )
    kept = events.filter(pl.col("behavior") > 0)
    if n_below:
        n_removed = _count_users(events) - _count_users(kept)
        report.leave_out("removed by dataset.value_behaviors", n_removed)
    return kept


def _code_of_texts(dataset: Dataset) -> dict[str, int]:
    """Behavior text in the files -> code 1..K, of the behaviors that are kept."""
    number = {name: code for code, name in enumerate(dataset.behaviors, 1)}
    if not dataset.behavior_names:
        return number
    return {text: number[name] for text, name in dataset.behavior_names.items() if name in number}


def _known_behaviors(
    events: pl.LazyFrame, known: list[str], dataset: Dataset, file: Path, report: Report
) -> pl.LazyFrame:
    """Events whose behavior text is known; others are dropped, or an error where all are kept."""
    distinct = events.select(pl.col("behavior").unique()).collect(engine="streaming")
    unknown = sorted(set(distinct.to_series()) - set(known))
    if not unknown:
        return events
    option = "behaviors" if dataset.keep_behaviors is None else "keep_behaviors"
    if option == "behaviors" and dataset.on_bad_rows == "error":
        raise _unknown_behavior(events, unknown, known, file)
    kept = events.filter(pl.col("behavior").is_in(known))
    n_kept = count_events(kept)
    n_removed = _count_users(events) - _count_users(kept)
    report.leave_out(f"removed by dataset.{option}", n_removed)
    n_dropped = count_events(events) - n_kept
    report.add(f"{n_dropped:,} events dropped: behavior among {unknown}")
    if n_kept == 0:
        raise RecexpError(f"{dataset.name}: no event has one of the behaviors {known}.")
    return kept


def _unknown_behavior(
    events: pl.LazyFrame, unknown: list[str], known: list[str], file: Path
) -> RecexpError:
    """The error that names the first event with an unknown behavior."""
    of_unknown = events.with_row_index("row").filter(pl.col("behavior").is_in(unknown))
    row = of_unknown.head(1).collect(engine="streaming").row(0, named=True)
    return RecexpError(
        f"{file}: unknown behavior {row['behavior']!r} in event {row['row'] + 1} "
        f"(user {row['user']}, item {row['item']}). "
        f"dataset.behaviors (or behavior_names) lists {known}: add it there, name those to take "
        "in dataset.keep_behaviors, or use dataset.on_bad_rows=drop."
    )


def count_events(events: pl.LazyFrame) -> int:
    return int(events.select(pl.len()).collect(engine="streaming").item())


def _count_users(events: pl.LazyFrame) -> int:
    return int(events.select(pl.col("user").n_unique()).collect(engine="streaming").item())


def _int8(number: int) -> pl.Expr:
    return pl.lit(number, dtype=pl.Int8)


def _minute(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M")


def _are_dates(milliseconds: int) -> bool:
    """Do the seconds look like a date, such as 20140515?"""
    try:
        datetime.strptime(str(milliseconds // 1000), "%Y%m%d")
    except ValueError:
        return False
    return 19_000_101 <= milliseconds // 1000 <= 21_001_231


def _iso_date(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat()
