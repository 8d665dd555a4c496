"""Hydra sweeper: the grids of published tables, rectangular or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class GridSweeper(Sweeper):
    """``hydra/sweeper=grid``: ``params`` are crossed, as by Hydra's own sweeper, with ``rows`` beside them.

    rows: the lines of a table, one of which holds at a time, each a mapping of keys to values or sweeps; every row is crossed with ``params``.
    The command line wins over both: of the rows that speak of one of its keys it keeps those that agree with it, or, where none does, sets the key in
    all of them.
    """

    __module__ = "hydra_plugins.recexp"  # Hydra instantiates plugins of this namespace only; ``cli`` registers the class

    def __init__(
        self, params: Mapping[str, Any] | None = None, rows: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        self.params, self.rows = dict(params or {}), [dict(row) for row in rows]

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Hydra's call before ``sweep``."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Launch every job; ``arguments`` are the overrides of the command line. A key that nothing knows is an error before the first."""
        jobs = grid(
            self.params,
            self.rows,
            arguments,
            OverridesParser.create(config_loader=self.hydra_context.config_loader),
        )
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        self.validate_batch_is_legal(jobs)
        return [self.launcher.launch(jobs, initial_job_idx=0)]


def grid(
    params: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    arguments: Sequence[str],
    parser: OverridesParser,
) -> list[list[str]]:
    """The overrides of every job, without repeats, in the order of the rows and within them of ``params``."""

    def values(override: str) -> tuple[str, set[str]]:
        (parsed,) = parser.parse_overrides([override])
        (jobs,) = BasicSweeper.split_arguments([parsed], None)
        return parsed.get_key_element(), {job.partition("=")[2] for (job,) in jobs}

    for key, given in map(values, arguments):
        agreeing = [
            row for row in rows if key not in row or values(f"{key}={_text(row[key])}")[1] & given
        ]
        if any(key in row for row in agreeing):
            rows = agreeing
    jobs: dict[tuple[str, ...], list[str]] = {}
    for row in rows or [{}]:
        lines = [f"{key}={_text(value)}" for key, value in {**params, **row}.items()]
        for job in BasicSweeper.split_arguments(parser.parse_overrides([*lines, *arguments]), None)[
            0
        ]:
            jobs.setdefault(tuple(sorted(job)), job)
    return list(jobs.values())


def _text(value: Any) -> str:
    """A YAML value as Hydra's command line writes it."""
    return "null" if value is None else str(value)
