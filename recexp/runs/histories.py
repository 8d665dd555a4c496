"""What users did, as a trained model reads it: from the prepared data, from raw events, or both."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from recexp.data.dataset import Dataset
from recexp.data.raw.times import END_OF_TIME, UNITS, from_pattern
from recexp.data.rows import Rows
from recexp.data.store import Events, Store
from recexp.errors import RecexpError
from recexp.runs.event_features import EventFeatures
from recexp.runs.graph import FEATURE
from recexp.types import Query

WHOLE_HISTORY = 2**31  # events: longer than any history
UNKNOWN = -1  # the number of a user whom the data do not have
COLUMNS = ("user", "item", "behavior", "value", "timestamp")
# Integer times below these are taken as seconds, milliseconds and microseconds (until year 5138);
# larger ones as nanoseconds.
TIME_UNITS = ((10**11, 1000.0), (10**14, 1.0), (10**17, 1e-3))
NANOSECONDS = 1e-6

log = logging.getLogger(__name__)


@dataclass
class Histories:
    """Events of some users up to the moment of prediction. A users, E events.

    raw: the users' raw ids. user_A: their numbers in the data, int64 [A], UNKNOWN where the data do
    not have them. The events of user a are rows start_A..end_A of ``events``.
    """

    raw: pl.Series
    user_A: torch.Tensor
    events: Events
    start_A: torch.Tensor
    end_A: torch.Tensor

    def __len__(self) -> int:
        return len(self.raw)


class RawIds:
    """The raw ids of users and items, in the order of their numbers in the prepared data."""

    def __init__(self, users: pl.Series, items: pl.Series) -> None:
        self.users = users
        self.items = items

    @classmethod
    def of(cls, store: Store) -> RawIds:
        """Those of prepared data."""
        users = pl.read_parquet(store.folder / "users.parquet")["user"]
        items = pl.read_parquet(store.folder / "items.parquet")["item"]
        return cls(users, items)

    def user_numbers(self, raw: pl.Series) -> np.ndarray[Any, Any]:
        """Numbers 0..U-1, int64 [len(raw)]; UNKNOWN where the data do not have the user."""
        return _numbers(raw, self.users, first=0, unknown=UNKNOWN)

    def item_numbers(self, raw: pl.Series) -> np.ndarray[Any, Any]:
        """Numbers 1..V-1, int64 [len(raw)]; 0 where the data do not have the item."""
        return _numbers(raw, self.items, first=1, unknown=0)


def known_histories(store: Store, ids: RawIds, users: pl.Series | None) -> Histories:
    """All that the data hold of these users, held-out events included; None: of every user.

    Users whom the data do not have get an empty history.
    """
    raw = ids.users if users is None else users
    user_A = torch.from_numpy(ids.user_numbers(raw))
    is_known = user_A != UNKNOWN
    at_A = user_A.clamp(min=0)
    start_A = torch.where(is_known, store.past.ptr[at_A], 0)
    end_A = torch.where(is_known, store.past.ptr[at_A + 1], 0)
    return Histories(raw, user_A, store.past, start_A, end_A)


def given_histories(
    frame: pl.DataFrame, store: Store, ids: RawIds, dataset: Dataset, users: pl.Series | None
) -> Histories:
    """The known events of users with the frame's events merged into them in the order of time.

    frame: columns as ``raw_events`` returns them. users: for whom; None: those of the frame.
    """
    raw = frame["user"].unique(maintain_order=True) if users is None else users
    known = known_histories(store, ids, raw)
    return extended(known, frame, ids, dataset, store.meta["levels"], EventFeatures.of(store))


def no_histories(
    users: pl.Series, ids: RawIds, *, has_values: bool, features: EventFeatures
) -> Histories:
    """The users without an event. has_values: whether events would have levels of values.

    features: that events would have.
    """
    nothing = torch.zeros(0, dtype=torch.int64)
    start_A = torch.zeros(len(users), dtype=torch.int64)
    events = Events(
        ptr=torch.zeros(1, dtype=torch.int64),
        item=nothing.int(),
        behavior=nothing.to(torch.int8),
        time=nothing,
        mask=nothing.int(),
        value=nothing.to(torch.int16) if has_values else None,
        features={
            name: nothing.int() if name in features.vocabularies else nothing.float()
            for name in features.entries
        },
    )
    user_A = torch.tensor(ids.user_numbers(users))  # a copy: polars' own memory is read-only
    return Histories(users, user_A, events, start_A, start_A)


def extended(
    known: Histories,
    frame: pl.DataFrame,
    ids: RawIds,
    dataset: Dataset,
    levels: Sequence[float],
    features: EventFeatures | None = None,
) -> Histories:
    """``known`` with the frame's events merged into it in the order of time.

    frame: columns as ``raw_events`` returns them. levels: the values that events may have.
    features: of the events, where ``known`` has some.
    Events of unknown items, and those that are known already, are left out and counted in the log.
    Events are merged to pairs where the data set says so, as before training.
    """
    owner = _numbers(frame["user"], known.raw, first=0, unknown=-1)
    item = ids.item_numbers(frame["item"])
    _log_left_out(frame, owner, item)
    kept = (owner >= 0) & (item > 0)
    values = frame["value"].fill_null(np.nan).to_numpy()
    if dataset.value_behaviors:
        codes = codes_of_values(values, dataset)
    else:
        codes = _codes_of_names(frame["behavior"], dataset)
    new = Rows(
        user=owner[kept].astype(np.int32),
        item=item[kept].astype(np.int32),
        behavior=codes[kept],
        time=frame["timestamp"].to_numpy()[kept],
        mask=np.zeros(0),
        origin=np.zeros(0),
        value=level_ids(values, levels)[kept],
    )
    if features is not None:
        new.features = {name: x[kept] for name, x in features.columns(frame).items()}
    return with_new_events(known, new, dataset)


def with_new_events(known: Histories, new: Rows, dataset: Dataset) -> Histories:
    """The histories with new events merged into them in the order of time.

    new: ``user`` is the place in ``known``; ``mask`` and ``origin`` are not read.
    """
    rows = _joined(known, new)
    if dataset.merge == "pairs" and len(rows):
        rows = rows.merged([name in dataset.explicit for name in dataset.behaviors])
    ptr = torch.from_numpy(np.searchsorted(rows.user, np.arange(len(known) + 1)))
    events = Events(
        ptr=ptr,
        item=torch.from_numpy(rows.item),
        behavior=torch.from_numpy(rows.behavior),
        time=torch.from_numpy(rows.time),
        mask=torch.from_numpy(rows.mask),
        value=None if known.events.value is None else torch.from_numpy(rows.value),
        features={name: torch.from_numpy(column) for name, column in rows.features.items()},
    )
    return Histories(known.raw, known.user_A, events, ptr[:-1], ptr[1:])


def graph_inputs(query: Query) -> dict[str, np.ndarray[Any, Any]]:
    """What graphs may take (``recexp.runs.graph``), from users and their whole histories."""
    columns = {
        "user_B": query.user_B,
        "item_BL": query.item_BL,
        "behavior_BL": query.behavior_BL,
        "time_BL": query.time_BL,
        "value_BL": query.value_BL,
        "seen_BL": query.item_BL,
    }
    inputs = {name: x.numpy() for name, x in columns.items() if x is not None}
    return inputs | {FEATURE + name: x.numpy() for name, x in query.features_BL.items()}


def raw_events(
    frame: pl.DataFrame, dataset: Dataset, *, after: int = 0, features: Collection[str] = ()
) -> pl.DataFrame:
    """The frame with the columns user, item, behavior, timestamp (int64 ms) and value (float).

    frame: columns named so, or as ``dataset.source`` names them. behavior may be missing where the
    data set has only one; timestamp where the rows are in time order; value always.
    after: rows without a timestamp follow this time, in milliseconds.
    features: other columns that are kept where the frame has them.

    Raises RecexpError for a missing column, an unknown behavior, a missing id or a wrong time.
    """
    frame = frame.rename(_names(frame, dataset))
    for column in ("user", "item"):
        if column not in frame.columns:
            raise RecexpError(
                f"The histories have no column {column!r}; they have {', '.join(frame.columns)}. "
                "They need user and item, and behavior, timestamp and value where the data have "
                "them."
            )
        if n_missing := frame[column].null_count():
            raise RecexpError(f"The histories lack the {column} in {n_missing} row(s).")
    value = frame["value"] if "value" in frame.columns else pl.Series([None] * len(frame))
    frame = frame.with_columns(value=_numbers_of_values(value))
    if "timestamp" not in frame.columns:
        frame = frame.with_columns(timestamp=after + 1 + pl.int_range(pl.len(), dtype=pl.Int64))
    else:
        time_unit = dataset.source.get("time_unit")
        time = milliseconds(frame["timestamp"], "The histories'", time_unit)
        frame = frame.with_columns(timestamp=time)
    if not dataset.value_behaviors and "behavior" not in frame.columns:
        if len(dataset.behaviors) > 1:
            raise RecexpError(
                "The histories have no column 'behavior', and the data have several: "
                f"{', '.join(dataset.behaviors)}."
            )
        frame = frame.with_columns(behavior=pl.lit(dataset.behaviors[0]))
    return frame.select(c for c in (*COLUMNS, *features) if c in frame.columns)


def _numbers_of_values(value: pl.Series) -> pl.Series:
    try:
        return value.cast(pl.Float64)
    except pl.exceptions.PolarsError as error:
        message = " ".join(str(error).split())[:200]
        raise RecexpError(f"The histories' values are no numbers: {message}") from None


def _names(frame: pl.DataFrame, dataset: Dataset) -> dict[str, str]:
    """From the names of the data set's file to the canonical ones, where the frame has those."""
    names = {}
    for column in COLUMNS:
        name = dataset.source.get(column)
        if isinstance(name, str) and name in frame.columns and column not in frame.columns:
            names[name] = column
    return names


