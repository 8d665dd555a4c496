"""From a config to objects, with the checks that make a wrong config an error before any work starts."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_method, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, UnsupportedInterpolationType
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from recexp.config.ranges import ROOT, annotations_of, check_values
from recexp.contracts import require
from recexp.data.datamodule import rows_per_step
from recexp.errors import RecexpError
from recexp.runs.loading import read_checkpoint
from recexp.types import Schema

# What each group may instantiate: evaluating somebody else's config must not run somebody else's code, nor ours for another purpose.
ALLOWED = {
    "model": ("recexp.models.",),
    "objective": ("recexp.objectives.", "recexp.objectives.samplers."),
    "sampler": ("recexp.objectives.samplers.",),
    "protocol": ("recexp.evaluation.protocol.", "recexp.data.split."),
    "dataset": (
        "recexp.data.cache.Dataset",
        "recexp.data.readers.",
        "recexp.data.simulation.stand_in.",
    ),
    "stand_in": ("recexp.data.simulation.stand_in.",),
    "optimizer": ("torch.optim.", "recexp.training.optimizers."),
    "scheduler": ("recexp.training.schedules.", "torch.optim.lr_scheduler."),
    "trainer": ("pytorch_lightning.Trainer", "recexp.training.processes."),
    "callbacks": (
        "pytorch_lightning.callbacks.",
        "recexp.training.callbacks.",
        "recexp.training.checkpoints.ModelCheckpoint",
        "recexp.training.early_stopping.EarlyStopping",
    ),
    "logger": ("recexp.training.loggers.", "pytorch_lightning.loggers."),
}
FUNCTIONS = (
    "recexp.data.readers.",
    "recexp.data.simulation.",
    "recexp.training.",
)  # where a plain function is meant; elsewhere only classes are
UNTOLD = (
    InterpolationResolutionError,
    UnsupportedInterpolationType,
)  # where no Hydra runs that knows its choices and directories
HYDRA_KEYS = {"_target_", "_partial_", "_recursive_", "_convert_"}
ROOT_KEYS = {
    "dataset", "protocol", "sampler", "objective", "model", "optimizer", "scheduler", "trainer", "logger", "callbacks",
    "seed", "selection", "batch_size", "batch_counts", "eval_batch_size", "ckpt_path", "cache_dir",
    "run_dir", "threads", "store_on", "names", "tags", "group", "stand_in", "hydra",
}  # fmt: skip


def register_resolvers() -> None:
    """The names YAML may compute: ``${recexp.monitor:${selection}}``."""
    OmegaConf.register_new_resolver(
        "recexp.monitor",
        lambda s: ("test" if s == "test_peek" else "val") + "/ndcg@10",
        replace=True,
    )
    OmegaConf.register_new_resolver("recexp.at_most", lambda most, n: min(most, n), replace=True)


def check_config(cfg: DictConfig) -> None:
    """Raise RecexpError naming the first key that nothing reads, value out of range, ``_target_`` that is not allowed or missing group.

    Then builds what needs no data, so that constructors object now and not after an hour of preparation. Touches no file.
    """
    if unknown := set(cfg) - ROOT_KEYS:
        raise RecexpError(
            f"Unknown key {sorted(map(str, unknown))} at the top of the config; known are {', '.join(sorted(ROOT_KEYS))}."
        )
    for name in ("dataset", "protocol", "objective", "model", "trainer", "optimizer"):
        if not isinstance(cfg.get(name), DictConfig) or "_target_" not in cfg[name]:
            raise RecexpError(
                f"The config has no {name}: choose one with {name}=... ({name}=? lists them)."
            )
    if missing := [
        key
        for key in (*ROOT, "selection", "names", "callbacks", "logger", "scheduler")
        if key not in cfg
    ]:
        raise RecexpError(f"The config lacks {', '.join(missing)}: conf/config.yaml has them.")
    if cfg.selection not in ("val", "test_peek", "refit"):
        raise RecexpError(
            f"selection={cfg.selection!r} is unknown; choose val, test_peek or refit."
        )
    if cfg.get("store_on", "auto") not in ("auto", "device", "host"):
        raise RecexpError(f"store_on={cfg.store_on!r} is unknown; choose auto, device or host.")
    for name, group in (
        ("callbacks", cfg.callbacks),
        ("logger", cfg.logger),
        ("scheduler", {"": cfg.scheduler}),
    ):
        if not isinstance(group, Mapping | DictConfig) or any(
            part is not None and not (isinstance(part, DictConfig) and "_target_" in part)
            for part in group.values()
        ):
            raise RecexpError(
                f"{name} must hold what has a _target_, got {group!r}: choose it with {name}=... ({name}=? lists the choices)."
            )
    if cfg.selection != "refit" and not cfg.callbacks.get("checkpoint"):
        raise RecexpError(
            "callbacks.checkpoint is missing: the epoch to test is read from its checkpoints/best.ckpt."
        )
    check_values("", _plain(cfg, ROOT), ROOT)
    nodes = list(_targets(cfg, ""))
    callees = {path: _callee(path, node) for path, node in nodes}
    if isinstance(callees["model"], type) and isinstance(callees["objective"], type):
        require(callees["model"], callees["objective"])
    for path, node in nodes:
        _check_keys(path, node, callees[path])
        check_values(path, _plain(node), annotations_of(callees[path]))
    every, most = (cfg.trainer.get(key) for key in ("check_val_every_n_epoch", "max_epochs"))
    if isinstance(every, int) and isinstance(most, int) and most < every:
        raise RecexpError(
            f"trainer.check_val_every_n_epoch={every} never comes within trainer.max_epochs={most}: no epoch could be chosen."
        )
    _check_validation(cfg.trainer)
    with suppress(*UNTOLD):
        _rehearse(cfg)


def _check_validation(trainer: DictConfig) -> None:
    """Raise RecexpError where no epoch could be chosen, or not the one whose weights are kept."""
    if trainer.get("fast_dev_run"):
        raise RecexpError(
            "trainer.fast_dev_run writes no checkpoint, so there is no epoch to test: use "
            "scale=smoke, or trainer.max_steps=N."
        )
    interval = trainer.get("val_check_interval")
    if interval is not None and not (isinstance(interval, float) and interval == 1.0):
        raise RecexpError(
            f"trainer.val_check_interval={interval}: validation comes at the end of an epoch, whose "
            "weights best.ckpt holds; trainer.check_val_every_n_epoch says how often."
        )


def _rehearse(cfg: DictConfig) -> None:
    """Build everything but the readers, the loggers and the trainer; the model for a stand-in of the data, without memory and side information."""
    dataset, protocol = build(cfg.dataset, _recursive_=False), build(cfg.protocol)
    if protocol.split.target == "explicit" and not dataset.explicit:
        raise RecexpError(
            f"protocol={protocol.name} tests on explicit feedback, but dataset.explicit=[]: name some of {list(dataset.behaviours)} there, or choose "
            "a protocol whose protocol.split.target is any, such as full."
        )
    rows_per_step(build(cfg.objective), cfg.batch_size, cfg.get("batch_counts", "positives"))
    for name, node in _plain(cfg.callbacks).items():
        with _speaking_of(f"callbacks.{name}"):
            build(OmegaConf.create(node)) if node else None
    with _speaking_of("optimizer"):
        build(cfg.optimizer)([torch.nn.Parameter(torch.zeros(1))])
    schema = Schema(
        2, 2, tuple(dataset.behaviours), tuple(b in dataset.explicit for b in dataset.behaviours)
    )
    # Names of side features and files are for the data to judge.
    unnamed = {
        key: [] if key.endswith("side") else None
        for key, v in cfg.model.items()
        if key.endswith("side") or isinstance(v, DictConfig)
    }
    with _speaking_of("model"), torch.device("meta"):
        build(OmegaConf.merge(cfg.model, unnamed), schema=schema)


def check_machine(cfg: DictConfig) -> None:
    """Raise RecexpError where the trainer wants what this machine has not, or ``ckpt_path`` names no checkpoint. Before any work starts."""
    with _speaking_of("trainer"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the trainer that will train says the same again
        build(cfg.trainer, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    if cfg.ckpt_path:
        read_checkpoint(Path(cfg.ckpt_path))


@contextmanager
def _speaking_of(path: str) -> Iterator[None]:
    """Errors say which part of the config they are about."""
    try:
        yield
    except (RecexpError, ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
        raise RecexpError(
            str(error) if str(error).startswith(path) else f"{path}: {error}"
        ) from error


def _plain(node: DictConfig, keys: Iterable[str] | None = None) -> dict[str, Any]:
    """The node's values as they will be, without those that only a running Hydra can tell."""
    values = {}
    for key in node if keys is None else keys:
        with suppress(*UNTOLD):
            value = node[key]
            values[key] = (
                OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            )
    return values


