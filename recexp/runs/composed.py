"""The prepared data and the protocol that a command line chooses, without a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from recexp.config import CONF
from recexp.config.build import build, register_resolvers
from recexp.config.check import check_config
from recexp.config.presets import apply_preset
from recexp.data.cache import prepare
from recexp.data.store import Store
from recexp.errors import RecexpError
from recexp.evaluation.protocol import Protocol


@dataclass(frozen=True)
class ComposedData:
    """What a run with the same command line would be evaluated on. cfg: its whole config."""

    cfg: DictConfig
    protocol: Protocol
    store: Store


def composed_data(overrides: Sequence[str]) -> ComposedData:
    """Compose the config of these overrides, check it and prepare its data.

    Raises RecexpError for what ``python -m recexp`` with these overrides would refuse.
    """
    register_resolvers()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = apply_preset(compose("config", list(overrides), return_hydra_config=True))
    except (HydraException, OmegaConfBaseException) as error:
        raise RecexpError(str(error).splitlines()[0]) from error
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    check_config(cfg)
    protocol: Protocol = build(cfg.protocol)
    folder = prepare(build(cfg.dataset, _recursive_=False), protocol.split, cfg.cache_dir)
    return ComposedData(cfg, protocol, Store.open(folder))
