"""The work behind ``prepare``: canonical events to the arrays of the store, with a report of what was dropped and an audit of leaks."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from recexp.data.features import build_features
from recexp.data.filters import apply_filters
from recexp.data.split import DROPPED, PAST, TEST, TRAIN, VAL
from recexp.types import RecexpError

if TYPE_CHECKING:
    from recexp.data.prepare import Dataset
    from recexp.data.split import Split


def build(dataset: Dataset, split: Split, out: Path) -> tuple[list[Path], dict[str, Any]]:
    """Read the raw files and write the arrays into ``out``. Returns the raw files read and the meta data (sizes, names, report, audit)."""
    from hydra.utils import instantiate

    raw = instantiate(dataset.source)(Path(dataset.raw_dir), on_bad_rows=dataset.on_bad_rows)
    report: list[str] = []
    for reason, (count, examples) in raw.dropped.items():
        report.append(f"{count:,} bad rows dropped ({reason}): {'; '.join(examples[:3])}")
    # Raw events are kept in source order with their row number: (time, source row) is the order, never the item id.
    events = raw.events.with_row_index("row").collect()
    report.insert(0, f"{dataset.name}: {events.height:,} events read from {len(raw.files)} file(s)")
    events = _behaviours(events, dataset, report)
    events = _window(events, dataset, report)
    events, lines = apply_filters(events, dataset.filters, dataset.iterate_filters)
    report += lines
    events, users, items = _index(events)
    users.write_parquet(out / "users.parquet")
    items.write_parquet(out / "items.parquet")
    explicit = [b in dataset.explicit for b in dataset.behaviours]
    levels = sorted(events["value"].drop_nulls().unique().to_list()) if "value" in events.columns else []
    levels = levels if len(levels) <= 1000 else []  # a continuous value (a price) has no levels

    all_pairs = _pairs(events)
    # "later" keeps the weaker events of a held-out pair, so it must see events; the others see what will be trained on.
    merge_first = dataset.merge == "pairs" and split.purge != "later"
    if merge_first:
        events = _merge(events, explicit)
    events = events.with_columns(split=pl.Series(split.assign(events, explicit), dtype=pl.Int8))
    if dataset.merge == "pairs" and not merge_first:
        held = events.filter(pl.col("split") != TRAIN)
        events = pl.concat([_merge(events.filter(pl.col("split") == TRAIN), explicit), held], how="diagonal").sort("user", "time", "row")
    n_dropped = int((events["split"] == DROPPED).sum())
    if n_dropped:
        report.append(f"{n_dropped:,} events of held-out (user, item) pairs purged from training (purge={split.purge})")
    events = events.filter(pl.col("split") != DROPPED)

    train = events.filter(pl.col("split") == TRAIN)
    n_users, n_items = users.height, items.height
    value_id = {v: i + 1 for i, v in enumerate(levels)}
    _write_events(out, "train", train, n_users, value_id)
    _write_events(out, "past", events, n_users, value_id)
    ptr = np.load(out / "past_ptr.npy")
    for name, code in (("val", VAL), ("test", TEST)):
        _write_targets(out, name, events, code, ptr)
    _write_pairs(out, "train_pairs", _pairs(train), n_users)
    _write_pairs(out, "all_pairs", all_pairs, n_users)
    # BERT4Rec's sampler counts complete sequences, validation and test included (models.md §1.5).
    _save(out, "item_count", np.bincount(events.filter(pl.col("split") != PAST)["item"].to_numpy(), minlength=n_items + 1).astype(np.int64))
    features = build_features(raw.item_features, items, train, n_users, out, report)
    audit = _audit(events, train)
    report += [
        f"kept {n_users:,} users, {n_items:,} items, {events.height:,} rows: {train.height:,} to train, "
        f"{int((events['split'] == VAL).sum()):,} validation and {int((events['split'] == TEST).sum()):,} test targets",
        "audit of leaks: "
        f"{audit['tied_targets']:.1%} of test targets share their time with another event of the user; "
        f"{audit['seen_targets']:.1%} were seen before through a weaker behaviour; "
        f"{audit['future_events']:.1%} of training events happened after their user's test event",
    ]
    meta = {
        "dataset": dataset.name,
        "users": n_users,
        "items": n_items,
        "interactions": events.height,
        "train": train.height,
        "behaviours": list(dataset.behaviours),
        "explicit": explicit,
        "levels": levels,
        "features": features,
        "report": report,
        "audit": audit,
    }
    return raw.files, meta


def _behaviours(events: pl.DataFrame, dataset: Dataset, report: list[str]) -> pl.DataFrame:
    """Replace names by codes 1..K, weak to strong."""
    if dataset.value_behaviours:
        if "value" not in events.columns:
            raise RecexpError("dataset.value_behaviours is set, but the events carry no value to read behaviours from.")
        code = pl.lit(0, dtype=pl.Int64)
        for name in dataset.behaviours:  # ascending thresholds
            code = pl.when(pl.col("value") >= dataset.value_behaviours[name]).then(dataset.behaviours.index(name) + 1).otherwise(code)
        events = events.with_columns(behaviour=code)
        below = events.filter(pl.col("behaviour") == 0).height
        if below:
            report.append(f"{below:,} events dropped: their value is below every threshold of dataset.value_behaviours")
        return events.filter(pl.col("behaviour") > 0).drop("behavior")
    found = events["behavior"].unique().to_list()
    if unknown := sorted(set(found) - set(dataset.behaviours)):
        row = events.filter(pl.col("behavior").is_in(unknown)).row(0, named=True)
        if dataset.on_bad_rows == "error":
            raise RecexpError(
                f"{dataset.name}: unknown behaviour {row['behavior']!r} in event {row['row'] + 1} (column behavior; user {row['user']}, "
                f"item {row['item']}). dataset.behaviours lists {list(dataset.behaviours)}: add it there, or use dataset.on_bad_rows=drop."
            )
        before = events.height
        events = events.filter(pl.col("behavior").is_in(list(dataset.behaviours)))
        report.append(f"{before - events.height:,} events dropped: behaviour among {unknown}")
        if events.height == 0:
            raise RecexpError(f"{dataset.name}: no event has one of the behaviours {list(dataset.behaviours)}.")
    codes = {name: i + 1 for i, name in enumerate(dataset.behaviours)}
    return events.with_columns(behaviour=pl.col("behavior").replace_strict(codes, return_dtype=pl.Int64)).drop("behavior")


def _window(events: pl.DataFrame, dataset: Dataset, report: list[str]) -> pl.DataFrame:
    if not dataset.window:
        return events
    ms = {}
    for key in ("start", "end"):
        try:
            ms[key] = int(datetime.fromisoformat(str(dataset.window[key])).replace(tzinfo=UTC).timestamp() * 1000)
        except (KeyError, ValueError) as error:
            raise RecexpError(f"dataset.window.{key} must be an ISO date such as 2016-08-08: {error}") from error
    kept = events.filter((pl.col("timestamp") >= ms["start"]) & (pl.col("timestamp") < ms["end"]))
    report.append(f"window {dataset.window['start']} to {dataset.window['end']}: {events.height - kept.height:,} events outside dropped")
    if kept.height == 0:
        raise RecexpError(f"dataset.window left no event: the data run from {events['timestamp'].min()} to {events['timestamp'].max()} ms.")
    return kept


def _index(events: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Users to 0..U-1, items to 1..V-1 in ascending order of their raw ids; rows sorted by (user, time, source row)."""
    users = events.select("user").unique().sort("user").with_row_index("index").with_columns(pl.col("index").cast(pl.Int64))
    items = events.select("item").unique().sort("item").with_row_index("index", offset=1).with_columns(pl.col("index").cast(pl.Int64))
    events = (
        events.join(users.rename({"index": "u"}), on="user", how="left")
        .join(items.rename({"index": "i"}), on="item", how="left")
        .drop("user", "item")
        .rename({"u": "user", "i": "item", "timestamp": "time"})
        .sort("user", "time", "row")
        .with_columns(mask=pl.lit(1, dtype=pl.Int64) * 2 ** (pl.col("behaviour") - 1))
    )
    # Was this item met by this user before, through a weaker behaviour? With one behaviour there is none.
    weaker = pl.col("behaviour").cum_min().over("user", "item") < pl.col("behaviour")
    several = events["behaviour"].n_unique() > 1
    return events.with_columns(seen=weaker if several else pl.lit(False)), users, items


