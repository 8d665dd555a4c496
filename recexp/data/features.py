"""Side information: features in long form to ``types.Feature`` and ``types.Bag`` tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recexp.data.ids import is_text
from recexp.data.readers import EVENT_PREFIX, EventFeatureKind, ItemFeature, UserFeature
from recexp.data.rows import Rows, blocks
from recexp.errors import RecexpError
from recexp.io import save_array
from recexp.types import BAGGED

MAX_DEPTH = 64  # levels of a category tree; one that seems deeper most likely has a cycle
EXAMPLES = 5  # ids that an error shows
# Below this share of the largest value, a spread is a rounding error of equal values.
LEAST_SPREAD = 1e-12


def build_features(
    raw: dict[str, ItemFeature],
    items: pl.DataFrame,
    train_pairs: dict[str, np.ndarray],
    end: int,
    n_users: int,
    out: Path,
    report: list[str],
    events: pl.LazyFrame | None = None,
) -> list[dict[str, Any]]:
    """Write id and weight tables per feature, and the users' bags of values.

    Values that change over time are taken as of ``end``: the last at or before it, else the first.
    No later information enters.

    items: columns index, item. train_pairs: unique "user" and "item" arrays, users ascending.
    end: time of the last training event, milliseconds. report: gets a line per feature.
    events: before the filters, column item.

    Returns name, kind, cardinality and coverage (the share of items with a value) of each feature.

    Raises:
        RecexpError: a feature's ids are those of no item of ``items`` and ``events``, or its tree
            has a cycle.
    """
    described = []
    for name, feature in raw.items():
        frame = _of_owners("item", name, feature.frame, items, events)
        frame = _as_of(feature.kind, frame, end)
        if feature.tree is not None:
            frame = _with_ancestors(frame, feature.tree, name)
        ids_VM, cardinality, pairs = _tables(
            feature.kind, frame, items.height + 1, out / f"feature_{name}", f"Item feature {name}"
        )
        if feature.kind in BAGGED:
            write_bags(out / f"bag_{name}", *pairs, train_pairs, n_users, cardinality)
        known = float((ids_VM[1:] != 0).any(1).mean())
        entry = {"name": name, "kind": feature.kind, "cardinality": cardinality, "coverage": known}
        described.append(entry)
        report.append(_line("item", entry))
    return described


def build_user_features(
    raw: Mapping[str, UserFeature],
    users: pl.DataFrame,
    bags: Mapping[str, Any],
    out: Path,
    report: list[str],
    events: pl.LazyFrame | None = None,
) -> list[dict[str, Any]]:
    """Write id and weight tables per feature, as ``build_features``.

    users: columns index, user. bags: its keys are names that stand for users' bags of item values.

    Raises:
        RecexpError: a feature's ids are those of no user, or its name is one of ``bags``.
    """
    described = []
    for name, feature in raw.items():
        if name in bags:
            raise RecexpError(
                f"User feature {name} and item feature {name} have the same name, which user_side "
                "could not tell apart: rename the column of one of them."
            )
        frame = _of_owners("user", name, feature.frame, users, events)
        frame = _as_of(feature.kind, frame, end=0)
        ids_UM, cardinality, _ = _tables(
            feature.kind, frame, users.height, out / f"user_feature_{name}", f"User feature {name}"
        )
        known = float((ids_UM != 0).any(1).mean())
        entry = {"name": name, "kind": feature.kind, "cardinality": cardinality, "coverage": known}
        described.append(entry)
        report.append(_line("user", entry))
    return described


def _line(owner: str, entry: Mapping[str, Any]) -> str:
    """The line of the report about a feature."""
    what = "numbers" if entry["kind"] == "vector" else "values"
    return (
        f"{owner} feature {entry['name']} ({entry['kind']}): {entry['cardinality'] - 1:,} {what}, "
        f"known for {entry['coverage']:.1%} of {owner}s"
    )


def _tables(
    kind: str, frame: pl.DataFrame, n_rows: int, path: Path, label: str
) -> tuple[np.ndarray, int, tuple[np.ndarray, np.ndarray]]:
    """Write ``types.Feature``: the files ``_id`` and ``_weight``, and the vocabulary of texts.

    frame: columns row, value. n_rows: of the tables. path: prefix of the files. label: for errors.

    Returns the ids, the cardinality, and the pairs of row and value id, int64 [N] each, rows
    ascending; there are none of numbers.
    """
    pairs = (np.zeros(0, np.int64), np.zeros(0, np.int64))
    if kind == "numeric":
        ids, weights, cardinality = _numeric(frame, n_rows)
    elif kind == "vector":
        ids, weights, cardinality = _vectors(frame, n_rows, label)
    else:
        frame, vocabulary = _value_ids(frame)
        vocabulary.write_parquet(f"{path}.parquet")
        cardinality = vocabulary.height + 1
        pairs = (frame["row"].to_numpy(), frame["id"].to_numpy())
        ids, weights = _padded(*pairs, n_rows)
    save_array(Path(f"{path}_id.npy"), ids)
    save_array(Path(f"{path}_weight.npy"), weights)
    return ids, cardinality, pairs


def write_bags(
    path: Path,
    item: np.ndarray,
    value: np.ndarray,
    train_pairs: dict[str, np.ndarray],
    n_users: int,
    cardinality: int,
) -> None:
    """Write how many of a user's training items carry each value (ITE paper, a_u), in CSR form.

    path: prefix of the files ``_ptr``, ``_id`` and ``_count``. item, value: int64 [N], one entry
    per item and value id, items ascending.
    """
    n_values_V = np.bincount(item, minlength=int(train_pairs["item"].max()) + 1)
    first_V = np.cumsum(n_values_V) - n_values_V  # where an item's entries begin
    size_U = np.zeros(n_users, dtype=np.int64)
    ids = []
    counts = []
    for block in blocks(train_pairs["user"]):
        user = train_pairs["user"][block].astype(np.int64)
        own_item = train_pairs["item"][block]
        n_values = n_values_V[own_item]
        # The entries of all items of the block, one range after the other.
        shift = first_V[own_item] - (np.cumsum(n_values) - n_values)
        at = np.arange(n_values.sum()) + np.repeat(shift, n_values)
        key = np.repeat(user, n_values) * cardinality + value[at]
        key, count = np.unique(key, return_counts=True)
        size_U += np.bincount(key // cardinality, minlength=n_users)
        ids.append(key % cardinality)
        counts.append(count.astype(np.float32))
    save_array(f"{path}_ptr.npy", np.concatenate([[0], np.cumsum(size_U)]).astype(np.int64))
    save_array(f"{path}_id.npy", np.concatenate(ids))
    save_array(f"{path}_count.npy", np.concatenate(counts))


def _of_owners(
    owner: str,
    name: str,
    frame: pl.LazyFrame,
    owners: pl.DataFrame,
    events: pl.LazyFrame | None,
) -> pl.DataFrame:
    """The feature's rows for the items or users, whose index is the column row.

    owner: "item" or "user", the column of ids.

    Raises:
        RecexpError: no id of the feature is that of an item (user). That the filters removed every
            item with a value is no error.
    """
    given = _stripped(frame.collect(engine="streaming"), owner)
    known = given.with_columns(pl.col(owner).cast(owners[owner].dtype, strict=False))
    found = known.join(owners, on=owner, how="inner").drop(owner).rename({"index": "row"})
    if given.height and found.is_empty():
        removed = events is not None and _occurs(known, events, owner)
        if not removed:
            raise RecexpError(
                f"{owner.capitalize()} feature {name}: none of its {given[owner].n_unique():,} "
                f"{owner} ids is that of {'an item' if owner == 'item' else 'a user'} of the "
                f"events. The feature has {_examples(given[owner])}; the events have "
                f"{_examples(owners[owner])}. Write both alike, or leave the feature out."
            )
    return found


def _occurs(frame: pl.DataFrame, events: pl.LazyFrame, owner: str) -> bool:
    """Is an item (user) of the frame one of the events?"""
    owners = _stripped(events.select(owner).unique().collect(engine="streaming"), owner)
    return not frame.join(owners, on=owner, how="semi").is_empty()


def _stripped(frame: pl.DataFrame, owner: str) -> pl.DataFrame:
    """The frame with ids freed of blanks around them, as those of the events are."""
    if not is_text(frame, owner):
        return frame
    return frame.with_columns(pl.col(owner).str.strip_chars())


def _examples(ids: pl.Series) -> str:
    return ", ".join(repr(x) for x in ids.unique().sort().head(EXAMPLES))


def _as_of(kind: str, frame: pl.DataFrame, end: int) -> pl.DataFrame:
    """Columns row and value, without repeats, as of ``end``."""
    frame = frame.drop_nulls("value")
    if "timestamp" in frame.columns:
        # The largest key is the last time until ``end``; without one, the first time after it.
        time = pl.col("timestamp")
        key = pl.when(time > end).then(-time).otherwise(time)
        is_largest = pl.col("key") == pl.col("key").max().over("row")
        frame = frame.with_columns(key=key).filter(is_largest)
    if kind in ("categorical", "vector"):
        frame = frame.unique("row", keep="last", maintain_order=True)
    frame = frame.select("row", "value")
    return frame if kind == "vector" else frame.unique(maintain_order=True)


def _with_ancestors(frame: pl.DataFrame, tree: pl.LazyFrame, name: str) -> pl.DataFrame:
    """The same rows and one per ancestor of each value. name: of the feature, for errors."""
    as_value = pl.col("value", "parent").cast(frame["value"].dtype, strict=False)
    parents = tree.collect().with_columns(as_value).drop_nulls("parent").unique()
    levels = [frame]
    level = frame
    for _ in range(MAX_DEPTH):
        level = level.join(parents, on="value").select("row", value="parent").unique()
        if level.height == 0:
            return pl.concat(levels).unique(maintain_order=True)
        levels.append(level)
    raise RecexpError(
        f"The tree of item feature {name} has a cycle, or more than {MAX_DEPTH} levels: "
        f"value {level['value'][0]} still has ancestors."
    )


def _value_ids(frame: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Columns row, id, sorted; and the vocabulary, columns id (1..) and value, sorted by value."""
    distinct = frame.select("value").unique().sort("value")
    as_int64 = pl.col("id").cast(pl.Int64)
    vocabulary = distinct.with_row_index("id", offset=1).with_columns(as_int64)
    ids = frame.join(vocabulary, on="value").select("row", "id").sort("row", "id")
    return ids, vocabulary


