"""Where a run departs from how the paper trained the same system (``papers/settings.csv``)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf.errors import OmegaConfBaseException

from recexp.config import CONF
from recexp.report.collect import setting, updates
from recexp.report.settings import Setting, _value, composed_settings, paper_settings

# Names of papers and tables in ``published.csv`` that differ from those of the experiments.
PAPERS = {"nova": "nova_bert", "multifeedback": "multi_feedback"}
TABLES = {"fig10": "fig10_11", "fig11": "fig10_11"}
BUDGETS = ("trainer.max_steps", "trainer.max_epochs")
# What defines a system: a departure counts even where the paper leaves the choice open.
DEFINING = (
    "objective._target_",
    "objective.loss_name",
    "objective.n_negatives",
    "sampler._target_",
)
# Settings of a training by gradient, which a model fitted in one pass does not have.
OF_GRADIENTS = ("sampler", "optimizer", "scheduler", "batch_", "trainer", "callbacks")
# Compared otherwise: by the protocol's name, and in ``published.deviations``.
ELSEWHERE = ("protocol.", "selection", "seed")
CONSTRUCTED = ("model", "objective", "sampler", "optimizer")  # their constructors have defaults
OWN_CODE = ("recexp.", "torch.optim.")
# How a training ended that was too short, where the paper does not say how long it is.
UNFINISHED = {"rising": "still rising when it ended", "unlearned": "stopped before it learned"}
WORDS = {
    "objective.loss_name": "loss", "objective.n_negatives": "negatives", "batch_size": "batch",
    "batch_counts": "batch counts", "model.num_layers": "layers", "model.num_factors": "width",
    "model.num_heads": "heads", "model.max_len": "length", "objective._target_": "objective",
    "sampler._target_": "sampler", "optimizer._target_": "optimizer",
    "scheduler._target_": "schedule", "trainer.max_steps": "updates",
    "trainer.max_epochs": "epochs", "trainer.gradient_clip_val": "gradient clipping",
}  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """A setting in which a run departs from the paper; key is empty where none is on record."""

    key: str
    text: str


def paper_of(name: str) -> str:
    """``nova/table3_fusion`` -> nova_bert: the paper as ``published.csv`` names it."""
    paper = name.split("/")[0]
    return PAPERS.get(paper, paper)


def table_of(name: str) -> str:
    """``fig10_epochs`` -> fig10_11: the table as ``published.csv`` names it."""
    table = name.split("_")[0]
    return TABLES.get(table, table)


def recipe(paper: str, table: str, model: str, dataset: str) -> dict[str, Setting]:
    """By key, what the paper's file says of a model on a data set in the experiment of a table."""
    folder = next(p for p in (CONF / "experiment").iterdir() if paper_of(p.name) == paper)
    names = sorted(p.stem for p in folder.glob("*_*.yaml") if table_of(p.stem) == table)
    return paper_settings(f"{folder.name}/{names[0] if names else table}", model, dataset)


def differences(result: dict[str, Any], wanted: Mapping[str, Setting]) -> list[Difference]:
    """Where the run departs from the recipe, in the recipe's order.

    A setting that the paper leaves open counts only where it defines the system. Of a result
    without its settings only the command line is known; that is a departure of its own.
    """
    if not any(counts(key, s) for key, s in wanted.items()) and not _in_one_pass(result):
        return [Difference("", "the paper's settings are not on file")]
    recorded, ours = _settings(result), []
    for key, s in wanted.items():
        if not counts(key, s) or (_in_one_pass(result) and key.startswith(OF_GRADIENTS)):
            continue
        known, value = value_of(result, key, recorded)
        if known and not any(agrees(value, v, key) for v in s.values):
            ours.append(Difference(key, _told(result, key, value, s)))
    given = any(wanted[key].stated for key in BUDGETS if key in wanted)
    ended = (result.get("convergence") or {}).get("kind")
    if ended in UNFINISHED and not given:
        ours.append(Difference("trainer.max_epochs", UNFINISHED[ended]))
    if not result.get("recorded", True) and not _in_one_pass(result):
        ours.append(Difference("", "its other settings are not on record"))
    return ours


