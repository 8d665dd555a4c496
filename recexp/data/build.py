"""The work behind ``cache.prepare``: raw files to the arrays that ``store.Store`` maps.

``build`` names the steps in their order. Each step frees what later steps do not need: the rows of
the largest data sets fit into memory only once.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from hydra.utils import instantiate
from tqdm import tqdm

from recexp.data.audit import (
    Acquaintance,
    Report,
    audit_leaks,
    audit_line,
    audit_of_several,
    weaker_only_share,
)
from recexp.data.download.block import how_to_get
from recexp.data.features import (
    build_features,
    build_user_features,
    code_event_features,
    standardize,
)
from recexp.data.filters import (
    apply_filters,
    behavior_codes,
    count_events,
    owners_of_sessions,
    report_times,
    split_sessions,
    within_window,
)
from recexp.data.ids import clean_ids
from recexp.data.index import index_events
from recexp.data.per_user import first_row, has_row
from recexp.data.raw.folder import MissingFile
from recexp.data.raw.lookups import RawFiles
from recexp.data.readers import Raw
from recexp.data.rows import DROPPED, PAST, TEST, TRAIN, VAL, Rows
from recexp.data.simulation.simulator import is_simulated, setting_files
from recexp.data.times import time_facts
from recexp.errors import RecexpError
from recexp.io import save_array
from recexp.types import BAGGED

if TYPE_CHECKING:
    from recexp.data.dataset import Dataset
    from recexp.data.split import Split

HELD_OUT = {"val": VAL, "test": TEST}


def build(dataset: Dataset, split: Split, out: Path) -> tuple[list[Path], dict[str, Any]]:
    """Read the raw files and write all arrays and id maps into the folder ``out``.

    Returns the raw files that were read, and the content of ``meta.json`` without what
    ``cache.prepare`` adds: sizes, names, the report and the audit.

    Raises:
        RecexpError: faulty raw files, no event left, or no user with a test target.
    """
    report = Report()
    explicit = [name in dataset.explicit for name in dataset.behaviors]
    several = split.has_several_targets
    with _Stages(dataset.name, total=8) as stages:
        raw = _read(dataset, report, stages)
        events, n_users_unfiltered, ids = _select(raw, dataset, report, stages)

        events, event_features = code_event_features(events, raw.event_features, out)
        stages.start("sorting")
        users, items, rows, levels = index_events(events)
        n_users = users.height
        n_items = items.height
        users.write_parquet(out / "users.parquet")
        items.write_parquet(out / "items.parquet")
        report.leave_out("removed by dataset.filters", n_users_unfiltered - n_users)
        simulated = is_simulated(raw.files, Path(dataset.raw_dir), rows.time)
        times = time_facts(rows.user, rows.time)
        n_events_K = np.bincount(rows.behavior, minlength=1 + len(explicit))[1:].tolist()

        stages.start("counting pairs")
        _write_pairs(out, "all_pairs", rows.pairs(), n_users)

        stages.start("splitting")
        rows, code, known = _split(rows, dataset, split, explicit, report)
        if several:
            n_evaluated = [_n_users(rows, code == held_as) for held_as in HELD_OUT.values()]
        standardize(rows, code == TRAIN, event_features, report.lines)

        stages.start("writing training events")
        training = _write_training(out, rows, code, dataset, split, explicit, n_users)

        stages.start("writing histories")
        rows.keep(code != DROPPED)
        code = code[code != DROPPED]
        _write_histories(out, rows, code, known, n_users, split)
        _write_item_count(out, rows, code, n_items)
        audit = audit_leaks(rows, code, known, split.is_in_time_order)
        if several:
            audit |= audit_of_several(rows, code)
        audit |= {f"{name}_targets_weaker_only": x for name, x in training.weaker_only.items()}
        n_rows = len(rows)
        del rows, code

        stages.start("item features")
        features = build_features(
            raw.item_features,
            items,
            training.pairs,
            training.end,
            n_users,
            out,
            report.lines,
            raw.events,
        )
        bags = {entry["name"]: entry for entry in features if entry["kind"] in BAGGED}
        user_features = build_user_features(
            raw.user_features,
            users if dataset.sessions is None else owners_of_sessions(users),
            bags,
            out,
            report.lines,
            raw.events,
        )

    report.add(
        f"kept {n_users:,} users, {n_items:,} items, {n_rows:,} rows: {training.n_rows:,} to "
        f"train, {len(known['val'].seen):,} validation and {len(known['test'].seen):,} test targets"
        + (" of {:,} and {:,} users".format(*n_evaluated) if several else "")
    )
    report.add(report.left_out_line())
    report.add(audit_line(audit, dataset.behaviors))
    if simulated:
        report.lines.insert(1, "SIMULATED data: figures on them say nothing about real users")
    meta = {
        "dataset": dataset.name,
        "users": n_users,
        "items": n_items,
        "interactions": n_rows,
        "train": training.n_rows,
        "simulated": simulated,
        "left_out": report.left_out,
        "ids": ids,
        "decided": raw.decided,
        "times": times,
        # Per behavior, after the filters and before the split.
        "events": dict(zip(dataset.behaviors, n_events_K, strict=True)),
        "behaviors": list(dataset.behaviors),
        "explicit": explicit,
        "levels": levels,
        "features": features,
        "report": report.lines,
        "audit": audit,
    }
    # Absent where there are none, as in folders of earlier versions.
    if user_features:
        meta["user_features"] = user_features
    if event_features:
        meta["event_features"] = event_features
    return raw.files, meta


class _Stages:
    """A progress bar on a terminal; silent elsewhere."""

    def __init__(self, name: str, total: int) -> None:
        self._name = name
        self._bar = tqdm(total=total, disable=None, leave=False, unit="stage")

    def __enter__(self) -> _Stages:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def start(self, stage: str) -> None:
        self._bar.set_description(f"[data] {self._name}: {stage}")
        self._bar.update()


def _read(dataset: Dataset, report: Report, stages: _Stages) -> Raw:
    """Call the reader; report what it read and which bad rows it left out."""
    stages.start("reading")
    reader = instantiate(dataset.source)
    try:
        raw: Raw = reader(Path(dataset.raw_dir), on_bad_rows=dataset.on_bad_rows)
    except MissingFile as error:
        advice = how_to_get(asdict(dataset), f"dataset={dataset.name}")
        raise RecexpError(f"{error.what}. {advice or error.advice}") from None
    n_events = count_events(raw.events)
    report.add(f"{dataset.name}: {n_events:,} events read from {len(raw.files)} file(s)")
    for reason, (n_rows, examples) in raw.dropped.items():
        report.add(f"{n_rows:,} bad rows dropped ({reason}): {'; '.join(examples[:3])}")
    for option, value in raw.decided.items():
        report.add(f"dataset.source.{option}=auto: taken as {value}")
    if isinstance(raw.files, RawFiles):
        places = setting_files(raw.files, Path(dataset.raw_dir))
        raw.files.exists |= {str(place): place.is_file() for place in places}
    return raw


def _select(
    raw: Raw, dataset: Dataset, report: Report, stages: _Stages
) -> tuple[pl.DataFrame, int, dict[str, Any]]:
    """Events that count, with codes of behaviors, and the number of users before the filters.

    Without filters that number is 0. The third entry is what ``clean_ids`` did.
    """
    events = behavior_codes(raw.events, dataset, raw.files[0], report).collect(engine="streaming")
    stages.start("filtering")
    events, ids = clean_ids(events, dataset.spellings_of_missing, report)
    report_times(events, raw.has_times, report)
    events = within_window(events, dataset, report)
    events = split_sessions(events, dataset.sessions, report)
    if not dataset.filters:
        return events, 0, ids
    n_users = events["user"].n_unique()
    events, lines = apply_filters(events, dataset.filters, dataset.iterate_filters)
    report.lines += lines
    return events, n_users, ids


def _merges_first(dataset: Dataset, split: Split) -> bool:
    """Are pairs merged before the split?

    purge="later" keeps the weaker events of a held-out pair, so it needs the single events. The
    other splits choose among the merged rows, which training uses.
    """
    return dataset.merge == "pairs" and split.purge != "later"


def _split(
    rows: Rows, dataset: Dataset, split: Split, explicit: list[bool], report: Report
) -> tuple[Rows, np.ndarray, dict[str, Acquaintance]]:
    """The rows to split (merged to pairs where the data set says so) and their split.

    Returns the rows; their code, int8 [E]; and what is known of the "val" and "test" targets.
    """
    if split.kind == "given":
        rows = _in_parts(rows, dataset, split, explicit)
    unmerged = rows
    if split.kind != "given" and _merges_first(dataset, split):
        rows = rows.merged(explicit)
    code = split.assign(rows, explicit)
    report.left_out |= split.left_out(rows, explicit, code)
    n_purged = int((code == DROPPED).sum())
    if split.cold_targets == "drop":
        report.left_out |= split.drop_cold(rows, explicit, code)
    if split.repeat_targets == "drop":
        is_repeat = np.zeros(len(rows), dtype=bool)
        for name, held in _acquaintances(rows, unmerged, code, split).items():
            is_repeat[code == HELD_OUT[name]] = held.repeat
        report.left_out |= split.drop_repeats(rows, code, is_repeat)
    known = _acquaintances(rows, unmerged, code, split)
    if n_purged:
        report.add(_purged_line(n_purged, split))
    if not split.is_in_time_order:
        order = np.lexsort((_place_in_history(code), rows.user))
        for name, held_as in HELD_OUT.items():
            known[name] = known[name].sorted_as(order[code[order] == held_as], code == held_as)
        rows.keep(order)
        code = code[order]
    return rows, code, known


def _in_parts(rows: Rows, dataset: Dataset, split: Split, explicit: list[bool]) -> Rows:
    """The rows by user and part, merged to pairs within a part where the data set says so."""
    if rows.part is None or dataset.merge != "pairs":
        return rows
    rows.keep(np.lexsort((rows.part, rows.user)))
    assert rows.part is not None
    n_parts = len((TRAIN, VAL, TEST))
    return rows.merged(explicit, rows.user.astype(np.int64) * n_parts + rows.part)


def _place_in_history(code: np.ndarray) -> np.ndarray:
    """0 for what a user's history begins with, then validation targets, test targets, the rest."""
    place = np.zeros(len(code), dtype=np.int8)
    for number, after in enumerate((VAL, TEST, DROPPED), 1):
        place[code == after] = number
    return place


