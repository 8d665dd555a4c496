"""Atomic files of RecBole: ``.inter``, ``.item`` and ``.user``, with types in their headers.

Zhao et al. 2021 (arXiv:2011.01731); recbole.io/docs/user_guide/data/atomic_files.html. A header
reads ``user_id:token``, ``genre:token_seq``, ``rating:float`` or ``image:float_seq``; fields are
separated by tabs, the entries of a sequence by blanks. Quotes are text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from recexp.data.dataset import BadRows
from recexp.data.raw.columns import Column, Kind, time_column
from recexp.data.raw.delimited import Format
from recexp.data.raw.folder import Folder
from recexp.data.raw.text import fields, shortened
from recexp.data.raw.times import check_time_unit, detected_unit
from recexp.data.readers import FeatureKind, ItemFeature, Raw
from recexp.errors import RecexpError

ORIGIN = "recbole.io/dataset_list.html"
FORM = Format(header=True, separator="\t", quote=None)
KINDS: dict[str, FeatureKind] = {
    "token": "categorical",
    "token_seq": "multi_label",
    "float": "numeric",
}
TYPES = (*KINDS, "float_seq")


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
) -> Raw:
    """Read the events of ``file``, and the item features of ``items``. Ids become strings.

    file: names or patterns as in ``Folder.names``; the parts of a benchmark (.train, .valid and
        .test) are read one after the other.
    user, item, behavior: names of fields, without their types. A session id makes sessions users.
    value, timestamp: the same; auto takes "rating" and "timestamp" where there are such fields.
        Without times the events are in the order of the files.
    time_unit: as in ``table.read``.
    items: a name or pattern; files that are not there give no features. None reads none.
    item_features: names of fields; None takes all of types token, token_seq and float.
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
    events = folder.frame(names, columns, FORM)
    if behavior is None:
        events = events.with_columns(behavior=pl.lit("interaction"))
    if value is not None:
        events = events.with_columns(pl.col("value").cast(pl.Float32))
    if timestamp is None:
        events = events.with_columns(timestamp=pl.int_range(1, pl.len() + 1, dtype=pl.Int64))
    features = _features(folder, folder.found(items), item, item_features) if items else {}
    return Raw(
        events.lazy(),
        folder.files,
        features,
        folder.dropped,
        has_times=timestamp is not None,
        decided=decided,
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
        if not field or kind not in TYPES:
            raise RecexpError(
                f"{path}, line 1: {shortened(text or '')!r} is no field of an atomic file: a name "
                f"and a type, such as user_id:token. The types are {', '.join(TYPES)}."
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
    folder: Folder, names: list[str], key: str, wanted: Sequence[str] | None
) -> dict[str, ItemFeature]:
    """The features of files with one row per item. wanted: None takes all that can be taken."""
    if not names:
        return {}
    header = _header(folder, names[0])
    if wanted is None:
        wanted = [name for name, kind in header.types.items() if name != key and kind in KINDS]
    columns = [Column("_key", _field(header, key))]
    for name in wanted:
        is_number = header.types.get(name) == "float"
        kind: Kind = "number" if is_number else "text"
        columns.append(Column(name, _field(header, name), kind, nullable=True))
    frame = folder.frame(names, columns, FORM)
    features = {}
    for name in wanted:
        values = frame.select(item="_key", value=name).drop_nulls("value")
        if header.types[name] == "token_seq":
            labels = pl.col("value").str.split(" ")
            values = values.with_columns(labels).explode("value").filter(pl.col("value") != "")
        features[name] = ItemFeature(KINDS[header.types[name]], values.lazy())
    return features
