"""Every key of every YAML of conf, given values that make no sense, in this process.

A case goes the way of ``python -m recexp`` up to the preparation of data, without Hydra's parsing
of the command line: composition, preset, checks, summary and ``config.yaml``.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext
from omegaconf import AnyNode, DictConfig, ListConfig, open_dict, read_write

from recexp.cli.launcher import ProcessLauncher
from recexp.cli.main import _errors_explained, register_plugins
from recexp.config import CONF
from recexp.config.presets import apply_preset
from recexp.runs import run as running

HOSTILE: dict[str, Any] = {
    "null": None,
    "empty": "",
    "text": "abc",
    "negative": -1,
    "zero": 0,
    "fraction": 1.5,
    "huge": 1e308,
    "long": 10**40,
    "nan": float("nan"),
    "inf": float("inf"),
    "true": True,
    "list": [],
    "mapping": {},
    "null_in_list": [None],
    "text_in_list": ["abc"],
    "list_in_list": [[]],
    "unknown_key": {"a": 1},
    "long_text": "x" * 10_000,
    "interpolation": "${oops}",
    "control": "a\x1b[31m\nb",
}
MODEL_OF = {  # a model that the choice goes with, where the default model does not
    "sampler": "sasrec_softmax",
    "none": "pop",
    "cloze": "bert4rec",
    "next_item": "sasrec_softmax",
    "pairwise": "bpr_mf",
    "session_parallel": "gru4rec",
}
FEW = 3
FAST = ("logger=csv", "threads=1")

Key = tuple[str | int, ...]


@dataclass(frozen=True)
class Case:
    """One value for one key of one file. words: the command line that reads the file."""

    file: str
    words: tuple[str, ...]
    key: Key
    name: str

    @property
    def value(self) -> Any:
        return HOSTILE[self.name]

    def __str__(self) -> str:
        path = ".".join(map(str, self.key))
        return f"{self.file}: {path}={str(self.value)[:40]!r}"


class Reached(Exception):
    """The check is passed, and work would begin."""


def cases() -> list[Case]:
    """Every key of every file, in an order that does not change.

    A key gets all values in the first file that has it, and a few in turn in the other files.
    """
    found = []
    known: set[Key] = set()
    in_turn = cycle(HOSTILE)
    for path in sorted(CONF.rglob("*.yaml")):
        name = str(path.relative_to(CONF))
        if name == "hydra/help/recexp.yaml":
            continue  # texts for --help
        for words, key in _keys_of(path):
            values = [next(in_turn) for _ in range(FEW)] if key in known else list(HOSTILE)
            known.add(key)
            found += [Case(name, words, key, value) for value in values]
    return found


def _keys_of(path: Path) -> Iterator[tuple[tuple[str, ...], Key]]:
    """The keys of a file in the composed config, each with the command line that reads it."""
    text = path.read_text()
    group, *rest = path.relative_to(CONF).with_suffix("").parts
    is_global = "# @package _global_" in text or not rest
    prefix: Key = () if is_global else tuple(group.split("/"))
    if group == "hydra":
        prefix = ("hydra", rest[0])
    for own in _paths(yaml.safe_load(text) or {}):
        key = (*prefix, *own)
        if own[0] == "defaults" or key[:2] in (("hydra", "run"), ("hydra", "sweep")):
            continue
        yield _words(group, "/".join(rest), own), key


def _words(group: str, choice: str, own: Key) -> tuple[str, ...]:
    if group == "preset":
        if own[0] != "entries" or len(own) < 3:
            # "none" has no entries; each of the others has one for the pair
            models = {"none": "sasrec", "literature": "sasrec_softmax"}
            return (f"preset={choice}", f"model={models.get(choice, 'bert4rec')}", "dataset=ml_1m")
        dataset = "ml_1m" if own[1] == "*" else own[1]
        model = "bert4rec" if own[2] == "*" else own[2]
        return (f"preset={choice}", f"model={model}", f"dataset={dataset}")
    if not choice or group == "hydra":
        return ("model=bert_ite_si",)
    if group in ("sampler", "objective"):
        model = MODEL_OF.get(choice if group == "objective" else group)
        return (f"{group}={choice}", f"model={model}") if model else (f"{group}={choice}",)
    return (f"{group}={choice}",)


def _paths(node: Any, path: Key = ()) -> Iterator[Key]:
    """Paths of all values below a node, inner ones included."""
    entries: Any = ()
    if isinstance(node, dict):
        entries = node.items()
    elif isinstance(node, list):
        entries = enumerate(node)
    for key, value in entries:
        yield (*path, key)
        yield from _paths(value, (*path, key))


@cache
def _composed(words: tuple[str, ...]) -> DictConfig:
    """The config of a command line, its preset not merged yet."""
    fast = [w for w in FAST if not any(own.startswith(w.split("=")[0] + "=") for own in words)]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", [*words, *fast], return_hydra_config=True)


def config_of(case: Case, run_dir: Path, *small: str) -> DictConfig:
    """The config with the case's value, as it is before the preset is merged."""
    cfg = _composed((*case.words, *small)).copy()
    HydraConfig.instance().set_config(cfg)
    with read_write(cfg), read_write(cfg.hydra), open_dict(cfg):
        cfg.run_dir = str(run_dir)
        cfg.hydra.runtime.output_dir = str(run_dir)
        cfg.hydra.sweep.dir = str(run_dir)
        node: Any = cfg
        for part in case.key[:-1]:
            node = node._get_node(part)
        _set(node, case.key[-1], case.value)
    return cfg


