"""Checks that make a wrong config one error before any work starts.

``check_config`` holds keys, values and ``_target_`` of every node against the constructor that the
node names, then builds what needs no data.
"""

from __future__ import annotations

import importlib
import inspect
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import MISSING, dataclass, field, fields
from typing import Annotated, Any, Literal

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_method
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import (
    InterpolationResolutionError,
    OmegaConfBaseException,
    UnsupportedInterpolationType,
)
from pydantic import Field

from recexp.config.build import build
from recexp.config.limits import check_limits
from recexp.config.machine import find_gpu, no_gpu
from recexp.config.presets import is_pending
from recexp.config.values import check_values, shown
from recexp.contracts import require
from recexp.data.datamodule import rows_per_step
from recexp.errors import RecexpError
from recexp.evaluation.beyond import Beyond
from recexp.evaluation.metrics import METRICS_AT_K, METRICS_WITHOUT_CUTOFF
from recexp.evaluation.protocol import Protocol
from recexp.renamed import MOVED
from recexp.types import Schema

# What each group may instantiate. The config of a run that comes from elsewhere must not run other
# code, nor ours for another purpose.
ALLOWED: dict[str, tuple[str, ...]] = {
    "model": ("recexp.models.",),
    "objective": ("recexp.objectives.", "recexp.objectives.samplers."),
    "loss": ("recexp.objectives.losses.",),
    "sampler": ("recexp.objectives.samplers.",),
    "protocol": ("recexp.evaluation.protocol.", "recexp.data.split."),
    "dataset": (
        "recexp.data.dataset.Dataset",
        "recexp.data.readers.",
        "recexp.data.simulation.stand_in.",
    ),
    "stand_in": ("recexp.data.simulation.stand_in.",),
    "optimizer": ("torch.optim.", "recexp.training.optimizers.", "recexp.training.row_optimizers."),
    "scheduler": ("recexp.training.schedules.", "torch.optim.lr_scheduler."),
    "trainer": (
        "pytorch_lightning.Trainer",
        "pytorch_lightning.profilers.",
        "recexp.training.processes.",
        "recexp.training.sharding.",
    ),
    "callbacks": (
        "pytorch_lightning.callbacks.",
        "recexp.training.callbacks.",
        "recexp.training.checkpoints.ModelCheckpoint",
        "recexp.training.early_stopping.EarlyStopping",
    ),
    "logger": ("recexp.training.loggers.", "pytorch_lightning.loggers."),
}
# Where a plain function is meant; elsewhere only classes are.
FUNCTIONS = ("recexp.data.readers.", "recexp.data.simulation.", "recexp.training.")
# Raised for values that only a running Hydra knows, such as its choices and directories.
UNKNOWN_WITHOUT_HYDRA = (InterpolationResolutionError, UnsupportedInterpolationType)
HYDRA_KEYS = {"_target_", "_partial_", "_recursive_", "_convert_"}
NODES = ("dataset", "protocol", "objective", "model", "trainer", "optimizer")
OTHER_KEYS = (
    "loss",
    "sampler",
    "scheduler",
    "logger",
    "callbacks",
    "names",
    "tags",
    "stand_in",
    "hydra",
    "over_preset",
    "evaluation",
)
NAMES = ("model", "dataset", "protocol")
PLUGIN_ADVICE = "Own code is allowed by name: plugins=[my_package]."
MAX_TARGET = 200  # characters of a _target_ that an error shows
MORE_NAMES = ("objective", "loss", "sampler", "preset", "overrides")


