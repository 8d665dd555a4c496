"""Tables of results. Figures of different protocols never share one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

from recexp.report.collect import data_name, trained_under
from recexp.report.formats import BEST, SECOND, Cell, Table, as_markdown
from recexp.report.published import Figure, deviations, match, same_data

# Overrides that a table says elsewhere, or that say only where things lie.
SAID = ("model=", "dataset=", "experiment=", "protocol=", "seed=", "selection=")
PLACES = (
    "dataset.raw_dir",
    "hydra.",
    "hydra/",
    "cache_dir",
    "logger",
    "threads",
    "group",
    "ckpt_path",
    "tags",
    "run_dir",
)
STOPS = {"early": "patience", "max_epochs": "epochs", "max_steps": "steps", "max_time": "time"}
COLUMNS = ("test/hr@10", "test/ndcg@10", "test/mrr", "val/ndcg@10")


@dataclass
class System:
    """Runs of one protocol that differ in nothing but the seed."""

    runs: list[dict[str, Any]] = field(default_factory=list)
    label: str = ""  # model and the settings that tell it from the table's others

    @property
    def first(self) -> dict[str, Any]:
        return self.runs[0]

    @property
    def figures(self) -> dict[str, Figure]:
        return match(self.first)

    def values(self, metric: str) -> list[float]:
        return [r["metrics"][metric] for r in self.runs if r["metrics"].get(metric) is not None]

    def mean(self, metric: str) -> float | None:
        return fmean(found) if (found := self.values(metric)) else None

    def deviations(self) -> list[str]:
        return deviations(self.first, next(iter(self.figures.values()), None), len(self.runs))


def key(result: dict[str, Any]) -> tuple[str, str, str]:
    """What a table is about: figures may share a column only where all three agree.

    The data set's name says where the data are simulated.
    """
    return data_name(result), result["protocol"], result["protocol_id"]


def protocols(
    results: Sequence[dict[str, Any]],
) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """The results by ``key``, in order of appearance."""
    return {k: [r for r in results if key(r) == k] for k in dict.fromkeys(map(key, results))}


def settings(result: dict[str, Any]) -> list[str]:
    """The run's overrides that concern what was run, not where or with which seed."""
    return [o for o in result.get("overrides", []) if not o.lstrip("+~").startswith(SAID + PLACES)]


def systems(results: Sequence[dict[str, Any]], metric: str = "test/ndcg@10") -> list[System]:
    """Runs of one protocol id joined over seeds, best first.

    Two runs of one system with the same seed are no two samples: the later one stands in a row of its own.
    """
    found: dict[tuple, System] = {}
    for r in results:
        same, again = _identity(r), 0
        while (same, again) in found and r["seed"] in [s["seed"] for s in found[same, again].runs]:
            again += 1
        found.setdefault((same, again), System()).runs.append(r)
    chosen = sorted(
        found.values(),
        key=lambda s: -(s.mean(metric) if s.mean(metric) is not None else float("-inf")),
    )
    for system in chosen:
        system.runs.sort(key=lambda r: r["seed"])
        rivals = [s for s in chosen if s.first["model"] == system.first["model"]]
        system.label = " ".join([str(system.first["model"]), *_apart(system, rivals)])
    names = [s.label for s in chosen]
    for n, system in enumerate(
        chosen
    ):  # repeated seeds, or configs that differ where no override does
        if names.count(system.label) > 1:
            system.label += f" ({names[: n + 1].count(names[n])})"
    return chosen


def tables(
    results: Sequence[dict[str, Any]],
    columns: Sequence[str] = COLUMNS,
    metric: str = "test/ndcg@10",
) -> list[Table]:
    """One table per data set and protocol id, rows ordered by ``metric``: mean and s.d. over seeds, the published figure and how far ours
    lies from it (in % of the published one), and beneath in what the runs depart from the papers."""
    return [_table(group, columns, metric) for group in protocols(results).values()]


def _table(results: Sequence[dict[str, Any]], columns: Sequence[str], metric: str) -> Table:
    if len({key(r) for r in results}) != 1:
        raise ValueError("results of several protocol ids in one table")
    rows, data = systems(results, metric), results[0]["data"]
    tested = results[0]["metrics"].get("test/users")
    caption = f"{data['users']:,} users, {data['items']:,} items, {data.get('interactions', 0):,} interactions"
    caption += f", {int(tested):,} of them tested" if tested else ""
    columns = [c for c in columns if any(s.values(c) for s in rows)]
    printed = [c for c in columns if any(c.removeprefix("test/") in s.figures for s in rows)]
    head = ["model"]
    for c in columns:
        head += [c, "published", "Δ %"] if c in printed else [c]
    speeds = any("samples_per_s" in s.figures for s in rows)  # the paper's, on its machine
    head += [
        "best epoch",
        "stopped by",
        "seed",
        "rows/s",
        *(["published"] if speeds else []),
        "s",
        "commit",
        "settings",
    ]
    marks = {c: _marks([s.mean(c) for s in rows]) for c in columns}
    body = []
    for n, s in enumerate(rows):
        cells = [Cell(row_name(s))]
        for c in columns:
            cells.append(_figure(s.values(c), marks[c][n]))
            if c in printed:
                cells += _beside(s, c)
        about = _about(s)
        if speeds:
            speed = s.figures.get("samples_per_s")
            about.insert(4, Cell(f"{speed.value:,.0f}", speed.value) if speed else Cell("–"))
        body.append((*cells, *about))
    told = departures(rows)
    if sum(len(s.runs) > 1 for s in rows):
        told.append("± is the standard deviation over seeds")
    title = "{}, {} (id {})".format(*key(results[0]))
    return Table(title, caption, tuple(head), tuple(body), tuple(told))


