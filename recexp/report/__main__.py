"""``python -m recexp.report RUN_DIR...``: tables, figures, statistics and a scorecard of the runs found at or below the directories."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from recexp.errors import RecexpError
from recexp.report.collect import collect, data_name, simulated
from recexp.report.formats import Table, as_csv, as_latex, as_markdown, as_terminal
from recexp.report.paper_tables import paper_tables
from recexp.report.tables import COLUMNS, tables

SWEEPS = "multirun_outputs"  # where conf/experiment puts its sweeps
WRITERS: dict[str, Callable[[Sequence[Table]], str]] = {
    "terminal": lambda ts: (
        "\n\n".join(as_terminal(t, colour=sys.stdout.isatty()) for t in ts) + "\n"
    ),
    "markdown": lambda ts: "\n\n".join(map(as_markdown, ts)) + "\n",
    "latex": lambda ts: "\n\n".join(map(as_latex, ts)) + "\n",
    "csv": as_csv,
}
ENDINGS = {"terminal": "txt", "markdown": "md", "latex": "tex", "csv": "csv"}


def main(arguments: Sequence[str] | None = None) -> None:
    a = _parser().parse_args(arguments)
    if not (a.folders or a.scorecard or a.paper_table):
        _parser().error("name at least one RUN_DIR")
    try:
        results, left_out = collect(a.folders or [Path(SWEEPS) / (a.scorecard or a.paper_table)])
        shown = _tables(results, a.metric)
        cards = []
        if a.scorecard:
            from recexp.report.scorecard import scorecard

            cards = scorecard(a.scorecard, results)
        papers = paper_tables(results, a.paper_table) if a.paper_table else []
        print(WRITERS[a.format](cards + papers or shown))
        if a.out:
            print(
                f"written: {write(a.out, results, left_out, a.metric, shown, cards, attention=a.attention)}",
                file=sys.stderr,
            )
    except RecexpError as error:
        sys.exit(f"error: {error}")
    for line in left_out:  # csv and LaTeX on stdout stay what they are
        print(
            f"left out: {line}",
            file=sys.stdout if a.format in ("terminal", "markdown") else sys.stderr,
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m recexp.report", description="Tables of finished runs, one per protocol id."
    )
    parser.add_argument(
        "folders", nargs="*", metavar="RUN_DIR", help="run directories, or folders above them"
    )
    parser.add_argument(
        "--format", choices=tuple(WRITERS), default="markdown", help="of the tables on stdout"
    )
    parser.add_argument(
        "--metric",
        default="ndcg@10",
        help="orders rows and is compared between systems: hr@k, ndcg@k or mrr (default: ndcg@10)",
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
    parser.add_argument("--paper-table", metavar="EXPERIMENT",
                        help="e.g. bert4rec/table2_systems: in the rows and columns of the paper (default RUN_DIR: as --scorecard)")  # fmt: skip
    parser.add_argument(
        "--attention",
        action="store_true",
        help="with --out: draw the attention of every run whose checkpoint and data are there",
    )
    return parser


def _tables(results: list[dict[str, Any]], metric: str) -> list[Table]:
    columns = COLUMNS if f"test/{metric}" in COLUMNS else (f"test/{metric}", *COLUMNS)
    if not any(f"test/{metric}" in r["metrics"] for r in results):
        known = sorted(
            {
                k[5:]
                for r in results
                for k in r["metrics"]
                if k.startswith("test/") and "users" not in k and k.count("/") == 1
            }
        )
        raise RecexpError(f"No run has the metric {metric!r}. They have {', '.join(known)}.")
    return tables(results, columns, f"test/{metric}")


def write(
    folder: Path,
    results: list[dict[str, Any]],
    left_out: list[str],
    metric: str,
    shown: list[Table],
    cards: list[Table],
    attention: bool = False,
) -> Path:
    """Tables in every format, ``figures/*.svg`` and ``*.png``, and ``index.html``, below the folder; returns the page's path."""
    from recexp.report import figures, statistics
    from recexp.report.page import Section, page

    drawn = tuple(dict.fromkeys(("hr@10", "ndcg@10", metric)))
    maps, without = _attention(
        [r for r in results if "evaluated" not in r and (attention or figures.wants_attention(r))]
    )
    sections = [
        Section("Scorecard", "Published and ours, what differs, and the papers' claims.", cards),
        Section("As the papers print it", "The published figure above ours.", paper_tables(results)),
        Section("Results", "Means over seeds. Bold: best of the column; underlined: second best. * : the paper had other data.", shown),
        Section(
            "Figures", "Dashed: the paper's own curve, which is drawn beside test values only.",
            pictures=[*figures.swept(results, drawn), *figures.epoch_curves(results, drawn), *figures.topk_curves(results), *maps], lines=without,
        ),
        Section("Differences", "Whether one system is better than another on these users.", statistics.comparisons(results, metric)),
        Section("Spread", "", statistics.spreads(results, metric)),
        Section("Convergence", "An under-trained baseline is the field's commonest fault.", statistics.convergence(results)),
        Section("Budgets", "What was spent on each system.", statistics.budgets(results)),
        Section("Left out", "Runs that were found and not used.", lines=left_out),
    ]  # fmt: skip
    everything = [t for s in sections for t in s.tables]
    for name, writer in WRITERS.items():
        save(folder / f"tables.{ENDINGS[name]}", writer(everything).encode())
    for picture in (p for s in sections for p in s.pictures):
        save(folder / "figures" / f"{picture.name}.svg", picture.svg.encode())
        save(folder / "figures" / f"{picture.name}.png", picture.png)
    protocols, systems = {r["protocol_id"] for r in results}, {r["model"] for r in results}
    about = f"{len(results)} results of {len(systems)} models under {len(protocols)} protocol ids. Figures of different protocol ids share no column."
    save(folder / "index.html", page(_title(results), about, sections).encode())
    return folder / "index.html"


def _title(results: list[dict[str, Any]]) -> str:
    names = dict.fromkeys(
        o.split("=", 1)[1]
        for r in results
        for o in r.get("overrides", [])
        if o.startswith(("experiment=", "+experiment="))
    )
    if not names:
        return ", ".join(dict.fromkeys(map(data_name, results)))
    made_up = [simulated(r) for r in results]
    mark = (
        " (simulated data)" if all(made_up) else " (partly simulated data)" if any(made_up) else ""
    )
    return ", ".join(names) + mark


def _attention(results: list[dict[str, Any]]) -> tuple[list, list[str]]:
    """Heat-maps, one per system, and a line for every run that has none."""
    from recexp.report.figures import heat_maps
    from recexp.report.statistics import labelled
    from recexp.report.tables import protocols

    if not results:
        return [], []
    from recexp.report.attention import attention

    maps, without = [], []
    for about, runs in protocols(results).items():
        found, _ = labelled(runs)
        weights = {}
        for system in found:
            try:
                weights[system.label] = attention(system.first["folder"])
            except (RecexpError, OSError) as error:
                without.append(f"no attention of {system.label}: {error}")
        if weights:  # one colour scale: the maps are there to be compared
            limits = (
                min(float(w.min()) for w in weights.values()),
                max(float(w.max()) for w in weights.values()),
            )
            maps += [heat_maps(w, label, about, limits) for label, w in weights.items()]
    return maps, without


def save(path: Path, content: bytes) -> None:
    """Write under a temporary name, then rename: nobody meets half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    temporary.write_bytes(content)
    os.replace(temporary, path)


if __name__ == "__main__":
    main()