@dataclass(frozen=True)
class Root:
    """The values at the top of the config."""

    seed: Annotated[int, Field(ge=0, le=2**32 - 1)]
    selection: Literal["val", "test_peek", "refit"]
    batch_size: Annotated[int, Field(ge=1, le=2**31)]
    eval_batch_size: Annotated[int, Field(ge=1, le=2**31)]
    threads: Annotated[int, Field(ge=1, le=4096)] | None
    ckpt_path: str | None
    cache_dir: str
    run_dir: str | None
    group: str | None
    preset: str | None = None
    note: str | None = None
    batch_counts: Literal["positives", "instances"] = "positives"
    store_on: Literal["auto", "device", "host"] = "auto"
    plugins: list[str] = field(default_factory=list)
    init_from: str | None = None
    resume: Literal["auto", "never"] = "auto"


VALUE_KEYS = tuple(entry.name for entry in fields(Root))
ROOT_KEYS = {*NODES, *OTHER_KEYS, *VALUE_KEYS}


def check_config(cfg: DictConfig) -> None:
    """Raise RecexpError for the first unknown key, wrong value, forbidden target or missing group.

    Then builds what needs no data, so that constructors raise now and not after an hour of
    preparation. Reads and writes no file.
    """
    _check_root(cfg)
    _check_groups(cfg)
    plugins = load_plugins(cfg.get("plugins") or [])
    nodes = list(_targets(cfg, ""))
    callees = {path: _callee(path, node, plugins) for path, node in nodes}
    if isinstance(callees["model"], type) and isinstance(callees["objective"], type):
        require(callees["model"], callees["objective"])
    for path, node in nodes:
        _check_keys(path, node, callees[path])
        _check_flags(path, node)
        check_values(path, _plain(node), callees[path])
    _check_names(cfg)
    _check_validation(cfg.trainer)
    with suppress(*UNKNOWN_WITHOUT_HYDRA):
        check_limits(cfg)
    with suppress(*UNKNOWN_WITHOUT_HYDRA):
        _rehearse(cfg)
    _check_monitors(cfg)


def _check_root(cfg: DictConfig) -> None:
    """Keys and values at the top of the config."""
    if is_pending(cfg):
        raise RecexpError(
            "The preset is not merged into the config: compose it with "
            "recexp.config.presets.compose_config, or call apply_preset."
        )
    if unknown := set(cfg) - ROOT_KEYS:
        known = ", ".join(sorted(ROOT_KEYS))
        raise RecexpError(
            f"Unknown key {sorted(map(str, unknown))} at the top of the config; known are {known}."
        )
    for name in NODES:
        try:
            node = cfg.get(name)
        except OmegaConfBaseException as error:
            raise RecexpError(f"{name}: {str(error).splitlines()[0]}.") from error
        if not _is_node(node):
            raise RecexpError(
                f"The config has no {name}: choose one with {name}=... ({name}=? lists them)."
            )
    required = [
        entry.name
        for entry in fields(Root)
        if entry.default is MISSING and entry.default_factory is MISSING
    ]
    missing = [k for k in (*required, "names", "callbacks", "logger", "scheduler") if k not in cfg]
    if missing:
        raise RecexpError(f"The config lacks {', '.join(missing)}: conf/config.yaml has them.")
    present = [key for key in VALUE_KEYS if key in cfg]
    if isinstance(cfg.get("preset"), DictConfig):  # one without entries: there is nothing to merge
        present.remove("preset")
    check_values("", _plain(cfg, present), Root)
    _check_evaluation(cfg)


def _check_evaluation(cfg: DictConfig) -> None:
    """Raise RecexpError unless ``evaluation`` is absent, or has known keys and allowed values."""
    node = cfg.get("evaluation")
    if node is None:
        return
    known = [entry.name for entry in fields(Beyond)]
    if not isinstance(node, DictConfig):
        raise RecexpError(f"evaluation={shown(node)}: must have {', '.join(known)}.")
    if unknown := sorted(set(map(str, node)) - set(known)):
        raise RecexpError(f"Unknown key evaluation.{unknown[0]}; known are {', '.join(known)}.")
    check_values("evaluation", _plain(node), Beyond)