def _purged_line(n_rows: int, split: Split) -> str:
    if split.kind == "leave_one_out":
        return (
            f"{n_rows:,} events of held-out (user, item) pairs purged from training "
            f"(purge={split.purge})"
        )
    if split.kind == "global_time":
        return f"{n_rows:,} events after the test period of window {split.window} left out"
    return f"{n_rows:,} events left out that are neither trained on nor targets"


def _acquaintances(
    rows: Rows, unmerged: Rows, code: np.ndarray, split: Split
) -> dict[str, Acquaintance]:
    """What is known of the "val" and "test" targets."""
    is_trained_V = np.zeros(int(rows.item.max()) + 1, dtype=bool)
    is_trained_V[rows.item[code == TRAIN]] = True
    known = {}
    for name, held_as in HELD_OUT.items():
        at = np.flatnonzero(code == held_as)
        if not split.has_several_targets:
            seen, repeat = unmerged.met_before(rows.origin[at])
        else:
            is_history = _is_history(rows, unmerged, code, held_as, split)
            events = unmerged if split.is_in_time_order else rows
            seen, repeat = events.met_in(
                is_history, rows.user[at], rows.item[at], rows.behavior[at]
            )
        known[name] = Acquaintance(seen, repeat, cold=~is_trained_V[rows.item[at]])
    return known


