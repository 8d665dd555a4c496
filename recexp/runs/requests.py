"""Single requests to a trained model, in plain Python values: what a service needs.

A data frame costs milliseconds, and a request has few events: they are looked up in dicts. Events
mean what they mean in ``histories``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, ValidationError
from torch import Tensor

from recexp.data.dataset import Dataset
from recexp.data.rows import Rows
from recexp.data.store import Store
from recexp.errors import RecexpError
from recexp.runs.event_features import EventFeatures
from recexp.runs.histories import (
    UNKNOWN,
    Histories,
    RawIds,
    codes_of_values,
    level_ids,
    milliseconds,
    with_new_events,
)

WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,19}")
MAX_SHOWN = 200  # characters of an error


def _raw_id(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("an id is a whole number or a text")
    return _text(value) if isinstance(value, str) else value


def _time(value: object) -> object:
    if isinstance(value, str):
        return _text(value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value < 2**63:  # type: ignore[operator]
        raise ValueError("a time is a finite number from 1970 on, or an ISO text")
    return value


def _text(value: str) -> str:
    """The text. Raises ValueError for halves of characters, which JSON can hold (surrogates)."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("the text has a character that UTF-8 does not have") from None
    return value


RawId = Annotated[int | str, BeforeValidator(_raw_id)]
Time = Annotated[int | float | str, BeforeValidator(_time)]
Fallback = Literal["popularity"]


class Event(BaseModel):
    """What a user did; the fields as the columns of ``Trained.recommend(histories=)``."""

    model_config = ConfigDict(extra="forbid")

    item: RawId
    behavior: str | None = None
    value: FiniteFloat | None = None
    timestamp: Time | None = None
    features: dict[str, int | FiniteFloat | str | None] | None = None
    """Event features by name, unknown where they are not given."""


class Request(BaseModel):
    """Recommend to a user of the data, to somebody with a history, or to a user with later events.

    The other fields are those of ``Trained.recommend``.
    """

    model_config = ConfigDict(extra="forbid")

    user: RawId | None = None
    history: list[Event] | None = None
    k: int = Field(10, ge=1, strict=True)
    candidates: list[RawId] | None = None
    include_seen: bool = Field(False, strict=True)
    fallback: Fallback | None = None


@dataclass
class Answer:
    """The best items of a request, best first, with their scores.

    by: "model" or "popularity". n_unknown_items: events of items that the data do not have, and
    n_unknown_candidates: candidates that they do not have; both are left out.
    error: why there is no list.
    """

    items: list[Any] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    by: str = "model"
    n_unknown_items: int = 0
    n_unknown_candidates: int = 0
    error: str | None = None


def as_request(request: Request | Mapping[str, Any]) -> Request:
    """The request, checked. Raises RecexpError, which names the field."""
    if isinstance(request, Request):
        return request
    try:
        return Request.model_validate(request)
    except ValidationError as error:
        raise RecexpError(f"The request is faulty: {first_fault(error.errors())}.") from None


def first_fault(faults: Sequence[Any]) -> str:
    """What pydantic found first, with the place: ``history[3].item: field required``."""
    place = ""
    for part in faults[0]["loc"]:
        place += f"[{part}]" if isinstance(part, int) else f".{part}"
    message = faults[0]["msg"].removeprefix("Value error, ")
    text = f"{place.lstrip('.')[:MAX_SHOWN]}: {message[:1].lower()}{message[1:]}"
    # Texts from outside may hold code points that cannot be written.
    return text.encode("utf-8", "replace").decode()


class Lookup:
    """The number of a raw id, counted from ``first``; 12 and "12" are the same id."""

    def __init__(self, ids: pl.Series, first: int) -> None:
        self.raw = ids.to_list()
        self._number = {raw: number for number, raw in enumerate(self.raw, first)}
        self._are_texts = ids.dtype == pl.String

    def find(self, raw: int | str) -> int | None:
        """None where the data do not have the id."""
        if self._are_texts:
            return self._number.get(str(raw))
        if isinstance(raw, str):
            return self._number.get(int(raw)) if WHOLE_NUMBER.fullmatch(raw) else None
        return self._number.get(raw)


@dataclass
class Reading:
    """A request in the numbers of the prepared data, and its answer.

    user: UNKNOWN where the data do not have them. candidates: ascending, each once; None: all
    items. new: the events of the request, of items that the data have.
    """

    request: Request
    answer: Answer
    user: int
    candidates: tuple[int, ...] | None
    new: Rows | None


