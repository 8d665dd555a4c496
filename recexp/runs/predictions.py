"""``python -m recexp.evaluate --predictions FILE``: predictions of other programs by our protocols.

The file has raw ids and either scores of candidates or ranked lists. Ranks, metrics and the run
directory are those that a trained model with the same predictions would get.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from recexp.data.store import Targets
from recexp.errors import RecexpError
from recexp.evaluation.candidate_store import stored_candidates
from recexp.evaluation.kept import TopLists
from recexp.evaluation.listed import ListedRanks, Lists, listed_ranks, top_lists
from recexp.evaluation.metrics import METRICS_WITHOUT_CUTOFF, RankingMetrics
from recexp.evaluation.protocol import Protocol
from recexp.evaluation.several import SEVERAL_WITHOUT_CUTOFF
from recexp.io import advice, checksum, reason
from recexp.runs.composed import ComposedData, composed_data
from recexp.runs.environment import versions
from recexp.runs.histories import UNKNOWN, RawIds
from recexp.runs.identity import PLACES, RAW_FILES, is_material, key_of
from recexp.runs.outputs import kept_config, save_result, show_table
from recexp.runs.result import External, RunResult
from recexp.runs.run import data_facts
from recexp.runs.tested import save_ranks_and_lists, settings_of
from recexp.version import git_state

Split = Literal["test", "val"]
Missing = Literal["error", "worst"]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

ROWS_AT_ONCE = 1 << 22
SELECTION = "external"
STOP_REASON = "not trained here"


def evaluate_predictions(
    path: str | Path,
    overrides: Sequence[str],
    *,
    name: str = "",
    out: str | Path | None = None,
    split: Split = "test",
    missing: Missing = "error",
    partial: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Rank the targets of a protocol by the predictions in a parquet or csv file.

    overrides: the data and the protocol, as words of ``python -m recexp``. name: of the system in
    reports; the file's name without one. out: a new directory for ``result.json`` and
    ``ranks.parquet``, as of a trained run; only for the test split. seed: of the other program's
    run, so that reports average over seeds.

    The columns are user, item and

    - score: of every candidate of every user of the split. Ties count as the protocol says.
    - score with ``partial``: candidates that are not in the file score lower than those that are.
    - rank: lists, best first (rank 1 before rank 2). Without ``partial``, a file with both columns
      is read as lists.

    Lists end somewhere. Metrics are exact up to the smallest cut-off at which some target's place
    is unknown, and the others are left out of the result; ``external.exact_to`` says where. Items
    that the protocol leaves out, and ids that the data do not have, are removed from the lists and
    counted in ``external``.

    missing: "error" refuses a file that lacks users of the split. "worst" ranks their targets last,
    and also targets beyond the end of lists that are shorter than the largest cut-off.

    Returns the content of ``result.json``; for split "val" the metrics and ``external``.

    Raises RecexpError for a file that cannot be read so: missing columns, users or scores, repeated
    pairs or ranks, scores that are no finite numbers, or lists that are too short for any metric.
    """
    path = Path(path)
    out = None if out is None else Path(out)
    if out is not None and split == "val":
        raise RecexpError(
            "--out takes the result of the test split, which reports compare: leave it out to see "
            "the metrics of the validation split."
        )
    if out is not None and _is_taken(out):
        raise RecexpError(f"{out} exists already: choose a directory that does not.")
    data = composed_data(overrides)
    settings_of(data.cfg).check(data.store)
    evaluation = _evaluate(path, data, split, missing, partial)
    if split == "val":
        return {"metrics": evaluation.metrics, "external": evaluation.external.to_dict()}
    result = _result(data, overrides, evaluation, name or path.stem, seed)
    if out is not None:
        result = _write(out, result, data, evaluation)
        show_table(result, out)
    return result.to_dict()


def _is_taken(path: Path) -> bool:
    is_folder = path.is_dir() and not path.is_symlink()
    return any(path.iterdir()) if is_folder else os.path.lexists(path)


