"""Features of items, users and events as the option ``features`` of readers describes them.

A table holds a row per item (user) and a column per feature, or is an array of vectors (``.npy``)
with the ids of its rows in another file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import polars as pl

from recexp.data.raw.columns import Column
from recexp.data.raw.folder import Folder
from recexp.data.readers import (
    EVENT_PREFIX,
    EventFeatureKind,
    FeatureKind,
    ItemFeature,
    UserFeature,
)
from recexp.errors import RecexpError

KINDS: tuple[FeatureKind, ...] = get_args(FeatureKind)
EVENT_KINDS: tuple[EventFeatureKind, ...] = get_args(EventFeatureKind)
OWNERS = {"items": "item", "users": "user"}
# Names that stand for columns which every data set may have (``recexp.nn.events``).
TAKEN = ("user", "item", "behavior", "value", "timestamp", "time", "gap")
ID = "_id"
LISTS = ("multi_label", "vector")

Files = str | list[str]  # a name, a pattern, or several
ReadTable = Callable[[Files, list[Column]], pl.DataFrame]


@dataclass(frozen=True)
class _Table:
    """A table with one row per item or user.

    place: of its settings, for errors. owner: "item" or "user". id: the name of the column of ids;
    for ``.npy`` a file of ids, or {file, item}: the rows of that table in their order.
    kinds: column -> kind.
    """

    place: str
    owner: str
    file: Files
    id: Any
    kinds: Mapping[str, FeatureKind]
    label_separator: str = "|"


@dataclass
class FeatureTables:
    """What the option ``features`` says: tables to read, and columns of the events' file."""

    tables: list[_Table] = field(default_factory=list)
    events: dict[str, EventFeatureKind] = field(default_factory=dict)

    @classmethod
    def of(cls, features: Mapping[str, Any] | None) -> FeatureTables:
        """features: {file, item, columns: {column: kind}, label_separator: "|"}, a table of items;
        or {items: a table or several, users: the same, events: {column: kind}}.

        Raises:
            RecexpError: unknown keys or kinds, or a name that is used twice or taken.
        """
        if not features:
            return cls()
        features = _plain(features)
        if not isinstance(features, dict) or not set(features) & {*OWNERS, "events"}:
            return cls([_table("features", "item", features)])
        if unknown := sorted(features.keys() - {*OWNERS, "events"}):
            raise RecexpError(f"features.{unknown[0]} is not known; choose items, users or events.")
        tables = []
        for key, owner in OWNERS.items():
            given = features.get(key) or []
            several = given if isinstance(given, list) else [given]
            for number, one in enumerate(several):
                place = f"features.{key}" + (f"[{number}]" if isinstance(given, list) else "")
                tables.append(_table(place, owner, one))
        found = cls(tables, _event_kinds(features.get("events") or {}))
        found._check_names()
        return found

    def event_columns(self) -> list[Column]:
        """Columns to read from the file of events."""
        return [
            Column(EVENT_PREFIX + name, name, _parsed_as(kind), nullable=True)
            for name, kind in self.events.items()
        ]

    def read(self, folder: Folder, read_table: ReadTable) -> dict[str, Any]:
        """The fields of ``Raw`` for item, user and event features.

        read_table: reads the wanted columns of a file of the folder.
        """
        items: dict[str, ItemFeature] = {}
        users: dict[str, UserFeature] = {}
        for table in self.tables:
            for name, frame in _frames(table, folder, read_table).items():
                kind = table.kinds[name]
                if table.owner == "item":
                    items[name] = ItemFeature(kind, frame.rename({ID: "item"}).lazy())
                else:
                    users[name] = UserFeature(kind, frame.rename({ID: "user"}).lazy())
        return {"item_features": items, "user_features": users, "event_features": self.events}

    def _check_names(self) -> None:
        for owner in OWNERS.values():
            names = [name for table in self.tables if table.owner == owner for name in table.kinds]
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise RecexpError(f"features: {owner}s have two columns {twice[0]!r}.")
        items = {name for table in self.tables if table.owner == "item" for name in table.kinds}
        if both := sorted(items & self.events.keys()):
            raise RecexpError(
                f"features: {both[0]!r} is a column of items and of events: rename one of them."
            )


