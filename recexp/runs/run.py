"""One run: check, prepare, assemble, fit, refit, test, write the result."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf

from recexp.config.check import build, check_config, check_machine
from recexp.config.summary import summary
from recexp.contracts import ClosedForm
from recexp.data.cache import prepare
from recexp.data.datamodule import RecDataModule
from recexp.data.dataset import Dataset
from recexp.data.store import Store
from recexp.distributed import is_first_process
from recexp.errors import RecexpError
from recexp.evaluation.protocol import Protocol
from recexp.runs.assembly import assemble, build_trainer
from recexp.runs.convergence import judge
from recexp.runs.costs import scoring_costs
from recexp.runs.environment import describe, git_state
from recexp.runs.failures import failures_explained
from recexp.runs.outputs import (
    kept_config,
    save_config,
    save_curves,
    save_interrupted,
    save_ranks,
    save_result,
    show_table,
)
from recexp.runs.result import RunResult
from recexp.training.callbacks import EpochTable
from recexp.training.checkpoints import adopt_best, read_checkpoint, read_matching_checkpoint
from recexp.training.early_stopping import ValidateAtLastStep, stop_reason
from recexp.training.loggers import finish
from recexp.training.module import RecModule
from recexp.training.parts import Parts
from recexp.training.signals import Interruption
from recexp.training.silence import silence_lightning

DATA_FACTS = ("users", "items", "interactions", "fingerprint", "simulated")  # into result.json
TEST_PEEK = "test_peek (epoch chosen on the TEST set: optimistic)"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """What a run trains and is evaluated on.

    splits: validated after every epoch. monitor: the metric that chooses the epoch.
    protocol_id: of the data without merged validation targets, also for a refit.
    """

    dataset: Dataset
    protocol: Protocol
    store: Store
    splits: tuple[str, ...]
    monitor: str
    protocol_id: str


def run(cfg: DictConfig) -> dict[str, Any]:
    """Train and evaluate what the config says; returns the content of ``result.json``.

    Returns {} in every process but the first. Raises RecexpError for anything that the user can
    correct, and Interrupted where a signal ended the run.
    """
    run_dir = _run_dir(cfg)
    _check_and_start(cfg, run_dir)
    started = time.perf_counter()
    git = git_state()  # before training, because the checkout may change meanwhile

    prepared = prepare_data(cfg)
    module, data = assemble(cfg, prepared.protocol, prepared.store, prepared.splits)
    _adopt_checkpoint(cfg, module, prepared.store)
    about = _about(cfg, prepared, git)
    constant_loss = module.objective.constant_loss(prepared.store, data.batch_size)

    table = EpochTable(run_dir / "metrics.csv")
    parts = Parts(started)
    stop = Interruption(run_dir / "checkpoints" / "last.ckpt")
    configured = [build(node) for node in cfg.callbacks.values() if node]
    callbacks = [table, parts, stop, ValidateAtLastStep(), *configured]
    trainer = build_trainer(cfg, callbacks, _n_passes(module))
    _log_size(module, trainer)

    def save_progress(signum: int) -> None:
        save_interrupted(run_dir, about, signum, table.record() | parts.record())

    refit = None
    with failures_explained(cfg, stop, save_progress):
        trainer.fit(module, data, ckpt_path=cfg.ckpt_path, weights_only=True)
        stopped = stop_reason(trainer)
        best_epoch = _best_epoch(table.rows, prepared.monitor, stopped)
        if cfg.selection == "refit":
            trainer, module, data = _refit(cfg, prepared, stop, n_epochs=best_epoch + 1)
            refit = {"epochs": best_epoch + 1, "updates": _n_updates(trainer, module)}
        else:
            _load_best(trainer, module, run_dir)
        trainer.test(module, data, verbose=False)
    if not trainer.is_global_zero:
        return {}

    verdict = judge(table.rows, prepared.monitor, stop_reason=stopped, constant_loss=constant_loss)
    training = {
        "best_epoch": best_epoch,
        "stop_reason": stopped,
        "constant_loss": constant_loss,
        "convergence": asdict(verdict),
        **table.record(),
        **parts.record(),
        **({"refit": refit} if refit else {}),
    }
    metrics = _metrics(module, table.rows, best_epoch)
    result = _write_result(run_dir, module, about | training | {"metrics": metrics})
    save_curves(run_dir / "curves.png", table.rows, _title(about))
    _log_test_metrics(trainer, metrics)
    show_table(result, run_dir)
    return result.to_dict()


def prepare_data(cfg: DictConfig) -> Prepared:
    """The data of the config, read from the cache or prepared, and how they are evaluated.

    Raises RecexpError where there is no validation target to select an epoch on.
    """
    dataset = build(cfg.dataset, _recursive_=False)
    protocol = build(cfg.protocol)
    store = Store.open(prepare(dataset, protocol.split, cfg.cache_dir))
    peeks = cfg.selection == "test_peek"
    if not len(store.val) and not peeks:
        raise RecexpError(
            "No user has a validation target, so no epoch can be selected: loosen dataset.filters "
            "or choose another protocol."
        )
    splits = ("val", "test") if peeks else ("val",)
    configured = OmegaConf.select(cfg, "callbacks.checkpoint.monitor")
    monitor = configured or f"{splits[-1]}/ndcg@10"
    return Prepared(dataset, protocol, store, splits, monitor, protocol.id(store.meta))


def _run_dir(cfg: DictConfig) -> Path:
    if not isinstance(cfg.run_dir, str) or not cfg.run_dir:
        raise RecexpError(f"run_dir={cfg.run_dir!r}: must be a directory; hydra.run.dir= sets it.")
    return Path(cfg.run_dir)


def _check_and_start(cfg: DictConfig, run_dir: Path) -> None:
    """Check the config, set up the process and write ``config.yaml``."""
    check_config(cfg)
    silence_lightning()
    check_machine(cfg)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    if is_first_process():
        log.info("%s", "\n".join(summary(cfg)))
        run_dir.mkdir(parents=True, exist_ok=True)
        save_config(run_dir / "config.yaml", cfg)


def _adopt_checkpoint(cfg: DictConfig, module: RecModule, store: Store) -> None:
    """Check the checkpoint to resume from, if there is one, and copy the best one beside it."""
    if not cfg.ckpt_path:
        return
    path = Path(cfg.ckpt_path)
    content = read_matching_checkpoint(path, module, store.meta["fingerprint"])
    if is_first_process():
        adopt_best(path, content, Path(cfg.run_dir) / "checkpoints")


def _log_size(module: RecModule, trainer: pl.Trainer) -> None:
    """Log what ``summary`` cannot know: the parameters, which depend on the data."""
    if is_first_process():
        n_parameters = sum(p.numel() for p in module.model.parameters())
        log.info("parameters: %s on %s", f"{n_parameters:,}", trainer.strategy.root_device)


def _about(cfg: DictConfig, prepared: Prepared, git: Mapping[str, Any]) -> dict[str, Any]:
    """What ``result.json`` says of a run before it is trained."""
    names = OmegaConf.to_container(cfg.names, resolve=True)
    assert isinstance(names, dict)
    meta = prepared.store.meta
    return {
        **names,
        "protocol_id": prepared.protocol_id,
        "seed": cfg.seed,
        "config": kept_config(cfg),
        "batch_counts": cfg.get("batch_counts", "positives"),
        "selection": TEST_PEEK if cfg.selection == "test_peek" else cfg.selection,
        "data": {key: meta[key] for key in DATA_FACTS},
        "left_out": meta["left_out"],
        "audit": meta["audit"],
        "git": git,
    }


def _n_passes(module: RecModule) -> int | None:
    """Epochs of a model that is fitted in closed form; None for one trained by gradients."""
    model = module.model
    return model.n_passes if isinstance(model, ClosedForm) else None


def _best_epoch(rows: Sequence[Mapping[str, float]], monitor: str, stopped: str) -> int:
    """The epoch of best.ckpt: the first with the best value in float32, as Lightning compares."""
    scored = [row for row in rows if monitor in row]
    if not scored:
        raise RecexpError(
            f"Training ended ({stopped}) before its first validation, so no epoch can be chosen: "
            "raise trainer.max_steps or trainer.max_time, or set trainer.check_val_every_n_epoch=1."
        )
    return int(max(scored, key=lambda row: torch.tensor(row[monitor]))["epoch"])


def _refit(
    cfg: DictConfig, prepared: Prepared, stop: Interruption, n_epochs: int
) -> tuple[pl.Trainer, RecModule, RecDataModule]:
    """Train again from the start, with the validation targets among the training data."""
    merged = replace(prepared.protocol.split, merge_val=True)
    store = Store.open(prepare(prepared.dataset, merged, cfg.cache_dir))
    module, data = assemble(cfg, prepared.protocol, store, ())
    # A run interrupted from here on resumes from the end of the first training.
    stop.path = None
    run_dir = Path(cfg.run_dir)
    trainer = build_trainer(cfg, [EpochTable(run_dir / "metrics_refit.csv"), stop], n_epochs)
    trainer.fit(module, data)
    trainer.save_checkpoint(run_dir / "checkpoints" / "refit.ckpt")
    return trainer, module, data


def _n_updates(trainer: pl.Trainer, module: RecModule) -> int:
    """Optimizer steps of the training; none for a model without gradients."""
    return 0 if module.gradient_free else trainer.global_step


def _load_best(trainer: pl.Trainer, module: RecModule, run_dir: Path) -> None:
    """Give the module the weights of the best epoch.

    Lightning's own loading before a test would also reset the callbacks, and with them the rows
    of the epoch table, to that epoch.
    """
    # Only the first process knows the run directory.
    path = trainer.strategy.broadcast(str(run_dir / "checkpoints" / "best.ckpt"))
    module.load_state_dict(read_checkpoint(Path(path))["state_dict"])


def _metrics(
    module: RecModule, rows: Sequence[Mapping[str, float]], best_epoch: int
) -> dict[str, float]:
    """Test metrics, and the validation metrics of the best epoch."""
    metrics = {f"test/{name}": value for name, value in module.results["test"].items()}
    for row in rows:
        if row["epoch"] == best_epoch:
            metrics |= {name: value for name, value in row.items() if name.startswith("val/")}
            break
    return metrics


def _write_result(run_dir: Path, module: RecModule, content: Mapping[str, Any]) -> RunResult:
    """Write ``ranks.parquet`` and ``result.json``."""
    model = module.model
    content = {
        **content,
        "parameters": sum(p.numel() for p in model.parameters()),
        **scoring_costs(model, module.store, module.protocol.history),
        "reconstruction": model.reconstruction,
        **describe(),
        "ranks_sha256": save_ranks(run_dir / "ranks.parquet", {"test": module.ranks}),
    }
    result = RunResult.parse(content)
    save_result(run_dir / "result.json", result)
    return result


def _title(about: Mapping[str, Any]) -> str:
    simulated = " (simulated)" if about["data"]["simulated"] else ""
    return f"{about['model']} on {about['dataset']}{simulated}, {about['protocol']}"


def _log_test_metrics(trainer: pl.Trainer, metrics: Mapping[str, float]) -> None:
    test_metrics = {name: value for name, value in metrics.items() if name.startswith("test/")}
    for logger in trainer.loggers:
        logger.log_metrics(test_metrics, step=trainer.global_step)
        finish(logger)
