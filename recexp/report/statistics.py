"""What tests, seeds, epochs and budgets say about the systems, as tables."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recexp.errors import RecexpError
from recexp.report.collect import Result, is_external, is_of_lists
from recexp.report.comparison import Comparison, Labeler, Spread, compare, spread
from recexp.report.convergence import Budget, ledger, verdict
from recexp.report.formats import DASH, Cell, Table
from recexp.report.ranks import FILE as RANKS_FILE
from recexp.report.ranks import per_user
from recexp.report.tables import System, by_protocol, row_name, systems

ALPHA = 0.05
ENDINGS = {
    "unlearned": "STOPPED BEFORE IT LEARNED",
    "rising": "STILL RISING",
    "converged": "converged",
    "overfitted": "over-fitted",
    "one_pass": "one pass",
    "unknown": "unknown",
}
COMPARISON_HEAD = (
    "better",
    "worse",
    "difference in {metric}",
    "95 % interval",
    "effect d_z",
    "p",
    "p (Holm)",
    "real at 5 %",
    "users",
    "seeds",
)
BUDGET_HEAD = (
    "system",
    "trials",
    "seeds",
    "epochs",
    "steps",
    "rows seen",
    "seconds",
    "ended",
    "unequal",
)


def labeled(results: Sequence[Result]) -> tuple[list[System], Labeler]:
    """The systems of one protocol id, and the function that gives a run's name in the tables."""
    found = systems(results)
    names = {run["folder"]: row_name(system) for system in found for run in system.runs}

    def label(result: Mapping[str, Any]) -> str:
        return names[result["folder"]]

    return found, label


def comparisons(results: Sequence[Result], metric: str = "ndcg@10") -> list[Table]:
    """One table of all pairs per protocol id.

    Columns: difference, 95 % interval over users, effect size d_z, p alone and after Holm's
    correction.
    """
    made = []
    for about, runs in by_protocol(results).items():
        _, label = labeled(runs)
        ranked, notes = _with_ranks(runs, metric)
        pairs: list[Comparison] = []
        try:
            if len({label(run) for run in ranked}) > 1:
                pairs = compare(ranked, metric=metric, label=label)
        except RecexpError as error:
            notes.append(f"not tested: {error}")
        rows = tuple(_comparison_row(pair) for pair in pairs)
        head = tuple(name.format(metric=metric) for name in COMPARISON_HEAD)
        if is_of_lists(runs, metric):
            head = ("larger", "smaller", *head[2:])
        caption = (
            "Paired over users by random signs on the same candidates; "
            "Holm's correction for all pairs of the table."
        )
        if rows or notes:
            made.append(Table(f"Pairs of systems: {about}", caption, head, rows, tuple(notes)))
    return made


def spreads(results: Sequence[Result], metric: str = "ndcg@10") -> list[Table]:
    """Per system how far the metric moves with the seed, and how far it would with other users."""
    made = []
    for about, runs in by_protocol(results).items():
        found, label = labeled(runs)
        ranked, notes = _with_ranks(runs, metric)
        rows = []
        for system in found:
            seeds = [run for run in system.runs if run in ranked]
            try:
                if seeds:
                    rows.append(_spread_row(system, spread(seeds, metric, label=label)))
            except RecexpError as error:
                notes.append(f"{row_name(system)}: {error}")
        head = ("system", metric, "s.d. over seeds", "s.e. over users", "seeds", "users")
        caption = (
            "The first says how far another seed would move the figure, "
            "the second how far other users would."
        )
        if rows:
            made.append(Table(f"Spread: {about}", caption, head, tuple(rows), tuple(notes)))
    return made


def convergence(results: Sequence[Result]) -> list[Table]:
    """A verdict on every trained run: see ``recexp.runs.convergence``."""
    made = []
    for about, runs in by_protocol(_trained(results)).items():
        found, _ = labeled(runs)
        rows = []
        for system in found:
            for run in system.runs:
                own = verdict(run)
                seed = Cell(str(run["seed"]), run["seed"])
                ending = Cell(ENDINGS.get(own.kind, own.kind))
                rows.append((Cell(row_name(system)), seed, ending, Cell(own.text)))
        head = ("system", "seed", "verdict", "why")
        made.append(Table(f"Convergence: {about}", "", head, tuple(rows)))
    return made


def budgets(results: Sequence[Result]) -> list[Table]:
    """What was spent on each system, and where another got more than twice as much."""
    made = []
    for about, runs in by_protocol(_trained(results)).items():
        _, label = labeled(runs)
        rows = tuple(_budget_row(budget) for budget in ledger(runs, label=label))
        caption = (
            "Means over a system's trials. A flag where another system got more than twice as much."
        )
        made.append(Table(f"Budgets: {about}", caption, BUDGET_HEAD, rows))
    return made


def _trained(results: Sequence[Result]) -> list[Result]:
    """Without evaluations of a run under another protocol, and of other programs."""
    return [r for r in results if "evaluated" not in r and not is_external(r)]


def _with_ranks(runs: Sequence[Result], metric: str) -> tuple[list[Result], list[str]]:
    """The runs whose ranks can be read, and notes on the others."""
    kept = []
    missing = []
    notes = []
    for run in runs:
        if not os.path.lexists(Path(run["folder"]) / RANKS_FILE):
            missing.append(run["folder"])
            continue
        try:
            per_user(run["folder"], metric)
        except RecexpError as error:
            notes.append(f"not tested: {error}")
        else:
            kept.append(run)
    if missing:
        notes.append(f"not tested, for {RANKS_FILE} was not kept: {', '.join(missing)}")
    return kept, notes


def _comparison_row(pair: Comparison) -> tuple[Cell, ...]:
    return (
        Cell(pair.left),
        Cell(pair.right),
        Cell(f"{pair.difference:.4f}", pair.difference),
        Cell(f"{pair.low:+.4f} to {pair.high:+.4f}", pair.low),
        Cell(f"{pair.effect:.3f}", pair.effect),
        _p_value(pair.p),
        _p_value(pair.p_holm),
        Cell("yes" if pair.p_holm < ALPHA else "no"),
        Cell(f"{pair.users:,}", pair.users),
        Cell(f"{pair.seeds_left}, {pair.seeds_right}"),
    )


def _spread_row(system: System, found: Spread) -> tuple[Cell, ...]:
    sd_text = "one seed" if found.sd_seeds is None else f"{found.sd_seeds:.4f}"
    return (
        Cell(row_name(system)),
        Cell(f"{found.mean:.4f}", found.mean),
        Cell(sd_text, found.sd_seeds),
        Cell(f"{found.se_users:.4f}", found.se_users),
        Cell(str(found.seeds), found.seeds),
        Cell(f"{found.users:,}", found.users),
    )


def _budget_row(budget: Budget) -> tuple[Cell, ...]:
    spent = (
        budget.trials,
        budget.seeds,
        budget.epochs,
        budget.steps,
        budget.rows,
        budget.seconds,
    )
    ended = [f"{n} {ENDINGS.get(kind, kind)}" for kind, n in budget.verdicts.items()]
    flags = "; ".join(budget.flags) or DASH
    return (
        Cell(budget.system),
        *(Cell(DASH) if amount is None else Cell(f"{amount:,.0f}", amount) for amount in spent),
        Cell(", ".join(ended)),
        Cell(flags),
    )


def _p_value(p: float) -> Cell:
    return Cell(f"{p:.4f}" if p >= 0.0001 else f"{p:.1e}", p)