def _merge(events: pl.DataFrame, explicit: list[bool]) -> pl.DataFrame:
    """One row per (user, item): the strongest behaviour, at the last explicit time, or the last time where none is explicit (S000)."""
    strong = pl.col("behaviour").replace_strict({i + 1: e for i, e in enumerate(explicit)}, return_dtype=pl.Boolean)
    pair = ("user", "item")
    merged = events.with_columns(strong=strong).with_columns(
        mask=pl.col("mask").bitwise_or().over(pair), behaviour=pl.col("behaviour").max().over(pair), any_strong=pl.col("strong").any().over(pair)
    )
    merged = merged.filter(pl.col("strong") == pl.col("any_strong"))
    return merged.unique(pair, keep="last", maintain_order=True).drop("strong", "any_strong").sort("user", "time", "row")


def _pairs(events: pl.DataFrame) -> pl.DataFrame:
    """Unique (user, item) with the mask of behaviours and the number of events, sorted."""
    return (
        events.group_by("user", "item").agg(mask=pl.col("mask").bitwise_or(), count=pl.len().cast(pl.Int64)).sort("user", "item")
    )


def _save(out: Path, name: str, array: np.ndarray) -> None:
    np.save(out / f"{name}.npy", np.ascontiguousarray(array))


def _ptr(user: np.ndarray, n_users: int) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.bincount(user, minlength=n_users))]).astype(np.int64)


