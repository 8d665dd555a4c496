"""The papers' claims, tested on runs: does the interval of the difference bear them out?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from recexp.errors import RecexpError
from recexp.report.collect import Result, is_simulated
from recexp.report.comparison import Comparison, Labeler, compare
from recexp.report.convergence import verdict as training_verdict
from recexp.report.formats import DASH, Cell, Table
from recexp.report.papers.claims import Claim, Pick, epochs_to_near_best
from recexp.report.papers.deviations import has_sizes_of
from recexp.report.papers.published import published_dataset, select
from recexp.report.papers.recipe import is_another_system
from recexp.report.seeds import ValuesOf, seed_margin
from recexp.report.significance import holm
from recexp.report.statistics import ALPHA, labeled
from recexp.report.tables import About, System, by_protocol
from recexp.report.validation import by_validation, choose
from recexp.runs.convergence import WARNED

ALIKE = 0.05  # systems that differ by less than this share of the metric are alike
HELD = "held"
REVERSED = "not held: the other way round"
OPEN = "open: too few users to tell"
SEEDS = "open: within the spread of seeds"
NOT_TESTED = "not tested"
HEAD = (
    "claim",
    "place",
    "on",
    "data",
    "metric",
    "difference",
    "95 % interval",
    "p",
    "p (Holm)",
    "seeds",
    "verdict",
    "came out",
)
OWN = "the paper's"
OTHER = "other"


@dataclass(frozen=True)
class ClaimTest:
    """A claim held against the runs of one protocol id.

    own_data: whether the data are those that the claim is about. comparison: of its two systems,
    None where they could not be compared; why: the reason then. left_label: the label of the
    claim's left system. unfinished: the labels of its systems that more training could improve.
    seed_margin: twice the standard error of the difference over seeds; 0 where it is not known.
    p_holm: None without a comparison.
    """

    claim: Claim
    about: About
    own_data: bool
    comparison: Comparison | None = None
    left_label: str = ""
    why: str = ""
    unfinished: frozenset[str] = frozenset()
    seed_margin: float = 0.0
    p_holm: float | None = None

    @property
    def verdict(self) -> str:
        """What the data say, or why they cannot.

        "open" where the system that came out behind, or one of two that came out alike, was not
        trained to its end, as far as its epochs tell, and where other seeds could change the
        answer: the difference, or for systems that came out alike the margin of being so, is below
        ``seed_margin``.
        """
        pair = self.comparison
        if pair is None or self.p_holm is None:
            return NOT_TESTED
        difference, low, high = self.difference
        level = max(pair.mean_left, pair.mean_right)
        found = verdict_on(self.claim, low, high, self.p_holm, level)
        if found == OPEN:
            return OPEN
        apart = found in (HELD, REVERSED) and not self.claim.alike
        behind = {pair.right} if apart else {pair.left, pair.right}
        unfinished = sorted(behind & self.unfinished)
        if unfinished:
            return f"open: {' and '.join(unfinished)} not trained to the end"
        size = abs(difference) if apart else ALIKE * level
        return SEEDS if size <= self.seed_margin else found

    @property
    def difference(self) -> tuple[float, float, float]:
        """Of the claim's left from its right, and the ends of its interval."""
        pair = self.comparison
        assert pair is not None
        # A comparison has the better system left; the claim's left minus right may be negative.
        if pair.left == self.left_label:
            return pair.difference, pair.low, pair.high
        return -pair.difference, -pair.high, -pair.low


def claims_table(name: str, listed: Sequence[Claim], results: Sequence[Result]) -> Table:
    """Held: the difference points the claimed way and is significant at 5 %.

    p is corrected by Holm's method over all claims tested here.
    """
    tests = claim_tests(listed, results)
    counts = Counter(test.verdict for test in tests)
    told = "; ".join(f"{n} {verdict}" for verdict, n in counts.items())
    n_tested = sum(test.comparison is not None for test in tests)
    caption = f"{told}. Holm's correction over the {n_tested} claims tested."
    all_simulated = bool(results) and all(map(is_simulated, results))
    mark = " (simulated)" if all_simulated else ""
    rows = tuple(claim_row(test) for test in tests)
    return Table(f"Claims of {name}{mark}", caption, HEAD, rows)