@dataclass(frozen=True)
class _Evaluation:
    """metrics: with "test/" or "val/" before their names. ranks: columns of ``ranks.parquet``.

    lists: where ``evaluation.keep_top`` asks for them.
    """

    metrics: dict[str, float]
    ranks: dict[str, NDArray[Any]]
    external: External
    lists: TopLists | None


def _evaluate(
    path: Path, data: ComposedData, split: Split, missing: Missing, partial: bool
) -> _Evaluation:
    store = data.store
    protocol = data.protocol
    targets = store.targets(split)
    if not len(targets):
        raise RecexpError(f"No user has a target in the {split} split of this protocol.")
    ids = RawIds.of(store)
    read = _read(path, ids, targets, partial)
    candidates = stored_candidates(store, protocol, split)
    found = listed_ranks(read.lists, store, targets, candidates, protocol.candidates.seen)
    users = ids.users.gather(targets.user.numpy())  # of each target
    if read.kind == "scores":
        _check_complete(path, found, users)
    known = _Known.of(path, found, users, max(protocol.ks), missing)
    exact_to = known.exact_to
    if exact_to is not None and exact_to < min(protocol.ks):
        raise RecexpError(
            f"{path}: the lists are too short. After what the protocol leaves out, the shortest "
            f"has {exact_to} items, and the smallest cut-off is {min(protocol.ks)}: write longer "
            "lists, or count short ones as missed (--missing worst)."
        )
    metrics, ranks = _metrics(protocol, targets, known, split)
    external = External(
        file=path.name,
        sha256=checksum(path),
        kind=read.kind,
        exact_to=exact_to,
        rows=read.n_rows,
        missing_users=known.n_missing,
        short_lists=known.n_short,
        unknown_users=read.n_unknown_users,
        other_users=read.n_other_users,
        unknown_items=read.n_unknown_items,
        seen_items=found.n_seen,
        not_candidates=found.n_others,
    )
    keep_top = settings_of(data.cfg).keep_top
    lists = None
    if keep_top is not None and split == "test":
        lists = top_lists(
            read.lists, found, targets.n_users, _known_length(found, keep_top, missing)
        )
    return _Evaluation(metrics, ranks, external, lists)


def _known_length(found: ListedRanks, keep_top: int, missing: Missing) -> int:
    """How long the lists are that can be kept: no longer than the shortest incomplete one.

    Where short lists count as missed, they are kept as they are.
    """
    is_incomplete_Q = found.listed_Q < found.candidates_Q
    if missing == "worst" or not is_incomplete_Q.any():
        return keep_top
    return min(keep_top, int(found.listed_Q[is_incomplete_Q].min()))


# Reading ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Read:
    """kind: "scores", "partial scores" or "lists". n_rows: of the file; the other counts are those
    of rows that were left out."""

    lists: Lists
    kind: str
    n_rows: int
    n_unknown_users: int
    n_other_users: int
    n_unknown_items: int


def _read(path: Path, ids: RawIds, targets: Targets, partial: bool) -> _Read:
    """The rows of the file that concern the targets, as numbers.

    Raises RecexpError for what the file lacks or holds twice.
    """
    columns = _columns(path)
    kind, value = _kind(path, columns, partial)
    user_Q = targets.user[targets.ptr[:-1]].numpy()  # those of the lists
    parts: list[tuple[NDArray[Any], ...]] = []
    n_rows = n_unknown_users = n_other_users = n_unknown_items = 0
    for frame in _blocks(path, value):
        value_N = _values(frame[value], path, n_rows)
        user_N = ids.user_numbers(frame["user"])
        item_N = ids.item_numbers(frame["item"])
        place_N = np.searchsorted(user_Q, user_N).clip(max=len(user_Q) - 1)
        is_asked_N = user_Q[place_N] == user_N
        n_unknown_users += int((user_N == UNKNOWN).sum())
        n_other_users += int(((user_N != UNKNOWN) & ~is_asked_N).sum())
        n_unknown_items += int((is_asked_N & (item_N == 0)).sum())
        kept = np.flatnonzero(is_asked_N & (item_N > 0))
        parts.append((place_N[kept], item_N[kept], value_N[kept], kept + n_rows))
        n_rows += len(frame)
    query_N, item_N, value_N, row_N = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.lexsort((item_N, query_N))
    lists = Lists(query_N[order], item_N[order], value_N[order])
    row_N = row_N[order]
    _check_pairs(path, lists, row_N)
    if kind == "lists":
        _check_ranks(path, lists, row_N)
    return _Read(lists, kind, n_rows, n_unknown_users, n_other_users, n_unknown_items)