def _check_names(cfg: DictConfig) -> None:
    """Raise RecexpError unless names are texts under known keys."""
    names = cfg.names
    if not isinstance(names, DictConfig) or not set(NAMES) <= set(names):
        raise RecexpError(
            f"names={shown(names)}: must have {', '.join(NAMES)}, as conf/config.yaml."
        )
    if unknown := sorted(set(map(str, names)) - {*NAMES, *MORE_NAMES}):
        raise RecexpError(
            f"Unknown key names.{unknown[0]}; known are {', '.join((*NAMES, *MORE_NAMES))}."
        )
    values = _plain(names)
    if isinstance(cfg.get("preset"), DictConfig):  # one without entries
        values.pop("preset", None)
    for key, value in values.items():
        is_text = isinstance(value, str) or (key in MORE_NAMES and value is None)
        if key != "overrides" and not is_text:
            raise RecexpError(f"names.{key}={shown(value)}: must be a text.")


def _check_monitors(cfg: DictConfig) -> None:
    """Raise RecexpError where a callback waits for a metric that the run does not have."""
    known = known_metrics(cfg)
    for name, node in cfg.callbacks.items():
        values = _plain(node, ["monitor"]) if node and "monitor" in node else {}
        monitor = values.get("monitor")
        if monitor is not None and monitor not in known:
            raise RecexpError(
                f"callbacks.{name}.monitor={shown(monitor)}: must be one of {', '.join(known)}."
            )


def known_metrics(cfg: DictConfig) -> list[str]:
    """The metrics of every epoch, as ``metrics.csv`` names them."""
    splits = ("val", "test") if cfg.selection == "test_peek" else ("val",)
    cutoffs = cfg.protocol.get("ks", Protocol.ks)
    names = [f"{name}@{k}" for name in METRICS_AT_K for k in cutoffs] + [*METRICS_WITHOUT_CUTOFF]
    return [f"{split}/{name}" for split in splits for name in names]


def monitored(cfg: DictConfig) -> str:
    """The metric that chooses the epoch to test. More of it is better."""
    configured: str | None = OmegaConf.select(cfg, "callbacks.checkpoint.monitor")
    split = "test" if cfg.selection == "test_peek" else "val"
    return configured or f"{split}/ndcg@10"


def _check_flags(path: str, node: DictConfig) -> None:
    """Raise RecexpError for a value of Hydra's own keys that Hydra takes for true."""
    for key in ("_partial_", "_recursive_"):
        value = node.get(key, False)
        if not isinstance(value, bool):
            raise RecexpError(f"{path}.{key}={shown(value)}: must be true or false.")


def _check_groups(cfg: DictConfig) -> None:
    """Groups that hold nodes by name, or one node or none."""
    groups = {"callbacks": cfg.callbacks, "logger": cfg.logger, "scheduler": {"": cfg.scheduler}}
    for name, group in groups.items():
        by_name = isinstance(group, Mapping | DictConfig)
        if not by_name or not all(part is None or _is_node(part) for part in group.values()):
            raise RecexpError(
                f"{name} must hold what has a _target_, got {shown(group)}: choose it with "
                f"{name}=... ({name}=? lists the choices)."
            )
    if cfg.selection != "refit" and not cfg.callbacks.get("checkpoint"):
        raise RecexpError(
            "callbacks.checkpoint is missing: the epoch to test is read from its "
            "checkpoints/best.ckpt."
        )


def _is_node(value: Any) -> bool:
    return isinstance(value, DictConfig) and "_target_" in value


