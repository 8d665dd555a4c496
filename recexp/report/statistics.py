"""What the tests, the seeds, the epochs and the budgets say, as tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from recexp.errors import RecexpError
from recexp.report.convergence import ledger, verdict
from recexp.report.formats import Cell, Table
from recexp.report.significance import compare, spread
from recexp.report.tables import System, protocols, row_name, systems

Label = Callable[[dict[str, Any]], str]
ENDINGS = {
    "unlearned": "STOPPED BEFORE IT LEARNED",
    "rising": "STILL RISING",
    "converged": "converged",
    "overfitted": "over-fitted",
    "one_pass": "one pass",
    "unknown": "unknown",
}


def labelled(results: Sequence[dict[str, Any]]) -> tuple[list[System], Label]:
    """The systems of one protocol id, and the function that names a run's: the names the tables use."""
    found = systems(results)
    names = {r["folder"]: row_name(s) for s in found for r in s.runs}
    return found, lambda r: names[r["folder"]]


def comparisons(results: Sequence[dict[str, Any]], metric: str = "ndcg@10") -> list[Table]:
    """One table of all pairs per protocol id: difference, 95 % interval over users, effect size d_z, p alone and after Holm's correction."""
    made = []
    for about, runs in protocols(results).items():
        _, label = labelled(runs)
        ranked, notes = _with_ranks(runs)
        try:
            pairs = (
                compare(ranked, metric=metric, label=label)
                if len({label(r) for r in ranked}) > 1
                else []
            )
        except RecexpError as error:
            pairs, notes = [], [*notes, f"not tested: {error}"]
        rows = tuple(
            (
                Cell(c.left), Cell(c.right), Cell(f"{c.difference:.4f}", c.difference), Cell(f"{c.low:+.4f} to {c.high:+.4f}", c.low),
                Cell(f"{c.effect:.3f}", c.effect), _p(c.p), _p(c.p_holm), Cell("yes" if c.p_holm < 0.05 else "no"),
                Cell(f"{c.users:,}", c.users), Cell(f"{c.seeds_left}, {c.seeds_right}"),
            )
            for c in pairs
        )  # fmt: skip
        head = (
            "better",
            "worse",
            f"difference in {metric}",
            "95 % interval",
            "effect d_z",
            "p",
            "p (Holm)",
            "real at 5 %",
            "users",
            "seeds",
        )
        caption = "Paired over users by random signs on the same candidates; Holm's correction for all pairs of the table."
        if rows or notes:
            made.append(Table(_title("Pairs of systems", about), caption, head, rows, tuple(notes)))
    return made


def spreads(results: Sequence[dict[str, Any]], metric: str = "ndcg@10") -> list[Table]:
    """Per system how far the metric moves with the seed, apart from how far it would with other users."""
    made = []
    for about, runs in protocols(results).items():
        found, label = labelled(runs)
        ranked, notes = _with_ranks(runs)
        rows = []
        for s in found:
            mine = [r for r in s.runs if r in ranked]
            try:
                x = spread(mine, metric, label=label) if mine else None
            except RecexpError as error:
                x, notes = None, [*notes, f"{row_name(s)}: {error}"]
            if x is not None:
                sd = Cell("one seed" if x.sd_seeds is None else f"{x.sd_seeds:.4f}", x.sd_seeds)
                figures = Cell(f"{x.mean:.4f}", x.mean), sd, Cell(f"{x.se_users:.4f}", x.se_users)
                rows.append(
                    (
                        Cell(row_name(s)),
                        *figures,
                        Cell(str(x.seeds), x.seeds),
                        Cell(f"{x.users:,}", x.users),
                    )
                )
        head = ("system", metric, "s.d. over seeds", "s.e. over users", "seeds", "users")
        caption = "The first says how far another seed would move the figure, the second how far other users would."
        if rows:
            made.append(Table(_title("Spread", about), caption, head, tuple(rows), tuple(notes)))
    return made


def convergence(results: Sequence[dict[str, Any]]) -> list[Table]:
    """A verdict on every trained run: see ``recexp.runs.convergence``."""
    made = []
    for about, runs in protocols([r for r in results if "evaluated" not in r]).items():
        found, _ = labelled(runs)
        rows = []
        for s in found:
            for r in s.runs:
                v = verdict(r)
                rows.append(
                    (
                        Cell(row_name(s)),
                        Cell(str(r["seed"]), r["seed"]),
                        Cell(ENDINGS.get(v.kind, v.kind)),
                        Cell(v.text),
                    )
                )
        made.append(
            Table(
                _title("Convergence", about), "", ("system", "seed", "verdict", "why"), tuple(rows)
            )
        )
    return made


def budgets(results: Sequence[dict[str, Any]]) -> list[Table]:
    """The ledger: what each system got, and where another got more than twice as much."""
    made = []
    for about, runs in protocols([r for r in results if "evaluated" not in r]).items():
        _, label = labelled(runs)
        rows = []
        for b in ledger(runs, label=label):
            spent = (b.trials, b.seeds, b.epochs, b.steps, b.rows, b.seconds)
            ended = ", ".join(f"{n} {ENDINGS.get(kind, kind)}" for kind, n in b.verdicts.items())
            flags = "; ".join(b.flags) or "–"
            rows.append(
                (
                    Cell(b.system),
                    *(Cell("–" if x is None else f"{x:,.0f}", x) for x in spent),
                    Cell(ended),
                    Cell(flags),
                )
            )
        head = (
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
        caption = (
            "Means over a system's trials. A flag where another system got more than twice as much."
        )
        made.append(Table(_title("Budgets", about), caption, head, tuple(rows)))
    return made


def _with_ranks(runs: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    kept = [r for r in runs if (Path(r["folder"]) / "ranks.parquet").is_file()]
    missing = [r["folder"] for r in runs if r not in kept]
    return kept, [
        f"not tested, for ranks.parquet was not kept: {', '.join(missing)}"
    ] if missing else []


def _title(what: str, about: tuple[str, str, str]) -> str:
    return "{}: {}, {} (id {})".format(what, *about)


def _p(p: float) -> Cell:
    return Cell(f"{p:.4f}" if p >= 0.0001 else f"{p:.1e}", p)
