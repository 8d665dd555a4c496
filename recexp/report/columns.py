"""Columns of the tables of results: metrics, how a system was trained, and its settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from recexp.errors import RecexpError
from recexp.report.collect import Result, as_number, is_external, setting, settings
from recexp.report.formats import DASH, Cell

MODEL = "model"  # the first column of every table
METRICS = "metrics"  # stands for the metrics that were chosen
PUBLISHED = "published"  # beside a metric: the paper's figure, and how far ours lies from it
DEFAULT_METRICS = ("test/hr@10", "test/ndcg@10", "test/mrr", "val/ndcg@10")
DETAILS = ("best epoch", "stopped by", "rows/s", "s", "commit", "settings")
DEFAULT_COLUMNS = (
    METRICS,
    PUBLISHED,
    "best epoch",
    "stopped by",
    "seed",
    "rows/s",
    "s",
    "commit",
    "settings",
)
STOPS = {"early": "patience", "max_epochs": "epochs", "max_steps": "steps", "max_time": "time"}

Runs = Sequence[Result]


@dataclass(frozen=True)
class Layout:
    """What the tables of results show.

    metrics: in the place of METRICS. columns: after the model. models: in this order; the best
    first where it is empty. details: columns that are left out where there is no room.
    """

    metrics: tuple[str, ...] = DEFAULT_METRICS
    columns: tuple[str, ...] = DEFAULT_COLUMNS
    models: tuple[str, ...] = ()
    details: tuple[str, ...] = DETAILS


def layout(
    results: Runs,
    *,
    metrics: Sequence[str] = (),
    columns: Sequence[str] = (),
    models: Sequence[str] = (),
    first: str = "",
) -> Layout:
    """The layout that the names choose; the default where they choose nothing.

    metrics: such as test/ndcg@10 and val/ndcg@10. columns: metrics as well, names of
    ``TRAINING``, and settings such as optimizer.lr. first: a metric that is put before the default
    ones, where it is none of them.

    Raises RecexpError for a name that none of the results has.
    """
    chosen = tuple(metrics)
    if not chosen:
        before = (first,) if first and first not in DEFAULT_METRICS else ()
        chosen = (*before, *DEFAULT_METRICS)
    if not columns:
        return Layout(metrics=chosen, models=tuple(models))
    named = tuple(_column(results, name) for name in columns if name != MODEL)
    if METRICS not in named and not any(_is_metric(results, name) for name in named):
        named = (METRICS, *named)
    return Layout(chosen, named, tuple(models), details=())


def metric_column(results: Runs, name: str, option: str) -> str:
    """The metric's name in ``result.json``. Raises RecexpError where no result has it."""
    for full in (f"test/{name}", name):
        if _is_metric(results, full):
            return full
    known = ", ".join(known_metrics(results))
    asked = name.removeprefix("test/")
    raise RecexpError(f"{option} {asked}: no run has this metric; they have {known}.")


def known_metrics(results: Runs) -> list[str]:
    """Metrics over all users, without those of groups of users or items (``test/group/hr@10``)."""
    found = set()
    for result in results:
        for name in result["metrics"]:
            split, _, metric = name.partition("/")
            if "/" not in metric and metric not in ("users", "targets"):
                found.add(metric if split == "test" else name)
    return sorted(found)


def _is_metric(results: Runs, name: str) -> bool:
    return any(name in result["metrics"] for result in results)


def _column(results: Runs, name: str) -> str:
    words = name.replace("-", " ").replace("_", " ")
    if words in (METRICS, PUBLISHED, *TRAINING):
        return words
    if any(setting(result, name, DASH) != DASH for result in results):
        return name
    if _is_metric(results, name) or _is_metric(results, f"test/{name}"):
        return metric_column(results, name, "--columns")
    fixed = [known.replace(" ", "-") for known in (MODEL, METRICS, PUBLISHED, *TRAINING)]
    raise RecexpError(
        f"--columns {name}: there is no such column; choose from {', '.join(fixed)}, the metrics "
        f"({', '.join(known_metrics(results))}) and settings of the runs, such as optimizer.lr."
    )


# Cells of a system's runs -------------------------------------------------------------------------


def setting_cell(runs: Runs, key: str) -> Cell:
    """The setting of this dotted key; DASH where the model has none."""
    texts = dict.fromkeys(str(setting(run, key, DASH)) for run in runs)
    return Cell(", ".join(texts), as_number(setting(runs[0], key)))


def _best_epoch(runs: Runs) -> Cell:
    texts = dict.fromkeys(
        DASH if is_external(run) else f"{run['best_epoch'] + 1}/{run['epochs']}" for run in runs
    )
    return Cell(", ".join(texts), runs[0]["best_epoch"] + 1)


def _stopped_by(runs: Runs) -> Cell:
    reasons = [str(run["stop_reason"]) for run in runs]
    words = [STOPS.get(reason.partition(" ")[0], reason) for reason in reasons]
    return Cell(", ".join(dict.fromkeys(words)))


def _seed(runs: Runs) -> Cell:
    return Cell(", ".join(str(run["seed"]) for run in runs))


def _speed(runs: Runs) -> Cell:
    rates = [run["examples_per_s"] for run in runs if run["examples_per_s"] is not None]
    return Cell(f"{fmean(rates):,.0f}", fmean(rates)) if rates else Cell(DASH)


def _seconds(runs: Runs) -> Cell:
    seconds = [run["wall_time_s"] for run in runs if run["wall_time_s"] is not None]
    if not seconds:
        return Cell(DASH)
    return Cell(f"{fmean(seconds):.0f}{_parts(runs)}", fmean(seconds))


def _parts(runs: Runs) -> str:
    """In how many parts resumed runs were trained."""
    n_parts = dict.fromkeys(len(run.get("parts") or [1]) for run in runs)
    return f" in {', '.join(map(str, n_parts))} parts" if max(n_parts) > 1 else ""


def _parameters(runs: Runs) -> Cell:
    counts = dict.fromkeys(run.get("parameters") for run in runs)
    known = [n for n in counts if n is not None]
    return Cell(", ".join(f"{n:,}" for n in known), known[0]) if known else Cell(DASH)


def _commit(runs: Runs) -> Cell:
    commits = []
    for run in runs:
        commit = str(run["git"].get("commit") or "?")[:7]
        commits.append(f"{commit}+" if run["git"].get("dirty") else commit)
    return Cell(", ".join(dict.fromkeys(commits)))


def _settings(runs: Runs) -> Cell:
    return Cell(" ".join(settings(runs[0])), code=True)


# Columns that say how a system was trained.
TRAINING: dict[str, Callable[[Runs], Cell]] = {
    "best epoch": _best_epoch,
    "stopped by": _stopped_by,
    "seed": _seed,
    "rows/s": _speed,
    "s": _seconds,
    "parameters": _parameters,
    "commit": _commit,
    "settings": _settings,
}
