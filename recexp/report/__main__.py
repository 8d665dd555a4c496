"""``python -m recexp.report RUN_DIR...``: tables, figures, statistics and a scorecard of runs.

Runs are searched for at and below the directories.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from recexp.errors import RecexpError
from recexp.logs import printable, printable_lines
from recexp.report.beyond import group_tables, list_tables
from recexp.report.collect import Result, collect
from recexp.report.formats import (
    Table,
    as_csv,
    as_latex,
    as_markdown,
    as_terminal,
    join_tables,
)
from recexp.report.papers.paper_tables import paper_tables
from recexp.report.statistics import budgets, convergence
from recexp.report.tables import COLUMNS, tables

SWEEPS = Path("multirun_outputs")  # where conf/experiment puts its sweeps
MAX_REASON = 200  # characters of why a run was left out


def _as_terminal(table: Table) -> str:
    return as_terminal(table, color=sys.stdout.isatty())


FORMATS: dict[str, Callable[[Sequence[Table]], str]] = {
    "terminal": lambda tables: join_tables(tables, _as_terminal),
    "markdown": lambda tables: join_tables(tables, as_markdown),
    "latex": lambda tables: join_tables(tables, as_latex),
    "csv": as_csv,
}
FOR_READERS = ("terminal", "markdown")  # formats that a line of text may follow


def main(arguments: Sequence[str] | None = None) -> None:
    parser = _parser()
    options = parser.parse_args(arguments)
    experiment = options.scorecard or options.paper_table
    if not options.folders and not experiment:
        parser.error("name at least one RUN_DIR")
    try:
        left_out = _report(options, options.folders or [SWEEPS / experiment])
    except RecexpError as error:
        sys.exit(printable_lines(f"error: {error}"))
    stream = sys.stdout if options.format in FOR_READERS else sys.stderr
    for line in left_out:
        print(printable(f"left out: {line}"), file=stream)


def _report(options: argparse.Namespace, folders: Sequence[Path]) -> list[str]:
    """Print the tables and write what was asked for; returns the runs left out."""
    found, left_out = collect(folders)
    results = _presentable(found, left_out)
    shown = _result_tables(results, options.metric)
    cards: list[Table] = []
    if options.scorecard:
        from recexp.report.scorecard import scorecard

        cards = scorecard(options.scorecard, results)
    papers = paper_tables(results, options.paper_table) if options.paper_table else []
    beyond = list_tables(results, options.metric) + group_tables(results, options.metric)
    print(FORMATS[options.format](cards + papers or shown + beyond))
    if options.out:
        from recexp.report.write import write_report  # imports matplotlib

        page = write_report(
            options.out,
            results,
            left_out,
            options.metric,
            shown,
            cards,
            attention=options.attention,
            cache_dir=options.cache_dir,
        )
        print(printable(f"written: {page}"), file=sys.stderr)
    return left_out


def _presentable(results: Sequence[Result], left_out: list[str]) -> list[Result]:
    """The results that can be shown; the others are added to left_out.

    Settings may have any type, so each run is first shown on its own: a run that fails there would
    take the report of all others down.
    """
    kept = []
    for result in results:
        try:
            tables([result])
            paper_tables([result])
            convergence([result])
            budgets([result])
        except Exception as error:  # of any kind, depending on the value
            reason = f"{type(error).__name__}: {error}"[:MAX_REASON]
            left_out.append(f"{result['folder']}: a value is not one of a run ({reason})")
        else:
            kept.append(result)
    if not kept:
        raise RecexpError("No run can be shown. " + "; ".join(left_out))
    return kept


def _result_tables(results: list[Result], metric: str) -> list[Table]:
    name = f"test/{metric}"
    if not any(name in result["metrics"] for result in results):
        known = sorted({metric for result in results for metric in _test_metrics(result)})
        raise RecexpError(f"No run has the metric {metric!r}. They have {', '.join(known)}.")
    columns = COLUMNS if name in COLUMNS else (name, *COLUMNS)
    return tables(results, columns, name)


def _test_metrics(result: Result) -> list[str]:
    """Metrics over all users, without those of groups of users or items (``test/group/hr@10``)."""
    names = [name.split("/") for name in result["metrics"]]
    return [
        parts[1]
        for parts in names
        if len(parts) == 2 and parts[0] == "test" and "users" not in parts[1]
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m recexp.report", description="Tables of finished runs, one per protocol id."
    )
    parser.add_argument(
        "folders",
        nargs="*",
        type=Path,
        metavar="RUN_DIR",
        help="run directories, or folders above them",
    )
    parser.add_argument(
        "--format", choices=tuple(FORMATS), default="markdown", help="of the tables on stdout"
    )
    parser.add_argument(
        "--metric",
        default="ndcg@10",
        help="orders rows and is compared between systems: hr@k, ndcg@k, mrr, or a metric of kept "
        "lists, such as novelty@10; /GROUP behind it: of these users alone (default: ndcg@10)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="write everything: index.html, tables in all formats, figures as svg and png",
    )
    parser.add_argument(
        "--scorecard",
        metavar="EXPERIMENT",
        help=f"e.g. ite/fig5_factors: reproduced or not (default RUN_DIR: {SWEEPS}/EXPERIMENT)",
    )
    parser.add_argument(
        "--paper-table",
        metavar="EXPERIMENT",
        help="e.g. bert4rec/table2_systems: in the rows and columns of the paper "
        "(default RUN_DIR: as --scorecard)",
    )
    parser.add_argument(
        "--attention",
        action="store_true",
        help="with --out: draw the attention of every run whose checkpoint and data are there",
    )
    parser.add_argument(
        "--cache-dir", help="where the attention finds prepared data, if not in cache"
    )
    return parser


if __name__ == "__main__":
    main()