def departures(found: Sequence[System]) -> list[str]:
    """In what the systems depart from the papers, each note once, before it those that it is about if they are not all."""
    about: dict[str, list[str]] = {}
    for s in found:
        for note in s.deviations():
            about.setdefault(note, []).append(s.label)
    everybody = {note for note, who in about.items() if len(who) == len(found) > 1}
    named = {note for note in about if " is a reconstruction" in note}  # says whom itself
    return [
        note if note in everybody | named else f"{', '.join(who)}: {note}"
        for note, who in about.items()
    ]


def row_name(s: System) -> str:
    """The label, with what a reader must know of the system before they compare it."""
    mark = " (reconstructed)" if s.first.get("reconstruction") else ""
    mark += (
        " (epoch chosen on the test set)" if s.first["selection"].startswith("test_peek") else ""
    )
    under = trained_under(s.first)
    return s.label + mark + (f" (trained and selected under {under})" if under else "")


def _figure(values: Sequence[float], mark: str) -> Cell:
    if not values:
        return Cell("–")
    return Cell(
        f"{fmean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else ""),
        fmean(values),
        mark,
    )


def _beside(s: System, metric: str) -> list[Cell]:
    figure, ours = s.figures.get(metric.removeprefix("test/")), s.mean(metric)
    if figure is None:
        return [Cell("–"), Cell("–")]
    apart = None if ours is None else 100 * (ours / figure.value - 1)
    other = "" if same_data(s.first, figure) else " *"  # explained in the notes
    return [
        Cell(f"{figure.value:.4f}{other}", figure.value),
        Cell("–") if apart is None else Cell(f"{apart:+.1f}{other}", apart),
    ]


def _about(s: System) -> list[Cell]:
    runs = s.runs
    commits = dict.fromkeys(
        (str(r["git"].get("commit") or "?"))[:7] + ("+" if r["git"].get("dirty") else "")
        for r in runs
    )
    stops = dict.fromkeys(
        STOPS.get(r["stop_reason"].partition(" ")[0], r["stop_reason"]) for r in runs
    )
    epochs = dict.fromkeys(f"{r['best_epoch'] + 1}/{r['epochs']}" for r in runs)
    rates = [r["examples_per_s"] for r in runs if r["examples_per_s"] is not None]
    seconds = [r["wall_time_s"] for r in runs if r["wall_time_s"] is not None]
    parts = dict.fromkeys(len(r.get("parts") or [1]) for r in runs)
    resumed = f" in {', '.join(map(str, parts))} parts" if max(parts) > 1 else ""
    return [
        Cell(", ".join(epochs), runs[0]["best_epoch"] + 1),
        Cell(", ".join(stops)),
        Cell(", ".join(str(r["seed"]) for r in runs)),
        Cell(f"{fmean(rates):,.0f}", fmean(rates)) if rates else Cell("–"),
        Cell(f"{fmean(seconds):.0f}{resumed}", fmean(seconds)) if seconds else Cell("–"),
        Cell(", ".join(commits)),
        Cell(" ".join(settings(s.first)), code=True),
    ]


def _marks(values: Sequence[float | None]) -> list[str]:
    """The best and the second best of two or more distinct values."""
    ranked = sorted({v for v in values if v is not None}, reverse=True)
    if sum(v is not None for v in values) < 2:
        return [""] * len(values)
    return [
        BEST if v == ranked[0] else SECOND if len(ranked) > 1 and v == ranked[1] else ""
        for v in values
    ]


def _identity(result: dict[str, Any]) -> tuple:
    chosen = tuple(sorted(settings(result)))
    return (
        result["model"],
        result["selection"],
        chosen,
        tuple(sorted(_flat(result.get("config") or {}).items())),
    )


def _flat(config: dict[str, Any], start: str = "") -> dict[str, str]:
    """The config by dotted keys, without what says where the run lay or which seed it had."""
    flat: dict[str, str] = {}
    for name, value in config.items():
        full = f"{start}{name}"
        if full in ("seed", "names", "callbacks", "run_dir", "debug") or full.startswith(PLACES):
            continue
        flat |= (
            _flat(value, f"{full}.") if isinstance(value, dict) and value else {full: str(value)}
        )
    return flat


def _apart(system: System, rivals: Sequence[System]) -> list[str]:
    """The settings in which a system differs from the table's others of its model; overrides first, for they are what somebody meant."""
    mine, all_of_them = set(settings(system.first)), [set(settings(s.first)) for s in rivals]
    apart = [o for o in settings(system.first) if not all(o in others for others in all_of_them)]
    selections = {_selection(s) for s in rivals}
    extra = [f"selection={_selection(system)}"] if len(selections) > 1 else []
    if not apart and sum(o == mine for o in all_of_them) > 1:
        flats = [_flat(s.first.get("config") or {}) for s in rivals]
        own = _flat(system.first.get("config") or {})
        apart = [
            f"{k}={v}"
            for k, v in own.items()
            if any(other.get(k) != v for other in flats) and any(k in other for other in flats)
        ]
    return [o.lstrip("+~").removeprefix("model.").removeprefix("objective.") for o in apart] + extra


def _selection(s: System) -> str:
    return s.first["selection"].partition(" ")[0].rstrip(",")


def markdown(
    results: Sequence[dict[str, Any]],
    columns: Sequence[str] = COLUMNS,
    metric: str = "test/ndcg@10",
) -> str:
    """One Markdown table per protocol id, rows ordered by ``metric``."""
    return "\n\n".join(as_markdown(t) for t in tables(results, columns, metric)) + "\n"