def claim_tests(listed: Sequence[Claim], results: Sequence[Result]) -> list[ClaimTest]:
    """The claims against the runs of every protocol id that can say something of them.

    On the claim's own data one of its systems is enough to list it, on other data both are needed.
    p is corrected by Holm's method over all of them.
    """
    tests: list[ClaimTest] = []
    for about, runs in by_protocol(results).items():
        tests += _tests_under(about, _concerned(listed, runs), runs)
    p_values = [test.comparison.p for test in tests if test.comparison]
    adjusted = iter(holm(p_values).tolist())
    return [replace(t, p_holm=next(adjusted)) if t.comparison else t for t in tests]


def claim_row(test: ClaimTest) -> tuple[Cell, ...]:
    """The line of a test under ``HEAD``."""
    claim = test.claim
    start = (
        Cell(str(claim)),
        Cell(claim.place),
        Cell(f"{test.about.dataset}, {test.about.protocol}"),
        Cell(OWN if test.own_data else OTHER),
        Cell(claim.metric),
    )
    pair = test.comparison
    if pair is None:
        return (*start, *[Cell(DASH)] * 5, Cell(test.verdict), Cell(test.why))
    difference, low, high = test.difference
    return (
        *start,
        Cell(f"{difference:+.4f}", difference),
        Cell(f"{low:+.4f} to {high:+.4f}", low),
        Cell(f"{pair.p:.4f}", pair.p),
        Cell(f"{test.p_holm:.4f}", test.p_holm),
        Cell(", ".join(map(str, _left_first(test, pair.seeds_left, pair.seeds_right)))),
        Cell(test.verdict),
        Cell(f"{pair.left} before {pair.right}"),
    )


def _left_first(test: ClaimTest, *of_comparison: int) -> tuple[int, ...]:
    """Numbers of the comparison's better and worse system in the order of the claim."""
    is_left = test.comparison is not None and test.comparison.left == test.left_label
    return of_comparison if is_left else of_comparison[::-1]


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
            return HELD
        return "not held" if outside_margin else OPEN
    if p_holm < ALPHA:
        return HELD if low + high > 0 else REVERSED
    return f"not held: alike within {100 * ALIKE:g} %" if within_margin else OPEN


def _concerned(listed: Sequence[Claim], runs: Sequence[Result]) -> list[Claim]:
    """The claims to list for the runs of one protocol id."""
    kept = []
    elsewhere = set()
    for claim in listed:
        met = [any(pick.meets(run) for run in runs) for pick in (claim.left, claim.right)]
        if claim.concerns(runs[0]["dataset"]):
            if any(met):
                kept.append(claim)
            continue
        # The same claim about several data sets of the paper is one claim elsewhere.
        said = (str(claim), claim.metric)
        if all(met) and said not in elsewhere:
            elsewhere.add(said)
            kept.append(claim)
    return kept


def _tests_under(about: About, listed: Sequence[Claim], runs: Sequence[Result]) -> list[ClaimTest]:
    """The claims held against the runs of one protocol id.

    Where several systems meet a pick, the one chosen on validation stands for it (``choose``), of
    those that kept their ranks where any did. Those with another loss, objective, sampler or parts
    than the paper's are variants, which the claim is not about.
    """
    found, label = labeled(runs)
    ordered = by_validation(found)
    candidates: dict[tuple[str, str], list[System]] = {}  # by table
    tests: list[ClaimTest] = []
    chosen: dict[str, list[tuple[int, System, System]]] = {}  # by metric, and place in tests
    for claim in listed:
        test = ClaimTest(claim, about, _is_on_own_data(claim, runs[0]))
        if claim.source not in candidates:
            candidates[claim.source] = [s for s in ordered if not _is_variant(s.first, claim)]
        able = candidates[claim.source]
        left = _standing_for(claim.left, claim, able, found)
        right = _standing_for(claim.right, claim, able, found)
        if left is None or right is None:
            test = replace(test, why=f"no run of {claim.right if left else claim.left}")
        elif why := _not_comparable(claim, left, right):
            test = replace(test, why=why)
        else:
            unfinished = filter(_is_unfinished, left.runs + right.runs)
            test = replace(
                test,
                left_label=label(left.first),
                unfinished=frozenset(map(label, unfinished)),
                seed_margin=seed_margin(left, right, found, _test_values(claim.metric)),
            )
            chosen.setdefault(claim.metric, []).append((len(tests), left, right))
        tests.append(test)
    for metric, pairs in chosen.items():
        systems = [(left, right) for _, left, right in pairs]
        compared = _compare_all(systems, metric, label)
        for (place, _, _), comparison in zip(pairs, compared, strict=True):
            if isinstance(comparison, str):
                tests[place] = replace(tests[place], why=comparison)
            else:
                tests[place] = replace(tests[place], comparison=comparison)
    return tests


