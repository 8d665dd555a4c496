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

from recexp.config.build import build
from recexp.config.check import check_config, check_machine, monitored
from recexp.config.summary import summary
from recexp.contracts import ClosedForm
from recexp.data.cache import prepare
from recexp.data.datamodule import RecDataModule
from recexp.data.dataset import Dataset
from recexp.data.store import Store
from recexp.distributed import is_first_process
from recexp.errors import RecexpError
from recexp.evaluation.beyond import Beyond
from recexp.evaluation.protocol import Protocol
from recexp.io import checksum
from recexp.runs.assembly import assemble, build_loggers, build_trainer
from recexp.runs.convergence import judge
from recexp.runs.costs import scoring_costs
from recexp.runs.directory import claimed, clear
from recexp.runs.environment import describe, versions
from recexp.runs.failures import failures_explained
from recexp.runs.outputs import (
    kept_config,
    save_config,
    save_curves,
    save_interrupted,
    save_result,
    show_table,
)
from recexp.runs.result import RunResult
from recexp.runs.resume import resumed, ways_out
from recexp.runs.start_from import Start, read_start, start_from
from recexp.runs.tested import save_test, settings_of
from recexp.training.callbacks import EpochTable
from recexp.training.checkpoints import (
    adopt_best,
    best_beside,
    best_row,
    read_checkpoint,
    read_matching_checkpoint,
)
from recexp.training.early_stopping import ValidateAtLastStep, stop_reason
from recexp.training.interrupts import enter_stage
from recexp.training.loggers.tracker import (
    BestSoFar,
    Tracker,
    check_installed,
    finished_on_failure,
)
from recexp.training.module import RecModule
from recexp.training.parts import Parts
from recexp.training.sharding import ShardedTables, check_sharding
from recexp.training.signals import Interrupted, Interruption
from recexp.training.silence import silence_lightning
from recexp.version import git_state

# Entries of meta.json, and where ``result.json`` has their coverage.
COVERAGES = {
    "features": "feature_coverage",
    "user_features": "user_feature_coverage",
    "event_features": "event_feature_coverage",
}
DATA_FACTS = ("users", "items", "interactions", "fingerprint", "simulated")  # into result.json
BEST, REFIT = "checkpoints/best.ckpt", "checkpoints/refit.ckpt"
LOGGED_FACTS = ("protocol_id", "data", "git")  # of result.json, besides the settings
TEST_PEEK = "test_peek (epoch chosen on the TEST set: optimistic)"