def _set(node: DictConfig | ListConfig, key: str | int, value: Any) -> None:
    """Set a value as an edited YAML would, without the types of Hydra's own nodes."""
    with read_write(node):
        node._set_flag("struct", False)
        if isinstance(value, str) and value == HOSTILE["interpolation"]:
            text = AnyNode(value, key=key, parent=node)
            node._content[key] = text
            return
        node[key] = value


def outcome(case: Case, folder: Path, *small: str, train: bool = False) -> str:
    """What the program says: "" where it accepts the value, else its last words.

    train: go on to the end of the run, for which ``small`` holds overrides. Any other exception
    than those that the command line explains passes.
    """
    try:
        with _errors_explained(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cfg = config_of(case, folder / "run", *small)
            if case.key[0] == "hydra":
                _start_sweep(cfg)
            else:
                _start(cfg, train)
    except Reached:
        return ""
    except SystemExit as ended:
        return str(ended.code)
    return ""


def _start(cfg: DictConfig, train: bool) -> None:
    """What ``python -m recexp`` does. Without ``train``, raises Reached before the preparation."""

    def stop(cfg: DictConfig) -> None:
        raise Reached

    before = running.prepare_data
    if not train:
        running.prepare_data = stop
    level = logging.getLogger("recexp").level
    logging.getLogger("recexp").setLevel(logging.ERROR)
    try:
        hydra = cfg.hydra
        apply_preset(cfg, hydra)
        with open_dict(cfg):
            del cfg["hydra"]
        running.run(cfg)
    finally:
        running.prepare_data = before
        logging.getLogger("recexp").setLevel(level)


def _start_sweep(cfg: DictConfig) -> None:
    """What Hydra does for ``-m``: builds sweeper and launcher, until jobs would start."""

    def stop(self: object, jobs: object, initial_job_idx: int) -> None:
        raise Reached

    def check_first(self: Sweeper, jobs: Sequence[Sequence[str]]) -> None:
        check_all(self, jobs[:1])  # the others take half a second each

    register_plugins()
    check_all, Sweeper.validate_batch_is_legal = Sweeper.validate_batch_is_legal, check_first
    before, ProcessLauncher.launch = ProcessLauncher.launch, stop
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            context = HydraContext(config_loader=loader, callbacks=Callbacks())
            sweeper = Plugins.instance().instantiate_sweeper(
                hydra_context=context, task_function=lambda cfg: None, config=cfg
            )
            sweeper.sweep(list(cfg.hydra.overrides.task))
    finally:
        ProcessLauncher.launch = before
        Sweeper.validate_batch_is_legal = check_all
