"""What the papers state of every setting of their experiments, and what they leave open.

Columns of ``papers/settings.csv``: paper, experiment, model, dataset, key, value, source, stated.
paper/experiment is the YAML's place under ``conf/experiment``; model and dataset are the choices of
the composed config. In experiment, model and dataset several names stand with ``|`` between, and
``*`` matches any text. The last row that matches holds.
value: as YAML. Several values with ``|`` between are those that the experiment's jobs take.
source: where the paper (or its authors' code) states the value or, where stated is false, why it is
ours.
"""

from __future__ import annotations

import csv
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra.utils import get_method
from omegaconf import DictConfig, OmegaConf

from recexp.errors import RecexpError

FILE = Path(__file__).parent / "papers" / "settings.csv"
COLUMNS = ("paper", "experiment", "model", "dataset", "key", "value", "source", "stated")

# What counts as a setting, by group. A key left out counts with the constructor's default.
OPTIMIZER = ("_target_", "lr", "betas", "momentum", "eps", "weight_decay")
DATASET = (
    "behaviours", "explicit", "value_behaviours", "filters", "iterate_filters", "merge", "window",
)  # fmt: skip
TRAINER = (
    "max_epochs", "max_steps", "gradient_clip_val", "accumulate_grad_batches",
    "check_val_every_n_epoch",
)  # fmt: skip
PROTOCOL = ("history", "ties")
ROOT = ("batch_size", "batch_counts", "selection", "seed")
NOT_SETTINGS = (
    "_partial_", "_recursive_", "_convert_", "self", "schema", "sampler", "shuffle_targets", "name",
    "chunk", "brute_force",
)  # fmt: skip
# A run's config may come from elsewhere: only these are imported.
KNOWN = (
    "recexp.models.", "recexp.objectives.", "recexp.objectives.samplers.", "recexp.training.optimizers.",
    "torch.optim.",
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """values: one, or those that an experiment's jobs take. line: of the table, from 2 on."""

    values: tuple[Any, ...]
    source: str
    stated: bool
    line: int

    def allows(self, value: Any) -> bool:
        return any(same(value, allowed) for allowed in self.values)


def same(a: Any, b: Any) -> bool:
    """Equal, where 1 is 1.0 and not true, and the order within lists counts."""
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return isinstance(a, bool) == isinstance(b, bool) and a == b


def paper_settings(experiment: str, model: str, dataset: str) -> dict[str, Setting]:
    """By key, what the table says. experiment: such as ``bert4rec/table2_systems``."""
    paper, _, name = experiment.partition("/")
    found = {}
    for line, row in enumerate(_rows(), 2):
        columns = ((row["experiment"], name), (row["model"], model), (row["dataset"], dataset))
        if row["paper"] == paper and all(_matches(pattern, text) for pattern, text in columns):
            values = tuple(_value(text) for text in row["value"].split("|"))
            found[row["key"]] = Setting(values, row["source"], row["stated"] == "true", line)
    return found


def composed_settings(cfg: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """By key, the settings of a composed config or a run's ``config.yaml`` that it makes use of."""
    found = dict(_leaves(cfg if isinstance(cfg, DictConfig) else OmegaConf.create(cfg)))
    return {key: value for key, value in found.items() if not _idle(key, found)}


def _matches(pattern: str, text: str) -> bool:
    return any(fnmatchcase(text, part) for part in pattern.split("|"))


@cache
def _rows() -> tuple[dict[str, str], ...]:
    with FILE.open(newline="", encoding="utf-8") as file:
        rows = tuple(csv.DictReader(file))
    for line, row in enumerate(rows, 2):
        whole = tuple(row) == COLUMNS and None not in row.values() and row["source"]
        if not whole or row["stated"] not in ("true", "false"):
            raise RecexpError(
                f"{FILE.name}, line {line}: needs {', '.join(COLUMNS)}; stated is true or false."
            )
    return rows


def _value(text: str) -> Any:
    """As YAML; 1e-6 is a number, which YAML 1.1 takes for a text."""
    value = yaml.safe_load(text)
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def _leaves(cfg: DictConfig) -> Iterator[tuple[str, Any]]:
    for group in ("model", "objective", "sampler", "optimizer", "scheduler"):
        node = cfg.get(group)
        if not node:
            yield f"{group}._target_", None
            continue
        values = {} if group == "scheduler" else _defaults(node["_target_"])
        values |= {key: _plain(node, key) for key in node if key not in NOT_SETTINGS}
        for key, value in values.items():
            if _counts(group, key):
                yield f"{group}.{key}", value
    for place, keys in (("dataset", DATASET), ("trainer", TRAINER), ("protocol", PROTOCOL)):
        node = cfg[place]
        yield from ((f"{place}.{key}", _plain(node, key)) for key in keys if key in node)
    for part in ("split", "candidates"):
        node = cfg.protocol[part]
        keys = [key for key in node if not key.startswith("_")]
        yield from ((f"protocol.{part}.{key}", _plain(node, key)) for key in keys)
    patience = "callbacks.early_stopping.patience"
    yield patience, OmegaConf.select(cfg, patience)
    yield from ((key, _plain(cfg, key)) for key in ROOT if key in cfg)


def _counts(group: str, key: str) -> bool:
    """The model's class follows from its name."""
    return key in OPTIMIZER if group == "optimizer" else (group, key) != ("model", "_target_")


def _defaults(target: str) -> dict[str, Any]:
    if not target.startswith(KNOWN):
        return {}
    parameters = inspect.signature(get_method(target)).parameters.values()
    optional = [p for p in parameters if p.default is not p.empty and p.name not in NOT_SETTINGS]
    return {p.name: _listed(p.default) for p in optional}


def _plain(node: DictConfig, key: str) -> Any:
    value = node[key]
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


# Keys that say nothing where another setting has (or has not) one of these values.
_UNUSED_UNLESS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "objective.t": ("objective.loss_name", ("gbce",)),
    "objective.bpreg": ("objective.loss_name", ("bpr_max",)),
    "objective.log_q": ("objective.loss_name", ("sampled_softmax",)),
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
_OF_NEGATIVES = (
    "objective.n_negatives", "objective.shared", "objective.target_copies", "batch_counts",
    "sampler.",
)  # fmt: skip
_OF_MANY_MASKS = (
    "objective.mask_prob", "objective.max_masked", "objective.count", "objective.last_prob",
)  # fmt: skip
_OF_GRADIENTS = ("optimizer.", "scheduler.", "sampler.", "batch_", "trainer.", "callbacks.")


def _idle(key: str, found: Mapping[str, Any]) -> bool:
    if key in _UNUSED_UNLESS:
        other, values = _UNUSED_UNLESS[key]
        if found.get(other) not in values:
            return True
    if found["objective._target_"].endswith((".FitPass", ".Sweep")):
        return key.startswith(_OF_GRADIENTS)
    if found.get("objective.loss_name") == "ce" and key.startswith(_OF_NEGATIVES):
        return True
    if found.get("objective.one_mask") and key in _OF_MANY_MASKS:
        return True
    if key.endswith("side_scale"):
        return not (found["model.item_side"] or found["model.user_side"])
    return key == "objective.windows" and found[key] is None