def _padded(row: np.ndarray, value: np.ndarray, n_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Value ids, int64 [V, M] padded with 0, and equal weights per row, float32 [V, M].

    row, value: int64 [N], one entry per row and value id, rows ascending. n_rows: V.
    """
    count_V = np.bincount(row, minlength=n_rows)
    first_V = np.concatenate([[0], np.cumsum(count_V)])
    column = np.arange(len(row)) - first_V[row]
    width = max(1, int(count_V.max(initial=1)))
    ids_VM = np.zeros((n_rows, width), dtype=np.int64)
    ids_VM[row, column] = value
    weight_V1 = 1.0 / np.maximum(count_V, 1)[:, None]
    return ids_VM, np.where(ids_VM > 0, weight_V1, 0).astype(np.float32)


def _numeric(frame: pl.DataFrame, n_rows: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Id 1 where a number is known, and its standardized mean as weight, both [V, 1].

    The third entry is the cardinality, 2. Weights are 0 where all numbers are equal.
    """
    mean = pl.col("value").cast(pl.Float64, strict=False).mean()
    frame = frame.group_by("row").agg(mean).drop_nulls().sort("row")
    row = frame["row"].to_numpy()
    value = frame["value"].to_numpy()
    ids_V1 = np.zeros((n_rows, 1), dtype=np.int64)
    ids_V1[row, 0] = 1
    weight_V1 = np.zeros((n_rows, 1), dtype=np.float32)
    mean_value, spread = _mean_and_spread(value)
    if spread:
        weight_V1[row, 0] = (value - mean_value) / spread
    return ids_V1, weight_V1, 2


def _mean_and_spread(value: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation; the latter is 0 where it is but a rounding error.

    value: float64 [N]. Both are 0 where there is none.
    """
    if not len(value):
        return 0.0, 0.0
    spread = float(value.std())
    if spread <= LEAST_SPREAD * np.abs(value).max():
        spread = 0.0
    return float(value.mean()), spread


def _vectors(frame: pl.DataFrame, n_rows: int, label: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Id 1 where a vector is known, [V, 1], and the vectors, float32 [V, W], as weights.

    All vectors are divided by one number, the root of their mean squared length: tables of weights
    then have the same effect as those of other features, whatever scale the vectors come in.
    The third entry is the cardinality, W + 1.

    Raises:
        RecexpError: vectors of several lengths, or a number that is missing or not finite.
    """
    ids_V1 = np.zeros((n_rows, 1), dtype=np.int64)
    if frame.is_empty():
        return ids_V1, np.zeros((n_rows, 1), dtype=np.float32), 2
    value = frame["value"]
    if not isinstance(value.dtype, pl.List | pl.Array):
        raise RecexpError(
            f"{label} is a vector, and its column holds {value.dtype}: give lists or arrays."
        )
    if isinstance(value.dtype, pl.Array):
        value = value.arr.to_list()
    widths = value.list.len().unique().sort().to_list()
    if len(widths) > 1 or widths[0] == 0:
        raise RecexpError(
            f"{label} has vectors of {', '.join(map(str, widths[:EXAMPLES]))} numbers: all must "
            "have the same number, at least 1."
        )
    number = value.explode().cast(pl.Float32, strict=False).to_numpy()
    vector_NW = number.reshape(-1, widths[0])
    if not np.isfinite(vector_NW).all():
        raise RecexpError(
            f"{label} has a vector with an entry that is missing or no finite number: leave such "
            "vectors out."
        )
    squares_N = np.square(vector_NW, dtype=np.float64).sum(1)
    scale = np.sqrt(squares_N.mean()) or 1.0
    row = frame["row"].to_numpy()
    ids_V1[row, 0] = 1
    weight_VW = np.zeros((n_rows, widths[0]), dtype=np.float32)
    weight_VW[row] = vector_NW / scale
    return ids_V1, weight_VW, widths[0] + 1


# Features of events


def code_event_features(
    events: pl.DataFrame, kinds: Mapping[str, EventFeatureKind], out: Path
) -> tuple[pl.DataFrame, list[dict[str, Any]]]:
    """Replace the values of event features by int32 value ids (0: unknown) or float32 numbers.

    Writes the vocabulary of each categorical feature, as ``build_features`` does. Numbers stay as
    they are until the training events are known (``standardize``); NaN is unknown.
    Returns the events, and name, kind and cardinality of each feature.
    """
    described: list[dict[str, Any]] = []
    for name, kind in kinds.items():
        column = EVENT_PREFIX + name
        cardinality = 2
        if kind == "numeric":
            number = pl.col(column).cast(pl.Float32, strict=False).fill_null(np.nan)
            events = events.with_columns(number)
        else:
            values = events[column].drop_nulls().unique().sort()
            vocabulary = event_vocabulary(values)
            vocabulary.write_parquet(out / f"event_feature_{name}.parquet")
            cardinality = vocabulary.height + 1
            events = events.with_columns(event_ids(events[column], vocabulary).alias(column))
        described.append({"name": name, "kind": kind, "cardinality": cardinality})
    return events, described


def event_vocabulary(values: pl.Series) -> pl.DataFrame:
    """Columns id (int32, from 1 on) and value. values: distinct."""
    ids = pl.int_range(1, len(values) + 1, dtype=pl.Int32, eager=True)
    return pl.DataFrame({"id": ids, "value": values})


def event_ids(values: pl.Series, vocabulary: pl.DataFrame) -> pl.Series:
    """The value ids, int32; 0 for null and for values that the vocabulary does not have."""
    known = vocabulary["value"]
    wanted = pl.DataFrame({"value": values.cast(known.dtype, strict=False)})
    found = wanted.join(vocabulary, on="value", how="left", maintain_order="left")
    return found["id"].fill_null(0)


def standardize(
    rows: Rows, is_train_E: np.ndarray, described: list[dict[str, Any]], report: list[str]
) -> None:
    """Standardize the numbers of event features by those of training events; unknown becomes 0.

    Adds to each entry of ``described`` the coverage (the share of rows with a value) and, for
    numbers, mean and spread; and a line to the report.
    """
    for entry in described:
        name = entry["name"]
        column_E = rows.features[name]
        is_known_E = column_E != 0
        if entry["kind"] == "numeric":
            is_known_E = ~np.isnan(column_E)
            known = column_E[is_known_E & is_train_E].astype(np.float64)
            entry["mean"], entry["spread"] = _mean_and_spread(known)
            rows.features[name] = standardized(column_E, entry)
        entry["coverage"] = float(is_known_E.mean())
        report.append(_line("event", entry))


def standardized(number: np.ndarray, entry: Mapping[str, Any]) -> np.ndarray:
    """(number - mean) / spread, float32; 0 for NaN, and everywhere where the spread is 0."""
    if not entry["spread"]:
        return np.zeros(len(number), np.float32)
    z = (number.astype(np.float64) - entry["mean"]) / entry["spread"]
    return np.nan_to_num(z, nan=0.0).astype(np.float32)
