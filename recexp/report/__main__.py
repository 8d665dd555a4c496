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
from recexp.report.columns import METRICS, MODEL, PUBLISHED, TRAINING, layout, metric_column
from recexp.report.formats import Table, as_csv, as_markdown, join_tables
from recexp.report.latex import as_latex
from recexp.report.papers.paper_tables import paper_tables
from recexp.report.searches import search_tables
from recexp.report.statistics import budgets, convergence
from recexp.report.tables import tables
from recexp.report.terminal import terminal_text
from recexp.version import add_version

SWEEPS = Path("multirun_outputs")  # where conf/experiment puts its sweeps
MAX_REASON = 200  # characters of why a run was left out
DEFAULT_METRIC = "ndcg@10"
ALL = "all"  # experiments of the papers
EXAMPLES = """\
examples:
  python -m recexp.report multirun_outputs               tables of all runs below
  python -m recexp.report DIR --out page                 page/index.html, tables.md, figures
  python -m recexp.report DIR --metrics hr@10,ndcg@10 --models sasrec,bert4rec
  python -m recexp.report DIR --columns ndcg@10,optimizer.lr,parameters,seed
  python -m recexp.report DIR --format latex             fits a page; needs the package booktabs
  python -m recexp.report --scorecard ite/fig5_factors   published figures: reproduced or not
"""

FORMATS: dict[str, Callable[[Sequence[Table]], str]] = {
    "terminal": lambda tables: terminal_text(tables, sys.stdout),
    "markdown": lambda tables: join_tables(tables, as_markdown),
    "latex": as_latex,
    "csv": as_csv,
}
FOR_READERS = ("terminal", "markdown")  # formats that a line of text may follow


def main(arguments: Sequence[str] | None = None) -> None:
    parser = _parser()
    options = parser.parse_args(arguments)
    options.format = options.format or ("terminal" if sys.stdout.isatty() else "markdown")
    experiment = options.scorecard or options.paper_table
    if not options.folders and experiment in (None, ALL):
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
    if options.wandb:
        from recexp.report.wandb_report import check_wandb  # imports Lightning

        check_wandb()
    found, left_out = collect(folders)
    results = _of_models(_presentable(found, left_out), options.models)
    asked = [metric_column(results, name, "--metrics") for name in options.metrics]
    options.metric = options.metric or _first_of_test(asked)
    ordered_by = metric_column(results, f"test/{options.metric}", "--metric")
    chosen = layout(
        results,
        metrics=asked,
        columns=options.columns,
        models=options.models,
        first=ordered_by,
    )
    shown = tables(results, ordered_by, chosen) + search_tables(folders)
    cards: list[Table] = []
    if options.scorecard:
        from recexp.report.scorecard import scorecard, scorecards

        is_of_all = options.scorecard == ALL
        cards = scorecards(results) if is_of_all else scorecard(options.scorecard, results)
    papers = paper_tables(results, options.paper_table) if options.paper_table else []
    if options.claims:
        from recexp.report.evidence import evidence

        papers += evidence(results)
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
            metrics=asked,
            attention=options.attention,
            cache_dir=options.cache_dir,
        )
        print(printable(f"written: {page}"), file=sys.stderr)
    if options.wandb:
        _save_in_wandb(options, results)
    return left_out


def _save_in_wandb(options: argparse.Namespace, results: Sequence[Result]) -> None:
    from recexp.report.wandb_report import save_wandb_report
    from recexp.report.write import page_title

    title = page_title(results)
    place = (options.wandb_project, options.wandb_entity)
    for line in save_wandb_report(results, options.metric, title, *place):
        print(printable(line), file=sys.stderr)


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


def _first_of_test(metrics: Sequence[str]) -> str:
    """The first of the metrics that is one of the test, without that prefix."""
    for name in metrics:
        if name.startswith("test/"):
            return name.removeprefix("test/")
    return DEFAULT_METRIC


def _of_models(results: list[Result], models: Sequence[str]) -> list[Result]:
    """The results of these models; all where none is named."""
    known = sorted({result["model"] for result in results})
    for name in models:
        if name not in known:
            raise RecexpError(
                f"--models {name}: no run is of this model; they are of {', '.join(known)}."
            )
    return [result for result in results if not models or result["model"] in models]


def _names(text: str) -> list[str]:
    """A list of names with commas between them."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of names, such as hr@10,ndcg@10")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m recexp.report",
        description="Tables of finished runs, one per protocol id; figures, tests between systems "
        "and a page with --out.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_version(parser)
    parser.add_argument(
        "folders",
        nargs="*",
        type=Path,
        metavar="RUN_DIR",
        help="run directories, or folders above them",
    )
    parser.add_argument(
        "--format",
        choices=tuple(FORMATS),
        help="of the tables on stdout (default: terminal where stdout is one, else markdown)",
    )
    _add_choices(parser)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="write everything: index.html, tables in all formats (tables.md shows the figures), "
        "figures as svg and png: metrics against every setting that runs vary, epochs and k",
    )
    parser.add_argument(
        "--scorecard",
        metavar="EXPERIMENT",
        help=f"e.g. ite/fig5_factors, or {ALL}: reproduced or not (default RUN_DIR: "
        f"{SWEEPS}/EXPERIMENT)",
    )
    parser.add_argument(
        "--paper-table",
        metavar="EXPERIMENT",
        help="e.g. bert4rec/table2_systems: in the rows and columns of the paper "
        "(default RUN_DIR: as --scorecard)",
    )
    parser.add_argument(
        "--claims",
        action="store_true",
        help="every claim of the papers that the runs can test: held, not held or open",
    )
    parser.add_argument(
        "--attention",
        action="store_true",
        help="with --out: draw the attention of every run whose checkpoint and data are there",
    )
    parser.add_argument(
        "--cache-dir", help="where the attention finds prepared data, if not in cache"
    )
    _add_wandb(parser)
    return parser


def _add_choices(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose what the tables show."""
    add = parser.add_argument
    add(
        "--metric",
        help="orders rows and is compared between systems: hr@k, ndcg@k, mrr, or a metric of kept "
        "lists, such as novelty@10; /GROUP behind it: of these users alone (default: the first of "
        f"--metrics, else {DEFAULT_METRIC})",
    )
    add(
        "--metrics",
        type=_names,
        default=[],
        metavar="A,B",
        help="metrics of the tables and figures, in this order, such as ndcg@10,val/ndcg@10",
    )
    fixed = ", ".join(name.replace(" ", "-") for name in (METRICS, PUBLISHED, *TRAINING))
    add(
        "--columns",
        type=_names,
        default=[],
        metavar="A,B",
        help=f"columns after the {MODEL}, in this order: single metrics, settings such as "
        f"optimizer.lr, and {fixed}; {METRICS} stands for those of --metrics, {PUBLISHED} puts the "
        "paper's figures beside them",
    )
    add(
        "--models",
        type=_names,
        default=[],
        metavar="A,B",
        help="only runs of these models; rows are in this order, settings of a model best first",
    )


def _add_wandb(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--wandb",
        action="store_true",
        help="write a report with the papers' figures into W&B (package wandb-workspaces)",
    )
    parser.add_argument(
        "--wandb-project", default="recexp", help="with --wandb: of the runs (default: recexp)"
    )
    parser.add_argument(
        "--wandb-entity", help="with --wandb: team or user of the project (default: the key's own)"
    )


if __name__ == "__main__":
    main()
