"""One run: compose, prepare, fit, test, write the result. The one file that knows everything."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import SIGTERMException

from recexp.config.check import build, check_config, check_machine
from recexp.contracts import ClosedForm
from recexp.data.cache import prepare, write_json
from recexp.data.store import Store
from recexp.errors import RecexpError
from recexp.io import atomic_write
from recexp.runs.assembly import assemble, trainer_of
from recexp.runs.convergence import judge
from recexp.runs.loading import check_fit, read_checkpoint
from recexp.runs.result import (
    describe,
    git_state,
    kept_config,
    save_curves,
    save_interrupted,
    save_ranks,
    scoring_costs,
    show_table,
)
from recexp.training.callbacks import EpochTable
from recexp.training.checkpoints import adopt_best
from recexp.training.early_stopping import ValidateAtLastStep, stop_reason
from recexp.training.hints import quiet
from recexp.training.loggers import finish
from recexp.training.memory import out_of_memory
from recexp.training.parts import Parts
from recexp.training.processes import gone, lost_process
from recexp.training.signals import Interrupted, Interruption

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
        with atomic_write(run_dir / "config.yaml") as temporary:
            OmegaConf.save(cfg, temporary, resolve=True)
    started, git = (
        time.perf_counter(),
        git_state(),
    )  # now: the checkout may move on while the run trains

    dataset, protocol = build(cfg.dataset, _recursive_=False), build(cfg.protocol)
    store = Store.open(prepare(dataset, protocol.split, cfg.cache_dir))
    protocol_id = protocol.id(
        store.meta
    )  # now: a refit is trained on other data, but evaluated under the same protocol
    peek = cfg.selection == "test_peek"
    splits = ("val", "test") if peek else ("val",)
    if not len(store.val) and not peek:
        raise RecexpError(
            "No user has a validation target, so nothing can be selected: loosen dataset.filters or choose another protocol."
        )
    monitor = OmegaConf.select(cfg, "callbacks.checkpoint.monitor") or f"{splits[-1]}/ndcg@10"
    module, data = assemble(cfg, protocol, store, splits)
    if cfg.ckpt_path:
        content = check_fit(Path(cfg.ckpt_path), module, store.meta["fingerprint"])
        if rank_zero_only.rank == 0:
            adopt_best(Path(cfg.ckpt_path), content, run_dir / "checkpoints")
    about = {
        **OmegaConf.to_container(cfg.names, resolve=True),
        "protocol_id": protocol_id, "seed": cfg.seed, "config": kept_config(cfg),
        "batch_counts": cfg.get("batch_counts", "positives"),
        "selection": cfg.selection + (" (epoch chosen on the TEST set: optimistic)" if peek else ""),
        "data": {k: store.meta[k] for k in DATA_FACTS},
        "left_out": store.meta["left_out"], "audit": store.meta["audit"], "git": git,
    }  # fmt: skip
    constant_loss = module.objective.constant_loss(store, data.batch_size)
    table, parts = EpochTable(run_dir / "metrics.csv"), Parts(started)
    stop = Interruption(run_dir / "checkpoints" / "last.ckpt")
    chosen = [build(node) for node in cfg.callbacks.values() if node]
    n_passes = module.model.n_passes if isinstance(module.model, ClosedForm) else None
    trainer = trainer_of(cfg, [table, parts, stop, ValidateAtLastStep(), *chosen], n_passes)

    def interrupted() -> Interrupted:
        if rank_zero_only.rank == 0:
            save_interrupted(run_dir, about, stop.signum, table.record() | parts.record())
        return Interrupted(stop.signum, run_dir)

    with stop:
        try:
            trainer.fit(module, data, ckpt_path=cfg.ckpt_path, weights_only=True)
            stopped = stop_reason(trainer)
            best = _best_epoch(table.rows, monitor, stopped)
            refit = {}
            if cfg.selection == "refit":
                store = Store.open(
                    prepare(dataset, replace(protocol.split, merge_val=True), cfg.cache_dir)
                )
                module, data = assemble(cfg, protocol, store, ())
                stop.path = None  # what is interrupted from here on starts from the end of the first training again
                trainer = trainer_of(
                    cfg, [EpochTable(run_dir / "metrics_refit.csv"), stop], best + 1
                )
                trainer.fit(module, data)
                updates = 0 if module.gradient_free else trainer.global_step
                refit = {"refit": {"epochs": best + 1, "updates": updates}}
                trainer.save_checkpoint(run_dir / "checkpoints" / "refit.ckpt")
                trainer.test(module, data, verbose=False)
            else:
                best_path = trainer.strategy.broadcast(
                    str(run_dir / "checkpoints" / "best.ckpt")
                )  # only the first process knows the directory
                # Not by ckpt_path, which also resets the callbacks, and with them the rows, to that epoch.
                module.load_state_dict(read_checkpoint(Path(best_path))["state_dict"])
                trainer.test(module, data, verbose=False)
        except RuntimeError as error:
            if lost_process(error) and not stop.signum:
                raise RecexpError(gone(run_dir)) from error
            if lost_process(error):
                raise interrupted() from None
            if not out_of_memory(error):
                raise
            hint = (
                f"lower batch_size (now {cfg.batch_size}), model.max_len or objective.n_negatives"
            )
            raise RecexpError(f"Out of memory in training: {hint}.") from error
        except SIGTERMException:
            raise interrupted() from None
    if not trainer.is_global_zero:
        return {}
    at_best = next((row for row in table.rows if row["epoch"] == best), {})
    metrics = {f"test/{k}": v for k, v in module.results["test"].items()} | {
        k: v for k, v in at_best.items() if k.startswith("val/")
    }
    result = about | {
        "metrics": metrics, "best_epoch": best, "stop_reason": stopped, **table.record(), **parts.record(), **refit,
        "constant_loss": constant_loss,
        "convergence": asdict(judge(table.rows, monitor, stop_reason=stopped, constant_loss=constant_loss)),
        "parameters": sum(p.numel() for p in module.model.parameters()),
        **scoring_costs(module.model, module.store, protocol.history),
        "reconstruction": module.model.reconstruction,
        **describe(),
    }  # fmt: skip
    result["ranks_sha256"] = save_ranks(run_dir / "ranks.parquet", {"test": module.ranks})
    save_curves(
        run_dir / "curves.png",
        table.rows,
        f"{cfg.names.model} on {cfg.names.dataset}, {cfg.names.protocol}",
    )
    write_json(run_dir / "result.json", result)
    for logger in trainer.loggers:
        logger.log_metrics(
            {k: v for k, v in metrics.items() if k.startswith("test/")}, step=trainer.global_step
        )
        finish(logger)
    show_table(result, run_dir)
    return result


def _best_epoch(rows: list[dict[str, float]], monitor: str, stopped: str) -> int:
    """The epoch of best.ckpt: the first with the best value in float32, as Lightning compares."""
    scored = [row for row in rows if monitor in row]
    if not scored:
        raise RecexpError(
            f"Training ended ({stopped}) before its first validation, so no epoch can be chosen: "
            "raise trainer.max_steps or trainer.max_time, or set trainer.check_val_every_n_epoch=1."
        )
    return int(max(scored, key=lambda row: torch.tensor(row[monitor]))["epoch"])
