"""A model as its YAML describes it, in small, with the objective and sampler that the YAML names."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from recexp.config import CONF
from recexp.config.check import build, check_config
from recexp.contracts import ClosedForm, Encoder
from recexp.data.datamodule import RecDataModule
from recexp.data.store import Store
from tests.support import toy, worlds

STORE = worlds.random_store(side=True)
MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))


@cache
def config(*overrides: str) -> DictConfig:
    """The composed and checked config."""
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        cfg = compose("config", ["dataset=table", *overrides])
    check_config(cfg)
    return cfg


@dataclass
class Contestant:
    """A model with what trains it, on a store."""

    model: torch.nn.Module
    objective: object
    store: Store
    cfg: DictConfig

    @property
    def closed_form(self) -> bool:
        return isinstance(self.model, ClosedForm)

    @property
    def encodes(self) -> bool:
        return isinstance(self.model, Encoder)

    def batches(self, epoch: int, batch_size: int):
        """An epoch's batches, as training would see them."""
        loader = RecDataModule(
            self.store, self.objective, batch_size=batch_size, eval_batch_size=1, seed=0
        ).train_dataloader()
        loader.sampler.set_epoch(epoch)
        for index, rows in enumerate(loader):
            yield self.objective.batch(
                self.store, rows, torch.Generator().manual_seed(1000 * epoch + index)
            )


def contestant(
    name: str,
    store: Store,
    *overrides: str,
    width: int = 16,
    max_len: int = 20,
    most_negatives: int = 64,
    dropout: bool = True,
    **objective: object,
) -> Contestant:
    """The model of conf/model/<name>.yaml with every size it has set small. objective: options to set where the objective has them."""
    cfg = config(f"model={name}", *overrides).copy()
    small = {"num_factors": width, "num_inner": 2 * width, "max_len": max_len}
    for key, value in cfg.model.items():
        if key in small and value is not None:
            cfg.model[key] = small[key]
        if key == "num_layers":
            cfg.model[key] = min(2, value)
        if "dropout" in key and not dropout:
            cfg.model[key] = 0.0
    if "n_negatives" in cfg.objective:
        objective["n_negatives"] = min(most_negatives, cfg.objective.n_negatives)
    for key, value in objective.items():
        if key in cfg.objective:
            OmegaConf.update(cfg, f"objective.{key}", value)
    pl.seed_everything(0, verbose=False)
    model, task = build(cfg.model, schema=store.schema), build(cfg.objective)
    task.bind(model, store)
    bind(model, store)
    return Contestant(model, task, store, cfg)


def bind(model, store) -> None:
    """Give the model the training data, where it asks for them."""
    model.bind(store)


@cache
def ready(name: str) -> Contestant:
    """On ``STORE``, to be looked at only: swept, or with random parameters so large that no scores agree by accident. Float64, evaluation mode."""
    entry = contestant(name, STORE)
    toy.randomise(entry.model)
    if entry.closed_form:
        entry.model.fit_pass(STORE)
    return entry
