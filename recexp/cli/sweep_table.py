"""The best jobs of a sweep so far, shown after every job that is among them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from recexp.logs import printable_lines
from recexp.report.formats import BEST, Cell, Table
from recexp.report.terminal import terminal_text

MAX_ROWS = 5
DEFAULT = "val/ndcg@10"  # where the result does not say what chose its epoch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Job:
    """settings: the job's overrides by key. value: of the metric that chose its epoch."""

    number: int
    settings: dict[str, str]
    metric: str
    value: float


@dataclass
class BestJobs:
    """Finished jobs by the metric that chose their epoch, and the settings in which jobs differ."""

    _expected: list[dict[str, str]] = field(default_factory=list)  # settings of jobs by key
    _done: list[_Job] = field(default_factory=list)

    def expect(self, jobs: Sequence[Sequence[str]]) -> None:
        """Name the overrides of jobs that will run."""
        self._expected += [dict(map(_setting, words)) for words in jobs]

    def add(self, number: int, words: Sequence[str], result: Mapping[str, Any]) -> bool:
        """Take in a finished job; returns whether it is among the best."""
        metric = _metric(result)
        value = result["metrics"].get(metric)
        if not isinstance(value, int | float):
            return False
        job = _Job(number, dict(map(_setting, words)), metric, float(value))
        self._done.append(job)
        return job in self._best()

    def table(self) -> Table:
        """The best jobs, best first, with the settings in which the sweep's jobs differ."""
        best = self._best()
        metrics = " or ".join(dict.fromkeys(job.metric for job in best))
        keys = self._varied()
        rows = []
        for rank, job in enumerate(best, 1):
            value = Cell(f"{job.value:.4f}", job.value, BEST if rank == 1 else "")
            name = Cell(str(job.number), job.number)
            settings = [Cell(job.settings.get(key, "")) for key in keys]
            rows.append((Cell(str(rank), rank), value, name, *settings))
        title = f"best of the {len(self._done)} jobs with a result so far"
        return Table(title, "", ("rank", metrics, "job", *keys), tuple(rows))

    def _best(self) -> list[_Job]:
        return sorted(self._done, key=lambda job: -job.value)[:MAX_ROWS]

    def _varied(self) -> list[str]:
        """Keys that not all jobs set to the same value, in the order of the command line."""
        keys = dict.fromkeys(key for job in self._expected for key in job)
        return [key for key in keys if len({job.get(key) for job in self._expected}) > 1]


def show(best: BestJobs) -> None:
    """Write the table to stderr, where the sweep's other lines are."""
    text = terminal_text([best.table()], sys.stderr).rstrip("\n")
    if sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)
    else:
        log.info("%s", printable_lines(text))


def _metric(result: Mapping[str, Any]) -> str:
    """The metric that chose the epoch of the job."""
    node: Any = result.get("config")
    for key in ("callbacks", "checkpoint", "monitor"):
        node = node.get(key) if isinstance(node, Mapping) else None
    return node if isinstance(node, str) and node in result["metrics"] else DEFAULT


def _setting(word: str) -> tuple[str, str]:
    key, _, value = word.lstrip("+~").partition("=")
    return key, value