def _plain(value: Any) -> Any:
    """Mappings and sequences of any type, such as OmegaConf's, as dicts and lists."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(one) for one in value]
    return value


def _table(place: str, owner: str, spec: Any) -> _Table:
    """The table that the settings at ``place`` describe."""
    if not isinstance(spec, dict):
        raise RecexpError(f"{place}={spec!r} must be a table: {{file, {owner}, columns}}.")
    needed = {"file", owner, "columns"}
    if spec.keys() - needed - {"label_separator"} or not spec.keys() >= needed:
        raise RecexpError(
            f"{place} needs the keys file, {owner} and columns, and may have label_separator; "
            f"it has {', '.join(sorted(spec)) or 'none'}"
        )
    columns = spec["columns"]
    if not isinstance(columns, dict) or not columns:
        raise RecexpError(f"{place}.columns={columns!r} must be columns with their kinds.")
    for name, kind in columns.items():
        _check(f"{place}.columns", name, kind, KINDS)
    separator = spec.get("label_separator", "|")
    if not isinstance(separator, str) or not separator:
        raise RecexpError(f"{place}.label_separator={separator!r} must be a text.")
    return _Table(place, owner, spec["file"], spec[owner], columns, separator)


def _event_kinds(columns: Any) -> dict[str, EventFeatureKind]:
    if not isinstance(columns, dict):
        raise RecexpError(f"features.events={columns!r} must be columns with their kinds.")
    for name, kind in columns.items():
        _check("features.events", name, kind, EVENT_KINDS)
        if name in TAKEN:
            raise RecexpError(
                f"features.events.{name}: the name is taken; every data set has "
                f"{', '.join(TAKEN)}. Rename the column."
            )
    return columns


def _check(place: str, name: str, kind: Any, kinds: tuple[str, ...]) -> None:
    if kind not in kinds:
        raise RecexpError(
            f"{place}.{name}={kind!r} is not a kind of feature; choose {', '.join(kinds)}"
        )
    if "/" in name or "\\" in name:
        raise RecexpError(f"{place}.{name}: the name becomes a file's, so it must have no slash.")


def _parsed_as(kind: str) -> Any:
    return "number" if kind == "numeric" else "text"


def _frames(table: _Table, folder: Folder, read_table: ReadTable) -> dict[str, pl.DataFrame]:
    """The columns ``ID`` and value of every feature, without missing values."""
    suffixes = {Path(name).suffix for name in folder.names(table.file)}
    if suffixes == {".npy"}:
        return _array(table, folder, read_table)
    lists: dict[str, pl.DataFrame] = {}
    if suffixes == {".parquet"}:
        lists = _list_columns(table, folder)
    columns = [Column(ID, table.id)]
    for name, kind in table.kinds.items():
        if name not in lists:
            columns.append(Column(name, name, _parsed_as(kind), nullable=True))
    found = {}
    if len(columns) > 1:
        frame = read_table(table.file, columns)
        for column in columns[1:]:
            values = frame.select(ID, value=column.name).drop_nulls("value")
            found[column.name] = _taken_apart(values, table, column.name)
    return {name: lists.get(name, found.get(name)) for name in table.kinds}  # type: ignore[misc]


def _taken_apart(values: pl.DataFrame, table: _Table, name: str) -> pl.DataFrame:
    """Joined labels as a row each, joined numbers as a list."""
    kind = table.kinds[name]
    if kind not in LISTS:
        return values
    parts = values.with_columns(pl.col("value").str.split(table.label_separator))
    if kind == "multi_label":
        return parts.explode("value").filter(pl.col("value") != "")
    # Programs write "[1.0, 2.0]", too.
    stripped = pl.col("value").list.eval(pl.element().str.strip_chars(" \t[]()"))
    numbers = parts.with_columns(stripped.cast(pl.List(pl.Float32), strict=False))
    is_faulty = numbers["value"].list.eval(pl.element().is_null()).list.any()
    if is_faulty.any():
        owner, text = values.filter(is_faulty).row(0)
        raise RecexpError(
            f"{table.file}, column {name!r}: {text[:60]!r} of {table.owner} {owner} is no vector: "
            f"numbers must be joined by {table.label_separator!r} ({table.place}.label_separator)."
        )
    return numbers


def _list_columns(table: _Table, folder: Folder) -> dict[str, pl.DataFrame]:
    """The features that parquet files hold as lists or arrays."""
    paths = [folder.file(name) for name in folder.names(table.file)]
    path = paths[0]
    try:
        scan = pl.scan_parquet(paths, glob=False)
        types = scan.collect_schema()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError):
        return {}  # ``Folder.parquet`` says what is wrong
    nested = [name for name in table.kinds if isinstance(types.get(name), pl.List | pl.Array)]
    if not nested or table.id not in types:
        return {}
    for name in nested:
        if table.kinds[name] not in LISTS:
            raise RecexpError(
                f"{path}, column {name!r}: its type is {types[name]}, which is "
                f"{' or '.join(LISTS)}, not {table.kinds[name]}."
            )
    frame = scan.select(pl.col(table.id).cast(pl.String).alias(ID), *nested).collect()
    found = {}
    for name in nested:
        values = frame.select(ID, value=name).drop_nulls()
        if isinstance(types[name], pl.Array):
            values = values.with_columns(pl.col("value").arr.to_list())
        if table.kinds[name] == "multi_label":
            labels = values.explode("value").drop_nulls()
            values = labels.with_columns(pl.col("value").cast(pl.String))
        found[name] = values
    return found


def _array(table: _Table, folder: Folder, read_table: ReadTable) -> dict[str, pl.DataFrame]:
    """The one feature of a ``.npy`` file, a vector per row."""
    names = folder.names(table.file)
    if list(table.kinds.values()) != ["vector"] or len(names) > 1:
        raise RecexpError(
            f"{table.place}: {names[0]} holds one feature; give it a name and the kind vector, "
            "such as columns: {embedding: vector}, and a table of its own."
        )
    path = folder.file(names[0])
    vector_NW = _load(path)
    if vector_NW.ndim != 2 or vector_NW.dtype.kind not in "fiu":
        raise RecexpError(
            f"{path} holds {vector_NW.dtype} of shape {vector_NW.shape}; it must hold numbers, a "
            "row per vector."
        )
    ids = _ids_of_rows(table, folder, read_table)
    if len(ids) != len(vector_NW):
        raise RecexpError(
            f"{path} has {len(vector_NW):,} rows, and {table.place}.{table.owner} names "
            f"{len(ids):,} ids: there must be one per row."
        )
    width = vector_NW.shape[1]
    value = pl.Series(np.ascontiguousarray(vector_NW, np.float32).reshape(-1))
    lists = value.reshape((-1, width)).arr.to_list()
    (feature,) = table.kinds
    return {feature: pl.DataFrame({ID: ids, "value": lists}).drop_nulls(ID)}


def _ids_of_rows(table: _Table, folder: Folder, read_table: ReadTable) -> pl.Series:
    """The ids of an array's rows: of a ``.npy`` or text file, or a column of a table."""
    if isinstance(table.id, dict):
        if set(table.id) != {"file", table.owner}:
            raise RecexpError(
                f"{table.place}.{table.owner} needs the keys file and {table.owner}, the column "
                f"whose ids are in the order of the rows of {table.file}."
            )
        return read_table(table.id["file"], [Column(ID, table.id[table.owner])])[ID]
    path = folder.file(str(table.id))
    if path.suffix != ".npy":
        return pl.Series([text.strip() for _, text in folder.lines(path.name)])
    ids = _load(path)
    if ids.ndim != 1 or ids.dtype.kind not in "iuU":
        raise RecexpError(
            f"{path} holds {ids.dtype} of shape {ids.shape}; it must hold one whole number or text "
            "per row."
        )
    return pl.Series(ids).cast(pl.String)


def _load(path: Path) -> np.ndarray[Any, Any]:
    try:
        array: np.ndarray[Any, Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise RecexpError(f"{path} cannot be read as .npy: {error}") from None
    return array
