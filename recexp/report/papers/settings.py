"""What the papers state of every setting of their experiments, and what they leave open.

Columns of ``settings.csv``: paper, experiment, model, dataset, key, value, source, stated.
paper/experiment is the YAML's place under ``conf/experiment``; model and dataset are the choices of
the composed config. In experiment, model and dataset several names stand with ``|`` between, and
``*`` matches any text. The last row that matches holds.
value: as YAML. Several values with ``|`` between are those that the experiment's jobs take.
source: where the paper (or its authors' code) states the value or, where stated is false, why it is
ours.

Defaults of constructors count as settings, so ``composed_settings`` imports the classes that a
config names, and torch with them; reading the file does not.
"""

from __future__ import annotations

import csv
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from recexp.errors import RecexpError

FILE = Path(__file__).parent / "settings.csv"
COLUMNS = ("paper", "experiment", "model", "dataset", "key", "value", "source", "stated")

# What counts as a setting, by group. A key left out counts with the constructor's default.
OPTIMIZER = ("_target_", "lr", "betas", "momentum", "eps", "weight_decay")
DATASET = (
    "behaviors",
    "explicit",
    "value_behaviors",
    "filters",
    "iterate_filters",
    "merge",
    "window",
)
TRAINER = (
    "max_epochs",
    "max_steps",
    "gradient_clip_val",
    "accumulate_grad_batches",
    "check_val_every_n_epoch",
)
PROTOCOL = ("history", "ties")
ROOT = ("batch_size", "batch_counts", "selection", "seed")
CONSTRUCTED = ("model", "objective", "loss", "sampler", "optimizer", "scheduler")
NOT_SETTINGS = (
    "_partial_",
    "_recursive_",
    "_convert_",
    "self",
    "schema",
    "loss",
    "sampler",
    "shuffle_targets",
    "name",
    "chunk",
    "brute_force",
)
# A run's config may come from anywhere: only classes of these modules are imported.
KNOWN = (
    "recexp.models.",
    "recexp.objectives.",
    "recexp.objectives.samplers.",
    "recexp.training.optimizers.",
    "torch.optim.",
)

# Keys that have no effect unless another setting has one of these values.
EFFECT_REQUIRES: dict[str, tuple[str, tuple[Any, ...]]] = {
    "objective.step": ("objective.windows", ("all", None)),
    "objective.levels": ("objective.pairs", ("levels", None)),
    "objective.last_prob": ("objective.copies", (0,)),
    "model.head_norm": ("model.projection", (True, None)),
    "model.gate": ("model.fusion", ("gating",)),
    "model.shared_fusion": ("model.invasive", (False,)),
    "model.position_in_sides": ("model.invasive", (False,)),
    "model.elu_alpha": ("model.final_activation", ("elu",)),
    "protocol.split.test_share": ("protocol.split.kind", ("global_time",)),
    "protocol.split.val_share": ("protocol.split.kind", ("global_time",)),
    "protocol.candidates.n": ("protocol.candidates.kind", ("uniform", "popularity")),
    "protocol.candidates.exclude": ("protocol.candidates.kind", ("uniform", "popularity")),
    "protocol.candidates.seed": ("protocol.candidates.kind", ("uniform", "popularity")),
    "protocol.candidates.counts": ("protocol.candidates.kind", ("popularity",)),
}
NO_FEATURES = {
    "model.event_side": [],
    "model.side_vectors": "frozen",
    "model.side_of_candidates": True,
    "model.asked_behavior": None,
}
OF_NEGATIVES = (
    "objective.n_negatives",
    "objective.shared",
    "objective.target_copies",
    "batch_counts",
    "sampler.",
)
OF_MANY_MASKS = (
    "objective.mask_prob",
    "objective.max_masked",
    "objective.count",
    "objective.last_prob",
)
OF_GRADIENTS = ("optimizer.", "scheduler.", "loss.", "sampler.", "batch_", "trainer.", "callbacks.")


@dataclass(frozen=True)
class Setting:
    """values: one, or those that an experiment's jobs take. line: of the file, from 2 on."""

    values: tuple[Any, ...]
    source: str
    stated: bool
    line: int

    def allows(self, value: Any) -> bool:
        return any(same(value, allowed) for allowed in self.values)