def milliseconds(time: pl.Series, whose: str, time_unit: str | None = None) -> pl.Series:
    """Times as int64 milliseconds: of ISO texts, dates and times, or numbers.

    whose: begins the error. time_unit: that of the data set (``readers.table.read``). Numbers are
        in it; where it is none of numbers, their size decides. Times that fit a pattern are read
        by it.

    Raises RecexpError for missing and unreadable times, and for those outside of 1970 to 9999.
    """
    if n_missing := time.null_count():
        raise RecexpError(f"{whose} timestamp is missing in {n_missing} row(s).")
    if time_unit is not None and "%" in time_unit and not time.dtype.is_temporal():
        texts = pl.DataFrame({"time": time.cast(pl.String)})
        by_pattern = texts.select(from_pattern(pl.col("time"), time_unit)).to_series()
        if not by_pattern.null_count():
            _check_time(by_pattern, time, whose)
            return by_pattern
    if time.dtype == pl.String:
        try:
            time = time.str.to_datetime(time_zone="UTC")
        except pl.exceptions.PolarsError:
            raise RecexpError(
                f"{whose} timestamps, such as {_unreadable(time)!r}, are no ISO times of one form."
            ) from None
    if time.dtype in (pl.Date, pl.Datetime):
        since_1970 = time.cast(pl.Datetime("ms")).cast(pl.Int64)
        _check_time(since_1970, time, whose)
        return since_1970
    if not time.dtype.is_numeric():
        raise RecexpError(f"{whose} timestamps are of type {time.dtype}: use numbers or ISO texts.")
    factor = UNITS.get(str(time_unit))
    number = time.cast(pl.Float64)
    if factor is None:
        largest = float(number.abs().max() or 0)  # type: ignore[arg-type]
        factor = next((f for bound, f in TIME_UNITS if largest < bound), NANOSECONDS)
    _check_time(number * factor, time, whose)
    return (time * factor).cast(pl.Int64)


