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

from recexp.cli.launcher import ProcessLauncher
from recexp.cli.skipping import SkippingLauncher
from recexp.config import CONF
from recexp.config.values import shown
from recexp.errors import RecexpError

Row = Mapping[str, Any]


class GridSweeper(Sweeper):
    """``hydra/sweeper=grid``: every combination of ``params``, with each of ``rows``.

    params: keys to values or sweeps, as for Hydra's own sweeper. rows: lines of a table, each a
    mapping of keys to values or sweeps; every row is crossed with ``params``.

    The command line has precedence. Of the rows that contain one of its keys, those stay that
    agree with it; where none does, the key is set in all rows.
    """

    def __init__(self, params: Row | None = None, rows: Sequence[Row] = ()) -> None:
        self.params = _row("params", {} if params is None else params)
        if not isinstance(rows, Sequence) or isinstance(rows, str):
            raise RecexpError(f"hydra.sweeper.rows={shown(rows)}: must be a list of rows.")
        self.rows = [_row(f"rows[{number}]", row) for number, row in enumerate(rows)]

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Hydra's call before ``sweep``."""
        self.hydra_context = hydra_context
        self.config = config
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        if not isinstance(launcher, ProcessLauncher):
            launcher = SkippingLauncher(launcher, hydra_context, config)
        self.launcher = launcher

    def sweep(self, arguments: list[str]) -> Any:
        """Launch every job; ``arguments`` are the overrides of the command line.

        An unknown key is an error before the first job starts.
        """
        assert self.hydra_context and self.config and self.launcher, "setup comes first"
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        jobs = grid(self.params, self.rows, arguments, parser)
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        try:
            self.validate_batch_is_legal(jobs)
        except ValueError as error:  # of Hydra, for a choice that is no text
            settings = [item for row in (self.params, *self.rows) for item in row.items()]
            keys = sorted({key for key, value in settings if not isinstance(value, str)})
            raise RecexpError(f"hydra.sweeper, {', '.join(keys)}: {error}.") from error
        return [self.launcher.launch(jobs, initial_job_idx=0)]


def grid(
    params: Row, rows: Sequence[Row], arguments: Sequence[str], parser: OverridesParser
) -> list[list[str]]:
    """The overrides of every job, without repeats.

    In the order of the rows, and within a row in that of ``params``. Raises RecexpError for a sweep
    over experiments that have grids of their own.
    """
    _check_experiments(arguments, parser)
    for argument in arguments:
        rows = _agreeing_rows(rows, argument, parser)
    jobs: dict[tuple[str, ...], list[str]] = {}
    for row in rows or [{}]:
        settings = {**params, **row}
        lines = [_override(key, value) for key, value in settings.items()]
        overrides = parser.parse_overrides([*lines, *arguments])
        (combinations,) = BasicSweeper.split_arguments(overrides, None)
        for job in combinations:
            jobs.setdefault(tuple(sorted(job)), job)
    return list(jobs.values())


def _check_experiments(arguments: Sequence[str], parser: OverridesParser) -> None:
    """The grids of experiments have no effect in a sweep over experiments."""
    for argument in arguments:
        key, names = _values(argument, parser)
        if key != "experiment" or len(names) < 2:
            continue
        files = {name: CONF / "experiment" / f"{name}.yaml" for name in sorted(names)}
        with_grid = [name for name, path in files.items() if path.is_file() and _has_grid(path)]
        if with_grid:
            raise RecexpError(
                f"{argument}: {', '.join(with_grid)} has a sweep of its own, which a sweep over "
                "experiments would leave out. Start one command per experiment."
            )


def _has_grid(path: Path) -> bool:
    return OmegaConf.select(OmegaConf.load(path), "hydra.sweeper") is not None


def _agreeing_rows(rows: Sequence[Row], argument: str, parser: OverridesParser) -> Sequence[Row]:
    """The rows without the argument's key or with one of its values; all, where no row agrees."""
    key, given = _values(argument, parser)
    agreeing = []
    for row in rows:
        if key not in row or _values(_override(key, row[key]), parser)[1] & given:
            agreeing.append(row)
    return agreeing if any(key in row for row in agreeing) else rows


def _values(override: str, parser: OverridesParser) -> tuple[str, set[str]]:
    """The key of an override, and the values that it sweeps over."""
    (parsed,) = parser.parse_overrides([override])
    (jobs,) = BasicSweeper.split_arguments([parsed], None)
    return parsed.get_key_element(), {job.partition("=")[2] for (job,) in jobs}


def _row(name: str, row: Any) -> dict[str, Any]:
    """The keys and values of ``params`` or of a row; RecexpError where they are none."""
    if not isinstance(row, Mapping):
        raise RecexpError(f"hydra.sweeper.{name}={shown(row)}: must be keys with values.")
    for key, value in row.items():
        if not (value is None or isinstance(value, str | int | float)):
            raise RecexpError(
                f"hydra.sweeper.{name}.{key}={shown(value)}: must be a text or a number, a list "
                'as "[a,b]".'
            )
    return dict(row)


def _override(key: str, value: Any) -> str:
    """A YAML value as Hydra's command line writes it."""
    return f"{key}=null" if value is None else f"{key}={value}"