def _columns(path: Path) -> list[str]:
    if not path.is_file():  # polars would read all files of a folder, and wait for a pipe
        problem = "is no regular file" if path.exists() else "does not exist"
        raise RecexpError(f"{path} {problem}: name a csv or parquet file with predictions.")
    try:
        scan = pl.scan_parquet if _is_parquet(path) else pl.scan_csv
        return scan(path, glob=False).collect_schema().names()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(path, error) from error


def _kind(path: Path, columns: Sequence[str], partial: bool) -> tuple[str, str]:
    """What the file holds, and the name of the column with the scores or ranks."""
    lacking = [name for name in ("user", "item") if name not in columns]
    if not {"score", "rank"} & set(columns):
        lacking.append("score or rank")
    if partial and not lacking and "score" not in columns:
        lacking.append("score, which --partial reads")
    if lacking:
        raise RecexpError(
            f"{path} has no column {', '.join(lacking)}; it has {', '.join(columns)}. Predictions "
            "have user, item and either score or rank."
        )
    if partial:
        return "partial scores", "score"
    return ("lists", "rank") if "rank" in columns else ("scores", "score")


def _blocks(path: Path, value: str) -> Iterator[pl.DataFrame]:
    """The columns user, item and ``value``, some rows at a time; at least one frame.

    Ids in a csv file are read as texts, so that "007" stays what it is.
    """
    names = ["user", "item", value]
    try:
        if not _is_parquet(path):
            yield pl.read_csv(path, columns=names, infer_schema=False, glob=False)
            return
        lazy = pl.scan_parquet(path, glob=False).select(names)
        n_rows: int = lazy.select(pl.len()).collect().item()
        for start in range(0, max(1, n_rows), ROWS_AT_ONCE):
            yield lazy.slice(start, ROWS_AT_ONCE).collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(path, error) from error


def _is_parquet(path: Path) -> bool:
    return path.suffix == ".parquet"


def _unreadable(path: Path, error: Exception) -> RecexpError:
    kind = "parquet" if _is_parquet(path) else "csv"
    return RecexpError(f"{path} cannot be read as {kind}: {' '.join(str(error).split())[:200]}")


def _values(column: pl.Series, path: Path, n_before: int) -> Floats:
    """A larger value is better: scores in float32, as those of our models; ranks negated."""
    number = column.cast(pl.Float64, strict=False)
    value_N: Floats = number.fill_null(np.nan).to_numpy()
    if column.name == "rank":
        value_N = -value_N
    else:
        with np.errstate(over="ignore"):
            value_N = value_N.astype(np.float32).astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(value_N))
    if len(bad):
        row = int(bad[0])
        raise RecexpError(
            f"{path}: the {column.name} of row {n_before + row + 1} is {column[row]!r}, which is "
            "no finite number in float32: correct it, or leave the row out."
        )
    return value_N