def _unreadable(time: pl.Series) -> str:
    """A text that is no ISO time; the first text where each of the first ones is by itself."""
    for text in time[:1000]:
        try:
            pl.Series([text]).str.to_datetime(time_zone="UTC")
        except pl.exceptions.PolarsError:
            return str(text)
    return str(time[0])


def _check_time(since_1970: pl.Series, time: pl.Series, whose: str) -> None:
    """Raise RecexpError, with the time as it was given, for NaN and times that readers refuse."""
    is_right = (since_1970 >= 0) & (since_1970 < END_OF_TIME)
    if since_1970.dtype.is_float():
        is_right &= since_1970.is_finite()
    if not bool(is_right.all()):
        wrong = time.filter(~is_right)
        raise RecexpError(f"{whose} timestamp {wrong[0]} lies outside of the years 1970 to 9999.")


def codes_of_values(values: np.ndarray[Any, Any], dataset: Dataset) -> np.ndarray[Any, Any]:
    """Codes of the behaviors that values stand for, int8; 0 below every threshold and for NaN."""
    assert dataset.value_behaviors is not None
    thresholds = np.asarray([dataset.value_behaviors[name] for name in dataset.behaviors])
    codes = np.searchsorted(thresholds, values, side="right")
    return np.where(np.isnan(values), 0, codes).astype(np.int8)