def counts(key: str, s: Setting) -> bool:
    """Whether a departure from this setting counts against a figure."""
    return not key.startswith(ELSEWHERE) and (s.stated or key in DEFINING)


def value_of(
    result: dict[str, Any], key: str, recorded: Mapping[str, Any] | None = None
) -> tuple[bool, Any]:
    """(whether it is on record and in use, the run's value of a setting).

    Budgets are what was spent on the model that was tested. recorded: the run's settings by key,
    those left out that say nothing here.
    """
    if key == "trainer.max_steps":
        spent = updates(result)
        return spent is not None, spent
    if key == "trainer.max_epochs":
        return True, result.get("refit", {}).get("epochs", result["epochs"])
    if not result.get("recorded", True):
        return _from_overrides(result, key)
    if recorded is not None:
        value, known = recorded.get(key), key in recorded
    else:
        value, known = setting(result, key), True
    if key == "batch_size" and isinstance(value, int):  # rows of one optimizer step
        for factor in ("trainer.accumulate_grad_batches", "trainer.devices"):
            times = setting(result, factor)
            value *= times if isinstance(times, int) and times > 0 else 1
    if key == "batch_counts" and value is None:  # what a batch counted before there was the key
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
        near = 0.01 if key in BUDGETS else 1e-6  # an epoch's last batch is a part of one
        return math.isclose(ours, theirs, rel_tol=near)
    if isinstance(ours, str) and isinstance(theirs, str):
        return _plain(ours) == _plain(theirs)
    return ours == theirs


def _settings(result: dict[str, Any]) -> dict[str, Any] | None:
    """All settings of a run by key, those of constructors included; None where not all are there.

    Only code of ours is looked up: a result may be anybody's.
    """
    config = {"batch_counts": "positives"} | (result.get("config") or {})
    targets = [setting(result, f"{group}._target_") for group in CONSTRUCTED]
    safe = all(str(t).startswith(OWN_CODE) for t in targets) and "${" not in str(config)
    if not safe or not result.get("recorded", True):
        return None
    try:
        return composed_settings(config)
    except (OmegaConfBaseException, ImportError, AttributeError, KeyError, TypeError, ValueError):
        return None


def _in_one_pass(result: dict[str, Any]) -> bool:
    return result.get("objective") == "none"


def _from_overrides(result: dict[str, Any], key: str) -> tuple[bool, Any]:
    """What the command line says; the rest of the config was not kept."""
    for override in reversed(result.get("overrides", [])):
        name, _, value = override.lstrip("+").partition("=")
        if name == key:
            return True, _value(value)
    group = key.removesuffix("._target_")
    if group in ("sampler", "objective") and result.get(group) not in (None, "none"):
        return group != key, result[group]
    return False, None


def _told(result: dict[str, Any], key: str, value: Any, s: Setting) -> str:
    who = "paper" if s.stated else "paper silent, here"
    who = "authors' code" if s.source.startswith("code") else who
    theirs = f"{who} {' or '.join(map(_shown, s.values))}"
    reason = str(result.get("stop_reason") or "")
    if key in BUDGETS and not reason.startswith(("max_epochs", "max_steps")):
        theirs += f", {reason}"
    word = WORDS.get(key, key.rpartition(".")[2].strip("_").replace("_", " "))
    return f"{word} {_shown(value)} ({theirs})"


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "on", False: "off", None: "none"}[value]
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else f"{value:g}"
    if isinstance(value, list):
        return "/".join(map(_shown, value)) or "none"
    return _last(str(value)).replace("_", " ")


def _plain(name: str) -> str:
    return _last(name).replace("_", "").lower()


def _last(name: str) -> str:
    """The last part of a dotted name; other texts as they are."""
    return name.rpartition(".")[2] if re.fullmatch(r"[A-Za-z_][\w.]*", name) else name
