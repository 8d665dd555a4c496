"""Reproduced or not, line by line: the published figure, ours, and beside it what an honest evaluation of the same runs says.

The honest number ranks all items the user has not met (``python -m recexp.evaluate RUN_DIR full_unseen``, with ``--own-split`` for the ITE and
multi-feedback papers), comes from an epoch chosen on validation, and is a mean over seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from recexp.report.claims import Claim, Pick, claims, epochs_to
from recexp.report.formats import Cell, Table
from recexp.report.paper_tables import measured
from recexp.report.published import DATASETS, PROTOCOLS, Figure, in_table, paper_table, same_data, select
from recexp.report.significance import Comparison, compare, holm
from recexp.report.statistics import labelled
from recexp.report.tables import System, departures, protocols, systems
from recexp.types import RecexpError

TOLERANCE = 0.10  # relative, unless the maps say otherwise
# Relative tolerance per (paper, dataset, model), None standing for any; models.md 12.
NARROWER = {("bert4rec", "ml_1m", "bert4rec"): 0.05, ("bert4rec", "ml_1m", "sasrec"): 0.05}
# Absolute tolerance per (paper, dataset, metric): the ITE paper's own spread from run to run.
ABSOLUTE = {("ite", "retailrocket", "hr@10"): 0.03}
ALIKE = 0.05  # systems that differ by less than this share of the metric are alike
VERDICTS = ("reproduced", "exceeded", "not reproduced", "other data", "another machine", "not measured", "not run")
MACHINE = ("samples_per_s",)  # depend on the machine


def scorecard(name: str, results: Sequence[dict[str, Any]]) -> list[Table]:
    """Figures and claims of the experiment's table against the runs. Raises RecexpError where ``name`` is no experiment of a paper."""
    paper, table = paper_table(name)
    if not paper or not (select(paper=paper, table=table) or claims(paper, table)):
        raise RecexpError(f"There is no scorecard for {name!r}: nothing of it was published in numbers or as an ordering. Try e.g. ite/fig5_factors.")
    protocol = PROTOCOLS[select(paper=paper)[0].protocol]
    trained = [r for r in results if "evaluated" not in r and r["protocol"] == protocol]
    if not trained:
        raise RecexpError(f"{name} is about protocol {protocol}; no run here has it.")
    honest = [r for r in results if "evaluated" in r]
    made = [_figures(name, paper, table, about, runs, honest) for about, runs in protocols(trained).items()]
    made.append(_claims(name, claims(paper, table), trained))
    return [t for t in made if t.rows or t.notes]


def judge(ours: float | None, figure: Figure, comparable: bool) -> tuple[str, str]:
    """(verdict, tolerance in words). Better than published by more than the tolerance is "exceeded", which counts as reproduced."""
    absolute = ABSOLUTE.get((figure.paper, figure.dataset, figure.metric))
    share = NARROWER.get((figure.paper, figure.dataset, figure.model), TOLERANCE) if figure.metric == "ndcg@10" else TOLERANCE
    allowed, words = (absolute, f"± {absolute:g}") if absolute else (share * figure.value, f"± {100 * share:g} %")
    if ours is None:
        return "not run", words
    if figure.metric in MACHINE:
        return "another machine", "–"
    if not comparable:
        return "other data", words
    if abs(ours - figure.value) <= allowed + 1e-12:
        return "reproduced", words
    return ("exceeded" if ours > figure.value else "not reproduced"), words


def _figures(
    name: str, paper: str, table: str, about: tuple[str, str, str], runs: Sequence[dict[str, Any]], honest: Sequence[dict[str, Any]]
) -> Table:
    ours: dict[Figure, System] = {}
    for s in sorted(systems(runs), key=_on_validation, reverse=True):  # not by test: of several systems for one line the first counts
        for figure in in_table(s.first, paper, table).values():
            ours.setdefault(figure, s)
    dataset = DATASETS.get(about[0], about[0])
    rows, notes, count = [], [], dict.fromkeys(VERDICTS, 0)
    lines = [f for f in select(paper=paper, table=table) if f.dataset in ("", dataset) and ours]
    for figure in lines:
        s = ours.get(figure)
        values = _measured(s, figure.metric) if s else []
        verdict, allowed = judge(fmean(values) if values else None, figure, s is not None and same_data(s.first, figure))
        verdict = "not measured" if s is not None and not values else verdict
        count[verdict] += 1
        full, how = _honest(s, figure.metric, honest) if s else (Cell("–"), "")
        apart = 100 * (fmean(values) / figure.value - 1) if values else None
        rows.append((
            Cell(figure.model if s is None else s.label), Cell(figure.setting), Cell(figure.metric), Cell(f"{figure.value:g}", figure.value),
            _mean(values), Cell("–" if apart is None else f"{apart:+.1f}", apart), Cell(allowed), Cell(verdict), full, Cell(how),
        ))  # fmt: skip
    notes += departures(list({s.label: s for s in ours.values()}.values()))
    missing = sorted({f.dataset for f in select(paper=paper, table=table)} - {dataset, ""})
    if not ours and select(paper=paper, table=table):
        notes.append(f"no run here is one that {paper} {table} prints a figure of: other data, protocol or settings")
    notes += [f"{paper} prints the same for {', '.join(missing)}, not shown here"] if missing and rows else []
    told = ", ".join(f"{n} {verdict}" for verdict, n in count.items() if n)
    head = ("system", "setting", "metric", "published", "ours", "Δ %", "tolerance", "verdict", "honest", "how honest")
    return Table("{} on {}, {} (id {})".format(name, *about), told, head, tuple(rows), tuple(notes))