def _codes_of_names(behavior: pl.Series, dataset: Dataset) -> np.ndarray[Any, Any]:
    """Codes of the behaviors, int8."""
    names = list(dataset.behaviors)
    text = behavior.cast(pl.String)
    unknown = sorted(set(text.unique()) - set(names), key=str)
    if unknown:
        raise RecexpError(
            f"The histories have the unknown behavior {unknown[0]!r}; the data set has "
            f"{', '.join(names)}."
        )
    codes = pl.Series(range(1, len(names) + 1), dtype=pl.Int8)
    return text.replace_strict(pl.Series(names), codes).to_numpy()


def level_ids(values: np.ndarray[Any, Any], levels: Sequence[float]) -> np.ndarray[Any, Any]:
    """Numbers of the values among ``levels``, int16; 0 for NaN and for others."""
    known = np.asarray(levels, dtype=np.float64)
    if not len(known):
        return np.zeros(len(values), np.int16)
    at = np.searchsorted(known, values).clip(max=len(known) - 1)
    return np.where(known[at] == values, at + 1, 0).astype(np.int16)


def _joined(known: Histories, new: Rows) -> Rows:
    """Known and new events, sorted by user and time; new ones after known ones of the same time."""
    old = _rows(known)
    behavior_known = new.behavior > 0  # below every threshold of value_behaviors: no event
    fields = ("user", "item", "behavior", "time")
    columns = [np.concatenate([getattr(old, f), getattr(new, f)[behavior_known]]) for f in fields]
    user, item, behavior, time = columns
    assert old.value is not None and new.value is not None
    value = np.concatenate([old.value, new.value[behavior_known]])
    is_new = np.arange(len(user)) >= len(old)
    order = np.lexsort((is_new, time, user))
    if len(old):
        # An event that the data hold already is not counted twice.
        first = pl.DataFrame(columns, schema=list(fields))[order].with_columns(is_new=is_new[order])
        order = order[~(first["is_new"].to_numpy() & _equals_an_old_one(first))]
    behavior = behavior[order]
    features = {
        name: np.concatenate([column, new.features[name][behavior_known]])[order]
        for name, column in old.features.items()
    }
    return Rows(
        user=user[order],
        item=item[order],
        behavior=behavior,
        time=time[order],
        mask=np.left_shift(np.int32(1), behavior.astype(np.int32) - 1),
        origin=np.arange(len(order)),
        value=value[order],
        features=features,
    )


def _equals_an_old_one(events: pl.DataFrame) -> np.ndarray[Any, Any]:
    """Is there an old event (is_new false) with the same user, item, behavior and time?"""
    is_old = ~pl.col("is_new")
    return (
        events.select(is_old.any().over("user", "item", "behavior", "time")).to_series().to_numpy()
    )


def _rows(known: Histories) -> Rows:
    """The known events, numbered by the place of their user in ``known``."""
    size_A = known.end_A - known.start_A
    owner = torch.repeat_interleave(torch.arange(len(known)), size_A)
    n_before_A = size_A.cumsum(0) - size_A
    at = torch.arange(len(owner)) + (known.start_A - n_before_A)[owner]
    events = known.events
    value = np.zeros(len(owner), np.int16)
    if events.value is not None:
        value = events.value[at].numpy()
    return Rows(
        user=owner.numpy().astype(np.int32),
        item=events.item[at].numpy(),
        behavior=events.behavior[at].numpy(),
        time=events.time[at].numpy(),
        mask=events.mask[at].numpy(),
        origin=at.numpy(),
        value=value,
        features={name: column[at].numpy() for name, column in events.features.items()},
    )