def _targets(node: Any, path: str) -> Iterator[tuple[str, DictConfig]]:
    if isinstance(node, DictConfig) and not node._is_none() and not node._is_interpolation():
        if "_target_" in node:
            yield path, node
        for key in node:
            if not OmegaConf.is_missing(node, key):
                yield from _targets(node._get_node(key), f"{path}.{key}".lstrip("."))
    elif isinstance(node, ListConfig) and not node._is_none() and not node._is_interpolation():
        for i in range(len(node)):  # by node: iterating would resolve texts such as ${names.model}
            yield from _targets(node._get_node(i), f"{path}[{i}]")


def _callee(path: str, node: DictConfig) -> Any:
    """What a node's ``_target_`` names, if it may be instantiated in this place."""
    target, allowed = node["_target_"], ALLOWED.get(re.split(r"[.\[]", path)[0], ())
    words = f"only {', '.join(allowed) or 'nothing'} may be instantiated there."
    if not isinstance(target, str) or not target.startswith(allowed):
        raise RecexpError(f"{path}._target_={target} is not allowed: {words}")
    try:
        callee = get_method(target)
    except (ImportError, ValueError, TypeError, InstantiationException) as error:
        raise RecexpError(f"{path}._target_={target} cannot be found: {error}") from error
    home = f"{getattr(callee, '__module__', '?')}.{getattr(callee, '__qualname__', '?')}"
    package = target.split(".")[0] + "."
    if not home.startswith(
        allowed if package == "recexp." else package
    ):  # such as recexp.<module>.<something it imports>
        raise RecexpError(
            f"{path}._target_={target} is not allowed: it belongs to {getattr(callee, '__module__', '?')}. {words}"
        )
    function = (
        inspect.isfunction(callee)
        and callee.__qualname__ == callee.__name__
        and home.startswith(FUNCTIONS)
    )
    if not (isinstance(callee, type) or function) or callee.__name__.startswith("_"):
        raise RecexpError(
            f"{path}._target_={target} is not allowed: it is no public class{' or reader' if function else ''}. {words}"
        )
    return callee


def _check_keys(path: str, node: DictConfig, callee: Any) -> None:
    if "_args_" in node:
        raise RecexpError(f"Unknown key {path}._args_: settings are given by name.")
    parameters = inspect.signature(callee).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    if unknown := sorted(set(node) - HYDRA_KEYS - set(parameters)):
        known = ", ".join(k for k in parameters if k not in ("schema", "self")) or "no options"
        hint = ""
        if path in ("objective", "sampler"):
            hint = f" If the model's YAML set it for another {path}, drop it: {' '.join(f'~{path}.{key}' for key in unknown)}"
        raise RecexpError(
            f"Unknown key {path}.{unknown[0]}: {callee.__name__} knows {known}.{hint}"
        )


def build(node: DictConfig, **extra: Any) -> Any:
    """Instantiate a node. What the constructor objects to reaches the user as its own message."""
    try:
        return instantiate(node, _convert_="object", **extra)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, RecexpError):
            raise cause from None
        raise RecexpError(
            f"{node.get('_target_')}: {str(cause or error).splitlines()[0]}"
        ) from error
