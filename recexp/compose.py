"""From a config to objects, with the checks that make a wrong config an error before any work starts."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_method, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from recexp.objectives.base import require
from recexp.types import RecexpError

# Evaluating somebody else's config must not run somebody else's code.
ALLOWED = ("recexp.", "torch.optim.", "pytorch_lightning.")
HYDRA_KEYS = {"_target_", "_partial_", "_recursive_", "_convert_", "_args_"}
ROOT_KEYS = {
    "dataset", "protocol", "sampler", "objective", "model", "optimizer", "scheduler", "trainer", "logger", "callbacks",
    "seed", "selection", "batch_size", "eval_batch_size", "ckpt_path", "cache_dir", "run_dir", "threads", "names", "tags", "group",
    "stand_in", "hydra",
}  # fmt: skip


def register_resolvers() -> None:
    """The names YAML may compute: ``${recexp.monitor:${selection}}``."""
    OmegaConf.register_new_resolver("recexp.monitor", lambda s: ("test" if s == "test_peek" else "val") + "/ndcg@10", replace=True)
    OmegaConf.register_new_resolver("recexp.at_most", lambda most, n: min(most, n), replace=True)


def check_config(cfg: DictConfig) -> None:
    """Raise RecexpError naming the first key that nothing reads, the first ``_target_`` that is not allowed or a missing group."""
    if unknown := set(cfg) - ROOT_KEYS:
        raise RecexpError(f"Unknown key {sorted(unknown)} at the top of the config; known are {', '.join(sorted(ROOT_KEYS))}.")
    if cfg.selection not in ("val", "test_peek", "refit"):
        raise RecexpError(f"selection={cfg.selection!r} is unknown; choose val, test_peek or refit.")
    for name in ("dataset", "protocol", "objective", "model", "trainer"):
        if not isinstance(cfg.get(name), DictConfig) or "_target_" not in cfg[name]:
            raise RecexpError(f"The config has no {name}: choose one with {name}=... ({name}=? lists them).")
    every, most = (cfg.trainer.get(key) for key in ("check_val_every_n_epoch", "max_epochs"))
    if isinstance(every, int) and isinstance(most, int) and 0 <= most < every:
        raise RecexpError(f"trainer.check_val_every_n_epoch={every} never comes within trainer.max_epochs={most}: no epoch could be chosen.")
    nodes = list(_targets(cfg, ""))
    callees = {path: _callee(path, node["_target_"]) for path, node in nodes}
    if isinstance(callees["model"], type) and isinstance(callees["objective"], type):
        require(callees["model"], callees["objective"])
    for path, node in nodes:
        _check_keys(path, node, callees[path])


def _targets(node: Any, path: str) -> Iterator[tuple[str, DictConfig]]:
    if isinstance(node, DictConfig):
        if "_target_" in node:
            yield path, node
        for key in node:
            if not OmegaConf.is_missing(node, key):
                yield from _targets(node._get_node(key), f"{path}.{key}".lstrip("."))
    elif isinstance(node, ListConfig):
        for i in range(len(node)):  # by node: iterating would resolve texts such as ${names.model}
            yield from _targets(node._get_node(i), f"{path}[{i}]")


def _callee(path: str, target: str) -> Any:
    """What a ``_target_`` names, if it may be instantiated."""
    if not target.startswith(ALLOWED):
        raise RecexpError(f"{path}._target_={target} is not allowed: only {', '.join(ALLOWED)} may be instantiated from a config.")
    try:
        callee = get_method(target)
    except (ImportError, ValueError, InstantiationException) as error:
        raise RecexpError(f"{path}._target_={target} cannot be found: {error}") from error
    if not f"{callee.__module__}.".startswith(ALLOWED):  # such as recexp.<module>.<something it imports>
        raise RecexpError(f"{path}._target_={target} is not allowed: it belongs to {callee.__module__}.")
    return callee


def _check_keys(path: str, node: DictConfig, callee: Any) -> None:
    parameters = inspect.signature(callee).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    if unknown := sorted(set(node) - HYDRA_KEYS - set(parameters)):
        known = ", ".join(k for k in parameters if k not in ("schema", "self")) or "no options"
        hint = ""
        if path in ("objective", "sampler"):
            hint = f" If the model's YAML set it for another {path}, drop it: {' '.join(f'~{path}.{key}' for key in unknown)}"
        raise RecexpError(f"Unknown key {path}.{unknown[0]}: {callee.__name__} knows {known}.{hint}")


def build(node: DictConfig, **extra: Any) -> Any:
    """Instantiate a node. What the constructor objects to reaches the user as its own message."""
    try:
        return instantiate(node, _convert_="object", **extra)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, RecexpError):
            raise cause from None
        raise RecexpError(f"{node.get('_target_')}: {cause or error}") from error