def _is_history(
    rows: Rows, unmerged: Rows, code: np.ndarray, held_as: int, split: Split
) -> np.ndarray:
    """Does the event come before its user's targets? bool, per event of ``unmerged`` or row.

    Where time does not count: does the row belong to the history of the targets? Validation targets
    belong to that of the test targets.
    """
    if not split.is_in_time_order:
        later = (VAL, TEST, DROPPED) if held_as == VAL else (TEST, DROPPED)
        return ~np.isin(code, later)
    end_U = first_row(rows.user, code == held_as)
    known = end_U < len(rows)
    end_U[known] = rows.origin[end_U[known]]
    return np.arange(len(unmerged)) < end_U[unmerged.user]


def _n_users(rows: Rows, chosen: np.ndarray) -> int:
    return int(has_row(rows.user, chosen).sum())


@dataclass
class _Training:
    """What later steps need of the training rows."""

    n_rows: int
    end: int  # time of the last training event, milliseconds
    pairs: dict[str, np.ndarray]  # unique "user", "item"
    weaker_only: dict[str, float]  # per held-out split, see ``weaker_only_share``


def _write_training(
    out: Path,
    rows: Rows,
    code: np.ndarray,
    dataset: Dataset,
    split: Split,
    explicit: list[bool],
    n_users: int,
) -> _Training:
    """Write ``train_*`` and ``train_pairs_*``. May change ``rows`` and ``code`` (merging)."""
    if dataset.merge == "pairs" and not _merges_first(dataset, split):
        train = _merge_between_targets(rows, code, explicit)
    else:
        train = rows[code == TRAIN]
    _write_events(out, "train", train, n_users)
    n_rows = len(train)
    end = int(train.time.max())
    # Their memory is needed for the pairs.
    del train.time, train.origin, train.value, train.features
    pairs = train.pairs()
    del train
    _write_pairs(out, "train_pairs", pairs, n_users)
    weaker_only = {}
    for name, split_code in HELD_OUT.items():
        at = np.flatnonzero(code == split_code)
        weaker_only[name] = weaker_only_share(pairs, rows.user[at], rows.item[at], len(explicit))
    del pairs["mask"], pairs["count"]
    return _Training(n_rows, end, pairs, weaker_only)


