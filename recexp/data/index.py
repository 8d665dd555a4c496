"""From raw ids to consecutive numbers, and from a frame of events to sorted rows."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import polars as pl

from recexp.data.readers import EVENT_PREFIX
from recexp.data.rows import BLOCK, Rows

MAX_LEVELS = 1000  # a value with more distinct levels is taken as continuous


def index_events(
    events: pl.DataFrame,
) -> tuple[pl.DataFrame, pl.DataFrame, Rows, list[float]]:
    """Number users and items and sort the events by user and time.

    events: columns user, item, behavior (int8 codes), timestamp (int64 ms), optionally value, part
    (int8 codes of ``recexp.data.rows``) and those of event features
    (``features.code_event_features``). The columns are removed from the frame as they are read, to
    free their memory.

    Returns:
        users, items: columns ``index`` (int64; from 0 and from 1) and the raw id, ascending.
        rows: the sorted events.
        levels: the distinct values, ascending; level id n stands for levels[n - 1]. Empty where
            events carry no value, or a continuous one such as a price.
    """
    value, levels = _level_ids(events)
    users, user = _indexed(events.drop_in_place("user"), first=0)
    items, item = _indexed(events.drop_in_place("item"), first=1)
    behavior = events.drop_in_place("behavior").to_numpy()
    time = events.drop_in_place("timestamp").to_numpy()
    part = events.drop_in_place("part").to_numpy() if "part" in events.columns else None

    order = _by_user_and_time(user, time)
    # Reassigned a column at a time, so that each unsorted column is freed before the next.
    user = user[order]
    item = item[order]
    behavior = behavior[order]
    time = time[order]
    if value is not None:
        value = value[order]
    if part is not None:
        part = part[order]

    bits = np.int8 if behavior.max() < 8 else np.int32
    mask = np.left_shift(bits(1), behavior - 1, dtype=bits)
    origin = np.arange(len(user), dtype=_row_number_type(len(user)))
    names = [name for name in events.columns if name.startswith(EVENT_PREFIX)]
    features = {
        name.removeprefix(EVENT_PREFIX): events.drop_in_place(name).to_numpy()[order]
        for name in names
    }
    rows = Rows(user, item, behavior, time, mask, origin, value, part, features)
    return users, items, rows, levels


def _level_ids(events: pl.DataFrame) -> tuple[np.ndarray | None, list[float]]:
    """Level id of each event's value, int16 [E] (0: unknown), and the levels."""
    if "value" not in events.columns:
        return None, []
    column = events["value"]
    levels = column.drop_nulls().unique().sort().to_numpy()
    if not 0 < len(levels) <= MAX_LEVELS:
        return None, []
    is_known = column.is_not_null().to_numpy()
    ids = np.searchsorted(levels, column.fill_null(levels[0]).to_numpy()) + 1
    return np.where(is_known, ids, 0).astype(np.int16), levels.tolist()


def _indexed(raw: pl.Series, first: int) -> tuple[pl.DataFrame, np.ndarray]:
    """The table of ids (``index`` from ``first`` on, raw id) and each row's index, int32 [E]."""
    ids = raw.unique().sort()
    index = pl.col("index").cast(pl.Int64)
    table = ids.to_frame().with_row_index("index", offset=first).with_columns(index)
    if raw.dtype.is_integer():
        return table, _index_integers(raw, ids.to_numpy(), first)
    rank = raw.rank("dense").to_numpy().astype(np.int64)
    return table, (rank + (first - 1)).astype(np.int32)


def _index_integers(raw: pl.Series, known: np.ndarray, first: int) -> np.ndarray:
    """The index of each integer id, int32 [E]. known: the distinct ids, ascending."""
    index = np.empty(len(raw), dtype=np.int32)
    smallest = int(known[0])
    n_numbers = int(known[-1]) - smallest + 1
    table: np.ndarray | None = None
    # A table with an entry per number replaces the binary search where it is no longer than the
    # column itself.
    if n_numbers <= len(raw):
        table = np.zeros(n_numbers, dtype=np.int32)
        table[known - known[0]] = np.arange(len(known), dtype=np.int32)
    for start in range(0, len(raw), BLOCK):
        block = raw[start : start + BLOCK].to_numpy()
        place = np.searchsorted(known, block) if table is None else table[block - known[0]]
        index[start : start + BLOCK] = place + first
    return index


def _by_user_and_time(user: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Row numbers in the order of user and time; ties stay in the order of the source.

    A group of users is sorted at a time: short sorts stay in the processor's cache.
    """
    order = np.empty(len(user), dtype=_row_number_type(len(user)))
    ends = np.cumsum(np.bincount(user))  # rows of users 0..u
    cuts = np.unique(np.searchsorted(ends, np.arange(BLOCK, len(user), BLOCK)))
    n_done = 0
    for low, high in pairwise([0, *cuts, len(ends)]):
        at = np.flatnonzero((user >= low) & (user < high))
        order[n_done : n_done + len(at)] = at[np.lexsort((time[at], user[at]))]
        n_done += len(at)
    return order


def _row_number_type(n_rows: int) -> type[np.signedinteger]:
    return np.int32 if n_rows < 2**31 else np.int64
