"""The configs of a search's trials, composed and checked before the first of them starts."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

from recexp.config.presets import apply_preset
from recexp.errors import RecexpError
from recexp.runs.identity import differences, material
from recexp.search.best import preset_values, write_preset
from recexp.search.messages import message
from recexp.search.space import Space

if TYPE_CHECKING:
    from recexp.search.study import Best

NAMES = ("model", "dataset", "protocol")
SHOWN = 3  # changed settings that a message names

log = logging.getLogger(__name__)


class SearchConfigs:
    """The configs of a search's trials."""

    def __init__(self, master: DictConfig, context: HydraContext, space: Space) -> None:
        self._master = master
        self._loader = context.config_loader
        self.space = space
        self.first = self.composed(next(space.corners()))
        choices = self.first.hydra.runtime.choices
        self.names = {group: str(choices[group]) for group in NAMES}

    def composed(self, words: Sequence[str], *, is_plain: bool = False) -> DictConfig:
        """The config of a trial, Hydra's node included.

        is_plain: without the fixed overrides, for what a preset has to say.
        """
        fixed = () if is_plain else self.space.fixed
        try:
            config = self._loader.load_sweep_config(self._master, [*fixed, *words])
            return apply_preset(config)
        except HydraException as error:
            lines = " ".join(str(error).split("\n"))
            raise RecexpError(f"The search cannot set {' '.join(words)}: {lines}") from error

    def names_of(self, values: Mapping[str, Any]) -> dict[str, str]:
        """Model, data set and protocol of a trial; the model may be searched."""
        return {name: str(values.get(name, chosen)) for name, chosen in self.names.items()}

    def check_space(self) -> None:
        """Raise RecexpError where a value of the space is refused, or search= sets more."""
        from recexp.config.check import check_config  # imports torch

        for number, words in enumerate(self.space.corners()):
            config = self.composed(words) if number else self.first.copy()
            with open_dict(config):
                config.hydra.runtime.output_dir = str(config.hydra.sweep.dir)
                config.hydra.job.num = 0
                config.hydra.job.id = "0"
            HydraConfig.instance().set_config(config)
            try:
                check_config(_without_hydra(config))
            except RecexpError as error:
                raise RecexpError(f"The search would try {' '.join(words)}: {error}") from error
        self._check_search_file()

    def _check_search_file(self) -> None:
        """The trials are composed without ``search=``, so it may hold hydra.sweeper only."""
        chosen = self._master.hydra.runtime.choices.get("search")
        if not chosen:
            return
        changed = differences(
            _settings(self.composed([])), _settings(self.composed([f"search={chosen}"]))
        )
        if changed:
            raise RecexpError(
                f"search={chosen} also sets {', '.join(changed[:SHOWN])}: a file of search/ may "
                "hold hydra.sweeper only; put other settings into an experiment."
            )

    def metric(self, name: str | None) -> str:
        """The metric to maximize: the one asked for, else that which chooses a run's epoch.

        Raises RecexpError for a metric that no validation has.
        """
        from recexp.config.check import known_metrics, monitored  # imports torch

        if name is None:
            return monitored(self.first)
        known = [metric for metric in known_metrics(self.first) if metric.startswith("val/")]
        if name not in known:
            raise RecexpError(f"hydra.sweeper.metric={name}: must be one of {', '.join(known)}.")
        return name

    def about(self, metric: str) -> dict[str, Any]:
        """What two starts of a search must have in common."""
        settings = material(_settings(self.first))
        for key in self.space.parameters:
            _remove(settings, key)
        content: dict[str, Any] = json.loads(json.dumps(settings, default=str))
        return {"metric": metric, "params": self.space.to_dict(), "settings": content}

    def write_preset(self, path: Path, best: Best) -> None:
        """Write the best trial's values, and say how to use them."""
        trial = self.composed(self.space.words(best.values))
        names = trial.hydra.runtime.choices
        words = [f"{key}={names[key]}" for key in self.names]
        plain = self.composed([*words, "preset=none"], is_plain=True)
        values = preset_values(_settings(plain, resolve=False), _settings(trial, resolve=False))
        write_preset(path, names.dataset, names.model, values)
        command = f"--config-dir {path.parent.parent} preset={path.stem} {' '.join(words)}"
        log.info(message(f"written to {path}; to use it: python -m recexp {command}"))


def _without_hydra(config: DictConfig) -> DictConfig:
    config = config.copy()
    with open_dict(config):
        del config["hydra"]
    return config


def _settings(config: DictConfig, *, resolve: bool | None = None) -> dict[str, Any]:
    settings = OmegaConf.to_container(config, resolve=bool(resolve))
    assert isinstance(settings, dict)
    settings.pop("hydra", None)
    return {str(key): value for key, value in settings.items()}


def _remove(settings: dict[str, Any], key: str) -> None:
    """Take a searched key, or the whole of a searched group, out of the settings."""
    *above, last = key.lstrip("+").replace("/", ".").split(".")
    node: Any = settings
    for part in above:
        node = node.get(part) if isinstance(node, dict) else None
    if isinstance(node, dict):
        node.pop(last, None)
