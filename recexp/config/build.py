"""From a node of the config to an object."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from recexp.errors import RecexpError, is_out_of_memory


def register_resolvers() -> None:
    """Register what YAML may compute, such as ``${recexp.monitor:${selection}}``."""
    OmegaConf.register_new_resolver("recexp.monitor", _monitor, replace=True)
    OmegaConf.register_new_resolver("recexp.group", _group, replace=True)
    OmegaConf.register_new_resolver("recexp.repeats", _repeats, replace=True)
    OmegaConf.register_new_resolver("recexp.at_most", lambda most, n: min(most, n), replace=True)


def _monitor(selection: str) -> str:
    """The metric that chooses the epoch."""
    split = "test" if selection == "test_peek" else "val"
    return f"{split}/ndcg@10"


def _group(group: str | None, otherwise: str) -> str:
    """The group of a run in trackers: the one that is set, or the sweep that the run is a job of.

    otherwise: of a single run.
    """
    if group:
        return group
    if HydraConfig.initialized():
        hydra = HydraConfig.get()
        if hydra.mode == RunMode.MULTIRUN:  # recexp's own launcher sets group instead
            return Path(str(hydra.sweep.dir)).name
    return otherwise


def _repeats(words: Sequence[str]) -> list[str]:
    """The overrides that repeat a run alone: an experiment or a search would start its sweep."""
    starts_sweep = any(word.lstrip("+").startswith(("experiment=", "search=")) for word in words)
    return [*words, "hydra.mode=RUN"] if starts_sweep else list(words)


def build(node: DictConfig, **extra: Any) -> Any:
    """Instantiate a node; an error of the constructor becomes a RecexpError with its message."""
    try:
        return instantiate(node, _convert_="object", **extra)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, RecexpError):
            raise cause from None
        if cause is not None and is_out_of_memory(cause):
            raise RecexpError(
                f"{node.get('_target_')}: out of memory while it was built. Lower its sizes, such "
                "as model.n_factors, or raise the limit of memory."
            ) from error
        message = str(cause or error).splitlines()[0]
        raise RecexpError(f"{node.get('_target_')}: {message}") from error
