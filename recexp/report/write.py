"""Everything that a report consists of, written below a folder: tables, figures and the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recexp.io import atomic_write
from recexp.report import figures, statistics
from recexp.report.beyond import group_tables, list_tables
from recexp.report.collect import Result, data_name, experiment_name, is_simulated
from recexp.report.figures import Picture, on_white
from recexp.report.formats import (
    Table,
    as_csv,
    as_markdown,
    as_terminal,
    join_tables,
    markdown_text,
)
from recexp.report.latex import as_latex
from recexp.report.page import Section, page
from recexp.report.papers.paper_tables import paper_tables
from recexp.report.sweep_figures import swept
from recexp.report.tables import by_protocol

Writer = Callable[[Sequence[Table]], str]
DRAWN = ("hr@10", "ndcg@10")  # metrics with charts, besides the one asked for


FILES: dict[str, Writer] = {
    "tables.txt": lambda tables: join_tables(tables, as_terminal),
    "tables.tex": as_latex,
    "tables.csv": as_csv,
}


def write_report(
    folder: Path,
    results: list[Result],
    left_out: list[str],
    metric: str,
    shown: list[Table],
    cards: list[Table],
    attention: bool = False,
    cache_dir: str | None = None,
    metrics: Sequence[str] = (),
) -> Path:
    """Write tables in every format, ``figures/*.svg`` and ``*.png``, and ``index.html``.

    shown: the tables of results; cards: those of a scorecard. metrics: that are drawn, besides the
    one asked for; DRAWN where it is empty. attention: of all runs, not only of
    those whose experiment shows it. cache_dir: where it finds prepared data, if not in the default
    place. Returns the page's path.
    """
    drawn = [name.removeprefix("test/") for name in metrics if not name.startswith("val/")]
    sections = _sections(
        results,
        left_out,
        tuple(dict.fromkeys((*(drawn or DRAWN), metric))),
        metric,
        shown,
        cards,
        _attention_maps(results, attention, cache_dir),
    )
    tables = [table for section in sections for table in section.tables]
    for name, as_text in FILES.items():
        _save(folder / name, as_text(tables).encode())
    pictures = [picture for section in sections for picture in section.pictures]
    _save(folder / "tables.md", _markdown(tables, pictures).encode())
    for picture in pictures:
        _save(folder / "figures" / f"{picture.name}.svg", on_white(picture.svg).encode())
        _save(folder / "figures" / f"{picture.name}.png", picture.png)
    n_protocols = len({result["protocol_id"] for result in results})
    n_models = len({result["model"] for result in results})
    about = (
        f"{len(results)} results of {n_models} models under {n_protocols} protocol ids. "
        "Figures of different protocol ids share no column."
    )
    _save(folder / "index.html", page(page_title(results), about, sections).encode())
    return folder / "index.html"


def page_title(results: Sequence[Result]) -> str:
    """The experiments that the runs are of, else their data sets."""
    experiments = [name for name in map(experiment_name, results) if name]
    if not experiments:
        return ", ".join(dict.fromkeys(map(data_name, results)))
    simulated = [is_simulated(result) for result in results]
    mark = ""
    if any(simulated):
        mark = " (simulated data)" if all(simulated) else " (partly simulated data)"
    return ", ".join(dict.fromkeys(experiments)) + mark


def _sections(
    results: list[Result],
    left_out: list[str],
    drawn: tuple[str, ...],
    metric: str,
    shown: list[Table],
    cards: list[Table],
    attention: tuple[list[Picture], list[str]],
) -> list[Section]:
    maps, without_attention = attention
    pictures = [
        *swept(results, drawn),
        *figures.epoch_curves(results, drawn),
        *figures.topk_curves(results),
        *maps,
    ]
    return [
        Section("Scorecard", "Published and ours, what differs, and the papers' claims.", cards),
        Section(
            "As the papers print it", "The published figure above ours.", paper_tables(results)
        ),
        Section(
            "Results",
            "Means over seeds. Bold: best of the column; underlined: second best. "
            "* : the paper had other data.",
            shown,
        ),
        Section(
            "Lists",
            "What the recommended lists are like, besides whether they hold the target.",
            list_tables(results, metric),
        ),
        Section("Groups", "Whom a system serves well.", group_tables(results, metric)),
        Section(
            "Figures",
            "Dashed: the paper's own curve, which is drawn beside test values only.",
            pictures=pictures,
            lines=without_attention,
        ),
        Section(
            "Differences",
            "Whether one system is better than another on these users.",
            statistics.comparisons(results, metric),
        ),
        Section("Spread", "", statistics.spreads(results, metric)),
        Section(
            "Convergence",
            "Under-trained baselines are a common fault of comparisons.",
            statistics.convergence(results),
        ),
        Section("Budgets", "What was spent on each system.", statistics.budgets(results)),
        Section("Left out", "Runs that were found and not used.", lines=left_out),
    ]


def _markdown(tables: Sequence[Table], pictures: Sequence[Picture]) -> str:
    """The tables, and the pictures as links to the files beside them."""
    text = join_tables(tables, as_markdown)
    shown = [
        f"![{_alt(picture)}](figures/{picture.name}.svg)\n\n{markdown_text(picture.title)}"
        for picture in pictures
    ]
    return "\n\n".join([text.rstrip("\n"), "### Figures", *shown]) + "\n" if shown else text


def _alt(picture: Picture) -> str:
    return markdown_text(picture.alt).replace("[", "\\[").replace("]", "\\]")


def _attention_maps(
    results: Sequence[Result], of_all: bool, cache_dir: str | None
) -> tuple[list[Picture], list[str]]:
    """Heat maps, one per system, and a line for every run that has none."""
    wanted = []
    for result in results:
        if "evaluated" not in result and (of_all or figures.wants_attention(result)):
            wanted.append(result)
    if not wanted:
        return [], []
    from recexp.report.attention import attention  # imports torch

    maps: list[Picture] = []
    without: list[str] = []
    for about, runs in by_protocol(wanted).items():
        found, _ = statistics.labeled(runs)
        weights: dict[str, NDArray[np.float64]] = {}
        for system in found:
            try:
                weights[system.label] = attention(system.first["folder"], cache_dir=cache_dir)
            except Exception as error:  # of any kind: the settings may be another person's
                without.append(f"no attention of {system.label}: {error}")
        if weights:
            low = min(float(w.min()) for w in weights.values())
            high = max(float(w.max()) for w in weights.values())
            for label, weights_LHQK in weights.items():  # one color scale, to compare the maps
                maps.append(figures.heat_maps(weights_LHQK, label, about, (low, high)))
    return maps, without


def _save(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
