"""Hydra sweeper: search for hyper-parameters with Optuna.

The sweeper alone talks to the study. A trial is a run like any other, in a process of the launcher
and without Optuna: the sweeper reads the validation values in its ``metrics.csv`` and ends it by a
signal where the pruner says so. A worker that is killed leaves runs behind that can go on, and the
next start of the same command takes their trials up.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from recexp.cli.launcher import ProcessLauncher
from recexp.cli.search_configs import SearchConfigs
from recexp.cli.search_trials import Trials
from recexp.errors import RecexpError
from recexp.runs.identity import key_of
from recexp.search.best import check_preset_path
from recexp.search.messages import message
from recexp.search.options import Options
from recexp.search.space import Space, read_space

if TYPE_CHECKING:
    from recexp.search.study import SharedStudy

NEEDED = ("optuna", "cmaes", "sqlalchemy", "alembic")

log = logging.getLogger(__name__)


class OptunaSweeper(Sweeper):
    """``hydra/sweeper=optuna``: see ``conf/hydra/sweeper/optuna.yaml`` for what its keys mean."""

    def __init__(self, params: Mapping[str, Any] | None = None, **options: Any) -> None:
        self.params = params
        self.options = options

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Hydra's call before ``sweep``."""
        self.hydra_context = hydra_context
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Search; ``arguments`` are the overrides of the command line.

        Returns the number, value and values of the best trial. Whatever can be wrong is an error
        before the first trial starts.
        """
        assert self.hydra_context and self.config and self.launcher, "setup comes first"
        study_class = _import_study()
        if not isinstance(self.launcher, ProcessLauncher):
            raise RecexpError(
                "hydra/sweeper=optuna needs hydra/launcher=processes. On a cluster, start the same "
                "command in several jobs with one hydra.sweeper.storage."
            )
        options = Options.checked(dict(self.options))
        preset = check_preset_path(options.preset)
        configs = SearchConfigs(self.config, self.hydra_context, self._space(arguments))
        metric = configs.metric(options.metric)
        configs.check_space()
        name = options.study or " ".join(configs.names.values())
        study = study_class(options, name, configs.space, configs.about(metric))
        folder = Path(str(self.config.hydra.sweep.dir))
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        log.info(message(f"{name}: {study.plan()}, {metric} is maximized, {options.storage}"))
        trials = Trials(study, configs, metric, folder)
        try:
            self.launcher.launch_each(trials)
        finally:
            study.leave()
        best = trials.conclude()
        configs.write_preset(preset, best)
        return {"trial": best.number, "value": best.value, "values": best.values}

    def _space(self, arguments: Sequence[str]) -> Space:
        assert self.hydra_context
        if self.params is not None and not isinstance(self.params, Mapping | DictConfig):
            raise RecexpError(f"hydra.sweeper.params={self.params!r}: must be keys with sweeps.")
        params = OmegaConf.to_container(OmegaConf.create(dict(self.params or {})))
        assert isinstance(params, dict)
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        # What search=... says is in params.
        words = [word for word in arguments if key_of(word) != "search"]
        return read_space({str(key): value for key, value in params.items()}, words, parser)


def _import_study() -> type[SharedStudy]:
    try:
        from recexp.search.study import SharedStudy
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in NEEDED:
            raise
        raise RecexpError(
            f"hydra/sweeper=optuna needs {error.name}, which is not installed: "
            "pip install 'recexp[search]', or pip install optuna cmaes."
        ) from None
    return SharedStudy
