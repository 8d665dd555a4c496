"""One run: compose, prepare, fit, test, write the result. The one file that knows everything."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import SIGTERMException

from recexp.compose import build, check_config, check_machine
from recexp.data.datamodule import RecDataModule
from recexp.data.prepare import prepare, write_json
from recexp.data.store import Store
from recexp.files import whole
from recexp.foreign import check_fit
from recexp.lightning.callbacks import EpochTable, ProgressBar
from recexp.lightning.checkpoints import WholeCheckpoints
from recexp.lightning.hints import quiet
from recexp.lightning.interruption import Interrupted, Interruption
from recexp.lightning.loggers import finish
from recexp.lightning.memory import out_of_memory
from recexp.lightning.module import RecModule
from recexp.lightning.processes import gone, lost_process
from recexp.results import describe, git_state, kept_config, save_curves, save_interrupted, save_ranks, scoring_costs, show_table
from recexp.types import RecexpError

DATA_FACTS = ("users", "items", "interactions", "fingerprint", "simulated")  # into result.json


def run(cfg: DictConfig) -> dict[str, Any]:
    """Train and evaluate what the config says; returns the content of ``result.json``. Raises RecexpError for anything a person can mend."""
    check_config(cfg)
    quiet()
    check_machine(cfg)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    run_dir = Path(cfg.run_dir)
    if rank_zero_only.rank == 0:
        run_dir.mkdir(parents=True, exist_ok=True)
        with whole(run_dir / "config.yaml") as temporary:
            OmegaConf.save(cfg, temporary, resolve=True)
    started, git = time.perf_counter(), git_state()  # now: the checkout may move on while the run trains

    dataset, protocol = build(cfg.dataset, _recursive_=False), build(cfg.protocol)
    store = Store.open(prepare(dataset, protocol.split, cfg.cache_dir))
    protocol_id = protocol.id(store.meta)  # now: a refit is trained on other data, but evaluated under the same protocol
    peek = cfg.selection == "test_peek"
    splits = ("val", "test") if peek else ("val",)
    if not len(store.val) and not peek:
        raise RecexpError("No user has a validation target, so nothing can be selected: loosen dataset.filters or choose another protocol.")
    module, data = assemble(cfg, protocol, store, splits)
    if cfg.ckpt_path:
        check_fit(Path(cfg.ckpt_path), module, store.meta["fingerprint"])
    about = {
        **OmegaConf.to_container(cfg.names, resolve=True), "protocol_id": protocol_id, "seed": cfg.seed, "config": kept_config(cfg),
        "selection": cfg.selection + (" (epoch chosen on the TEST set: optimistic)" if peek else ""),
        "data": {k: store.meta[k] for k in DATA_FACTS},
        "left_out": store.meta["left_out"], "audit": store.meta["audit"], "git": git,
    }  # fmt: skip
    table, stop = EpochTable(run_dir / "metrics.csv"), Interruption(run_dir / "checkpoints" / "last.ckpt")
    trainer = _trainer(cfg, [table, stop, *(build(c) for c in cfg.callbacks.values() if c)], max_epochs=getattr(module.model, "sweeps", None))

    def interrupted() -> Interrupted:
        if rank_zero_only.rank == 0:
            save_interrupted(run_dir, about, stop.signum, len(table.rows), time.perf_counter() - started)
        return Interrupted(stop.signum, run_dir)

    with stop:
        try:
            trainer.fit(module, data, ckpt_path=cfg.ckpt_path, weights_only=True)
            best = _best_epoch(table.rows, OmegaConf.select(cfg, "callbacks.checkpoint.monitor"))
            epochs, stop_reason = len(table.rows), _stop_reason(trainer)
            if cfg.selection == "refit":
                store = Store.open(prepare(dataset, replace(protocol.split, merge_val=True), cfg.cache_dir))
                module, data = assemble(cfg, protocol, store, ())
                stop.path = None  # what is interrupted from here on starts from the end of the first training again
                trainer = _trainer(cfg, [EpochTable(run_dir / "metrics_refit.csv"), stop], max_epochs=best + 1)
                trainer.fit(module, data)
                trainer.save_checkpoint(run_dir / "checkpoints" / "refit.ckpt")
                trainer.test(module, data, verbose=False)
            else:
                best_path = trainer.strategy.broadcast(str(run_dir / "checkpoints" / "best.ckpt"))  # only the first process knows the directory
                trainer.test(module, data, ckpt_path=best_path, weights_only=True, verbose=False)
        except RuntimeError as error:
            if lost_process(error) and not stop.signum:
                raise RecexpError(gone(run_dir)) from error
            if lost_process(error):
                raise interrupted() from None
            if not out_of_memory(error):
                raise
            hint = f"lower batch_size (now {cfg.batch_size}), model.max_len or objective.n_negatives"
            raise RecexpError(f"Out of memory in training: {hint}.") from error
        except SIGTERMException:
            raise interrupted() from None
    if not trainer.is_global_zero:
        return {}
    at_best = next((row for row in table.rows if row["epoch"] == best), {})
    metrics = {f"test/{k}": v for k, v in module.results["test"].items()} | {k: v for k, v in at_best.items() if k.startswith("val/")}
    result = about | {
        "metrics": metrics, "best_epoch": best, "epochs": epochs, "stop_reason": stop_reason,
        "wall_time_s": time.perf_counter() - started,
        "examples_per_s": sum(r["train/examples_per_s"] for r in table.rows) / max(1, len(table.rows)),
        "parameters": sum(p.numel() for p in module.model.parameters()),
        **scoring_costs(module.model, module.store, protocol.history),
        "reconstruction": getattr(module.model, "reconstruction", False),
        **describe(),
    }  # fmt: skip
    result["ranks_sha256"] = save_ranks(run_dir / "ranks.parquet", {"test": module.ranks})
    save_curves(run_dir / "curves.png", table.rows, f"{cfg.names.model} on {cfg.names.dataset}, {cfg.names.protocol}")
    write_json(run_dir / "result.json", result)
    for logger in trainer.loggers:
        logger.log_metrics({k: v for k, v in metrics.items() if k.startswith("test/")}, step=trainer.global_step)
        finish(logger)
    show_table(result, run_dir)
    return result


def assemble(cfg: DictConfig, protocol, store: Store, splits: tuple[str, ...]) -> tuple[RecModule, RecDataModule]:
    pl.seed_everything(cfg.seed, verbose=False)
    model, objective = build(cfg.model, schema=store.schema), build(cfg.objective)
    objective.check(model, store)
    module = RecModule(
        model, objective, protocol, store, optimizer=build(cfg.optimizer), scheduler=build(cfg.scheduler) if cfg.scheduler else None,
        seed=cfg.seed, splits=splits, store_on=cfg.get("store_on", "auto"),
    )  # fmt: skip
    data = RecDataModule(store, objective, batch_size=cfg.batch_size, eval_batch_size=cfg.eval_batch_size, seed=cfg.seed, splits=splits)
    return module, data


def _trainer(cfg: DictConfig, callbacks: list[pl.Callback], max_epochs: int | None) -> pl.Trainer:
    if cfg.trainer.get("enable_progress_bar", True):
        callbacks = [*callbacks, ProgressBar()]
    loggers = [build(node) for node in (cfg.logger or {}).values() if node]
    for logger in loggers:
        logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))
    limits = {} if max_epochs is None else {"max_epochs": max_epochs, "check_val_every_n_epoch": 1}
    return build(cfg.trainer, callbacks=callbacks, logger=loggers or False, plugins=[WholeCheckpoints()], default_root_dir=cfg.run_dir, **limits)


def _best_epoch(rows: list[dict[str, float]], monitor: str | None) -> int:
    scored = [r for r in rows if monitor in r]
    return int(max(scored, key=lambda r: r[monitor])["epoch"]) if scored else len(rows) - 1


def _stop_reason(trainer: pl.Trainer) -> str:
    stopper = trainer.early_stopping_callback
    return "early stopping: no better validation" if stopper is not None and stopper.stopped_epoch > 0 else "max_epochs reached"
