"""Where a run departs from how the paper trained the same system (``settings.csv``)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf.errors import OmegaConfBaseException

from recexp.config import CONF
from recexp.report.collect import Result, n_updates, setting
from recexp.report.papers.published import paper_of, published_model, table_of
from recexp.report.papers.settings import (
    Setting,
    composed_settings,
    paper_settings,
    parse_value,
)

BUDGETS = ("trainer.max_steps", "trainer.max_epochs")
# What defines a system: a departure counts even where the paper leaves the choice open.
DEFINING = (
    "objective._target_",
    "loss._target_",
    "objective.n_negatives",
    "sampler._target_",
)
# A run that differs from the paper in one of these is not the system that its claims are about. The
# first count where the paper states them, the parts of a model always.
KINDS_OF_TRAINING = ("objective._target_", "loss._target_", "sampler._target_")
PARTS = ("model.user_dropout", "model.positions")
# Settings of a training by gradients, which a model fitted in one pass does not have.
OF_GRADIENTS = ("loss", "sampler", "optimizer", "scheduler", "batch_", "trainer", "callbacks")
# Compared elsewhere: by the protocol's name, and in ``deviations``.
ELSEWHERE = ("protocol.", "selection", "seed")
CONSTRUCTED = (
    "model",
    "objective",
    "loss",
    "sampler",
    "optimizer",
)  # their constructors have defaults
OWN_CODE = ("recexp.", "torch.optim.")
# How a training ended that was too short, where the paper does not say how long it is.
UNFINISHED = {"rising": "still rising when it ended", "unlearned": "stopped before it learned"}
WORDS = {
    "loss._target_": "loss",
    "objective.n_negatives": "negatives",
    "batch_size": "batch",
    "batch_counts": "batch counts",
    "model.n_layers": "layers",
    "model.n_factors": "width",
    "model.n_heads": "heads",
    "model.max_len": "length",
    "objective._target_": "objective",
    "sampler._target_": "sampler",
    "optimizer._target_": "optimizer",
    "scheduler._target_": "schedule",
    "trainer.max_steps": "updates",
    "trainer.max_epochs": "epochs",
    "trainer.gradient_clip_val": "gradient clipping",
}
# Names of classes in older results, normalized, and the present ones.
RENAMED = {"sweep": "fitpass"}
# What composing the settings of a damaged or foreign config may raise.
NOT_COMPOSED = (
    OmegaConfBaseException,
    ImportError,
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class Difference:
    """A setting in which a run departs from the paper; key is empty where none is recorded."""

    key: str
    text: str


def recipe(paper: str, table: str, model: str, dataset: str) -> dict[str, Setting]:
    """By key, what ``settings.csv`` says of a model on a data set in the experiment of a table.

    Empty where no experiment is the paper's.
    """
    folders = [p for p in (CONF / "experiment").iterdir() if paper_of(p.name) == paper]
    if not folders:
        return {}
    folder = folders[0]
    names = sorted(p.stem for p in folder.glob("*_*.yaml") if table_of(p.stem) == table)
    name = names[0] if names else table
    return paper_settings(f"{folder.name}/{name}", model, dataset)


def differences(result: Result, wanted: Mapping[str, Setting]) -> list[Difference]:
    """Where the run departs from the recipe, in the recipe's order.

    A setting that the paper leaves open counts only where it defines the system. Of a result
    without its settings only the command line is known; that is a departure of its own.
    """
    one_pass = _fits_in_one_pass(result)
    if not one_pass and not any(counts(key, s) for key, s in wanted.items()):
        return [Difference("", "the paper's settings are not on file")]
    recorded = _recorded_settings(result)
    found = []
    for key, wanted_setting in wanted.items():
        if not counts(key, wanted_setting) or (one_pass and key.startswith(OF_GRADIENTS)):
            continue
        known, value = value_of(result, key, recorded)
        if known and not any(agrees(value, v, key) for v in wanted_setting.values):
            found.append(Difference(key, _difference_text(result, key, value, wanted_setting)))

    paper_states_budget = any(wanted[key].stated for key in BUDGETS if key in wanted)
    verdict = (result.get("convergence") or {}).get("kind")
    if verdict in UNFINISHED and not paper_states_budget:
        found.append(Difference("trainer.max_epochs", UNFINISHED[verdict]))
    if not result.get("recorded", True) and not one_pass:
        found.append(Difference("", "its other settings are not on record"))
    return found


def is_another_system(result: Result, paper: str, table: str, dataset: str) -> bool:
    """Whether the run's objective, loss, sampler or parts are on record and not the paper's."""
    for key, wanted in recipe(paper, table, published_model(result), dataset).items():
        if key not in PARTS and not (key in KINDS_OF_TRAINING and wanted.stated):
            continue
        known, value = value_of(result, key)
        if known and value is not None and not any(agrees(value, v) for v in wanted.values):
            return True
    return False


def counts(key: str, setting: Setting) -> bool:
    """Whether a departure from this setting counts against a figure."""
    return not key.startswith(ELSEWHERE) and (setting.stated or key in DEFINING)


def value_of(
    result: Result, key: str, recorded: Mapping[str, Any] | None = None
) -> tuple[bool, Any]:
    """(whether the run's value is recorded and in use, the value).

    Budgets are what was spent on the model that was tested. recorded: the run's settings by key,
    without those that have no effect in it.
    """
    if key == "trainer.max_steps":
        updates = n_updates(result)
        return updates is not None, updates
    if key == "trainer.max_epochs":
        return True, result.get("refit", {}).get("epochs", result["epochs"])
    if not result.get("recorded", True):
        return _value_on_command_line(result, key)
    known = recorded is None or key in recorded
    value = setting(result, key) if recorded is None else recorded.get(key)
    if key == "batch_size" and isinstance(value, int):
        value *= _batches_per_step(result)
    if key == "batch_counts" and value is None:  # what a batch counted before the key existed
        value = "positives"
    return known, value


def agrees(ours: Any, theirs: Any, key: str = "") -> bool:
    """Whether two values are the same. Classes and functions go by their names without modules."""
    if isinstance(theirs, list) and isinstance(ours, list):
        pairs = zip(ours, theirs, strict=False)
        return len(ours) == len(theirs) and all(agrees(a, b) for a, b in pairs)
    if isinstance(ours, bool) or isinstance(theirs, bool):
        return ours is theirs
    if isinstance(ours, int | float) and isinstance(theirs, int | float):
        tolerance = 0.01 if key in BUDGETS else 1e-6  # an epoch's last batch may be smaller
        return math.isclose(ours, theirs, rel_tol=tolerance)
    if isinstance(ours, str) and isinstance(theirs, str):
        return _normalized(ours) == _normalized(theirs)
    return bool(ours == theirs)


def _batches_per_step(result: Result) -> int:
    """Batches whose gradients one optimizer step sums up."""
    n_batches = 1
    for key in ("trainer.accumulate_grad_batches", "trainer.devices"):
        factor = setting(result, key)
        if isinstance(factor, int) and factor > 0:
            n_batches *= factor
    return n_batches


def _recorded_settings(result: Result) -> dict[str, Any] | None:
    """All settings of a run by key, with the defaults of constructors; None where some are unknown.

    Only this project's and torch's constructors are imported: a result may come from anywhere.
    """
    config = {"batch_counts": "positives"} | (result.get("config") or {})
    targets = [setting(result, f"{group}._target_") for group in CONSTRUCTED]
    trusted = all(str(target).startswith(OWN_CODE) for target in targets)
    if not trusted or "${" in str(config) or not result.get("recorded", True):
        return None
    try:
        return composed_settings(config)
    except NOT_COMPOSED:
        return None


def _fits_in_one_pass(result: Result) -> bool:
    return bool(result.get("objective") == "none")


def _value_on_command_line(result: Result, key: str) -> tuple[bool, Any]:
    """As ``value_of``, of a result whose config was not kept."""
    group = key.removesuffix("._target_")
    for override in reversed(result.get("overrides", [])):
        name, _, value = override.lstrip("+").partition("=")
        if name == key or (name == group == "loss"):
            return True, parse_value(value)
    if group in ("sampler", "loss", "objective") and result.get(group) not in (None, "none"):
        return group != key, result[group]
    return False, None


# Texts --------------------------------------------------------------------------------------------


def _difference_text(result: Result, key: str, value: Any, wanted: Setting) -> str:
    if wanted.source.startswith("code"):
        source = "authors' code"
    else:
        source = "paper" if wanted.stated else "paper silent, here"
    theirs = f"{source} {' or '.join(map(_value_text, wanted.values))}"
    reason = str(result.get("stop_reason") or "")
    if key in BUDGETS and not reason.startswith(("max_epochs", "max_steps")):
        theirs += f", {reason}"
    default_word = key.rpartition(".")[2].strip("_").replace("_", " ")
    return f"{WORDS.get(key, default_word)} {_value_text(value)} ({theirs})"


def _value_text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return "/".join(map(_value_text, value)) or "none"
    return _last_part(str(value)).replace("_", " ")


def _normalized(name: str) -> str:
    normalized = _last_part(name).replace("_", "").lower()
    return RENAMED.get(normalized, normalized)


def _last_part(name: str) -> str:
    """The last part of a dotted name; other texts as they are."""
    return name.rpartition(".")[2] if re.fullmatch(r"[A-Za-z_][\w.]*", name) else name