def same(a: Any, b: Any) -> bool:
    """Equal, where 1 is 1.0 but not true, and the order within lists counts."""
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def paper_settings(experiment: str, model: str, dataset: str) -> dict[str, Setting]:
    """By key, what the file says. experiment: such as ``bert4rec/table2_systems``."""
    paper, _, name = experiment.partition("/")
    found = {}
    for line, row in enumerate(_rows(), 2):
        columns = ((row["experiment"], name), (row["model"], model), (row["dataset"], dataset))
        if row["paper"] == paper and all(_matches(pattern, text) for pattern, text in columns):
            values = tuple(parse_value(text) for text in row["value"].split("|"))
            found[row["key"]] = Setting(values, row["source"], row["stated"] == "true", line)
    return found


def composed_settings(cfg: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """By key, the settings of a composed config, or of a run's, that have an effect."""
    config = cfg if isinstance(cfg, DictConfig) else OmegaConf.create(dict(cfg))
    found = dict(_all_settings(config))
    return {key: value for key, value in found.items() if _has_effect(key, found)}


def parse_value(text: str) -> Any:
    """As YAML; 1e-6 is a number, which YAML 1.1 takes for a text."""
    value = yaml.safe_load(text)
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def _matches(pattern: str, text: str) -> bool:
    return any(fnmatchcase(text, part) for part in pattern.split("|"))


@cache
def _rows() -> tuple[dict[str, str], ...]:
    with FILE.open(newline="", encoding="utf-8") as file:
        rows = tuple(csv.DictReader(file))
    for line, row in enumerate(rows, 2):
        complete = tuple(row) == COLUMNS and None not in row.values() and row["source"]
        if not complete or row["stated"] not in ("true", "false"):
            raise RecexpError(
                f"{FILE.name}, line {line}: needs {', '.join(COLUMNS)}; stated is true or false."
            )
    return rows


def _all_settings(cfg: DictConfig) -> Iterator[tuple[str, Any]]:
    for group in CONSTRUCTED:
        yield from _constructed(cfg, group)
    for group, keys in (("dataset", DATASET), ("trainer", TRAINER), ("protocol", PROTOCOL)):
        for key in keys:
            if key in cfg[group]:
                yield f"{group}.{key}", _plain(cfg[group], key)
    for part in ("split", "candidates"):
        for key in cfg.protocol[part]:
            if not key.startswith("_"):
                yield f"protocol.{part}.{key}", _plain(cfg.protocol[part], key)
    patience = "callbacks.early_stopping.patience"
    yield patience, OmegaConf.select(cfg, patience)
    for key in ROOT:
        if key in cfg:
            yield key, _plain(cfg, key)


def _constructed(cfg: DictConfig, group: str) -> Iterator[tuple[str, Any]]:
    """The settings of a group that a ``_target_`` is called with, its defaults included."""
    node = cfg.get(group)
    if not node:
        yield f"{group}._target_", None
        return
    values = {} if group == "scheduler" else _defaults(node["_target_"])
    for key in node:
        if key not in NOT_SETTINGS:
            values[key] = _plain(node, key)
    for key, value in values.items():
        if group == "optimizer" and key not in OPTIMIZER:
            continue
        if (group, key) == ("model", "_target_"):  # follows from the model's name
            continue
        yield f"{group}.{key}", value


def _defaults(target: str) -> dict[str, Any]:
    """The default arguments of a constructor or function, lists for tuples."""
    if not target.startswith(KNOWN):
        return {}
    defaults = {}
    for name, parameter in inspect.signature(resolve_name(target)).parameters.items():
        value = parameter.default
        if value is not parameter.empty and name not in NOT_SETTINGS:
            defaults[name] = list(value) if isinstance(value, tuple) else value
    return defaults


def _plain(node: DictConfig, key: str) -> Any:
    value = node[key]
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _has_effect(key: str, found: Mapping[str, Any]) -> bool:
    if key == "trainer.max_steps" and found[key] == -1:  # no limit
        return False
    if key in EFFECT_REQUIRES:
        other, values = EFFECT_REQUIRES[key]
        if found.get(other) not in values:
            return False
    if found["objective._target_"].endswith((".FitPass", ".Sweep")):  # fitted in one pass
        return not key.startswith(OF_GRADIENTS)
    if str(found.get("loss._target_")).endswith(".CE") and key.startswith(OF_NEGATIVES):
        return False
    if found.get("objective.one_mask") and key in OF_MANY_MASKS:
        return False
    if key.endswith("side_scale"):
        return bool(found["model.item_side"] or found["model.user_side"])
    if key in NO_FEATURES:  # no paper's data have such features
        return found[key] != NO_FEATURES[key]
    return key != "objective.windows" or found[key] is not None