MAX_SHOWN = 1000  # characters of an error about a path

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
    correct, also where another run has the directory, and Interrupted where a signal ended the
    run.
    """
    check_config(cfg)
    run_dir = _run_dir(cfg)
    with claimed(run_dir):
        enter_stage(
            f"ended the run in {run_dir} before training began; to go on: the same command",
            ends_at_once=False,
        )
        return _run(resumed(cfg), run_dir, is_told=bool(cfg.ckpt_path))


def _run(cfg: DictConfig, run_dir: Path, *, is_told: bool) -> dict[str, Any]:
    """The run in a directory that it has alone.

    is_told: the user named the checkpoint, if there is one.
    """
    _set_up_process(cfg, is_told=is_told)
    started = time.perf_counter()
    git = git_state()  # before training, because the checkout may change meanwhile

    prepared = prepare_data(cfg)
    settings = settings_of(cfg)
    settings.check(prepared.store)
    module, data = assemble(cfg, prepared.protocol, prepared.store, prepared.splits)
    _check_strategy(cfg, module)
    start = read_start(cfg)
    about = _about(cfg, prepared, git)
    if start is not None:
        about["init_from"] = start_from(start, cfg, module.model, prepared.store)
    _start_directory(cfg, module, prepared.store, is_told=is_told)
    module.constant_loss = module.objective.constant_loss(prepared.store, data.batch_size)

    table = EpochTable(run_dir / "metrics.csv", prepared.monitor)
    parts = Parts(started)
    stop = Interruption(run_dir / "checkpoints" / "last.ckpt")
    configured = [build(node) for node in cfg.callbacks.values() if node]
    best = BestSoFar(table, prepared.monitor)
    callbacks = [table, best, parts, stop, ValidateAtLastStep(), *configured]
    loggers = build_loggers(cfg, _logged_facts(about, module))
    trainer = build_trainer(cfg, callbacks, _n_passes(module), loggers)
    _log_size(module, trainer)

    def save_progress(signum: int) -> None:
        save_interrupted(run_dir, about, signum, table.record() | parts.record())

    with finished_on_failure(loggers), failures_explained(cfg, stop, save_progress):
        tested = _train_and_test(cfg, prepared, start, trainer, module, data, table, stop)
        if not trainer.is_global_zero:
            return {}
        stop.hold()  # the result is complete, so it is written before a signal takes effect
        verdict = judge(
            table.rows,
            prepared.monitor,
            stop_reason=tested.stopped,
            constant_loss=module.constant_loss,
            learned_share=module.objective.learned_share,
        )
        training = {
            "best_epoch": tested.best_epoch,
            "stop_reason": tested.stopped,
            "constant_loss": module.constant_loss,
            "learned_share": module.objective.learned_share,
            "convergence": asdict(verdict),
            "checkpoint": tested.checkpoint,
            **table.record(),
            **parts.record(),
            **({"refit": tested.refit} if tested.refit else {}),
        }
        metrics = _metrics(tested.module, table.rows, tested.best_epoch)
        content = about | training | {"metrics": metrics}
        result = _write_result(run_dir, tested, settings, content)
    enter_stage(f"came after the run in {run_dir} had its result", ends_at_once=False)
    if stop.signum:
        raise Interrupted(stop.signum, run_dir, has_result=True)
    save_curves(run_dir / "curves.png", table.rows, _title(about))
    checkpoint = tested.checkpoint["file"]
    _log_result(loggers, result, run_dir, checkpoint, tested.trainer.global_step)
    show_table(result, run_dir)
    return result.to_dict()


@dataclass(frozen=True)
class Tested:
    """A module that was trained and tested.

    stopped: why the training ended. checkpoint: the file with the tested weights, and its checksum.
    refit: epochs and updates of the second training, None where there is none.
    """

    trainer: pl.Trainer
    module: RecModule
    stopped: str
    best_epoch: int
    checkpoint: dict[str, str]
    refit: dict[str, Any] | None


def _train_and_test(
    cfg: DictConfig,
    prepared: Prepared,
    start: Start | None,
    trainer: pl.Trainer,
    module: RecModule,
    data: RecDataModule,
    table: EpochTable,
    stop: Interruption,
) -> Tested:
    """Fit, choose the epoch, train again where the config says so, and test."""
    trainer.fit(module, data, ckpt_path=cfg.ckpt_path, weights_only=True)
    stopped = stop_reason(trainer)
    best_epoch = _best_epoch(table.rows, prepared.monitor, stopped)
    refit = None
    if cfg.selection == "refit":
        trainer, module, data = _refit(cfg, prepared, start, stop, n_epochs=best_epoch + 1)
        refit = _refit_record(trainer, module)
        checkpoint = _identified(cfg, REFIT)
    else:
        # Before the file is read: what is tested is what was there then.
        checkpoint = _identified(cfg, BEST)
        _load_best(trainer, module, Path(cfg.run_dir), best_epoch)
    trainer.test(module, data, verbose=False)
    return Tested(trainer, module, stopped, best_epoch, checkpoint, refit)


def _identified(cfg: DictConfig, file: str) -> dict[str, str]:
    """File and checksum of a checkpoint, as ``result.json`` names it; {} but in the first process.

    Only that process knows the run directory.
    """
    if not is_first_process():
        return {}
    return {"file": file, "sha256": checksum(Path(cfg.run_dir) / file)}


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
    return Prepared(dataset, protocol, store, splits, monitored(cfg), protocol.id(store.meta))


def _check_checkpoint(ckpt_path: str) -> None:
    """Refuse a damaged or missing checkpoint before any work."""
    try:
        read_checkpoint(Path(ckpt_path))
    except RecexpError as error:
        raise RecexpError(f"ckpt_path: {str(error)[:MAX_SHOWN]}") from error


def _check_strategy(cfg: DictConfig, module: RecModule) -> None:
    """Refuse what cannot be trained with shared tables before the run's directory is cleared."""
    target = OmegaConf.select(cfg, "trainer.strategy._target_")
    if target == f"{ShardedTables.__module__}.{ShardedTables.__qualname__}":
        check_sharding(module.model, module.objective, cfg.trainer.precision)