def _merge_between_targets(rows: Rows, code: np.ndarray, explicit: list[bool]) -> Rows:
    """Training rows, merged to pairs between held-out events only.

    Merging across a held-out event would move events into or out of its history. In place, rows
    that were merged into others get code DROPPED, and the others their merged behaviors.
    """
    is_held_out = (code == VAL) | (code == TEST)
    stretch = rows.user + np.cumsum(is_held_out)  # int64 [E], ascending
    is_train = code == TRAIN
    train = rows[is_train].merged(explicit, stretch[is_train])
    code[np.setdiff1d(np.flatnonzero(is_train), train.origin)] = DROPPED
    rows.mask[train.origin] = train.mask
    rows.behavior[train.origin] = train.behavior
    return train


def _write_histories(
    out: Path,
    rows: Rows,
    code: np.ndarray,
    known: dict[str, Acquaintance],
    n_users: int,
    split: Split,
) -> None:
    """Write ``past_*`` (all rows in time order) and the targets ``val_*`` and ``test_*``."""
    ptr_U = _write_events(out, "past", rows, n_users)
    for name, split_code in HELD_OUT.items():
        at = np.flatnonzero(code == split_code)
        target = rows[at]
        _save(out, f"{name}_user", target.user.astype(np.int64))
        _save(out, f"{name}_item", target.item.astype(np.int64))
        _save(out, f"{name}_time", target.time)
        _save(out, f"{name}_behavior", target.behavior.astype(np.int8))
        _save(out, f"{name}_seen", known[name].seen)
        _save(out, f"{name}_repeat", known[name].repeat)
        _save(out, f"{name}_cold", known[name].cold)
        # A target's history is the range start..end of the ``past`` arrays.
        _save(out, f"{name}_start", ptr_U[target.user])
        if split.has_several_targets:
            _save(out, f"{name}_at", at)
            at = first_row(rows.user, code == split_code)[target.user]
        _save(out, f"{name}_end", at)


def _write_item_count(out: Path, rows: Rows, code: np.ndarray, n_items: int) -> None:
    """Write the events per item, int64 [V].

    Validation and test targets count, as in the popularity sampler of BERT4Rec's code
    (Sun et al. 2019, arXiv:1904.06690).
    """
    count_V = np.bincount(rows.item[code != PAST], minlength=n_items + 1)
    _save(out, "item_count", count_V.astype(np.int64))


def _write_events(out: Path, name: str, rows: Rows, n_users: int) -> np.ndarray:
    """Write the arrays of ``store.Events``; returns ptr, int64 [U + 1]."""
    ptr = _ptr(rows.user, n_users)
    _save(out, f"{name}_ptr", ptr)
    _save(out, f"{name}_item", rows.item.astype(np.int32, copy=False))
    _save(out, f"{name}_behavior", rows.behavior.astype(np.int8, copy=False))
    _save(out, f"{name}_time", rows.time)
    _save(out, f"{name}_mask", rows.mask.astype(np.int32, copy=False))
    if rows.value is not None:
        _save(out, f"{name}_value", rows.value)
    for feature, column in rows.features.items():
        _save(out, f"{name}_feature_{feature}", column)
    return ptr


def _write_pairs(out: Path, name: str, pairs: dict[str, np.ndarray], n_users: int) -> None:
    """Write the arrays of ``store.Pairs``."""
    _save(out, f"{name}_ptr", _ptr(pairs["user"], n_users))
    for column in ("item", "mask", "count"):
        _save(out, f"{name}_{column}", pairs[column].astype(np.int32, copy=False))


def _ptr(user: np.ndarray, n_users: int) -> np.ndarray:
    """Where each user's rows start and end, int64 [U + 1]. user: ascending."""
    count = np.bincount(user, minlength=n_users)
    return np.concatenate([[0], np.cumsum(count)]).astype(np.int64)


def _save(out: Path, name: str, array: np.ndarray) -> None:
    save_array(out / f"{name}.npy", np.ascontiguousarray(array))