def _measured(s: System, metric: str) -> list[float]:
    return [value for r in s.runs if (value := measured(r, metric)) is not None]


def _honest(s: System, metric: str, evaluated: Sequence[dict[str, Any]]) -> tuple[Cell, str]:
    """Mean over the seeds' full rankings, and what still speaks against it."""
    folders = {Path(r["folder"]) for r in s.runs}
    mine = [r for r in evaluated if Path(r["folder"]).parent in folders and str(r["protocol"]).startswith("full")]
    mine += [r for r in s.runs if str(r["protocol"]).startswith("full")]
    chosen = sorted({r["protocol"] for r in mine}, key=lambda p: p != "full_unseen")[:1]
    mine = [r for r in mine if r["protocol"] in chosen and r["metrics"].get(f"test/{metric}") is not None]
    if not mine:
        return Cell("–"), "" if metric in (*MACHINE, "size_mb", "gflops") else "no full ranking"
    doubts = ["epoch chosen on the test set"] if s.first["selection"].startswith("test_peek") else []
    doubts += ["one seed"] if len(mine) == 1 else [f"{len(mine)} seeds"]
    return _mean([r["metrics"][f"test/{metric}"] for r in mine]), f"{chosen[0]}, {', '.join(doubts)}"


def _mean(values: Sequence[float]) -> Cell:
    if not values:
        return Cell("–")
    mean = fmean(values)
    return Cell(f"{mean:.4g}" + (f" ± {stdev(values):.2g}" if len(values) > 1 else ""), mean)


# Claims -----------------------------------------------------------------------------------------------------------------


def _claims(name: str, listed: Sequence[Claim], results: Sequence[dict[str, Any]]) -> Table:
    """Held: the difference points the claimed way and is real at 5 % after Holm's correction over all claims tested here."""
    tested = []
    for about, runs in protocols(results).items():
        concerned = [c for c in listed if c.concerns(about[0]) and any(p.meets(r) for p in (c.left, c.right) for r in runs)]
        tested += [(claim, about, *_test(claim, runs)) for claim in concerned]
    p = [c.p for _, _, c, _ in tested if c is not None]
    adjusted = iter(holm(p).tolist() if p else [])
    rows, counts = [], {}
    for claim, about, c, why in tested:
        start = Cell(str(claim)), Cell(", ".join(about[:2])), Cell(claim.metric)
        if c is None:
            verdict = "not tested"
            rows.append((*start, *[Cell("–")] * 4, Cell(verdict), Cell(why)))
        else:
            p_holm, sign = next(adjusted), 1 if c.left == why else -1
            low, high = sorted((sign * c.low, sign * c.high))
            verdict = _verdict(claim, low, high, p_holm, max(c.mean_left, c.mean_right))
            figures = Cell(f"{sign * c.difference:+.4f}", sign * c.difference), Cell(f"{low:+.4f} to {high:+.4f}", low)
            rows.append((*start, *figures, Cell(f"{c.p:.4f}", c.p), Cell(f"{p_holm:.4f}", p_holm), Cell(verdict), Cell(f"{c.left} before {c.right}")))
        counts[verdict] = counts.get(verdict, 0) + 1
    head = ("claim", "on", "metric", "difference", "95 % interval", "p", "p (Holm)", "verdict", "came out")
    caption = ", ".join(f"{n} {verdict}" for verdict, n in counts.items()) + f". Holm's correction over the {len(p)} claims tested."
    return Table(f"Claims of {name}", caption, head, tuple(rows))


def _verdict(claim: Claim, low: float, high: float, p_holm: float, level: float) -> str:
    if claim.alike:
        if -ALIKE * level <= low and high <= ALIKE * level:
            return "held"
        return "not held" if p_holm < 0.05 else "open: too few users to tell"
    if p_holm >= 0.05:
        return "not held: no real difference"
    return "held" if low + high > 0 else "not held: the other way round"


def _test(claim: Claim, runs: Sequence[dict[str, Any]]) -> tuple[Comparison | None, str]:
    """The claim's two systems compared; or None and why not. Where several systems meet a pick, the one chosen on validation stands for it."""
    found, label = labelled(runs)
    left, right = (_chosen(found, pick) for pick in (claim.left, claim.right))
    for system, pick in ((left, claim.left), (right, claim.right)):
        if system is None:
            return None, f"no run of {pick}"
    if left is right:
        return None, "both sides are the same system here"
    if claim.sooner:  # epochs are one number a run: nothing to test over users
        epochs = [[epochs_to(r, claim.metric) or "?" for r in s.runs] for s in (left, right)]
        return None, "no test of epochs: near the best after {} and {}".format(*epochs)
    chosen = [r for s in (left, right) for r in s.runs]
    if lacking := [r["folder"] for r in chosen if not (Path(r["folder"]) / "ranks.parquet").is_file()]:
        return None, f"no ranks.parquet in {', '.join(lacking)}"
    try:
        comparison = compare(chosen, metric=claim.metric, label=label)[0]
    except RecexpError as error:
        return None, str(error)
    return comparison, label(left.first)


def _chosen(found: Sequence[System], pick: Pick) -> System | None:
    able = [s for s in found if pick.meets(s.first)]
    return max(able, key=_on_validation, default=None)


def _on_validation(s: System) -> float:
    value = s.mean("val/ndcg@10")
    return -1.0 if value is None else value
