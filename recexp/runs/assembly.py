"""From a config to what is trained: module, data and trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import Logger

from recexp.config.build import build
from recexp.data.datamodule import RecDataModule, rows_per_step
from recexp.data.store import Store
from recexp.errors import RecexpError
from recexp.evaluation.protocol import Protocol
from recexp.runs.tested import settings_of
from recexp.training.callbacks import ProgressBar
from recexp.training.checkpoints import AtomicCheckpointIO
from recexp.training.loggers.tracker import Guard, Tracker
from recexp.training.module import RecModule


def assemble(
    cfg: DictConfig, protocol: Protocol, store: Store, splits: tuple[str, ...]
) -> tuple[RecModule, RecDataModule]:
    """Module and data of a config on a store.

    splits: as in ``RecDataModule``. Seeds all random generators with ``cfg.seed`` first. Raises
    RecexpError where the model, the objective and the data do not go together.
    """
    pl.seed_everything(cfg.seed, verbose=False)
    model = build(cfg.model, schema=store.schema)
    if protocol.split.kind == "user_folds" and model.needs_user:
        raise RecexpError(
            f"protocol={protocol.name} tests users that are not trained on, and "
            f"{type(model).__name__} scores by a vector of each trained user: choose a model that "
            "reads histories, such as sasrec, or another protocol."
        )
    objective = build(cfg.objective)
    objective.bind(model, store)
    module = RecModule(
        model,
        objective,
        protocol,
        store,
        optimizer=build(cfg.optimizer),
        scheduler=build(cfg.scheduler) if cfg.scheduler else None,
        seed=cfg.seed,
        splits=splits,
        store_on=cfg.get("store_on", "auto"),
        keep_top=settings_of(cfg).keep_top,
    )
    data = RecDataModule(
        store,
        objective,
        batch_size=rows_per_step(objective, cfg.batch_size, cfg.get("batch_counts", "positives")),
        eval_batch_size=cfg.eval_batch_size,
        seed=cfg.seed,
        splits=splits,
    )
    return module, data


def build_loggers(cfg: DictConfig, facts: Mapping[str, Any]) -> list[Tracker]:
    """The config's loggers, started, with the settings and the facts of the run written to them.

    No call of one of them raises.
    """
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    settings.pop("logger")
    found: list[Tracker] = []
    for name, node in (cfg.logger or {}).items():
        logger: Logger | None = build(node) if node else None
        if isinstance(logger, Tracker):
            found.append(logger)
        elif logger is not None:  # another one of Lightning's
            found.append(Tracker(logger, Guard(f"logger.{name}")))
    for tracker in found:
        tracker.log_hyperparams(settings | facts)
    return found


def build_trainer(
    cfg: DictConfig,
    callbacks: Sequence[pl.Callback],
    max_epochs: int | None,
    loggers: Sequence[Logger] = (),
) -> pl.Trainer:
    """The config's trainer with these callbacks and loggers.

    max_epochs: unless None, replaces the config's, and every epoch is validated.
    """
    callbacks = list(callbacks)
    if cfg.trainer.get("enable_progress_bar", True):
        callbacks.append(ProgressBar())
    limits = {}
    if max_epochs is not None:
        limits = {"max_epochs": max_epochs, "check_val_every_n_epoch": 1}
    trainer: pl.Trainer = build(
        cfg.trainer,
        callbacks=callbacks,
        logger=list(loggers) or False,
        plugins=[AtomicCheckpointIO()],
        default_root_dir=cfg.run_dir,
        **limits,
    )
    return trainer