def _run_dir(cfg: DictConfig) -> Path:
    if not isinstance(cfg.run_dir, str) or not cfg.run_dir:
        raise RecexpError(f"run_dir={cfg.run_dir!r}: must be a directory; hydra.run.dir= sets it.")
    return Path(cfg.run_dir)


def _set_up_process(cfg: DictConfig, *, is_told: bool) -> None:
    """Check what depends on the machine, and say what will run."""
    silence_lightning()
    check_machine(cfg)
    check_installed(str(node["_target_"]) for node in (cfg.logger or {}).values() if node)
    if is_told:  # else ``resumed`` has checked it
        _check_checkpoint(cfg.ckpt_path)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    if is_first_process():
        log.info("%s", "\n".join(summary(cfg)))


def _start_directory(cfg: DictConfig, module: RecModule, store: Store, *, is_told: bool) -> None:
    """Check the checkpoint to resume from, if there is one, and clear the run's directory for it.

    Comes after everything that the user may have to correct: until here an older run is unharmed.
    """
    run_dir = Path(cfg.run_dir)
    checkpoints = run_dir / "checkpoints"
    best = None
    goes_on_here = False
    if cfg.ckpt_path:
        path = Path(cfg.ckpt_path)
        with ways_out(None if is_told else path):
            content = read_matching_checkpoint(path, module, store.meta["fingerprint"])
            best = best_beside(path, content)
        goes_on_here = checkpoints.is_dir() and path.parent.samefile(checkpoints)
    if is_first_process():
        clear(run_dir, keep_progress=goes_on_here)
        save_config(run_dir / "config.yaml", cfg)
        if best is not None:
            adopt_best(best, checkpoints)


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
        "data": data_facts(meta),
        "left_out": meta["left_out"],
        "audit": meta["audit"],
        "git": git,
    }


def data_facts(meta: Mapping[str, Any]) -> dict[str, Any]:
    """``DataFacts``. meta: of the prepared data."""
    facts: dict[str, Any] = {key: meta[key] for key in DATA_FACTS}
    for key, name in COVERAGES.items():
        if features := meta.get(key):
            facts[name] = {feature["name"]: feature["coverage"] for feature in features}
    if meta["ids"]:
        facts["ids"] = meta["ids"]
    return facts


def _n_passes(module: RecModule) -> int | None:
    """Epochs of a model that is fitted in closed form; None for one trained by gradients."""
    model = module.model
    return model.n_passes if isinstance(model, ClosedForm) else None


def _best_epoch(rows: Sequence[Mapping[str, float]], monitor: str, stopped: str) -> int:
    """The epoch of best.ckpt."""
    best = best_row(rows, monitor)
    if best is None:
        raise RecexpError(
            f"Training ended ({stopped}) before its first validation, so no epoch can be chosen: "
            "raise trainer.max_steps or trainer.max_time, or set trainer.check_val_every_n_epoch=1."
        )
    return int(best["epoch"])