class Reader:
    """Reads requests.

    after: events without times follow this one, in milliseconds.
    """

    def __init__(self, store: Store, ids: RawIds, dataset: Dataset, *, after: int) -> None:
        self._store = store
        self._levels = store.meta["levels"]
        self._features = EventFeatures.of(store)
        self._dataset = dataset
        self._code = {name: code for code, name in enumerate(dataset.behaviors, 1)}
        self._after = after
        self.users = Lookup(ids.users, first=0)
        self.items = Lookup(ids.items, first=1)

    def read(self, request: Request, answer: Answer) -> Reading:
        """Raises RecexpError, which names the field, for events without a meaning."""
        user = None if request.user is None else self.users.find(request.user)
        return Reading(
            request,
            answer,
            user=UNKNOWN if user is None else user,
            candidates=self._candidates(request, answer),
            new=self._new_events(request.history, answer) if request.history else None,
        )

    def histories(self, readings: Sequence[Reading]) -> Histories:
        """What the users of the requests did; a user who is asked for twice appears twice."""
        known = self._known(readings)
        given = []
        for place, reading in enumerate(readings):
            if reading.new is not None:
                reading.new.user[:] = place
                given.append(reading.new)
        if not given:
            return known
        others = ("part", "features")  # new events belong to no split
        names = [column.name for column in fields(Rows) if column.name not in others]
        columns: dict[str, Any] = {
            name: np.concatenate([getattr(rows, name) for rows in given]) for name in names
        }
        columns["features"] = {
            name: np.concatenate([rows.features[name] for rows in given])
            for name in self._features.entries
        }
        return with_new_events(known, Rows(**columns), self._dataset)

    def _candidates(self, request: Request, answer: Answer) -> tuple[int, ...] | None:
        if request.candidates is None:
            return None
        found = [self.items.find(raw) for raw in request.candidates]
        known = {number for number in found if number is not None}
        answer.n_unknown_candidates = found.count(None)
        if not known:
            answer.error = "None of the candidates is an item of the data."
        return tuple(sorted(known))

    def _known(self, readings: Sequence[Reading]) -> Histories:
        """All that the data hold of the users."""
        user_A = torch.tensor([reading.user for reading in readings])
        ptr = self._store.past.ptr
        is_known_A = user_A != UNKNOWN
        at_A = user_A.clamp(min=0)
        start_A = torch.where(is_known_A, ptr[at_A], 0)
        end_A = torch.where(is_known_A, ptr[at_A + 1], 0)
        users = [reading.request.user for reading in readings]
        names = ["that of the history" if u is None else str(u)[:MAX_SHOWN] for u in users]
        return Histories(pl.Series(names), user_A, self._store.past, start_A, end_A)

    def _new_events(self, history: Sequence[Event], answer: Answer) -> Rows:
        values = np.asarray([math.nan if event.value is None else event.value for event in history])
        codes = self._behaviors(history, values)
        times = self._times(history)
        found = [self.items.find(event.item) for event in history]
        answer.n_unknown_items = found.count(None)
        item = np.asarray([number or 0 for number in found], np.int32)
        kept = item > 0
        n_kept = int(kept.sum())
        return Rows(
            user=np.zeros(n_kept, np.int32),
            item=item[kept],
            behavior=codes[kept],
            time=times[kept],
            mask=np.zeros(n_kept),
            origin=np.zeros(n_kept),
            value=level_ids(values, self._levels)[kept],
            features={name: x[kept] for name, x in self._feature_columns(history).items()},
        )

    def _feature_columns(self, history: Sequence[Event]) -> dict[str, np.ndarray[Any, Any]]:
        known = self._features.entries
        for n, event in enumerate(history):
            if unknown := sorted((event.features or {}).keys() - known):
                names = ", ".join(known) or "none"
                raise RecexpError(
                    f"history[{n}].features: {unknown[0][:40]!r} is unknown; the data set has "
                    f"{names}."
                )
        columns = {}
        for name in known:
            values = [(event.features or {}).get(name) for event in history]
            texts = [None if value is None else str(value) for value in values]
            columns[name] = self._features.numbers(name, pl.Series(texts, dtype=pl.String))
        return columns

    def _behaviors(
        self, history: Sequence[Event], values: np.ndarray[Any, Any]
    ) -> np.ndarray[Any, Any]:
        if self._dataset.value_behaviors:
            return codes_of_values(values, self._dataset)
        names = ", ".join(self._code)
        codes = np.ones(len(history), np.int8)
        for n, event in enumerate(history):
            if event.behavior is None and len(self._code) == 1:
                continue
            if event.behavior is None:
                raise RecexpError(
                    f"history[{n}].behavior: missing, and the data have several: {names}."
                )
            if event.behavior not in self._code:
                raise RecexpError(
                    f"history[{n}].behavior: {event.behavior[:40]!r} is unknown; the data set has "
                    f"{names}."
                )
            codes[n] = self._code[event.behavior]
        return codes

    def _times(self, history: Sequence[Event]) -> np.ndarray[Any, Any]:
        """Milliseconds, int64; events without times follow those of the data."""
        times = [event.timestamp for event in history]
        kinds = {type(time) for time in times}
        if kinds == {type(None)}:
            return self._after + 1 + np.arange(len(times), dtype=np.int64)
        if type(None) in kinds:
            raise RecexpError(
                f"history[{times.index(None)}].timestamp: missing, and other events have one."
            )
        if str in kinds and len(kinds) > 1:
            raise RecexpError("history.timestamp: use numbers or ISO texts, not both.")
        series = pl.Series(times, dtype=pl.Float64 if float in kinds else None)
        time_unit = self._dataset.source.get("time_unit")
        time: np.ndarray[Any, Any] = milliseconds(series, "The history's", time_unit).to_numpy()
        return time


def in_groups(readings: Sequence[Reading]) -> list[list[Reading]]:
    """Those that can be scored together: with the same candidates and ``include_seen``."""
    found: dict[tuple[tuple[int, ...] | None, bool], list[Reading]] = {}
    for reading in readings:
        key = (reading.candidates, reading.request.include_seen)
        found.setdefault(key, []).append(reading)
    return list(found.values())


def write_answer(answer: Answer, items: Sequence[Any], best_K: Tensor, item_K: Tensor) -> None:
    """Write the list into the answer, without removed items. items: raw ids by number - 1."""
    kept_K = best_K > -torch.inf
    answer.items = [items[number - 1] for number in item_K[kept_K].tolist()]
    answer.scores = best_K[kept_K].tolist()
