"""The work behind ``prepare``: canonical events to the arrays of the store, with a report of what was dropped and an audit of leaks."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from recexp.data.features import build_features
from recexp.data.filters import apply_filters
from recexp.data.rows import Rows
from recexp.data.split import DROPPED, PAST, TEST, TRAIN, VAL
from recexp.types import RecexpError

if TYPE_CHECKING:
    from recexp.data.prepare import Dataset
    from recexp.data.split import Split

MAX_LEVELS = 1000  # a value with more is continuous


def build(dataset: Dataset, split: Split, out: Path) -> tuple[list[Path], dict[str, Any]]:
    """Read the raw files and write the arrays into ``out``. Returns the raw files read and the meta data (sizes, names, report, audit)."""
    from hydra.utils import instantiate

    raw = instantiate(dataset.source)(Path(dataset.raw_dir), on_bad_rows=dataset.on_bad_rows)
    events = raw.events.collect()
    report = [f"{dataset.name}: {events.height:,} events read from {len(raw.files)} file(s)"]
    for reason, (count, examples) in raw.dropped.items():
        report.append(f"{count:,} bad rows dropped ({reason}): {'; '.join(examples[:3])}")
    events = _behaviours(events, dataset, raw.files[0], report)
    events = _window(events, dataset, report)
    events, lines = apply_filters(events, dataset.filters, dataset.iterate_filters)
    report += lines
    users, items = (_ids(events[column], first) for column, first in (("user", 0), ("item", 1)))
    users.write_parquet(out / "users.parquet")
    items.write_parquet(out / "items.parquet")
    n_users, n_items = users.height, items.height
    rows, levels = _rows(events)
    explicit = [b in dataset.explicit for b in dataset.behaviours]

    unmerged = rows
    # "later" keeps the weaker events of a held-out pair, so it must see events; the others see what will be trained on.
    merge_first = dataset.merge == "pairs" and split.purge != "later"
    if merge_first:
        rows = rows.merged(explicit)
    code = split.assign(rows, explicit)
    if purged := int((code == DROPPED).sum()):
        report.append(f"{purged:,} events of held-out (user, item) pairs purged from training (purge={split.purge})")
    train = rows[code == TRAIN]
    if dataset.merge == "pairs" and not merge_first:
        # A pair merged across a held-out event would leave its history: only what lies between held-out events is merged.
        stretch = rows.user + np.cumsum((code == VAL) | (code == TEST))
        train = train.merged(explicit, stretch[code == TRAIN])
        code[np.setdiff1d(np.flatnonzero(code == TRAIN), train.origin)] = DROPPED
        rows = replace(rows, mask=rows.mask.copy(), behaviour=rows.behaviour.copy())
        rows.mask[train.origin], rows.behaviour[train.origin] = train.mask, train.behaviour
    rows, code = rows[code != DROPPED], code[code != DROPPED]

    _write_events(out, "train", train, n_users)
    ptr = _write_events(out, "past", rows, n_users)
    seen = {name: _write_targets(out, name, rows, np.flatnonzero(code == of), ptr, unmerged) for name, of in (("val", VAL), ("test", TEST))}
    train_pairs = train.pairs()
    _write_pairs(out, "train_pairs", train_pairs, n_users)
    _write_pairs(out, "all_pairs", unmerged.pairs(), n_users)
    # BERT4Rec's sampler counts complete sequences, validation and test included (models.md §1.5).
    _save(out, "item_count", np.bincount(rows.item[code != PAST], minlength=n_items + 1).astype(np.int64))
    features = build_features(raw.item_features, items, train_pairs, int(train.time.max()), n_users, out, report)
    audit = _audit(rows, code, seen["test"])
    report += [
        f"kept {n_users:,} users, {n_items:,} items, {len(rows):,} rows: {len(train):,} to train, "
        f"{len(seen['val']):,} validation and {len(seen['test']):,} test targets",
        "audit of leaks: "
        f"{audit['tied_targets']:.1%} of test targets share their time with another event of the user; "
        f"{audit['seen_targets']:.1%} were seen before through a weaker behaviour; "
        f"{audit['future_events']:.1%} of training events happened after their user's test event",
    ]
    meta = {
        "dataset": dataset.name,
        "users": n_users,
        "items": n_items,
        "interactions": len(rows),
        "train": len(train),
        "behaviours": list(dataset.behaviours),
        "explicit": explicit,
        "levels": levels,
        "features": features,
        "report": report,
        "audit": audit,
    }
    return raw.files, meta


def _behaviours(events: pl.DataFrame, dataset: Dataset, file: Path, report: list[str]) -> pl.DataFrame:
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
            report.append(f"{below:,} events dropped: their value is missing or below every threshold of dataset.value_behaviours")
        if below == events.height:
            raise RecexpError(f"{dataset.name}: no event's value reaches a threshold of dataset.value_behaviours {dict(dataset.value_behaviours)}.")
        return events.filter(pl.col("behaviour") > 0).drop("behavior")
    found = events["behavior"].unique().to_list()
    if unknown := sorted(set(found) - set(dataset.behaviours)):
        if dataset.on_bad_rows == "error":
            row = events.with_row_index("row").filter(pl.col("behavior").is_in(unknown)).row(0, named=True)
            raise RecexpError(
                f"{file}: unknown behaviour {row['behavior']!r} in event {row['row'] + 1} (user {row['user']}, item {row['item']}). "
                f"dataset.behaviours lists {list(dataset.behaviours)}: add it there, or use dataset.on_bad_rows=drop."
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
            moment = datetime.fromisoformat(str(dataset.window[key]))
            ms[key] = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
        except (KeyError, ValueError) as error:
            raise RecexpError(f"dataset.window.{key} must be an ISO date such as 2016-08-08: {error}") from error
    kept = events.filter((pl.col("timestamp") >= ms["start"]) & (pl.col("timestamp") < ms["end"]))
    report.append(f"window {dataset.window['start']} to {dataset.window['end']}: {events.height - kept.height:,} events outside dropped")
    if kept.height == 0:
        first, last = (datetime.fromtimestamp(t / 1000, UTC).isoformat() for t in (events["timestamp"].min(), events["timestamp"].max()))
        raise RecexpError(f"dataset.window left no event: the data run from {first} to {last}.")
    return kept


def _ids(raw: pl.Series, first: int) -> pl.DataFrame:
    """Columns index (first, first + 1, ...) and the raw ids, ascending."""
    return raw.unique().sort().to_frame().with_row_index("index", offset=first).with_columns(pl.col("index").cast(pl.Int64))


def _rows(events: pl.DataFrame) -> tuple[Rows, list[float]]:
    """The events indexed and sorted, and the levels of their value (none where it is absent or continuous, as a price is)."""
    user, item = (events[c].rank("dense").to_numpy().astype(np.int64) for c in ("user", "item"))
    behaviour, time = events["behaviour"].to_numpy(), events["timestamp"].to_numpy()
    value, levels = None, np.zeros(0)
    if "value" in events.columns:
        levels = events["value"].drop_nulls().unique().sort().to_numpy()
        if 0 < len(levels) <= MAX_LEVELS:
            known = events["value"].is_not_null().to_numpy()
            value = np.where(known, np.searchsorted(levels, events["value"].fill_null(levels[0]).to_numpy()) + 1, 0).astype(np.int16)
    order = np.lexsort((time, user))  # stable: ties stay in the order of the source
    rows = Rows(user - 1, item, behaviour, time, np.left_shift(1, behaviour - 1), order, value)[order]
    rows.origin = np.arange(len(rows))
    return rows, levels.tolist() if value is not None else []


def _save(out: Path, name: str, array: np.ndarray) -> None:
    np.save(out / f"{name}.npy", np.ascontiguousarray(array))


def _ptr(user: np.ndarray, n_users: int) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.bincount(user, minlength=n_users))]).astype(np.int64)


def _write_events(out: Path, name: str, rows: Rows, n_users: int) -> np.ndarray:
    ptr = _ptr(rows.user, n_users)
    _save(out, f"{name}_ptr", ptr)
    _save(out, f"{name}_item", rows.item.astype(np.int32))
    _save(out, f"{name}_behaviour", rows.behaviour.astype(np.int8))
    _save(out, f"{name}_time", rows.time)
    _save(out, f"{name}_mask", rows.mask.astype(np.int32))
    if rows.value is not None:
        _save(out, f"{name}_value", rows.value)
    return ptr


def _write_targets(out: Path, name: str, rows: Rows, at: np.ndarray, past_ptr: np.ndarray, unmerged: Rows) -> np.ndarray:
    """Targets of one split with the range of their history in the ``past`` arrays: past_ptr[user] .. end. Returns which were seen before."""
    target = rows[at]
    seen = unmerged.seen_weaker(target.origin)
    _save(out, f"{name}_user", target.user)
    _save(out, f"{name}_item", target.item)
    _save(out, f"{name}_time", target.time)
    _save(out, f"{name}_behaviour", target.behaviour.astype(np.int8))
    _save(out, f"{name}_seen", seen)
    _save(out, f"{name}_start", past_ptr[target.user])
    _save(out, f"{name}_end", at)
    return seen


def _write_pairs(out: Path, name: str, pairs: dict[str, np.ndarray], n_users: int) -> None:
    _save(out, f"{name}_ptr", _ptr(pairs["user"], n_users))
    for column in ("item", "mask", "count"):
        _save(out, f"{name}_{column}", pairs[column].astype(np.int32))


def _audit(rows: Rows, code: np.ndarray, seen: np.ndarray) -> dict[str, float]:
    """Shares a careful reader wants to know before believing a figure (models.md §2.0, §11)."""
    at = np.flatnonzero(code == TEST)
    same_as_next = np.append((np.diff(rows.user) == 0) & (np.diff(rows.time) == 0), False)
    test_time = np.full(rows.user[-1] + 1, np.iinfo(np.int64).max)
    test_time[rows.user[at]] = rows.time[at]
    trained = code == TRAIN
    return {
        "tied_targets": float((same_as_next[at] | same_as_next[at - 1]).mean()),  # a target is never the first row
        "seen_targets": float(seen.mean()),
        "future_events": float((rows.time > test_time[rows.user])[trained].mean()),
    }