def _standing_for(
    pick: Pick, claim: Claim, able: Sequence[System], found: Sequence[System]
) -> System | None:
    """The system that the claim is tested on, where any meets the pick.

    Systems with ranks come first, unless the claim is about epochs, which are counted without them.
    """
    meeting = [system for system in able if pick.meets(system.first)]
    if not claim.sooner:
        meeting = [s for s in meeting if not _without_ranks(s)] or meeting
    return choose(meeting, found) if meeting else None


def _test_values(metric: str) -> ValuesOf:
    return lambda system: system.values(f"test/{metric}")


def _not_comparable(claim: Claim, left: System, right: System) -> str:
    """Why the claim's systems cannot be tested over users; empty where they can."""
    if left is right:
        return "both sides are the same system here"
    if claim.sooner:  # epochs are one number a run: nothing to test over users
        return _epochs_text(claim, left, right)
    missing = _without_ranks(left) + _without_ranks(right)
    return f"no ranks.parquet in {', '.join(missing)}" if missing else ""


def _without_ranks(system: System) -> list[str]:
    """The runs of the system that cannot be tested over users."""
    folders = [run["folder"] for run in system.runs]
    return [folder for folder in folders if not (Path(folder) / "ranks.parquet").is_file()]


def _compare_all(
    pairs: Sequence[tuple[System, System]], metric: str, label: Labeler
) -> list[Comparison | str]:
    """The comparison of each pair, or why there is none.

    All pairs at once, which costs little more than one of them. Where that is refused, because some
    systems have other users, pair by pair.
    """
    runs = {run["folder"]: run for pair in pairs for system in pair for run in system.runs}
    try:
        made = compare(list(runs.values()), metric=metric, label=label)
    except RecexpError as error:
        if len(pairs) == 1:
            return [str(error)]
        return [_compare_all([pair], metric, label)[0] for pair in pairs]
    of_pair = {frozenset((c.left, c.right)): c for c in made}
    names = [frozenset((label(left.first), label(right.first))) for left, right in pairs]
    return [of_pair[pair] for pair in names]


def _is_on_own_data(claim: Claim, run: Result) -> bool:
    """Whether the run's data are those on which the paper makes the claim.

    Extracts of them, and data of their name with other users, are not. A claim of a curve that is
    not stored in ``published.csv`` is about all data sets of its paper.
    """
    paper, table = claim.source
    figures = select(paper=paper, table=table) or select(paper=paper)
    datasets = claim.datasets or {figure.dataset for figure in figures if figure.names_data}
    name = run["dataset"]
    return name in datasets and has_sizes_of(run, paper, name)


def _is_unfinished(run: Result) -> bool:
    """Could more training raise the run's figures, as far as its epochs tell?

    A run without a verdict of its own, as of another program, counts as finished.
    """
    kind = training_verdict(run).kind
    return kind in WARNED or (kind == "unknown" and bool(run.get("convergence")))


def _is_variant(run: Result, claim: Claim) -> bool:
    paper, table = claim.source
    return is_another_system(run, paper, table, published_dataset(run))


def _epochs_text(claim: Claim, left: System, right: System) -> str:
    epochs = []
    for system in (left, right):
        epochs.append([epochs_to_near_best(run, claim.metric) or "?" for run in system.runs])
    return f"no test of epochs: near the best after {epochs[0]} and {epochs[1]}"