def _log_left_out(
    frame: pl.DataFrame, owner: np.ndarray[Any, Any], item: np.ndarray[Any, Any]
) -> None:
    is_unknown = (item == 0) & (owner >= 0)
    if n_events := int(is_unknown.sum()):
        items = frame["item"].filter(pl.Series(is_unknown)).unique()
        log.warning(
            "%s event(s) of %s item(s) that the model does not know were left out, such as %s",
            f"{n_events:,}",
            f"{len(items):,}",
            ", ".join(map(str, items.sort()[:3])),
        )
    if n_others := int((owner < 0).sum()):
        log.warning("%s event(s) of users that were not asked for were left out", f"{n_others:,}")


def _numbers(raw: pl.Series, known: pl.Series, first: int, unknown: int) -> np.ndarray[Any, Any]:
    """The place of each raw id among ``known``, counted from ``first``; int64."""
    table = pl.DataFrame({"id": known}).with_row_index("at", offset=first)
    table = table.with_columns(pl.col("at").cast(pl.Int64))
    wanted = pl.DataFrame({"id": _ids_of_type(raw, known.dtype)})
    joined = wanted.join(table, on="id", how="left", maintain_order="left")
    return joined["at"].fill_null(unknown).to_numpy()


def _ids_of_type(raw: pl.Series, dtype: pl.DataType) -> pl.Series:
    """The ids as that type; null where they have no such form.

    12, "12" and 12.0 are the same id; 12.5, truth values and lists are none.
    """
    if raw.dtype == pl.Boolean or raw.dtype.is_nested():
        return pl.Series([None] * len(raw), dtype=dtype)
    if raw.dtype.is_float() and not dtype.is_float():
        raw = raw.set(raw != raw.floor(), None).cast(pl.Int64, strict=False)
    return raw.cast(dtype, strict=False)


def as_series(ids: Sequence[Any] | pl.Series | None) -> pl.Series | None:
    """Raw ids as a series without repeats, in their order."""
    if ids is None:
        return None
    series = ids if isinstance(ids, pl.Series) else _series(list(ids))
    if series.null_count():
        raise RecexpError(f"{series.null_count()} of the ids are missing.")
    return series.unique(maintain_order=True)


def _series(ids: list[Any]) -> pl.Series:
    """Ids as a series; as texts where they are of several types, or of one that polars lacks."""
    if len({type(one) for one in ids}) <= 1:
        try:
            series = pl.Series(ids)
        except (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError):
            series = pl.Series(dtype=pl.Object)
        if series.dtype != pl.Object:
            return series
    # An id with half a character (a surrogate), which polars refuses, is no id of the data.
    texts = [None if one is None else str(one).encode("utf-8", "replace").decode() for one in ids]
    return pl.Series(texts, dtype=pl.String)


def read_table(path: Path) -> pl.DataFrame:
    """A csv file with a header, or a parquet file."""
    try:
        if path.suffix == ".parquet":
            return pl.read_parquet(path)
        return pl.read_csv(path, infer_schema_length=None)
    except FileNotFoundError:
        raise RecexpError(f"{path} does not exist.") from None
    except (pl.exceptions.PolarsError, OSError) as error:
        raise RecexpError(
            f"{path} cannot be read as {'parquet' if path.suffix == '.parquet' else 'csv'}: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error


def to_polars(frame: Any) -> pl.DataFrame:
    """A polars frame of a polars or pandas one, or of a mapping of columns."""
    if isinstance(frame, pl.DataFrame):
        return frame
    if isinstance(frame, pl.LazyFrame):
        return frame.collect()
    if type(frame).__module__.partition(".")[0] == "pandas":
        # polars' own conversion needs pyarrow.
        return pl.DataFrame({str(name): _column(frame[name]) for name in frame.columns})
    return pl.DataFrame(frame)


def _column(column: Any) -> Any:
    """The values of a pandas column: texts and other objects as a list."""
    values = column.to_numpy()
    return values.tolist() if values.dtype == object else values