def _check_validation(trainer: DictConfig) -> None:
    """Raise RecexpError where no epoch could be chosen, or not the one whose weights are kept."""
    every = trainer.get("check_val_every_n_epoch")
    most = trainer.get("max_epochs")
    if isinstance(every, int) and isinstance(most, int) and most < every:
        raise RecexpError(
            f"trainer.check_val_every_n_epoch={every} never comes within "
            f"trainer.max_epochs={most}: no epoch could be chosen."
        )
    if trainer.get("fast_dev_run"):
        raise RecexpError(
            "trainer.fast_dev_run writes no checkpoint, so there is no epoch to test: use "
            "debug=fast, scale=smoke or trainer.max_steps=N."
        )
    interval = trainer.get("val_check_interval")
    if interval is not None and not (isinstance(interval, float) and interval == 1.0):
        raise RecexpError(
            f"trainer.val_check_interval={interval}: validation comes at the end of an epoch, "
            "whose weights best.ckpt holds; trainer.check_val_every_n_epoch says how often."
        )


def _rehearse(cfg: DictConfig) -> None:
    """Build everything but readers, loggers and trainer.

    The model is built on the meta device for a stand-in of the data, without side information.
    """
    dataset = build(cfg.dataset, _recursive_=False)
    protocol = build(cfg.protocol)
    if protocol.split.target == "explicit" and not dataset.explicit:
        raise RecexpError(
            f"protocol={protocol.name} tests on explicit feedback, but dataset.explicit=[]: name "
            f"some of {list(dataset.behaviors)} there, or choose a protocol whose "
            "protocol.split.target is any, such as full."
        )
    rows_per_step(build(cfg.objective), cfg.batch_size, cfg.get("batch_counts", "positives"))
    for name, node in _plain(cfg.callbacks).items():
        with _errors_name(f"callbacks.{name}"):
            if node:
                build(DictConfig(node))
    with _errors_name("optimizer"):
        build(cfg.optimizer)([torch.nn.Parameter(torch.zeros(1))])
    explicit = tuple(name in dataset.explicit for name in dataset.behaviors)
    schema = Schema(2, 2, tuple(dataset.behaviors), explicit)
    with _errors_name("model"), torch.device("meta"):
        model = cfg.model.copy()
        model.merge_with(_without_data(cfg.model))
        build(model, schema=schema)


def _without_data(model: DictConfig) -> dict[str, Any]:
    """Neutral values for what only the data can judge: names of side features, and files.

    A behavior that is asked for needs a side feature, and goes with them.
    """
    neutral: dict[str, Any] = {}
    for key, value in model.items():
        if str(key).endswith("side"):
            neutral[str(key)] = []
        elif key == "asked_behavior" or isinstance(value, DictConfig):
            neutral[str(key)] = None
    return neutral


