"""Which claims of the papers stand, according to all runs at hand."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from recexp.errors import RecexpError
from recexp.report.claim_tests import HEAD, HELD, NOT_TESTED, ClaimTest, claim_row, claim_tests
from recexp.report.collect import Result, is_simulated, is_smoke
from recexp.report.formats import DASH, Cell, Table
from recexp.report.papers.claims import Claim, all_claims
from recexp.report.papers.published import paper_protocol, standard_protocol

STATES = (HELD, "not held", "open")
OVERVIEW_HEAD = (
    "paper",
    "table",
    "claims",
    *(f"{state}, the paper's data" for state in STATES),
    *(f"{state}, other data" for state in STATES),
    NOT_TESTED,
)
SUMS_HEAD = (OVERVIEW_HEAD[0], *OVERVIEW_HEAD[2:])


def evidence(results: Sequence[Result]) -> list[Table]:
    """Counts of verdicts per paper and per table of each, then the tested claims of each paper.

    A claim that was tested on several data sets counts once for each. Runs on simulated data and of
    smoke scale are left out. p is corrected by Holm's method over the claims of one table.

    Raises RecexpError where no run has a paper's protocol.
    """
    real = [result for result in results if not is_simulated(result) and not is_smoke(result)]
    listed: dict[tuple[str, str], list[Claim]] = defaultdict(list)
    for claim in all_claims():
        listed[claim.source].append(claim)
    tests = {}
    for (paper, table), claims in listed.items():
        protocol = paper_protocol(paper)
        runs = [r for r in real if standard_protocol(r["protocol"]) == protocol]
        made = claim_tests(claims, runs)
        tests[paper, table] = [test for test in made if test.verdict != NOT_TESTED]
    if not any(tests.values()):
        raise RecexpError("No claim can be tested: no two runs here are systems of one claim.")
    rows: list[tuple[Cell, ...]] = []
    of_papers = []
    papers = dict.fromkeys(paper for paper, _ in listed)
    for paper in papers:
        own = [_overview_row(*s, listed[s], tests[s]) for s in listed if s[0] == paper]
        of_papers.append(_sums(paper, own))
        rows += own
    tables = [
        Table("Claims of the papers", "", SUMS_HEAD, (*of_papers, _sums("all", of_papers))),
        Table("Claims by table", "", OVERVIEW_HEAD, tuple(rows)),
    ]
    for paper in papers:
        tested = [test for source in listed if source[0] == paper for test in tests[source]]
        if tested:
            lines = tuple(claim_row(test) for test in tested)
            tables.append(Table(f"Tested claims of {paper}", "", HEAD, lines))
    return tables


def _overview_row(
    paper: str, table: str, claims: Sequence[Claim], tests: Sequence[ClaimTest]
) -> tuple[Cell, ...]:
    counts = Counter((test.own_data, _state(test)) for test in tests)
    tested = {_said(test.claim) for test in tests}
    numbers = [
        len(claims),
        *(counts[True, state] for state in STATES),
        *(counts[False, state] for state in STATES),
        sum(_said(claim) not in tested for claim in claims),
    ]
    return (Cell(paper), Cell(table), *map(_count, numbers))


def _said(claim: Claim) -> tuple[str, str]:
    """What a claim says, whatever the data."""
    return str(claim), claim.metric


def _state(test: ClaimTest) -> str:
    return next(state for state in STATES if test.verdict.startswith(state))


def _sums(name: str, rows: Sequence[tuple[Cell, ...]]) -> tuple[Cell, ...]:
    """The numbers of the rows added up, behind a name."""
    n_numbers = len(SUMS_HEAD) - 1
    columns = zip(*(row[-n_numbers:] for row in rows), strict=True)
    return (Cell(name), *(_count(sum(int(cell.value or 0) for cell in c)) for c in columns))


def _count(number: int) -> Cell:
    return Cell(str(number) if number else DASH, number)
