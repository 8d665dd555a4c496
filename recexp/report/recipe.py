"""How the papers trained their systems (``papers/settings.csv``), and where a run departs."""

from __future__ import annotations

import csv
import math
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from recexp.report.collect import setting, updates
from recexp.types import RecexpError

FILE = Path(__file__).parent / "papers" / "settings.csv"
COLUMNS = ["paper", "experiment", "model", "dataset", "key", "value", "source", "stated"]
ANY = ("", "*")
# Names of papers and tables that differ from those of ``published.csv``.
PAPERS = {"nova": "nova_bert", "multifeedback": "multi_feedback"}
TABLES = {"fig10": "fig10_11", "fig11": "fig10_11"}
# What defines a system: a departure counts even where the paper leaves the choice open.
DEFINING = ("objective", "objective._target_", "objective.loss_name", "objective.n_negatives",
            "sampler", "sampler._target_", "objective.sampler._target_")  # fmt: skip
# Settings of a training by gradient, which a model fitted in one pass does not have.
OF_TRAINING = ("objective", "sampler", "optimizer", "scheduler", "batch_", "trainer", "updates")
ELSEWHERE = ("selection", "seed")  # compared by ``published.deviations``
WORDS = {
    "objective.loss_name": "loss", "objective.n_negatives": "negatives", "batch_size": "batch",
    "batch_counts": "batch counts", "model.num_layers": "layers", "model.num_factors": "width",
    "model.num_heads": "heads", "model.max_len": "length", "objective._target_": "objective",
    "sampler._target_": "sampler", "objective.sampler._target_": "sampler",
    "optimizer._target_": "optimizer", "scheduler._target_": "schedule", "scheduler": "schedule",
    "trainer.max_steps": "updates", "trainer.max_epochs": "epochs",
    "trainer.gradient_clip_val": "gradient clipping",
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """One setting of a paper. key: dotted config key. value: number, word, switch or list of them.

    stated: the paper states it; else it is our choice where the paper leaves it open.
    """

    paper: str
    experiment: str
    model: str
    dataset: str
    key: str
    value: Any
    source: str
    stated: bool


@dataclass(frozen=True)
class Difference:
    """A setting in which a run departs from the paper. known: the run's value is on record."""

    key: str
    text: str
    known: bool = True


def paper_of(name: str) -> str:
    """``nova/table3_fusion`` -> nova_bert: the paper as ``published.csv`` names it."""
    paper = name.split("/")[0]
    return PAPERS.get(paper, paper)


def table_of(name: str) -> str:
    """``ite/fig10_epochs`` -> fig10_11; the name may stand without its paper."""
    table = name.rpartition("/")[2].split("_")[0]
    return TABLES.get(table, table)


@cache
def all_settings(path: Path) -> tuple[Setting, ...]:
    """All rows of the file.

    Raises RecexpError for a row that is not whole, or two values of one setting.
    """
    found: dict[tuple[str, ...], Setting] = {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        if (head := next(rows, [])) != COLUMNS:
            expected = f"expected the columns {','.join(COLUMNS)}, found {','.join(head)}"
            raise RecexpError(f"{path.name}, line 1: {expected}.")
        for row in rows:
            where = f"{path.name}, line {rows.line_num}"
            if (
                len(row) != len(COLUMNS)
                or not row[0]
                or not row[4]
                or row[7].lower() not in _YES_NO
            ):
                raise RecexpError(
                    f"{where}: {row} is no setting ({', '.join(COLUMNS)}; stated: yes or no)."
                )
            paper, experiment, model, dataset, key, value, source, stated = row
            place = (paper_of(paper), experiment, model, dataset, key)
            if place in found:
                raise RecexpError(f"{where}: {', '.join(place)} stands there twice.")
            found[place] = Setting(*place, read_value(value), source, _YES_NO[stated.lower()])
    return tuple(found.values())


_YES_NO = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


def read_value(text: str) -> Any:
    """``1e-4`` -> 0.0001, ``[.9, .999]`` -> a list, ``none`` and ``null`` -> None, else as YAML."""
    if text.strip().lower() in ("", "none", "null"):
        return None
    return _number(yaml.safe_load(text))


def recipe(
    paper: str, table: str, models: tuple[str, ...], datasets: tuple[str, ...]
) -> dict[str, Setting]:
    """Per key the setting of a system in a table: of several rows the one that names most.

    models, datasets: the names a system and its data go by, the run's own first.
    """
    best: dict[str, tuple[tuple[int, ...], Setting]] = {}
    for s in all_settings(FILE):
        about = s.paper == paper and (s.experiment in ANY or table_of(s.experiment) == table)
        if not about or s.model not in (*ANY, *models) or s.dataset not in (*ANY, *datasets):
            continue
        named = sum(field not in ANY for field in (s.experiment, s.model, s.dataset))
        rank = (named, s.model == models[0], s.dataset == datasets[0])
        if s.key not in best or rank > best[s.key][0]:
            best[s.key] = (rank, s)
    return {key: s for key, (_, s) in best.items()}


def differences(
    result: dict[str, Any], wanted: dict[str, Setting], fixed: frozenset[str] = frozenset()
) -> list[Difference]:
    """Where the run departs from the recipe, in the recipe's order.

    fixed: keys that the published figure itself varies; the match of run and figure settles them.
    A setting that the paper leaves open counts only where it defines the system.
    """
    if not wanted and not _in_one_pass(result):
        return [Difference("", "the paper's settings are not on file")]
    found, unknown = [], []
    for key, s in wanted.items():
        if key in fixed or key in ELSEWHERE or not (s.stated or key in DEFINING):
            continue
        if _in_one_pass(result) and key.startswith(OF_TRAINING):
            continue
        known, ours = value_of(result, key)
        if not known:
            unknown.append(_word(key))
        elif not agrees(ours, s.value, key):
            theirs = (
                f"paper {_shown(s.value)}" if s.stated else f"paper silent, here {_shown(s.value)}"
            )
            ending = f", {_ending(result)}" if key in BUDGETS and _ending(result) else ""
            found.append(Difference(key, f"{_word(key)} {_shown(ours)} ({theirs}{ending})"))
    if unknown:
        told = f"not on record: {', '.join(dict.fromkeys(unknown))}"
        found.append(Difference("", told, known=False))
    return found


BUDGETS = ("trainer.max_steps", "trainer.max_epochs", "updates", "epochs")


def value_of(result: dict[str, Any], key: str) -> tuple[bool, Any]:
    """(whether it is on record, the run's value of a setting).

    Budgets are what was spent on the model that was tested.
    """
    if key in ("trainer.max_steps", "updates"):
        spent = updates(result)
        return spent is not None, spent
    if key in ("trainer.max_epochs", "epochs"):
        return True, result.get("refit", {}).get("epochs", result["epochs"])
    if key in ("objective", "sampler"):
        return result.get(key) is not None, result.get(key)
    if key == "batch_counts":  # before there was the key, a batch counted positives
        return True, result.get(key) or setting(result, key, "positives")
    if not result.get("recorded", True):
        return _from_overrides(result, key)
    value = setting(result, key)
    if key == "batch_size" and isinstance(value, int):  # rows of one optimizer step
        for factor in ("trainer.accumulate_grad_batches", "trainer.devices"):
            times = setting(result, factor)
            value *= times if isinstance(times, int) and times > 0 else 1
    if isinstance(value, dict):
        value = value.get("_target_")
    return True, value


def agrees(ours: Any, theirs: Any, key: str = "") -> bool:
    """Whether two values are the same. Classes and functions go by their names without modules."""
    if isinstance(theirs, str) and "|" in theirs:
        return any(agrees(ours, read_value(part), key) for part in theirs.split("|"))
    ours = (
        None if isinstance(ours, str) and _plain(ours) in ("none", "nosampler") else _number(ours)
    )
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


def _in_one_pass(result: dict[str, Any]) -> bool:
    return result.get("objective") == "none"


def _from_overrides(result: dict[str, Any], key: str) -> tuple[bool, Any]:
    """What the command line says; the rest of the config was not kept."""
    for override in reversed(result.get("overrides", [])):
        name, _, value = override.lstrip("+").partition("=")
        if name == key:
            return True, read_value(value)
    if key in ("sampler._target_", "objective.sampler._target_", "objective._target_"):
        return value_of(result, key.removesuffix("._target_").rpartition(".")[2])
    return False, None


def _ending(result: dict[str, Any]) -> str:
    reason = str(result.get("stop_reason") or "")
    return "" if reason.startswith(("max_epochs", "max_steps")) else reason


def _word(key: str) -> str:
    return WORDS.get(key, key.rpartition(".")[2].strip("_").replace("_", " "))


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "on", False: "off", None: "none"}[value]
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else f"{value:g}"
    if isinstance(value, list):
        return "/".join(map(_shown, value))
    return _last(str(value)).replace("_", " ")


def _number(value: Any) -> Any:
    """Numbers that YAML takes for words, such as ``1e-4``; lists element by element."""
    if isinstance(value, list | tuple):
        return [_number(v) for v in value]
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _plain(name: str) -> str:
    return _last(name).replace("_", "").lower()


def _last(name: str) -> str:
    """The last part of a dotted name; other texts as they are."""
    return name.rpartition(".")[2] if re.fullmatch(r"[A-Za-z_][\w.]*", name) else name