def _check_pairs(path: Path, lists: Lists, row_N: NDArray[np.int64]) -> None:
    same_user = lists.query_N[1:] == lists.query_N[:-1]
    twice = np.flatnonzero(same_user & (lists.item_N[1:] == lists.item_N[:-1]))
    if len(twice):
        rows = sorted(row_N[twice[0] : twice[0] + 2] + 1)
        raise RecexpError(
            f"{path}: rows {rows[0]} and {rows[1]} are the same user and item ({len(twice):,} such "
            "pairs): keep one of them."
        )


def _check_ranks(path: Path, lists: Lists, row_N: NDArray[np.int64]) -> None:
    order = np.lexsort((lists.value_N, lists.query_N))
    query_N = lists.query_N[order]
    value_N = lists.value_N[order]
    twice = np.flatnonzero((query_N[1:] == query_N[:-1]) & (value_N[1:] == value_N[:-1]))
    if len(twice):
        rows = sorted(row_N[order[twice[0] : twice[0] + 2]] + 1)
        raise RecexpError(
            f"{path}: rows {rows[0]} and {rows[1]} have the same user and the same rank: number "
            "the items of a list 1, 2, 3, or give scores, which may tie."
        )


# Ranks --------------------------------------------------------------------------------------------


def _check_complete(path: Path, found: ListedRanks, users: pl.Series) -> None:
    """Raise RecexpError where a user has scores of some candidates only."""
    is_incomplete_Q = (found.listed_Q > 0) & (found.listed_Q < found.candidates_Q)
    if is_incomplete_Q.any():
        first = int(np.flatnonzero(is_incomplete_Q)[0])
        raise RecexpError(
            f"{path}: user {users[first]} has scores of {found.listed_Q[first]:,} of "
            f"{found.candidates_Q[first]:,} candidates ({_n_users(users, is_incomplete_Q):,} users "
            "lack some): write all of them, or say that the others score lower (--partial)."
        )


@dataclass(frozen=True)
class _Known:
    """Ranks, and whether each is known; of an unknown one, ``better_Q`` is the least possible."""

    better_Q: NDArray[np.int64]
    tied_Q: NDArray[np.int64]
    candidates_Q: NDArray[np.int64]
    is_known_Q: Flags
    n_missing: int
    n_short: int

    @property
    def exact_to(self) -> int | None:
        """The largest cut-off at which no unknown rank matters; None where all are known."""
        if self.is_known_Q.all():
            return None
        return int(self.better_Q[~self.is_known_Q].min())

    @classmethod
    def of(
        cls, path: Path, found: ListedRanks, users: pl.Series, largest: int, missing: Missing
    ) -> _Known:
        """largest: the largest cut-off. Raises RecexpError where users are missing."""
        is_missing_Q = found.listed_Q == 0
        if is_missing_Q.any() and missing == "error":
            first = users[int(np.flatnonzero(is_missing_Q)[0])]
            raise RecexpError(
                f"{path}: {_n_users(users, is_missing_Q):,} of {users.n_unique():,} users of the "
                f"split have no item to rank, such as user {first}: add them, or count them as "
                "missed (--missing worst)."
            )
        known = cls(
            better_Q=found.better_Q,
            tied_Q=found.tied_Q,
            candidates_Q=found.candidates_Q,
            is_known_Q=found.has_target_Q & ~found.ends_tied_Q,
            n_missing=_n_users(users, is_missing_Q),
            n_short=0,
        )
        if missing == "error":
            return known
        is_short_Q = ~found.has_target_Q & ~is_missing_Q & (found.listed_Q < largest)
        is_last_Q = is_missing_Q | is_short_Q
        return replace(
            known,
            better_Q=np.where(is_last_Q, _last_ranks(known, users, is_last_Q), known.better_Q),
            is_known_Q=known.is_known_Q | is_last_Q,
            n_short=_n_users(users, is_short_Q),
        )


def _n_users(users: pl.Series, chosen_Q: Flags) -> int:
    """Number of users of the chosen targets. users: of each target."""
    return users.filter(pl.Series(chosen_Q)).n_unique()


