"""Atomic files of RecBole: ``.inter``, ``.item`` and ``.user``, with types in their headers.

Zhao et al. 2021 (arXiv:2011.01731); recbole.io/docs/user_guide/data/atomic_files.html. A header
reads ``user_id:token``, ``genre:token_seq``, ``rating:float`` or ``image:float_seq``; fields are
separated by tabs, the entries of a sequence by blanks. Quotes are text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from recexp.data.dataset import BadRows
from recexp.data.raw.columns import Column, time_column
from recexp.data.raw.delimited import Format
from recexp.data.raw.folder import Folder
from recexp.data.raw.text import fields, shortened
from recexp.data.raw.times import check_time_unit, detected_unit
from recexp.data.readers import FeatureKind, Raw
from recexp.data.readers.feature_tables import FeatureTables
from recexp.data.readers.table import completed
from recexp.errors import RecexpError

ORIGIN = "recbole.io/dataset_list.html"
FORM = Format(header=True, separator="\t", quote=None)
KINDS: dict[str, FeatureKind] = {
    "token": "categorical",
    "token_seq": "multi_label",
    "float": "numeric",
    "float_seq": "vector",
}


def read(
    raw_dir: str | Path,
    *,
    on_bad_rows: BadRows = "error",
    file: str | Sequence[str] = "*.inter",
    user: str = "user_id",
    item: str = "item_id",
    behavior: str | None = None,
    value: str | None = "auto",
    timestamp: str | None = "auto",
    time_unit: str = "auto",
    items: str | None = "*.item",
    item_features: Sequence[str] | None = None,
    users: str | None = "*.user",
    user_features: Sequence[str] | None = None,
) -> Raw:
    """Read the events of ``file``, and the features of ``items`` and ``users``. Ids become strings.

    file: names or patterns as in ``Folder.names``; the parts of a benchmark (.train, .valid and
        .test) are read one after the other.
    user, item, behavior: names of fields, without their types. A session id makes sessions users.
    value, timestamp: the same; auto takes "rating" and "timestamp" where there are such fields.
        Without times the events are in the order of the files.
    time_unit: as in ``table.read``.
    items, users: a name or pattern; files that are not there give no features. None reads none.
    item_features, user_features: names of fields; None takes all.
    """
    check_time_unit(time_unit)
    folder = Folder(raw_dir, ORIGIN, on_bad_rows)
    names = folder.names(file)
    header = _header(folder, names[0])
    if value == "auto":
        value = "rating" if "rating" in header else None
    if timestamp == "auto":
        timestamp = "timestamp" if "timestamp" in header else None
    columns = [Column("user", _field(header, user)), Column("item", _field(header, item))]
    if behavior is not None:
        columns.append(Column("behavior", _field(header, behavior)))
    if value is not None:
        columns.append(Column("value", _field(header, value), "number", nullable=True))
    decided = {}
    if timestamp is not None:
        source = _field(header, timestamp)
        if time_unit == "auto":
            texts = folder.first_texts(names, Column("timestamp", source, "text"), FORM)
            time_unit = decided["time_unit"] = detected_unit(texts)
        columns.append(time_column("timestamp", source, time_unit))
    events = completed(folder.frame(names, columns, FORM))
    tables = [("item", items, item, item_features), ("user", users, user, user_features)]
    return Raw(
        events.lazy(),
        folder.files,
        dropped=folder.dropped,
        has_times=timestamp is not None,
        decided=decided,
        **_features(folder, tables),
    )


@dataclass(frozen=True)
class _Header:
    """The fields of a file: name -> type."""

    path: Path
    types: dict[str, str]

    def __contains__(self, name: str) -> bool:
        return name in self.types


def _header(folder: Folder, name: str) -> _Header:
    """Raises RecexpError for a header that is not typed."""
    path = folder.file(name)
    _, first, _ = next(fields(path, FORM.separator, FORM.quote), (1, [], ""))
    types = {}
    for text in first or []:
        field, _, kind = (text or "").strip().rpartition(":")
        if not field or kind not in KINDS:
            raise RecexpError(
                f"{path}, line 1: {shortened(text or '')!r} is no field of an atomic file: a name "
                f"and a type, such as user_id:token. The types are {', '.join(KINDS)}."
            )
        types[field] = kind
    return _Header(path, types)


def _field(header: _Header, name: str) -> str:
    """The field as the header writes it. RecexpError where there is none of that name."""
    if name not in header:
        listed = shortened(", ".join(header.types))
        raise RecexpError(f"{header.path}, line 1: field {name!r} is not in the header: {listed}")
    return f"{name}:{header.types[name]}"


def _features(
    folder: Folder, tables: Sequence[tuple[str, str | None, str, Sequence[str] | None]]
) -> dict[str, Any]:
    """The fields of ``Raw`` for item and user features.

    tables: ("item" or "user", pattern of its files, name of the id, wanted fields).
    """
    spec: dict[str, Any] = {}
    for owner, pattern, key, wanted in tables:
        names = folder.found(pattern) if pattern else []
        if pattern is None or not names:
            continue
        header = _header(folder, names[0])
        if wanted is None:
            wanted = [name for name in header.types if name != key]
        kinds = {_field(header, name): KINDS[header.types[name]] for name in wanted}
        if kinds:
            table = {"file": pattern, owner: _field(header, key), "columns": kinds}
            spec[f"{owner}s"] = table | {"label_separator": " "}

    def read_table(file: str | list[str], columns: list[Column]) -> pl.DataFrame:
        return folder.frame(file, columns, FORM)

    found = FeatureTables.of(spec).read(folder, read_table)
    return {field: _without_types(features) for field, features in found.items()}


def _without_types(features: dict[str, Any]) -> dict[str, Any]:
    return {name.rpartition(":")[0]: feature for name, feature in features.items()}
