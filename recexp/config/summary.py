"""What a run will be, told from its config before any work starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf


def summary(cfg: DictConfig) -> list[str]:
    """Lines for the start of a run, from a config that ``check_config`` has accepted.

    The number of parameters is not among them: it depends on the data.
    """
    names = OmegaConf.to_container(cfg.names, resolve=True)
    assert isinstance(names, Mapping)
    lines = [str(cfg.note)] if cfg.get("note") else []
    facts = {
        "model": _with_class(names.get("model"), cfg.model),
        "objective": _with_class(names.get("objective"), cfg.objective),
        "loss": names.get("loss") if cfg.objective.get("loss") else None,
        "sampler": names.get("sampler"),
        "optimizer": _optimizer(cfg),
        "protocol": f"{names.get('protocol')}, selection={cfg.selection}",
        "preset": cfg.get("preset", "none"),
        "data": names.get("dataset"),
        "device": f"{cfg.trainer.get('accelerator', 'auto')}, {cfg.trainer.get('devices', 'auto')}",
        "directory": cfg.run_dir,
    }
    lines += [f"{name + ':':<11}{value}" for name, value in facts.items() if value is not None]
    return lines


def _with_class(name: Any, node: DictConfig) -> str:
    return f"{name} ({node['_target_'].rpartition('.')[2]})"


def _optimizer(cfg: DictConfig) -> str:
    name = cfg.optimizer["_target_"].rpartition(".")[2]
    counts = cfg.get("batch_counts", "positives")
    limits = {"steps": cfg.trainer.get("max_steps"), "epochs": cfg.trainer.get("max_epochs")}
    until = [f"{n:,} {unit}" for unit, n in limits.items() if n is not None and n >= 0]
    batches = f"batches of {cfg.batch_size} {counts}"
    limit = f"at most {' or '.join(until)}" if until else "no limit"
    return f"{name}, lr={cfg.optimizer.lr}, {batches}, {limit}"
