"""``python -m recexp.recommend RUN_DIR``: the best items of each user, as a table or a file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from recexp.errors import RecexpError
from recexp.logs import show_logs
from recexp.runs.accelerators import add_accelerator
from recexp.runs.command_line import add_run, loaded
from recexp.runs.frames import write_frames
from recexp.runs.histories import read_table
from recexp.runs.trained import Trained

FORMATS = (".parquet", ".csv")
SHOWN_USERS = 5  # without --out


def recommend(options: argparse.Namespace) -> None:
    """Do what the command line says."""
    others = [options.users, options.histories, options.candidates, options.fallback]
    if options.as_tested and any([*others, options.all_users, options.include_seen]):
        raise RecexpError(
            "--as-tested repeats the run's test, whose users, histories and candidates are those "
            "of its protocol: leave out the other choices."
        )
    if options.out and options.out.suffix not in FORMATS:
        raise RecexpError(f"--out {options.out}: the name must end in {' or '.join(FORMATS)}.")
    trained = loaded(options, options.accelerator)
    if options.as_tested:
        frames = trained.tested_lists_in_chunks(options.k, progress=True)
    else:
        frames = _recommended(options, trained)
    if options.out is None:
        _show(frames)
        return
    n_rows = write_frames(frames, options.out)
    print(f"{n_rows:,} rows written to {options.out}")


def _recommended(options: argparse.Namespace, trained: Trained) -> Iterator[pl.DataFrame]:
    return trained.recommend_in_chunks(
        _users(options, trained),
        options.k,
        histories=read_table(options.histories) if options.histories else None,
        candidates=_ids(options.candidates, "item") if options.candidates else None,
        include_seen=options.include_seen,
        fallback=options.fallback,
        progress=True,
    )


def _users(options: argparse.Namespace, trained: Trained) -> pl.Series | None:
    """Whom to recommend to; None: all users of the data, or those of the histories."""
    if options.users:
        return _ids(options.users, "user")
    if options.all_users or options.histories:
        return None
    users: pl.Series = trained.users[:SHOWN_USERS]
    print(
        f"The first {len(users)} of {len(trained.users):,} users; --all-users recommends to "
        "everybody, --users FILE to those in a file."
    )
    return users


def _ids(path: Path, column: str) -> pl.Series:
    """The column of a file, or its only column."""
    table = read_table(path)
    if column in table.columns:
        return table[column]
    if table.width == 1:
        return table.to_series()
    raise RecexpError(f"{path} has no column {column!r}; it has {', '.join(table.columns)}.")


def _show(frames: Iterator[pl.DataFrame]) -> None:
    with pl.Config(tbl_rows=-1, tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True):
        for frame in frames:
            print(frame)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``python -m recexp.recommend``."""
    options = parser().parse_args(arguments)
    show_logs()
    try:
        recommend(options)
    except RecexpError as error:
        sys.exit(f"error: {error}")


def parser() -> argparse.ArgumentParser:
    """The options of ``python -m recexp.recommend``."""
    made = argparse.ArgumentParser(
        prog="python -m recexp.recommend",
        description="The best items of each user, by the model of a finished run: user, item, "
        "rank, score. Equal scores are ordered by the item's id.",
    )
    add_run(made)
    add_accelerator(made)
    add = made.add_argument
    add("-k", type=int, default=10, help="length of the lists (default: 10)")
    add("--users", type=Path, metavar="FILE", help="csv or parquet with a column user")
    add("--all-users", action="store_true", help="all users of the data")
    add(
        "--histories",
        type=Path,
        metavar="FILE",
        help="csv or parquet with later events, or events of new users",
    )
    add(
        "--as-tested",
        action="store_true",
        help="the lists that the run's test ranked: before each test target, by its protocol",
    )
    add("--candidates", type=Path, metavar="FILE", help="csv or parquet with a column item")
    add("--include-seen", action="store_true", help="also items of the user's history")
    add(
        "--fallback",
        choices=["popularity"],
        help="what to recommend to users whom the model cannot score",
    )
    add("--out", type=Path, metavar="FILE", help="a .parquet or .csv file; else printed")
    add("--threads", type=int)
    return made
