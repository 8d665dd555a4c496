"""Reproduced or not, line by line: the published figure, ours, and an honest evaluation.

"reproduced", "exceeded" and "not reproduced" are said only of runs on the paper's data with all
settings that the paper states (``papers/settings.csv``). Where settings differ, the same row lists
them and the verdict says "other settings".

The honest number ranks all items that the user has not interacted with (``python -m recexp.evaluate
RUN_DIR full_unseen``, with ``--own-split`` for the ITE and multi-feedback papers), comes from an
epoch chosen on validation, and is a mean over seeds.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from statistics import fmean, stdev

from recexp.config import CONF
from recexp.errors import RecexpError
from recexp.report.claim_tests import claims_table
from recexp.report.collect import Result, chose_on_test, is_smoke, without_budget
from recexp.report.formats import DASH, Cell, Table
from recexp.report.papers.claims import claims
from recexp.report.papers.deviations import deviations, same_data
from recexp.report.papers.matching import in_table
from recexp.report.papers.paper_tables import measured
from recexp.report.papers.published import (
    DATASETS,
    FOLDER,
    Figure,
    paper_protocol,
    paper_table,
    select,
    standard_protocol,
)
from recexp.report.tables import About, System, by_protocol, row_name, systems
from recexp.report.validation import by_validation, choose

REPRODUCED = "reproduced"
EXCEEDED = "exceeded"
SHORT = "not reproduced"
# The same three where settings differ from the paper's.
WITHIN = "within tolerance, other settings"
ABOVE = "above, other settings"
BELOW = "below, other settings"
OTHER_DATA = "other data"
NOT_COMPARABLE = "not comparable"
OTHER_MACHINE = "another machine"
NOT_MEASURED = "not measured"
NOT_RUN = "not run"
VERDICTS = (
    REPRODUCED,
    EXCEEDED,
    SHORT,
    WITHIN,
    ABOVE,
    BELOW,
    OTHER_DATA,
    NOT_COMPARABLE,
    OTHER_MACHINE,
    NOT_MEASURED,
    NOT_RUN,
)
MACHINE = ("samples_per_s",)  # metrics that depend on the machine
COSTS = ("gflops", "size_mb")  # more is not better
ROUNDING = 1e-12
SMOKE = "runs of smoke scale are not judged: they test the machinery, not the systems"
HEAD = (
    "system",
    "setting",
    "metric",
    "published",
    "ours",
    "Δ %",
    "tolerance",
    "verdict",
    "differs from the paper in",
    "honest",
    "how honest",
)


@dataclass(frozen=True)
class Tolerance:
    """How far ours may lie from the published figure: allowed in the metric's unit, and in words.

    relative: in % of the published figure; else absolute.
    """

    allowed: float
    text: str


def scorecard(name: str, results: Sequence[Result]) -> list[Table]:
    """Figures and claims of the experiment's table against the runs.

    Runs evaluated under the table's protocol after training under another one count too, and say
    so. Runs of smoke scale get no verdict.

    Raises RecexpError where ``name`` is no experiment of a paper, or no run has its protocol.
    """
    paper, table = paper_table(name)
    figures = select(paper=paper, table=table) if paper else []
    listed = claims(paper, table) if paper else []
    if not figures and not listed:
        raise RecexpError(
            f"There is no scorecard for {name!r}: nothing of it was published in numbers or as an "
            "ordering. Try e.g. ite/fig5_factors."
        )
    able = _with_protocol_of(paper, results)
    if not able:
        raise RecexpError(f"{name} is about protocol {paper_protocol(paper)}; no run here has it.")
    judged = [r for r in able if not is_smoke(r)]
    made = []
    for about, runs in by_protocol(judged).items():
        made.append(_figures_table(name, figures, about, runs, results))
    made.append(claims_table(name, listed, judged))
    n_smoke = len(able) - len(judged)
    if n_smoke:
        made.append(Table(f"No verdicts of {name}", "", ("why",), (), (f"{n_smoke} {SMOKE}",)))
    return [table for table in made if table.rows or table.notes]


def scorecards(results: Sequence[Result]) -> list[Table]:
    """The scorecards of all experiments of papers of which a run is here.

    Raises RecexpError where there is none.
    """
    made = []
    for path in sorted((CONF / "experiment").glob("*/*.yaml")):
        name = f"{path.parent.name}/{path.stem}"
        paper, table = paper_table(name)
        published = claims(paper, table) or select(paper=paper, table=table)
        if paper and published and _with_protocol_of(paper, results):
            made += [card for card in scorecard(name, results) if card.rows]
    if not made:
        raise RecexpError("No run here is one of an experiment of the papers.")
    return made


def judge(
    ours: float | None, figure: Figure, comparable: bool, faithful: bool = True
) -> tuple[str, str]:
    """(verdict, tolerance in words). "exceeded": better than published by more than the tolerance.

    comparable: the data are the paper's. faithful: so are all settings that the paper states.
    Costs (operations, size) have a tolerance to both sides and are never "exceeded".
    """
    tolerance = tolerance_of(figure)
    if ours is None:
        return NOT_RUN, tolerance.text
    if figure.metric in MACHINE:
        return OTHER_MACHINE, DASH
    if not figure.names_data:
        return NOT_COMPARABLE, DASH
    if not comparable:
        return OTHER_DATA, tolerance.text
    within = abs(ours - figure.value) <= tolerance.allowed + ROUNDING
    above = ours > figure.value
    if within:
        verdict = REPRODUCED if faithful else WITHIN
    elif not faithful:
        verdict = ABOVE if above else BELOW
    else:
        verdict = EXCEEDED if above and figure.metric not in COSTS else SHORT
    return verdict, tolerance.text


def tolerance_of(figure: Figure) -> Tolerance:
    """The last row of ``tolerances.csv`` that matches the figure."""
    fields = (figure.paper, figure.dataset, figure.model, figure.metric)
    found = {}
    for row in _tolerances():
        patterns = (row["paper"], row["dataset"], row["model"], row["metric"])
        if all(map(fnmatchcase, fields, patterns)):
            found = row
    if found["absolute"]:
        absolute = float(found["absolute"])
        return Tolerance(absolute, f"± {absolute:g}")
    relative = float(found["relative"])
    return Tolerance(relative * figure.value, f"± {100 * relative:g} %")


@cache
def _tolerances(path: Path = FOLDER / "tolerances.csv") -> tuple[dict[str, str], ...]:
    with path.open(newline="", encoding="utf-8") as file:
        return tuple(csv.DictReader(file))


def _with_protocol_of(paper: str, results: Sequence[Result]) -> list[Result]:
    protocol = paper_protocol(paper)
    return [r for r in results if standard_protocol(r["protocol"]) == protocol]


# Rows ---------------------------------------------------------------------------------------------


def _figures_table(
    name: str,
    figures: Sequence[Figure],
    about: About,
    runs: Sequence[Result],
    every: Sequence[Result],
) -> Table:
    """figures: of the experiment's table, of all data sets. every: the results, to find full
    rankings among them."""
    if not figures:
        return Table(f"{name} on {about}", "", HEAD, ())
    paper = figures[0].paper
    table = figures[0].table
    ours = _systems_by_figure(runs, paper, table)
    dataset = DATASETS.get(runs[0]["dataset"], runs[0]["dataset"])
    lines = [figure for figure in figures if ours and figure.dataset in ("", dataset)]
    rows = []
    counts = Counter[str]()
    for figure in lines:
        row, verdict = _row(figure, ours.get(figure), every)
        rows.append(row)
        counts[verdict] += 1

    notes = []
    if not ours:
        notes.append(
            f"no run here is one that {paper} {table} prints a figure of: "
            "other data, protocol or settings"
        )
    if not all(figure.names_data for figure in lines):
        notes.append("not comparable: the paper does not name the data set of these figures")
    elsewhere = sorted({figure.dataset for figure in figures} - {dataset, ""})
    if elsewhere and rows:
        notes.append(f"{paper} prints the same for {', '.join(elsewhere)}, not shown here")
    caption = "; ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
    return Table(f"{name} on {about}", caption, HEAD, tuple(rows), tuple(notes))


def _systems_by_figure(runs: Sequence[Result], paper: str, table: str) -> dict[Figure, System]:
    """Of several systems for one figure that which ``choose`` takes."""
    found = systems(runs)
    of_figure: dict[Figure, list[System]] = {}
    for system in by_validation(found):
        for figure in in_table(system.first, paper, table).values():
            of_figure.setdefault(figure, []).append(system)
    return {figure: choose(able, found) for figure, able in of_figure.items()}


def _row(
    figure: Figure, system: System | None, every: Sequence[Result]
) -> tuple[tuple[Cell, ...], str]:
    """The line of a figure, and its verdict. system: ours, None where it was not run."""
    metric = Cell(figure.metric)
    published = Cell(f"{figure.value:g}", figure.value)
    if system is None:
        verdict, tolerance = judge(None, figure, comparable=False)
        cells = (
            Cell(figure.model),
            Cell(figure.setting),
            metric,
            published,
            Cell(DASH),
            Cell(DASH),
            Cell(tolerance),
            Cell(verdict),
            Cell(DASH),
            Cell(DASH),
            Cell(""),
        )
        return cells, verdict
    values = _measured_values(system, figure.metric)
    ours = fmean(values) if values else None
    apart = deviations(system.first, figure, len(system.runs))
    verdict, tolerance = judge(ours, figure, same_data(system.first, figure), not apart)
    if ours is None:
        verdict = NOT_MEASURED
    honest, how_honest = _honest(system, figure.metric, every)
    cells = (
        Cell(_name_without_budget(system)),
        Cell(figure.setting),
        metric,
        published,
        _mean(values),
        _change(ours, figure),
        Cell(tolerance),
        Cell(verdict),
        Cell("; ".join(apart) or "none"),
        honest,
        Cell(how_honest),
    )
    return cells, verdict


def _name_without_budget(system: System) -> str:
    """The name without its budget; as far as that differs from the paper, the row says so."""
    return " ".join(without_budget(row_name(system).split(" ")))


def _measured_values(system: System, metric: str) -> list[float]:
    values = [measured(run, metric) for run in system.runs]
    return [value for value in values if value is not None]


def _change(ours: float | None, figure: Figure) -> Cell:
    if ours is None:
        return Cell(DASH)
    percent = 100 * (ours / figure.value - 1)
    return Cell(f"{percent:+.1f}", percent)


def _mean(values: Sequence[float]) -> Cell:
    if not values:
        return Cell(DASH)
    mean = fmean(values)
    text = f"{mean:.4g}"
    if len(values) > 1:
        text += f" ± {stdev(values):.2g}"
    return Cell(text, mean)


# Honest evaluation --------------------------------------------------------------------------------


def _training_folder(result: Result) -> Path:
    """The folder of the run whose training gave the result."""
    folder = Path(result["folder"])
    return folder.parent if "evaluated" in result else folder


def _honest(system: System, metric: str, every: Sequence[Result]) -> tuple[Cell, str]:
    """Mean over the seeds' full rankings, and what still speaks against it."""
    folders = {_training_folder(run) for run in system.runs}
    own = [r for r in every if _training_folder(r) in folders]
    protocols = {r["protocol"] for r in own if str(r["protocol"]).startswith("full")}
    protocol = "full_unseen" if "full_unseen" in protocols else min(protocols, default="")
    name = f"test/{metric}"
    values = []
    for result in own:
        value = result["metrics"].get(name)
        if result["protocol"] == protocol and value is not None:
            values.append(value)
    if not values:
        has_none_by_nature = metric in (*MACHINE, *COSTS)
        return Cell(DASH), "" if has_none_by_nature else "no full ranking"
    doubts = ["epoch chosen on the test set"] if chose_on_test(system.first) else []
    doubts.append("one seed" if len(values) == 1 else f"{len(values)} seeds")
    return _mean(values), f"{protocol}, {', '.join(doubts)}"
