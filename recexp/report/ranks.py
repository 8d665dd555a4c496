"""The metric of every test user of a finished run, from its ``ranks.parquet``.

The formulas are those of ``recexp.evaluation.metrics`` in NumPy, so that reading needs no torch; a
test holds both to the same digits. Runs whose users have several targets, one row each, have the
metrics of ``recexp.evaluation.several``. Metrics of recommended lists are read from
``list_values.parquet``.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recexp.errors import RecexpError
from recexp.evaluation.several import SEVERAL_AT_K, SEVERAL_WITHOUT_CUTOFF, TargetLists
from recexp.io import read_limited
from recexp.runs.loading import MAX_CANDIDATES, MAX_RANKS_BYTES, MAX_RANKS_ROWS, read_json

FILE = "ranks.parquet"
COLUMNS = ("user", "better", "tied", "candidates")
SPLIT = "split"
LIST_VALUES = "list_values.parquet"
# Columns that tell the kinds of targets.
KIND_FLAGS = {
    "seen": ("group",),
    "repeat": ("repeat",),
    "new": ("group", "repeat"),
    "cold": ("cold",),
    "warm": ("cold",),
}
TIES = ("expected", "pessimistic", "optimistic")  # the order in which they are tried
MAX_FLAGS = 1_000  # columns of groups that are read
TOLERANCE = 1e-9  # between the recorded MRR and the one of the ranks

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RanksOfSeveral:
    """Ranks of T targets of test users, int64 [T] each, users ascending."""

    user_T: Integers
    better_T: Integers
    tied_T: Integers
    candidates_T: Integers

    @property
    def user_U(self) -> Integers:
        return np.unique(self.user_T)

    def metric(self, name: str, ties: str) -> Floats:
        """float64 [U]. name: of ``recexp.evaluation.several``; "test/" may stand before it.

        Raises RecexpError for other names.
        """
        columns = (self.user_T, self.better_T, self.tied_T, self.candidates_T)
        lists = TargetLists.of(*columns, ties)
        name, _, cutoff = name.removeprefix("test/").partition("@")
        if not cutoff and name in SEVERAL_WITHOUT_CUTOFF:
            return SEVERAL_WITHOUT_CUTOFF[name](lists)
        if re.fullmatch(r"[1-9]\d*", cutoff) and name in SEVERAL_AT_K:
            return SEVERAL_AT_K[name](lists, int(cutoff))
        at_k = ", ".join(f"{known}@k" for known in SEVERAL_AT_K)
        raise RecexpError(
            f"metric {name + (f'@{cutoff}' if cutoff else '')!r} is unknown: choose {at_k} (any k "
            f"from 1), {', '.join(SEVERAL_WITHOUT_CUTOFF)}."
        )


@dataclass(frozen=True)
class Ranks:
    """Ranks of U test users, int64 [U] each. better: candidates with a higher score; tied: with the
    same score. longest: length of the longest ranked list."""

    user_U: Integers
    better_U: Integers
    tied_U: Integers
    longest: int

    def metric(self, name: str, ties: str) -> Floats:
        """float64 [U]. name: "hr@k", "ndcg@k" or "mrr"; "test/" may stand before it.

        Raises RecexpError for other names.
        """
        name = name.removeprefix("test/")
        if name == "mrr":
            rank = np.arange(1, self.longest + 1, dtype=np.float64)
            return self._mean_gain(1 / rank, ties)
        parsed = re.fullmatch(r"(hr|ndcg)@([1-9]\d*)", name)
        if not parsed:
            raise RecexpError(
                f"metric {name!r} is unknown: choose hr@k, ndcg@k (any k from 1) or mrr."
            )
        k = int(parsed[2])
        if parsed[1] == "hr":
            first_U, width_U = self._span(ties)
            return np.minimum((k - first_U).clip(min=0), width_U) / width_U
        rank = np.arange(1, k + 1, dtype=np.float64)
        return self._mean_gain(1 / np.log2(rank + 1), ties)

    def _span(self, ties: str) -> tuple[Integers, Integers]:
        """The ranks to average over: how many lie before them, and how many they are."""
        if ties == "expected":
            return self.better_U, self.tied_U + 1
        first_U = self.better_U if ties == "optimistic" else self.better_U + self.tied_U
        return first_U, np.ones_like(self.tied_U)

    def _mean_gain(self, gain: Floats, ties: str) -> Floats:
        """Mean of gain (entry r - 1 for rank r, 0 beyond its end) over the ranks of each user."""
        first_U, width_U = self._span(ties)
        n = len(gain)
        prefix_sum = np.concatenate([[0.0], gain.cumsum()])
        end_U = (first_U + width_U).clip(max=n)
        begin_U = first_U.clip(max=n)
        over_ties_U = (prefix_sum[end_U] - prefix_sum[begin_U]) / width_U
        # The difference of two prefix sums loses digits of a single gain.
        single_U = np.concatenate([gain, [0.0]])[begin_U]
        return np.where(width_U == 1, single_U, over_ties_U)


def per_user(folder: str | Path, metric: str = "ndcg@10") -> tuple[Integers, Floats]:
    """Users, int64 [U] ascending, and the metric of each, float64 [U], on a finished run's test.

    metric: "hr@k" or "ndcg@k" for any k, or "mrr"; where users have several targets, also
    "recall@k", "precision@k", "map@k" and "auc"; or one of lists that the run measured, such as
    "novelty@10", which is NaN for a user without a value. "test/" may stand before it. "/<group>"
    behind it takes the targets of a group alone, and their users: "new", "seen", "repeat", "cold",
    "warm", or one of the run's ``evaluation.groups``.

    The tie policy is the one that gives the MRR of the run's ``result.json``, so a metric recorded
    there is the mean of what is returned. Where lists of another program end before the MRR is
    known, NDCG at the largest known cut-off takes its place.

    Raises RecexpError where a file is missing, the metric or the group is unknown, the metric lies
    beyond the end of lists or is one value of all lists, or the ranks are not those that
    ``result.json`` was computed from.
    """
    name, _, group = metric.removeprefix("test/").partition("/")
    found = per_group(folder, name, [group])
    if group not in found:
        raise RecexpError(
            f"{Path(folder) / FILE} does not tell the group {group!r}: evaluate the run with its "
            "grouping (evaluation.groups)."
        )
    return found[group]


def per_group(
    folder: str | Path, name: str, groups: Sequence[str]
) -> dict[str, tuple[Integers, Floats]]:
    """As ``per_user`` for several groups, by group: those that the run tells apart.

    name: of the metric without a group. The group "" is everyone.
    """
    folder = Path(folder)
    frame, result = _read_files(folder)
    known = [group for group in groups if all(frame.schema.get(f) for f in _flags(group))]
    if name.partition("@")[0] in (result.get("list_metrics") or []):
        user_U, value_U = _list_values(folder, result, name)
        found = {}
        for group in known:
            is_member_U = np.isin(user_U, _of_group(frame, group)["user"].to_numpy())
            found[group] = (user_U[is_member_U], value_U[is_member_U])
        return found
    several = "test/targets" in (result.get("metrics") or {})
    ranks = _checked(frame, folder / FILE, several)
    _check_known(folder, result, name)
    ties = _tie_policy(folder, ranks, result)
    found = {}
    for group in known:
        rows = _of_group(frame, group)
        members = _checked(rows, folder / FILE, several) if group and len(rows) else ranks
        found[group] = (members.user_U, members.metric(name, ties))
        if not len(rows):
            found[group] = (found[group][0][:0], found[group][1][:0])
    return found


def _tie_policy(folder: Path, ranks: Ranks | RanksOfSeveral, result: dict[str, Any]) -> str:
    """The policy that gives the recorded metric. Raises RecexpError where none does."""
    name, recorded = _recorded(folder, result["metrics"])
    for ties in TIES:
        if abs(float(ranks.metric(name, ties).mean()) - recorded) < TOLERANCE:
            return ties
    raise RecexpError(
        f"{folder}: the ranks do not give the {name.upper()} {recorded:.6f} of result.json under "
        "any tie policy. They are of different runs."
    )


def _flags(group: str) -> tuple[str, ...]:
    """The columns that tell a group; none for the group ""."""
    return KIND_FLAGS.get(group, (group,) if group else ())


def _of_group(frame: pl.DataFrame, group: str) -> pl.DataFrame:
    """The rows of the group; all for the group ""."""
    if not group:
        return frame
    is_in = pl.any_horizontal(_flags(group))
    return frame.filter(~is_in if group in ("new", "warm") else is_in)


def _list_values(folder: Path, result: dict[str, Any], name: str) -> tuple[Integers, Floats]:
    """Users, ascending, and a metric of their lists, NaN where a user has none.

    Raises RecexpError as ``per_user``.
    """
    path = folder / LIST_VALUES
    try:
        content = read_limited(path, MAX_RANKS_BYTES)
    except FileNotFoundError:
        raise RecexpError(f"{folder}: {LIST_VALUES} is missing, which has {name}.") from None
    if hashlib.sha256(content).hexdigest() != result.get("list_values_sha256"):
        raise RecexpError(
            f"{path} is damaged, or of another run: its checksum is not the one in result.json. "
            "Evaluate the run again (python -m recexp.evaluate RUN_DIR PROTOCOL --keep-top K)."
        )
    try:
        lazy = pl.scan_parquet(io.BytesIO(content))
        schema = lazy.collect_schema()
        if name not in schema:
            raise RecexpError(
                f"{folder}: {name} has no value per user"
                + ("." if f"test/{name}" in result["metrics"] else ", for it was not measured.")
            )
        n_rows: int = lazy.select(pl.len()).collect().item()
        if schema["user"] != pl.Int64 or schema[name] != pl.Float64 or n_rows > MAX_RANKS_ROWS:
            raise RecexpError(f"{path} was not written by a run.")
        frame = lazy.select("user", name).collect().sort("user")
    except (pl.exceptions.PolarsError, OSError, ValueError, KeyError) as error:
        raise RecexpError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    return frame["user"].to_numpy(), frame[name].fill_null(np.nan).to_numpy()


def _check_known(folder: Path, result: dict[str, Any], metric: str) -> None:
    """Raise RecexpError for a metric that depends on ranks beyond the end of external lists."""
    exact_to = (result.get("external") or {}).get("exact_to")
    if not isinstance(exact_to, int):
        return
    cutoff = metric.partition("@")[2]
    if not (cutoff.isdigit() and int(cutoff) <= exact_to):
        raise RecexpError(
            f"{folder}: {metric} is unknown, for the lists that were evaluated are known to rank "
            f"{exact_to} only. Evaluate longer lists."
        )


def _recorded(folder: Path, metrics: dict[str, float]) -> tuple[str, float]:
    """The metric that tells the tie policy, and its recorded value."""
    if "test/mrr" in metrics:
        return "mrr", metrics["test/mrr"]
    found = [re.fullmatch(r"test/ndcg@([1-9]\d*)", name) for name in metrics]
    cutoffs = [int(match[1]) for match in found if match]
    if not cutoffs:
        raise RecexpError(f"{folder}: result.json has no NDCG, so its ranks cannot be checked.")
    name = f"ndcg@{max(cutoffs)}"
    return name, metrics[f"test/{name}"]


def _read_files(folder: Path) -> tuple[pl.DataFrame, dict[str, Any]]:
    """The rows of the test split, sorted by user, and the content of ``result.json``."""
    path = folder / FILE
    try:
        result: dict[str, Any] = read_json(folder / "result.json")
        content = read_limited(path, MAX_RANKS_BYTES)
        digest = hashlib.sha256(content).hexdigest()
        if "ranks_sha256" in result and digest != result["ranks_sha256"]:
            raise RecexpError(
                f"{path} is damaged, or of another run: its checksum is not the one in "
                "result.json. Run again."
            )
        return _test_rows(content, path), result
    except FileNotFoundError as error:
        name = Path(error.filename or FILE).name
        raise RecexpError(f"{folder}: {name} is missing, so users cannot be compared.") from None
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise RecexpError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None


def _test_rows(content: bytes, path: Path) -> pl.DataFrame:
    """The rows of the test split, by user, with the flags of groups.

    What the file says of itself is checked first: a small file can unfold to any size.
    """
    lazy = pl.scan_parquet(io.BytesIO(content))
    schema = lazy.collect_schema()
    found = [schema.get(name) for name in COLUMNS]
    if not all(dtype is not None and dtype.is_integer() for dtype in found):
        raise RecexpError(
            f"{path} was not written by a run: {', '.join(COLUMNS)} must be whole numbers."
        )
    if schema.get(SPLIT) != pl.String:
        raise RecexpError(f"{path} was not written by a run: {SPLIT} must be text.")
    n_rows: int = lazy.select(pl.len()).collect().item()
    if n_rows > MAX_RANKS_ROWS:
        raise RecexpError(f"{path} has {n_rows:,} rows: no run writes so many.")
    flags = [name for name, dtype in schema.items() if dtype == pl.Boolean][:MAX_FLAGS]
    frame = lazy.select(*COLUMNS, SPLIT, *flags).filter(pl.col(SPLIT) == "test").collect()
    return frame.sort("user", maintain_order=True)


def _checked(frame: pl.DataFrame, path: Path, several: bool) -> Ranks | RanksOfSeveral:
    columns = [frame[name] for name in COLUMNS]
    if any(column.has_nulls() for column in columns):
        raise RecexpError(f"{path} was not written by a run: cells are empty.")
    if not len(frame):
        raise RecexpError(f"{path} has no user of the test split.")
    user, better, tied, candidates = (c.to_numpy().astype(np.int64) for c in columns)
    is_rank = (better >= 0) & (tied >= 0) & (better + tied <= candidates)
    if not (is_rank & (candidates <= MAX_CANDIDATES)).all():
        raise RecexpError(f"{path} was not written by a run: its ranks lie outside the candidates.")
    if several:
        return RanksOfSeveral(user, better, tied, candidates)
    return Ranks(user, better, tied, int(candidates.max()))