def check_machine(cfg: DictConfig) -> None:
    """Raise RecexpError where the trainer wants what this machine lacks. Comes before any work."""
    accelerator = OmegaConf.select(cfg, "trainer.accelerator")
    if accelerator in ("gpu", "cuda") and find_gpu() is None:
        raise no_gpu(f"trainer.accelerator={accelerator}", "Use trainer=cpu")
    with _errors_name("trainer"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the trainer that will train warns again
        build(cfg.trainer, logger=False, enable_checkpointing=False, enable_progress_bar=False)


@contextmanager
def _errors_name(path: str) -> Iterator[None]:
    """Errors name the part of the config that they are about."""
    try:
        yield
    except (RecexpError, ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
        text = str(error)
        named = text if text.startswith(path) else f"{path}: {text}"
        raise RecexpError(named) from error


def _plain(node: DictConfig, keys: Iterable[Any] | None = None) -> dict[str, Any]:
    """The node's resolved values, without those that only a running Hydra knows."""
    values: dict[str, Any] = {}
    for key in node if keys is None else keys:
        with suppress(*UNKNOWN_WITHOUT_HYDRA):
            value = node[key]
            if OmegaConf.is_config(value):
                value = OmegaConf.to_container(value, resolve=True)
            values[str(key)] = value
    return values


def _targets(node: Any, path: str) -> Iterator[tuple[str, DictConfig]]:
    """Every node with a ``_target_``, with its path."""
    if not isinstance(node, DictConfig | ListConfig) or node._is_none() or node._is_interpolation():
        return
    if isinstance(node, DictConfig):
        if "_target_" in node:
            yield path, node
        for key in node:  # which may be a number, such as a behavior's code
            if not OmegaConf.is_missing(node, key):
                yield from _targets(node._get_node(key), f"{path}.{key!s}".lstrip("."))
        return
    for i in range(len(node)):  # iterating would resolve texts such as ${names.model}
        yield from _targets(node._get_node(i), f"{path}[{i}]")


def _callee(path: str, node: DictConfig, plugins: tuple[str, ...]) -> Any:
    """What a node's ``_target_`` names, if it may be instantiated in this place.

    plugins: of ``load_plugins``; what they hold may be instantiated in every place.
    """
    target = node["_target_"]
    own = ALLOWED.get(re.split(r"[.\[]", path)[0], ())
    words = f"only {', '.join(own + plugins) or 'nothing'} may be instantiated there."
    text = target if _is_short_text(target) else shown(target)
    refused = f"{path}._target_={text} is not allowed:"
    if not isinstance(target, str) or not target.startswith(own + plugins):
        advice = "" if plugins else f" {PLUGIN_ADVICE}"
        raise RecexpError(f"{refused} {words}{advice}")
    try:
        callee: Any = get_method(target)
    except (ImportError, ValueError, TypeError, InstantiationException) as error:
        raise RecexpError(f"{path}._target_={text} cannot be found: {error}") from error
    module = getattr(callee, "__module__", "?")
    home = f"{module}.{getattr(callee, '__qualname__', '?')}"
    is_plugin = target.startswith(plugins)
    package = target.split(".")[0] + "."
    # One of our modules may import names of others, such as recexp.cli.launcher.subprocess.
    if not home.startswith(own if package == "recexp." and not is_plugin else package):
        raise RecexpError(f"{refused} it belongs to {module}. {words}")
    is_function = inspect.isfunction(callee) and callee.__qualname__ == callee.__name__
    is_reader = is_function and (is_plugin or home.startswith(FUNCTIONS))
    if not (isinstance(callee, type) or is_reader) or callee.__name__.startswith("_"):
        raise RecexpError(
            f"{refused} it is no public class{' or reader' if is_reader else ''}. {words}"
        )
    return callee


def load_plugins(names: Iterable[str]) -> tuple[str, ...]:
    """Import the packages; returns the prefixes of what they may add to a config.

    Only the person who runs may name them: a config that a run left is read without its plugins.
    Raises RecexpError for a name that cannot be imported.
    """
    prefixes = []
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")):
            raise RecexpError(f"plugins={shown(list(names))}: {name!r} is no name of a package.")
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise RecexpError(
                f"plugins: {name} cannot be imported ({error}). It must be installed, or lie in "
                "the working directory or on PYTHONPATH."
            ) from error
        prefixes.append(f"{name}.")
    return tuple(prefixes)


def _is_short_text(target: Any) -> bool:
    return isinstance(target, str) and target.isprintable() and len(target) < MAX_TARGET


def _check_keys(path: str, node: DictConfig, callee: Any) -> None:
    """Raise RecexpError for a key that the constructor does not know."""
    if "_args_" in node:
        raise RecexpError(f"Unknown key {path}._args_: settings are given by name.")
    parameters = inspect.signature(callee).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    unknown = sorted(set(map(str, node)) - HYDRA_KEYS - set(parameters))
    if not unknown:
        return
    known = ", ".join(k for k in parameters if k not in ("schema", "self")) or "no options"
    hint = ""
    if path in ("objective", "loss", "sampler"):
        drops = " ".join(f"~{path}.{key}" for key in unknown)
        hint = f" If the model's YAML set it for another {path}, drop it: {drops}"
    if now := MOVED.get(f"{path}.{unknown[0]}"):
        hint = f" It is {now} now, a group of its own (conf/loss)."
    raise RecexpError(f"Unknown key {path}.{unknown[0]}: {callee.__name__} knows {known}.{hint}")
