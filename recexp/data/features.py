"""Side information: long-form item features to the tables of ``types.Feature`` and ``types.Bag``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from recexp.data.readers import ItemFeature
from recexp.data.rows import blocks
from recexp.errors import RecexpError

MAX_DEPTH = 64  # of a category tree; a deeper one has a cycle, most likely


def build_features(
    raw: dict[str, ItemFeature],
    items: pl.DataFrame,
    train_pairs: dict[str, np.ndarray],
    end: int,
    n_users: int,
    out: Path,
    report: list[str],
) -> list[dict]:
    """Write id and weight tables per feature and the users' bags. Returns name, kind and cardinality of each.

    items: columns index, item. train_pairs: unique user and item arrays. end: time of the last training event. Values that change over time are
    taken as of then (the last at or before it, else the first): nothing of the future enters (models.md §6.3).
    """
    described = []
    for name, feature in raw.items():
        frame = _as_of(feature, items, end)
        if feature.kind == "numeric":
            ids, weights, cardinality = _numeric(frame, items.height)
        else:
            frame, cardinality, vocabulary = _value_ids(
                _with_ancestors(frame, feature.tree, name) if feature.tree is not None else frame
            )
            vocabulary.write_parquet(out / f"feature_{name}.parquet")
            item, value = frame["item"].to_numpy(), frame["id"].to_numpy()
            ids, weights = _padded(item, value, items.height)
            _bags(out / f"bag_{name}", item, value, train_pairs, n_users, cardinality)
        np.save(out / f"feature_{name}_id.npy", ids)
        np.save(out / f"feature_{name}_weight.npy", weights)
        known = float((ids[1:] != 0).any(1).mean())
        report.append(
            f"item feature {name} ({feature.kind}): {cardinality - 1:,} values, known for {known:.1%} of items"
        )
        described.append({"name": name, "kind": feature.kind, "cardinality": cardinality})
    return described


def _as_of(feature: ItemFeature, items: pl.DataFrame, end: int) -> pl.DataFrame:
    """Columns item (index), value: what was known at ``end``."""
    frame = feature.frame.collect(engine="streaming")
    frame = frame.with_columns(pl.col("item").cast(items["item"].dtype, strict=False))
    frame = (
        frame.join(items, on="item", how="inner")
        .drop("item")
        .rename({"index": "item"})
        .drop_nulls("value")
    )
    if "timestamp" in frame.columns:
        # The largest key is the last value known in time, or where there is none the first of the late ones.
        key = (
            pl.when(pl.col("timestamp") > end)
            .then(-pl.col("timestamp"))
            .otherwise(pl.col("timestamp"))
        )
        frame = frame.with_columns(key=key).filter(
            pl.col("key") == pl.col("key").max().over("item")
        )
    if feature.kind == "categorical":
        frame = frame.unique("item", keep="last", maintain_order=True)
    return frame.select("item", "value").unique(maintain_order=True)


def _with_ancestors(frame: pl.DataFrame, tree: pl.LazyFrame, name: str) -> pl.DataFrame:
    parents = (
        tree.collect()
        .with_columns(pl.col("value", "parent").cast(frame["value"].dtype, strict=False))
        .drop_nulls("parent")
        .unique()
    )
    levels, level = [frame], frame
    for _ in range(MAX_DEPTH):
        level = level.join(parents, on="value").select("item", value="parent").unique()
        if level.height == 0:
            return pl.concat(levels).unique(maintain_order=True)
        levels.append(level)
    raise RecexpError(
        f"The tree of item feature {name} has a cycle, or more than {MAX_DEPTH} levels: value {level['value'][0]} still has ancestors."
    )


def _value_ids(frame: pl.DataFrame) -> tuple[pl.DataFrame, int, pl.DataFrame]:
    vocabulary = (
        frame.select("value")
        .unique()
        .sort("value")
        .with_row_index("id", offset=1)
        .with_columns(pl.col("id").cast(pl.Int64))
    )
    return (
        frame.join(vocabulary, on="value").select("item", "id").sort("item", "id"),
        vocabulary.height + 1,
        vocabulary,
    )


def _padded(item: np.ndarray, value: np.ndarray, n_items: int) -> tuple[np.ndarray, np.ndarray]:
    count = np.bincount(item, minlength=n_items + 1)
    column = np.arange(len(item)) - np.concatenate([[0], np.cumsum(count)])[item]
    ids = np.zeros((n_items + 1, max(1, int(count.max(initial=1)))), dtype=np.int64)
    ids[item, column] = value
    weights = np.where(ids > 0, 1.0 / np.maximum(count, 1)[:, None], 0).astype(np.float32)
    return ids, weights


def _numeric(frame: pl.DataFrame, n_items: int) -> tuple[np.ndarray, np.ndarray, int]:
    frame = (
        frame.group_by("item")
        .agg(pl.col("value").cast(pl.Float64, strict=False).mean())
        .drop_nulls()
        .sort("item")
    )
    ids, weights = (
        np.zeros((n_items + 1, 1), dtype=np.int64),
        np.zeros((n_items + 1, 1), dtype=np.float32),
    )
    item, value = frame["item"].to_numpy(), frame["value"].to_numpy()
    ids[item, 0] = 1
    spread = value.std() if len(value) else 0.0
    if spread > 1e-12 * np.abs(value).max(initial=0):  # else they are equal but for rounding
        weights[item, 0] = (value - value.mean()) / spread
    return ids, weights, 2


def _bags(
    path: Path,
    item: np.ndarray,
    value: np.ndarray,
    train_pairs: dict[str, np.ndarray],
    n_users: int,
    cardinality: int,
) -> None:
    """a_u of S000: how many of the user's training items carry each value. ``item`` is ascending."""
    per_item = np.bincount(item, minlength=int(train_pairs["item"].max()) + 1)
    before, bags, size = np.cumsum(per_item) - per_item, [], np.zeros(n_users, dtype=np.int64)
    for block in blocks(train_pairs["user"]):
        user, mine = train_pairs["user"][block].astype(np.int64), train_pairs["item"][block]
        first, count = before[mine], per_item[mine]
        at = np.arange(count.sum()) + np.repeat(first - (np.cumsum(count) - count), count)
        key, count = np.unique(np.repeat(user, count) * cardinality + value[at], return_counts=True)
        size += np.bincount(key // cardinality, minlength=n_users)
        bags.append((key % cardinality, count.astype(np.float32)))
    np.save(f"{path}_ptr.npy", np.concatenate([[0], np.cumsum(size)]).astype(np.int64))
    for name, part in zip(("id", "count"), zip(*bags, strict=True), strict=True):
        np.save(f"{path}_{name}.npy", np.concatenate(part))
