"""The work behind ``prepare``: canonical events to the arrays of the store, with a report of what was dropped and an audit of leaks."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from recexp.data.features import build_features
from recexp.data.filters import apply_filters
from recexp.data.rows import BLOCK, Rows
from recexp.data.simulation.simulator import is_simulated
from recexp.data.split import DROPPED, PAST, TEST, TRAIN, VAL
from recexp.errors import RecexpError

if TYPE_CHECKING:
    from recexp.data.cache import Dataset
    from recexp.data.split import Split

MAX_LEVELS = 1000  # a value with more is continuous


def build(dataset: Dataset, split: Split, out: Path) -> tuple[list[Path], dict[str, Any]]:
    """Read the raw files and write the arrays into ``out``. Returns the raw files read and the meta data (sizes, names, report, audit)."""
    from hydra.utils import instantiate

    stage = _Stages(dataset.name, 8)
    stage("reading")
    raw = instantiate(dataset.source)(Path(dataset.raw_dir), on_bad_rows=dataset.on_bad_rows)
    report = [f"{dataset.name}: {_count(raw.events):,} events read from {len(raw.files)} file(s)"]
    for reason, (count, examples) in raw.dropped.items():
        report.append(f"{count:,} bad rows dropped ({reason}): {'; '.join(examples[:3])}")
    left_out: dict[str, int] = {}
    known = _behaviours(raw.events, dataset, raw.files[0], report, left_out)
    events = known.collect(engine="streaming")
    del known
    stage("filtering")
    events = _window(events, dataset, report, left_out)
    n_before = events["user"].n_unique() if dataset.filters else 0
    events, lines = apply_filters(events, dataset.filters, dataset.iterate_filters)
    report += lines
    stage("sorting")
    users, items, rows, levels = _rows(events)
    users.write_parquet(out / "users.parquet")
    items.write_parquet(out / "items.parquet")
    n_users, n_items = users.height, items.height
    if n_before > n_users:
        left_out["removed by dataset.filters"] = n_before - n_users
    simulated = is_simulated(raw.files, Path(dataset.raw_dir), rows.time)
    n_events = np.bincount(rows.behaviour, minlength=1 + len(dataset.behaviours))[1:].tolist()
    explicit = [b in dataset.explicit for b in dataset.behaviours]
    stage("counting pairs")
    _write_pairs(out, "all_pairs", rows.pairs(), n_users)

    stage("splitting")
    unmerged = rows
    # "later" keeps the weaker events of a held-out pair, so it must see events; the others see what will be trained on.
    merge_first = dataset.merge == "pairs" and split.purge != "later"
    if merge_first:
        rows = rows.merged(explicit)
    code = split.assign(rows, explicit)
    seen = {
        name: unmerged.seen_weaker(rows.origin[code == of])
        for name, of in (("val", VAL), ("test", TEST))
    }
    del unmerged
    left_out |= split.left_out(rows, explicit, code)
    if purged := int((code == DROPPED).sum()):
        report.append(
            f"{purged:,} events of held-out (user, item) pairs purged from training (purge={split.purge})"
        )
    stage("writing training events")
    train = rows[code == TRAIN]
    if dataset.merge == "pairs" and not merge_first:
        # A pair merged across a held-out event would leave its history: only what lies between held-out events is merged.
        stretch = rows.user + np.cumsum((code == VAL) | (code == TEST))
        train = train.merged(explicit, stretch[code == TRAIN])
        code[np.setdiff1d(np.flatnonzero(code == TRAIN), train.origin)] = DROPPED
        rows.mask[train.origin], rows.behaviour[train.origin] = train.mask, train.behaviour
    _write_events(out, "train", train, n_users)
    n_train, end = len(train), int(train.time.max())
    train.time = train.origin = train.value = None  # room for the pairs
    train_pairs = train.pairs()
    del train
    _write_pairs(out, "train_pairs", train_pairs, n_users)
    weaker_only = {}
    for name, of in (("val", VAL), ("test", TEST)):
        at = np.flatnonzero(code == of)
        weaker_only[name] = _weaker_only(train_pairs, rows.user[at], rows.item[at], len(explicit))
    del train_pairs["mask"], train_pairs["count"]

    stage("writing histories")
    rows.keep(code != DROPPED)
    code = code[code != DROPPED]
    ptr = _write_events(out, "past", rows, n_users)
    for name, of in (("val", VAL), ("test", TEST)):
        _write_targets(out, name, rows, np.flatnonzero(code == of), ptr, seen[name])
    # BERT4Rec's sampler counts complete sequences, validation and test included (models.md §1.5).
    _save(
        out,
        "item_count",
        np.bincount(rows.item[code != PAST], minlength=n_items + 1).astype(np.int64),
    )
    audit = _audit(rows, code, seen["test"])
    audit |= {f"{name}_targets_weaker_only": share for name, share in weaker_only.items()}
    n_rows = len(rows)
    del rows, code
    stage("item features")
    features = build_features(raw.item_features, items, train_pairs, end, n_users, out, report)
    stage.close()
    report += [
        f"kept {n_users:,} users, {n_items:,} items, {n_rows:,} rows: {n_train:,} to train, "
        f"{len(seen['val']):,} validation and {len(seen['test']):,} test targets",
        "audit of leaks: "
        f"{audit['tied_targets']:.1%} of test targets share their time with another event of the user; "
        f"{audit['seen_targets']:.1%} were seen before through a weaker behaviour; "
        f"{audit['future_events']:.1%} of training events happened after their user's test event; "
        f"{weaker_only['test']:.1%} of test and {weaker_only['val']:.1%} of validation targets stand "
        f"in training through behaviours weaker than {dataset.behaviours[-1]} only, so that "
        "sampler=supportive_only draws them as negatives for their own user",
    ]
    report[-1:-1] = [f"users left out: {_listed(left_out)}"]
    if simulated:
        report.insert(1, "SIMULATED data: figures on them say nothing about real users")
    meta = {
        "dataset": dataset.name,
        "users": n_users,
        "items": n_items,
        "interactions": n_rows,
        "train": n_train,
        "simulated": simulated,
        "left_out": left_out,
        # After filters, before the split.
        "events": dict(zip(dataset.behaviours, n_events, strict=True)),
        "behaviours": list(dataset.behaviours),
        "explicit": explicit,
        "levels": levels,
        "features": features,
        "report": report,
        "audit": audit,
    }
    return raw.files, meta


class _Stages:
    """A progress bar on a terminal, silent elsewhere."""

    def __init__(self, name: str, total: int) -> None:
        from tqdm import tqdm

        self.bar, self.name = tqdm(total=total, disable=None, leave=False, unit="stage"), name
        self.close = self.bar.close

    def __call__(self, doing: str) -> None:
        self.bar.set_description(f"[data] {self.name}: {doing}")
        self.bar.update()


def _count(events: pl.LazyFrame) -> int:
    return events.select(pl.len()).collect(engine="streaming").item()


def _users(events: pl.LazyFrame) -> int:
    return events.select(pl.col("user").n_unique()).collect(engine="streaming").item()


def _listed(left_out: dict[str, int]) -> str:
    """As in the report."""
    return "; ".join(f"{n:,} {reason}" for reason, n in left_out.items()) or "none"


def _behaviours(
    events: pl.LazyFrame, dataset: Dataset, file: Path, report: list[str], left_out: dict[str, int]
) -> pl.LazyFrame:
    """Replace names by codes 1..K, weak to strong. Users who lose all events enter ``left_out``."""
    if dataset.value_behaviours:
        if "value" not in events.collect_schema():
            raise RecexpError(
                "dataset.value_behaviours is set, but the events carry no value to read behaviours from."
            )
        code = pl.lit(0, dtype=pl.Int8)
        for name in dataset.behaviours:  # ascending thresholds
            number = pl.lit(dataset.behaviours.index(name) + 1, dtype=pl.Int8)
            code = (
                pl.when(pl.col("value") >= dataset.value_behaviours[name])
                .then(number)
                .otherwise(code)
            )
        events = events.with_columns(behaviour=code)
        below, height = _count(events.filter(pl.col("behaviour") == 0)), _count(events)
        if below:
            report.append(
                f"{below:,} events dropped: their value is missing or below every threshold of dataset.value_behaviours"
            )
        if below == height:
            raise RecexpError(
                f"{dataset.name}: no event's value reaches a threshold of dataset.value_behaviours {dict(dataset.value_behaviours)}."
            )
        kept = events.filter(pl.col("behaviour") > 0)
        if below and (gone := _users(events) - _users(kept)):
            left_out["removed by dataset.value_behaviours"] = gone
        return kept.drop("behavior")
    found = (
        events.select(pl.col("behavior").unique()).collect(engine="streaming").to_series().to_list()
    )
    if unknown := sorted(set(found) - set(dataset.behaviours)):
        if dataset.on_bad_rows == "error":
            row = (
                events.with_row_index("row")
                .filter(pl.col("behavior").is_in(unknown))
                .head(1)
                .collect(engine="streaming")
                .row(0, named=True)
            )
            raise RecexpError(
                f"{file}: unknown behaviour {row['behavior']!r} in event {row['row'] + 1} (user {row['user']}, item {row['item']}). "
                f"dataset.behaviours lists {list(dataset.behaviours)}: add it there, or use dataset.on_bad_rows=drop."
            )
        before, users_before = _count(events), _users(events)
        events = events.filter(pl.col("behavior").is_in(list(dataset.behaviours)))
        left = _count(events)
        if gone := users_before - _users(events):
            left_out["removed by dataset.behaviours"] = gone
        report.append(f"{before - left:,} events dropped: behaviour among {unknown}")
        if left == 0:
            raise RecexpError(
                f"{dataset.name}: no event has one of the behaviours {list(dataset.behaviours)}."
            )
    code = pl.lit(None, dtype=pl.Int8)
    for i, name in enumerate(dataset.behaviours):  # replace_strict would gather all events first
        code = (
            pl.when(pl.col("behavior") == name).then(pl.lit(i + 1, dtype=pl.Int8)).otherwise(code)
        )
    return events.with_columns(behaviour=code).drop("behavior")


def _window(
    events: pl.DataFrame, dataset: Dataset, report: list[str], left_out: dict[str, int]
) -> pl.DataFrame:
    if not dataset.window:
        return events
    ms = {}
    for key in ("start", "end"):
        try:
            moment = datetime.fromisoformat(str(dataset.window[key]))
            ms[key] = int(
                (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000
            )
        except (KeyError, ValueError) as error:
            raise RecexpError(
                f"dataset.window.{key} must be an ISO date such as 2016-08-08: {error}"
            ) from error
    kept = events.filter((pl.col("timestamp") >= ms["start"]) & (pl.col("timestamp") < ms["end"]))
    report.append(
        f"window {dataset.window['start']} to {dataset.window['end']}: {events.height - kept.height:,} events outside dropped"
    )
    if gone := events["user"].n_unique() - kept["user"].n_unique():
        left_out["removed by dataset.window"] = gone
    if kept.height == 0:
        first, last = (
            datetime.fromtimestamp(t / 1000, UTC).isoformat()
            for t in (events["timestamp"].min(), events["timestamp"].max())
        )
        raise RecexpError(f"dataset.window left no event: the data run from {first} to {last}.")
    return kept


def _indexed(raw: pl.Series, first: int) -> tuple[pl.DataFrame, np.ndarray]:
    """Columns index (first, first + 1, ...) and the raw ids, ascending; and each row's index, int32."""
    ids = raw.unique().sort()
    table = (
        ids.to_frame()
        .with_row_index("index", offset=first)
        .with_columns(pl.col("index").cast(pl.Int64))
    )
    if not raw.dtype.is_integer():
        return table, (raw.rank("dense").to_numpy().astype(np.int64) + (first - 1)).astype(np.int32)
    known, index = ids.to_numpy(), np.empty(len(raw), dtype=np.int32)
    place = None
    if len(raw) > int(known[-1]) - int(
        known[0]
    ):  # looked up in a table of a place for every number, instead of searched for
        place = np.zeros(int(known[-1]) - int(known[0]) + 1, dtype=np.int32)
        place[known - known[0]] = np.arange(len(known), dtype=np.int32)
    for at in range(0, len(raw), BLOCK):
        block = raw[at : at + BLOCK].to_numpy()
        index[at : at + BLOCK] = (
            np.searchsorted(known, block) if place is None else place[block - known[0]]
        ) + first
    return table, index


