"""The papers' claims, tested on runs: does the interval of the difference bear them out?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recexp.errors import RecexpError
from recexp.report.collect import Result, is_simulated
from recexp.report.comparison import Comparison, compare
from recexp.report.formats import DASH, Cell, Table
from recexp.report.papers.claims import Claim, Pick, epochs_to_near_best
from recexp.report.significance import holm
from recexp.report.statistics import ALPHA, labeled
from recexp.report.tables import About, System, by_protocol
from recexp.report.validation import by_validation

ALIKE = 0.05  # systems that differ by less than this share of the metric are alike
OPEN = "open: too few users to tell"
NOT_TESTED = "not tested"
HEAD = (
    "claim",
    "on",
    "metric",
    "difference",
    "95 % interval",
    "p",
    "p (Holm)",
    "verdict",
    "came out",
)


@dataclass(frozen=True)
class _Test:
    """A claim held against the runs of one protocol id.

    comparison: of its two systems, None where they could not be compared; why: the reason then.
    left_label: the label of the claim's left system.
    """

    claim: Claim
    about: About
    comparison: Comparison | None
    left_label: str = ""
    why: str = ""


def claims_table(name: str, listed: Sequence[Claim], results: Sequence[Result]) -> Table:
    """Held: the difference points the claimed way and is significant at 5 %.

    p is corrected by Holm's method over all claims tested here.
    """
    tests = []
    for about, runs in by_protocol(results).items():
        for claim in listed:
            if claim.concerns(runs[0]["dataset"]) and _any_run_meets(claim, runs):
                tests.append(_test(claim, about, runs))
    p_values = [test.comparison.p for test in tests if test.comparison]
    adjusted = iter(holm(p_values).tolist())
    rows = []
    counts = Counter[str]()
    for test in tests:
        p_holm = next(adjusted) if test.comparison else None
        row, verdict = _row(test, p_holm)
        rows.append(row)
        counts[verdict] += 1
    told = "; ".join(f"{n} {verdict}" for verdict, n in counts.items())
    caption = f"{told}. Holm's correction over the {len(p_values)} claims tested."
    all_simulated = bool(results) and all(map(is_simulated, results))
    mark = " (simulated)" if all_simulated else ""
    return Table(f"Claims of {name}{mark}", caption, HEAD, tuple(rows))


def verdict_on(claim: Claim, low: float, high: float, p_holm: float, level: float) -> str:
    """What the interval of the difference, left minus right, says of a claim.

    level: the better system's metric. Differences within 5 % of it are alike. A claim is "not held"
    only where the data contradict it; where the interval leaves both possible it is "open".
    """
    margin = ALIKE * level
    within_margin = -margin <= low and high <= margin
    outside_margin = low > margin or high < -margin
    if claim.alike:
        if within_margin:
            return "held"
        return "not held" if outside_margin else OPEN
    if p_holm < ALPHA:
        return "held" if low + high > 0 else "not held: the other way round"
    return f"not held: alike within {100 * ALIKE:g} %" if within_margin else OPEN


def _any_run_meets(claim: Claim, runs: Sequence[Result]) -> bool:
    return any(pick.meets(run) for pick in (claim.left, claim.right) for run in runs)


def _test(claim: Claim, about: About, runs: Sequence[Result]) -> _Test:
    """Compare the claim's two systems.

    Where several systems meet a pick, the one chosen on validation stands for it.
    """
    found, label = labeled(runs)
    left = _chosen(found, claim.left)
    right = _chosen(found, claim.right)
    for system, pick in ((left, claim.left), (right, claim.right)):
        if system is None:
            return _Test(claim, about, None, why=f"no run of {pick}")
    assert left is not None and right is not None
    if left is right:
        return _Test(claim, about, None, why="both sides are the same system here")
    if claim.sooner:  # epochs are one number a run: nothing to test over users
        return _Test(claim, about, None, why=_epochs_text(claim, left, right))
    chosen = left.runs + right.runs
    folders = [run["folder"] for run in chosen]
    without_ranks = [f for f in folders if not (Path(f) / "ranks.parquet").is_file()]
    if without_ranks:
        return _Test(claim, about, None, why=f"no ranks.parquet in {', '.join(without_ranks)}")
    try:
        comparison = compare(chosen, metric=claim.metric, label=label)[0]
    except RecexpError as error:
        return _Test(claim, about, None, why=str(error))
    return _Test(claim, about, comparison, left_label=label(left.first))


def _chosen(found: Sequence[System], pick: Pick) -> System | None:
    return next((s for s in by_validation(found) if pick.meets(s.first)), None)


def _epochs_text(claim: Claim, left: System, right: System) -> str:
    epochs = []
    for system in (left, right):
        epochs.append([epochs_to_near_best(run, claim.metric) or "?" for run in system.runs])
    return f"no test of epochs: near the best after {epochs[0]} and {epochs[1]}"


def _row(test: _Test, p_holm: float | None) -> tuple[tuple[Cell, ...], str]:
    """The line of a claim, and its verdict."""
    claim = test.claim
    on = f"{test.about.dataset}, {test.about.protocol}"
    start = (Cell(str(claim)), Cell(on), Cell(claim.metric))
    if test.comparison is None or p_holm is None:
        return (*start, *[Cell(DASH)] * 4, Cell(NOT_TESTED), Cell(test.why)), NOT_TESTED
    pair = test.comparison
    # A comparison has the better system left; the claim's left minus right may be negative.
    sign = 1 if pair.left == test.left_label else -1
    difference = sign * pair.difference
    low, high = sorted((sign * pair.low, sign * pair.high))
    verdict = verdict_on(claim, low, high, p_holm, max(pair.mean_left, pair.mean_right))
    cells = (
        *start,
        Cell(f"{difference:+.4f}", difference),
        Cell(f"{low:+.4f} to {high:+.4f}", low),
        Cell(f"{pair.p:.4f}", pair.p),
        Cell(f"{p_holm:.4f}", p_holm),
        Cell(verdict),
        Cell(f"{pair.left} before {pair.right}"),
    )
    return cells, verdict
