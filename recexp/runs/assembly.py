"""From a config to what trains it: module, data and trainer."""

from __future__ import annotations

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf

from recexp.config.check import build
from recexp.data.datamodule import RecDataModule, rows_per_step
from recexp.data.store import Store
from recexp.training.callbacks import ProgressBar
from recexp.training.checkpoints import WholeCheckpoints
from recexp.training.module import RecModule


def assemble(
    cfg: DictConfig, protocol, store: Store, splits: tuple[str, ...]
) -> tuple[RecModule, RecDataModule]:
    """Module and data of a config on a store; splits as in ``RecDataModule``."""
    pl.seed_everything(cfg.seed, verbose=False)
    model, objective = build(cfg.model, schema=store.schema), build(cfg.objective)
    objective.bind(model, store)
    module = RecModule(
        model, objective, protocol, store, optimizer=build(cfg.optimizer), scheduler=build(cfg.scheduler) if cfg.scheduler else None,
        seed=cfg.seed, splits=splits, store_on=cfg.get("store_on", "auto"),
    )  # fmt: skip
    rows = rows_per_step(objective, cfg.batch_size, cfg.get("batch_counts", "positives"))
    data = RecDataModule(
        store,
        objective,
        batch_size=rows,
        eval_batch_size=cfg.eval_batch_size,
        seed=cfg.seed,
        splits=splits,
    )
    return module, data


def trainer_of(cfg: DictConfig, callbacks: list[pl.Callback], max_epochs: int | None) -> pl.Trainer:
    """The config's trainer with these callbacks; max_epochs, unless None, replaces the config's."""
    if cfg.trainer.get("enable_progress_bar", True):
        callbacks = [*callbacks, ProgressBar()]
    loggers = [build(node) for node in (cfg.logger or {}).values() if node]
    for logger in loggers:
        logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))
    limits = {} if max_epochs is None else {"max_epochs": max_epochs, "check_val_every_n_epoch": 1}
    return build(
        cfg.trainer,
        callbacks=callbacks,
        logger=loggers or False,
        plugins=[WholeCheckpoints()],
        default_root_dir=cfg.run_dir,
        **limits,
    )