def _rows(events: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame, Rows, list[float]]:
    """Ids of users and items; the events indexed and sorted; and the levels of their value (none where it is absent or continuous, as a price is).

    Takes the events' columns away one by one: whoever has them no longer needs them.
    """
    value, levels = None, np.zeros(0)
    if "value" in events.columns:
        levels = events["value"].drop_nulls().unique().sort().to_numpy()
        if 0 < len(levels) <= MAX_LEVELS:
            known = events["value"].is_not_null().to_numpy()
            value = np.where(
                known,
                np.searchsorted(levels, events["value"].fill_null(levels[0]).to_numpy()) + 1,
                0,
            ).astype(np.int16)
    users, user = _indexed(events.drop_in_place("user"), 0)
    items, item = _indexed(events.drop_in_place("item"), 1)
    behaviour, time = (
        events.drop_in_place("behaviour").to_numpy(),
        events.drop_in_place("timestamp").to_numpy(),
    )
    order = _by_user_and_time(user, time)
    rows = Rows(user, item, behaviour, time, None, None, value)
    del user, item, behaviour, time, value
    rows.keep(order)
    rows.origin = np.arange(len(rows), dtype=np.int32 if len(rows) < 2**31 else np.int64)
    bits = np.int8 if rows.behaviour.max() < 8 else np.int32
    rows.mask = np.left_shift(bits(1), rows.behaviour - 1, dtype=bits)
    return users, items, rows, levels.tolist() if rows.value is not None else []


