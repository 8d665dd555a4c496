"""Side information: item features in long form to ``types.Feature`` and ``types.Bag`` tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recexp.data.ids import is_text
from recexp.data.readers import ItemFeature
from recexp.data.rows import blocks
from recexp.errors import RecexpError
from recexp.io import save_array

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
        frame = _of_items(name, feature, items, events)
        frame = _as_of(feature, frame, end)
        if feature.kind == "numeric":
            ids, weights, cardinality = _numeric(frame, items.height)
        else:
            if feature.tree is not None:
                frame = _with_ancestors(frame, feature.tree, name)
            frame, vocabulary = _value_ids(frame)
            vocabulary.write_parquet(out / f"feature_{name}.parquet")
            cardinality = vocabulary.height + 1
            item = frame["item"].to_numpy()
            value = frame["id"].to_numpy()
            ids, weights = _padded(item, value, items.height)
            write_bags(out / f"bag_{name}", item, value, train_pairs, n_users, cardinality)
        save_array(out / f"feature_{name}_id.npy", ids)
        save_array(out / f"feature_{name}_weight.npy", weights)
        known = float((ids[1:] != 0).any(1).mean())
        report.append(
            f"item feature {name} ({feature.kind}): {cardinality - 1:,} values, "
            f"known for {known:.1%} of items"
        )
        entry = {"name": name, "kind": feature.kind, "cardinality": cardinality, "coverage": known}
        described.append(entry)
    return described


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


def _of_items(
    name: str, feature: ItemFeature, items: pl.DataFrame, events: pl.LazyFrame | None
) -> pl.DataFrame:
    """The feature's rows for the items, whose column item is the index.

    Raises:
        RecexpError: no id of the feature is that of an item. That the filters removed every item
            with a value is no error.
    """
    frame = _stripped(feature.frame.collect(engine="streaming"))
    known = frame.with_columns(pl.col("item").cast(items["item"].dtype, strict=False))
    of_items = known.join(items, on="item", how="inner").drop("item").rename({"index": "item"})
    if frame.height and of_items.is_empty():
        removed = events is not None and _occurs(known, events)
        if not removed:
            raise RecexpError(
                f"Item feature {name}: none of its {frame['item'].n_unique():,} item ids is that "
                f"of an item of the events. The feature has {_examples(frame['item'])}; the events "
                f"have {_examples(items['item'])}. Write both alike, or leave the feature out."
            )
    return of_items


def _occurs(frame: pl.DataFrame, events: pl.LazyFrame) -> bool:
    """Is an item of the frame one of the events?"""
    items = _stripped(events.select("item").unique().collect(engine="streaming"))
    return not frame.join(items, on="item", how="semi").is_empty()


def _stripped(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with item ids freed of blanks around them, as those of the events are."""
    if not is_text(frame, "item"):
        return frame
    return frame.with_columns(pl.col("item").str.strip_chars())


def _examples(ids: pl.Series) -> str:
    return ", ".join(repr(x) for x in ids.unique().sort().head(EXAMPLES))


def _as_of(feature: ItemFeature, frame: pl.DataFrame, end: int) -> pl.DataFrame:
    """Columns item (index), value: what was known at ``end``."""
    frame = frame.drop_nulls("value")
    if "timestamp" in frame.columns:
        # The largest key is the last time until ``end``; without one, the first time after it.
        time = pl.col("timestamp")
        key = pl.when(time > end).then(-time).otherwise(time)
        is_largest = pl.col("key") == pl.col("key").max().over("item")
        frame = frame.with_columns(key=key).filter(is_largest)
    if feature.kind == "categorical":
        frame = frame.unique("item", keep="last", maintain_order=True)
    return frame.select("item", "value").unique(maintain_order=True)


def _with_ancestors(frame: pl.DataFrame, tree: pl.LazyFrame, name: str) -> pl.DataFrame:
    """The same rows and one per ancestor of each value. name: of the feature, for errors."""
    as_value = pl.col("value", "parent").cast(frame["value"].dtype, strict=False)
    parents = tree.collect().with_columns(as_value).drop_nulls("parent").unique()
    levels = [frame]
    level = frame
    for _ in range(MAX_DEPTH):
        level = level.join(parents, on="value").select("item", value="parent").unique()
        if level.height == 0:
            return pl.concat(levels).unique(maintain_order=True)
        levels.append(level)
    raise RecexpError(
        f"The tree of item feature {name} has a cycle, or more than {MAX_DEPTH} levels: "
        f"value {level['value'][0]} still has ancestors."
    )


def _value_ids(frame: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Columns item, id, sorted; and the vocabulary, columns id (1..) and value, sorted by value."""
    distinct = frame.select("value").unique().sort("value")
    as_int64 = pl.col("id").cast(pl.Int64)
    vocabulary = distinct.with_row_index("id", offset=1).with_columns(as_int64)
    ids = frame.join(vocabulary, on="value").select("item", "id").sort("item", "id")
    return ids, vocabulary


def _padded(item: np.ndarray, value: np.ndarray, n_items: int) -> tuple[np.ndarray, np.ndarray]:
    """Value ids, int64 [V, M] padded with 0, and equal weights per item, float32 [V, M].

    item, value: int64 [N], one entry per item and value id, items ascending.
    """
    count_V = np.bincount(item, minlength=n_items + 1)
    first_V = np.concatenate([[0], np.cumsum(count_V)])
    column = np.arange(len(item)) - first_V[item]
    width = max(1, int(count_V.max(initial=1)))
    ids_VM = np.zeros((n_items + 1, width), dtype=np.int64)
    ids_VM[item, column] = value
    weight_V1 = 1.0 / np.maximum(count_V, 1)[:, None]
    return ids_VM, np.where(ids_VM > 0, weight_V1, 0).astype(np.float32)


def _numeric(frame: pl.DataFrame, n_items: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Id 1 where a number is known, and its standardized mean as weight, both [V, 1].

    The third entry is the cardinality, 2. Weights are 0 where all numbers are equal.
    """
    mean = pl.col("value").cast(pl.Float64, strict=False).mean()
    frame = frame.group_by("item").agg(mean).drop_nulls().sort("item")
    item = frame["item"].to_numpy()
    value = frame["value"].to_numpy()
    ids_V1 = np.zeros((n_items + 1, 1), dtype=np.int64)
    ids_V1[item, 0] = 1
    weight_V1 = np.zeros((n_items + 1, 1), dtype=np.float32)
    spread = value.std() if len(value) else 0.0
    if spread > LEAST_SPREAD * np.abs(value).max(initial=0):
        weight_V1[item, 0] = (value - value.mean()) / spread
    return ids_V1, weight_V1, 2