def _last_ranks(known: _Known, users: pl.Series, is_last_Q: Flags) -> NDArray[np.int64]:
    """Better items of targets that are ranked last; several of a user follow each other."""
    is_last = pl.col("is_last").cast(pl.Int64)
    frame = pl.DataFrame({"user": users, "is_last": is_last_Q})
    from_end = frame.select(is_last.cum_sum(reverse=True).over("user")).to_series()
    better_Q: NDArray[np.int64] = known.candidates_Q - from_end.to_numpy()
    return better_Q


def _metrics(
    protocol: Protocol, targets: Targets, known: _Known, split: Split
) -> tuple[dict[str, float], dict[str, NDArray[Any]]]:
    """The metrics that the known ranks decide, and the columns of ``ranks.parquet``.

    A column ``known`` is added where it is not all true.
    """
    metrics = RankingMetrics(protocol.ks, protocol.ties, protocol.split.has_several_targets)
    metrics.update(
        targets.user,
        torch.from_numpy(known.better_Q),
        torch.from_numpy(known.tied_Q),
        torch.from_numpy(known.candidates_Q),
        seen=targets.seen,
        repeat=targets.repeat,
        cold=targets.cold,
    )
    ranks = {name: column.numpy() for name, column in metrics.ranks().items()}
    values = metrics.compute()
    if known.exact_to is not None:
        ranks["known"] = known.is_known_Q  # targets are sorted by user, as ranks are
        values = {k: v for k, v in values.items() if _is_exact(k, known.exact_to)}
    return {f"{split}/{name}": value for name, value in values.items()}, ranks


def _is_exact(metric: str, exact_to: int) -> bool:
    """Is the metric ("hr@10", "hr@10/new", "mrr", "users") known from lists of this length?"""
    name, _, cutoff = metric.partition("/")[0].partition("@")
    without_cutoff = METRICS_WITHOUT_CUTOFF.keys() | SEVERAL_WITHOUT_CUTOFF.keys()
    return int(cutoff) <= exact_to if cutoff else name not in without_cutoff


# The run directory --------------------------------------------------------------------------------


def _result(
    data: ComposedData, overrides: Sequence[str], evaluation: _Evaluation, name: str, seed: int
) -> RunResult:
    cfg = data.cfg
    meta = data.store.meta
    config = kept_config(cfg)
    content = {
        "model": name,
        "dataset": cfg.names.dataset,
        "protocol": cfg.names.protocol,
        "protocol_id": data.protocol.id(meta),
        "seed": seed,
        "selection": SELECTION,
        "metrics": evaluation.metrics,
        "best_epoch": 0,
        "epochs": 0,
        "stop_reason": STOP_REASON,
        "data": data_facts(meta),
        "external": evaluation.external.to_dict(),
        "overrides": [o for o in overrides if is_material(key_of(o), (*PLACES, *RAW_FILES))],
        "config": {key: config[key] for key in ("dataset", "protocol")},
        "left_out": meta["left_out"],
        "audit": meta["audit"],
        "git": git_state(),
        "versions": versions(),
    }
    return RunResult.parse(content)


def _write(out: Path, result: RunResult, data: ComposedData, evaluation: _Evaluation) -> RunResult:
    """Write the files of the test and ``result.json``; returns the result with what they add."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecexpError(f"{out} cannot be made: {reason(error)}. {advice(error)}.") from error
    saved = save_ranks_and_lists(
        out,
        settings_of(data.cfg),
        data.protocol,
        data.store,
        evaluation.ranks,
        evaluation.lists,
    )
    added = saved["metrics"]
    if evaluation.external.exact_to is not None:
        exact_to = evaluation.external.exact_to
        added = {k: v for k, v in added.items() if _is_exact(k.removeprefix("test/"), exact_to)}
    content = result.to_dict() | saved | {"metrics": result.metrics | added}
    result = RunResult.parse(content)
    save_result(out / "result.json", result)
    return result