def _by_user_and_time(user: np.ndarray, time: np.ndarray) -> np.ndarray:
    """The stable order, int32 (int64 from 2^31 rows on): ties stay in the order of the source. Some users at a time: short sorts stay in cache."""
    ends = np.cumsum(np.bincount(user))
    order, done = np.empty(len(user), dtype=np.int32 if len(user) < 2**31 else np.int64), 0
    cuts = [0, *np.unique(np.searchsorted(ends, np.arange(BLOCK, len(user), BLOCK))), len(ends)]
    for low, high in pairwise(cuts):
        at = np.flatnonzero((user >= low) & (user < high))
        order[done : done + len(at)] = at[np.lexsort((time[at], user[at]))]
        done += len(at)
    return order


def _save(out: Path, name: str, array: np.ndarray) -> None:
    np.save(out / f"{name}.npy", np.ascontiguousarray(array))


def _ptr(user: np.ndarray, n_users: int) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.bincount(user, minlength=n_users))]).astype(np.int64)


def _write_events(out: Path, name: str, rows: Rows, n_users: int) -> np.ndarray:
    ptr = _ptr(rows.user, n_users)
    _save(out, f"{name}_ptr", ptr)
    _save(out, f"{name}_item", rows.item.astype(np.int32, copy=False))
    _save(out, f"{name}_behaviour", rows.behaviour.astype(np.int8, copy=False))
    _save(out, f"{name}_time", rows.time)
    _save(out, f"{name}_mask", rows.mask.astype(np.int32, copy=False))
    if rows.value is not None:
        _save(out, f"{name}_value", rows.value)
    return ptr