def _refit(
    cfg: DictConfig, prepared: Prepared, start: Start | None, stop: Interruption, n_epochs: int
) -> tuple[pl.Trainer, RecModule, RecDataModule]:
    """Train again from the start, with the validation targets among the training data."""
    merged = replace(prepared.protocol.split, merge_val=True)
    store = Store.open(prepare(prepared.dataset, merged, cfg.cache_dir))
    module, data = assemble(cfg, prepared.protocol, store, ())
    if start is not None:
        start_from(start, cfg, module.model, store)
    # A run interrupted from here on resumes from the end of the first training.
    stop.path = None
    run_dir = Path(cfg.run_dir)
    trainer = build_trainer(cfg, [EpochTable(run_dir / "metrics_refit.csv"), stop], n_epochs)
    trainer.fit(module, data)
    trainer.save_checkpoint(run_dir / REFIT)
    return trainer, module, data


def _refit_record(trainer: pl.Trainer, module: RecModule) -> dict[str, Any]:
    """What ``result.json`` says of the second training; why it ended, where it was cut short."""
    record: dict[str, Any] = {
        "epochs": trainer.current_epoch,
        "updates": 0 if module.gradient_free else trainer.global_step,
        "fingerprint": module.store.meta["fingerprint"],
    }
    stopped = stop_reason(trainer)
    return record if stopped == "max_epochs reached" else record | {"stop_reason": stopped}


def _load_best(trainer: pl.Trainer, module: RecModule, run_dir: Path, best_epoch: int) -> None:
    """Give the module the weights of the best epoch.

    Raises RecexpError where best.ckpt is of another epoch.

    Lightning's own loading before a test would also reset the callbacks, and with them the rows
    of the epoch table, to that epoch.
    """
    # Only the first process knows the run directory.
    path = trainer.strategy.broadcast(str(run_dir / BEST))
    content = read_checkpoint(Path(path))
    if content.get("epoch") != best_epoch:
        raise RecexpError(
            f"{path} holds the weights of epoch {content.get('epoch')} (counted from 0), but the "
            f"best validation was in epoch {best_epoch}: another callback, or another program, "
            "wrote it. Nothing was tested."
        )
    module.load_state_dict(content["state_dict"])


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


def _write_result(
    run_dir: Path, tested: Tested, settings: Beyond, content: Mapping[str, Any]
) -> RunResult:
    """Write the files of the test and ``result.json``."""
    module, model = tested.module, tested.module.model
    saved = save_test(run_dir, module, settings)
    content = {
        **content,
        **saved,
        "metrics": content["metrics"] | saved["metrics"],
        "parameters": sum(p.numel() for p in model.parameters()),
        **scoring_costs(model, module.store, module.protocol.history),
        "reconstruction": model.reconstruction,
        **describe(tested.trainer.strategy.root_device),
    }
    result = RunResult.parse(content)
    save_result(run_dir / "result.json", result)
    return result


def _title(about: Mapping[str, Any]) -> str:
    simulated = " (simulated)" if about["data"]["simulated"] else ""
    return f"{about['model']} on {about['dataset']}{simulated}, {about['protocol']}"


def _logged_facts(about: Mapping[str, Any], module: RecModule) -> dict[str, Any]:
    """What trackers record of a run before it is trained, besides its settings."""
    return {
        **{key: about[key] for key in LOGGED_FACTS},
        "parameters": sum(p.numel() for p in module.model.parameters()),
        "versions": versions(),
    }


def _log_result(
    loggers: Sequence[Tracker], result: RunResult, run_dir: Path, checkpoint: str, step: int
) -> None:
    """Log the test metrics at the tested epoch, and finish the trackers.

    checkpoint: the file with the tested weights, below the run directory.
    """
    test_metrics = {
        name: value for name, value in result.metrics.items() if name.startswith("test/")
    }
    end = {"best_epoch": result.best_epoch, "stop_reason": result.stop_reason}
    for logger in loggers:
        logger.log_metrics(test_metrics | {"epoch": result.best_epoch}, step=step)
        logger.summarize(result.metrics | end)
        if logger.keeps_files:
            logger.keep({"model": run_dir / checkpoint, "ranks": run_dir / "ranks.parquet"})
        logger.finish()
