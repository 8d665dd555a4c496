"""Models as their YAML describes them, with small sizes, and the objective that the YAML names."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from recexp.config import CONF
from recexp.config.build import build
from recexp.config.check import check_config
from recexp.contracts import ClosedForm
from recexp.data.datamodule import RecDataModule
from recexp.data.store import Store
from recexp.testing import worlds

STORE = worlds.random_store(side=True)
MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
# Models that another one's class makes with other settings, which tests of the class try too.
VARIANTS = {"bert4rec_one_mask", "bert4rec_vae", "bert_ite_authors", "bert_ite_ossi"}
VARIANTS |= {"bert_ite_si_authors", "bpr_mf_popularity", "gmf", "gsasrec", "invasive_bert"}
VARIANTS |= {"ite_authors", "ite_ossi", "ite_si_authors", "mf", "mlp", "mmlp", "ncf", "s_sknn"}
VARIANTS |= {"sasrec_softmax"}
EACH_MODEL = [
    pytest.param(name, marks=[pytest.mark.slow] if name in VARIANTS else []) for name in MODELS
]


@cache
def config(*overrides: str) -> DictConfig:
    """The composed and checked config."""
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        cfg = compose("config", ["dataset=table", *overrides])
    check_config(cfg)
    return cfg


@dataclass
class Contestant:
    """A model, its objective and the store that it is trained on."""

    model: torch.nn.Module
    objective: object
    store: Store
    cfg: DictConfig

    @property
    def closed_form(self) -> bool:
        return isinstance(self.model, ClosedForm)

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


def small_config(
    name: str,
    *overrides: str,
    width: int = 16,
    max_len: int = 20,
    most_negatives: int = 64,
    dropout: bool = True,
    **objective: object,
) -> DictConfig:
    """The config of conf/model/<name>.yaml with small sizes.

    dropout: False sets every dropout to 0. objective: options to set where the objective has them.
    """
    cfg = config(f"model={name}", *overrides).copy()
    small = {"n_factors": width, "n_inner": 2 * width, "max_len": max_len}
    for key, value in cfg.model.items():
        if key in small and value is not None:
            cfg.model[key] = small[key]
        if key == "n_layers":
            cfg.model[key] = min(2, value)
        if "dropout" in key and not dropout:
            cfg.model[key] = 0.0
    if "n_negatives" in cfg.objective:
        objective["n_negatives"] = min(most_negatives, cfg.objective.n_negatives)
    for key, value in objective.items():
        if key in cfg.objective:
            OmegaConf.update(cfg, f"objective.{key}", value)
    return cfg


def contestant(name: str, store: Store, *overrides: str, **sizes: object) -> Contestant:
    """The model of ``small_config`` and its objective, initialized with seed 0."""
    cfg = small_config(name, *overrides, **sizes)
    pl.seed_everything(0, verbose=False)
    model = build(cfg.model, schema=store.schema)
    objective = build(cfg.objective)
    objective.bind(model, store)
    model.bind(store)
    return Contestant(model, objective, store, cfg)


def first_batch(objective, store: Store, near: Store, generator: torch.Generator):
    """The first eight rows of an epoch, gathered where the data are.

    near: the same data on the CPU, which chooses the rows.
    """
    if objective.independent_rows:
        rows = objective.rows(near)[:8]
    else:
        rows = next(iter(objective.batches(store, 8, 0)))
    return objective.batch(store, rows.to(store.device), generator)
