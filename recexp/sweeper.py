"""Hydra sweeper: the grids of published tables, rectangular or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser


class GridSweeper(BasicSweeper):
    """``hydra/sweeper=grid``: Hydra's own sweeper, whose ``params`` are crossed, with ``rows`` beside them.

    rows: the lines of a table, one of which holds at a time, each a mapping of keys to values or sweeps; every row is crossed with ``params``.
    The command line wins over both: of the rows that speak of one of its keys it keeps those that agree with it, or, where none does, sets the key in
    all of them.
    """

    __module__ = "hydra_plugins.recexp"  # Hydra instantiates plugins of this namespace only; ``cli`` registers the class

    def __init__(self, max_batch_size: int | None = None, params: Mapping[str, Any] | None = None, rows: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(max_batch_size, dict(params or {}))
        self.rows = [dict(row) for row in rows]

    def sweep(self, arguments: list[str]) -> Any:
        """Hydra's entry: ``arguments`` are the overrides of the command line."""
        self.arguments = arguments
        return super().sweep(arguments)

    def split_arguments(self, overrides: Any, max_batch_size: int | None) -> list[list[list[str]]]:
        """The jobs in batches; ``overrides`` (what Hydra parsed) is made of params and command line, which stand here already."""
        jobs = grid(self.params, self.rows, self.arguments, OverridesParser.create(config_loader=self.hydra_context.config_loader))
        return list(self.split_overrides_to_chunks(jobs, max_batch_size))


def grid(params: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], arguments: Sequence[str], parser: OverridesParser) -> list[list[str]]:
    """The overrides of every job, without repeats, in the order of the rows and within them of ``params``."""

    def values(override: str) -> tuple[str, set[str]]:
        (parsed,) = parser.parse_overrides([override])
        (jobs,) = BasicSweeper.split_arguments([parsed], None)
        return parsed.get_key_element(), {job.partition("=")[2] for (job,) in jobs}

    for key, given in map(values, arguments):
        agreeing = [row for row in rows if key not in row or values(f"{key}={_text(row[key])}")[1] & given]
        if any(key in row for row in agreeing):
            rows = agreeing
    jobs: dict[tuple[str, ...], list[str]] = {}
    for row in rows or [{}]:
        lines = [f"{key}={_text(value)}" for key, value in {**params, **row}.items()]
        for job in BasicSweeper.split_arguments(parser.parse_overrides([*lines, *arguments]), None)[0]:
            jobs.setdefault(tuple(sorted(job)), job)
    return list(jobs.values())


def _text(value: Any) -> str:
    """A YAML value as Hydra's command line writes it."""
    return {True: "true", False: "false", None: "null"}[value] if value is None or isinstance(value, bool) else str(value)