def _write_targets(
    out: Path, name: str, rows: Rows, at: np.ndarray, past_ptr: np.ndarray, seen: np.ndarray
) -> None:
    """Targets of one split with the range of their history in the ``past`` arrays: past_ptr[user] .. end."""
    target = rows[at]
    _save(out, f"{name}_user", target.user.astype(np.int64))
    _save(out, f"{name}_item", target.item.astype(np.int64))
    _save(out, f"{name}_time", target.time)
    _save(out, f"{name}_behaviour", target.behaviour.astype(np.int8))
    _save(out, f"{name}_seen", seen)
    _save(out, f"{name}_start", past_ptr[target.user])
    _save(out, f"{name}_end", at)


def _write_pairs(out: Path, name: str, pairs: dict[str, np.ndarray], n_users: int) -> None:
    _save(out, f"{name}_ptr", _ptr(pairs["user"], n_users))
    for column in ("item", "mask", "count"):
        _save(out, f"{name}_{column}", pairs[column].astype(np.int32, copy=False))


def _weaker_only(
    train_pairs: dict[str, np.ndarray], user: np.ndarray, item: np.ndarray, n_behaviours: int
) -> float:
    """Share of the targets (at most one per user) whose pair stands in training without the
    strongest behaviour. 0 where there are no targets.
    """
    if not len(user):
        return 0.0
    n_users = 1 + max(int(user.max()), int(train_pairs["user"].max()))
    target = np.zeros(n_users, dtype=train_pairs["item"].dtype)
    target[user] = item
    weaker = (train_pairs["mask"] >> (n_behaviours - 1)) & 1 == 0
    found = weaker & (train_pairs["item"] == target[train_pairs["user"]])
    return float(found.sum() / len(user))


def _audit(rows: Rows, code: np.ndarray, seen: np.ndarray) -> dict[str, float]:
    """Shares that tell how far to trust a figure: ties in time, targets seen before, leaks."""
    at = np.flatnonzero(code == TEST)
    # False at every user's last row, the very last one included. So index at - 1 is safe where a
    # target is its user's first row or row 0.
    same_as_next = np.append((np.diff(rows.user) == 0) & (np.diff(rows.time) == 0), False)
    test_time = np.full(rows.user[-1] + 1, np.iinfo(np.int64).max)
    test_time[rows.user[at]] = rows.time[at]
    trained = code == TRAIN
    return {
        "tied_targets": float((same_as_next[at] | same_as_next[at - 1]).mean()),
        "seen_targets": float(seen.mean()),
        "future_events": float((rows.time > test_time[rows.user])[trained].mean()),
    }