def _write_events(out: Path, name: str, events: pl.DataFrame, n_users: int, value_id: dict[float, int]) -> None:
    _save(out, f"{name}_ptr", _ptr(events["user"].to_numpy(), n_users))
    _save(out, f"{name}_item", events["item"].to_numpy().astype(np.int32))
    _save(out, f"{name}_behaviour", events["behaviour"].to_numpy().astype(np.int8))
    _save(out, f"{name}_time", events["time"].to_numpy().astype(np.int64))
    _save(out, f"{name}_mask", events["mask"].to_numpy().astype(np.int32))
    if value_id:
        value = events["value"].replace_strict(value_id, default=0, return_dtype=pl.Int16)
        _save(out, f"{name}_value", value.to_numpy())


def _write_targets(out: Path, name: str, events: pl.DataFrame, code: int, past_ptr: np.ndarray) -> None:
    """Targets of one split with the range of their history in the ``past`` arrays: past_ptr[user] .. end."""
    rows = np.flatnonzero(events["split"].to_numpy() == code)
    target = events[rows]
    user = target["user"].to_numpy()
    _save(out, f"{name}_user", user.astype(np.int64))
    _save(out, f"{name}_item", target["item"].to_numpy().astype(np.int64))
    _save(out, f"{name}_time", target["time"].to_numpy().astype(np.int64))
    _save(out, f"{name}_behaviour", target["behaviour"].to_numpy().astype(np.int8))
    _save(out, f"{name}_seen", target["seen"].to_numpy().astype(bool))
    _save(out, f"{name}_start", past_ptr[user])
    _save(out, f"{name}_end", rows.astype(np.int64))


def _write_pairs(out: Path, name: str, pairs: pl.DataFrame, n_users: int) -> None:
    _save(out, f"{name}_ptr", _ptr(pairs["user"].to_numpy(), n_users))
    _save(out, f"{name}_item", pairs["item"].to_numpy().astype(np.int32))
    _save(out, f"{name}_mask", pairs["mask"].to_numpy().astype(np.int32))
    _save(out, f"{name}_count", pairs["count"].to_numpy().astype(np.int32))


def _audit(events: pl.DataFrame, train: pl.DataFrame) -> dict[str, float]:
    """Shares a careful reader wants to know before believing a figure (models.md §2.0, §11)."""
    tied = (pl.len().over("user", "time") > 1).alias("tied")
    test = events.with_columns(tied).filter(pl.col("split") == TEST)
    future = train.join(test.select("user", test_time="time"), on="user", how="left").filter(pl.col("time") > pl.col("test_time")).height
    return {
        "tied_targets": float(test["tied"].mean()),
        "seen_targets": float(test["seen"].mean()),
        "future_events": future / max(1, train.height),
    }
