"""Results of many runs, read from their directories."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from recexp.config import CONF
from recexp.errors import RecexpError
from recexp.renamed import with_new_keys, with_new_words
from recexp.runs.identity import IMMATERIAL, RAW_FILES, is_material, key_of
from recexp.runs.loading import (
    READ_ERRORS,
    plain_yaml,
    read_epoch_table,
    read_json,
    read_settings,
)
from recexp.runs.result import find_problem

# How long a run may train.
BUDGET = frozenset(
    {
        "trainer.max_epochs",
        "trainer.max_steps",
        "trainer.max_time",
        "trainer.check_val_every_n_epoch",
        "callbacks.early_stopping.min_learned",
        "callbacks.early_stopping.min_steps",
        "callbacks.early_stopping.patience",
    }
)

# One result.json with the keys that ``collect`` adds: folder, config, recorded, trained, curve.
Result = dict[str, Any]

# Keys that older versions did not write.
DEFAULTS: Result = {
    "overrides": [],
    "git": {"commit": None, "dirty": None},
    "wall_time_s": None,
    "examples_per_s": None,
    "reconstruction": False,
}
# Overrides that a result has a key of its own for.
KEYS_OF_RESULTS = frozenset({"model", "dataset", "protocol", "seed", "selection"})
RUN_FILES = frozenset({"config.yaml", "result.json"})  # a directory with one of them is a run's
UNREADABLE = (*READ_ERRORS, OmegaConfBaseException)


def collect(folders: Iterable[str | Path]) -> tuple[list[Result], list[str]]:
    """Read every ``result.json`` at or below the folders; the second list names the runs left out.

    Each result gets its ``folder`` and ``config``: the nested settings in ``result.json``, or those
    of ``config.yaml`` for older results. Where neither has them (``recorded`` is False), the
    model's YAML and the overrides stand in.
    An evaluation of a run under another protocol (``RUN_DIR/full_unseen``) is a result of its own,
    with the run's config and ``trained``: the validation metrics of the run's training.
    ``curve`` holds the rows of ``metrics.csv``.

    A run with a file that is damaged, too large or not a regular file is left out: see the limits
    in ``recexp.runs.loading``.

    Raises RecexpError where a folder does not exist or no result is found.
    """
    results: list[Result] = []
    left_out: list[str] = []
    for run in _run_directories(folders, left_out):
        try:
            results.append(_read(run))
        except _WithoutMetrics as error:
            left_out.append(f"{run}: {error}")
        except FileNotFoundError:
            left_out.append(f"{run}: no result.json ({_progress(run)})")
        except RecexpError as error:
            left_out.append(f"{run}: not readable ({str(error).rstrip('.')})")
        except UNREADABLE as error:
            left_out.append(f"{run / 'result.json'}: not readable ({error})")
    if not results:
        raise RecexpError("No run with a result.json was found. " + "; ".join(left_out))
    return results, left_out


def setting(result: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """The value of a dotted key such as ``model.n_factors`` in the run's config."""
    node: Any = result.get("config") or {}
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return default
        node = node[part]
    return node


def setting_overrides(result: Mapping[str, Any]) -> list[str]:
    """The run's overrides that can change its numbers and have no key of their own in the result.

    The data are known by then, so the place of the raw files does not count.
    """
    found = []
    for override in result.get("overrides", []):
        key = key_of(override)
        if key not in KEYS_OF_RESULTS and changes_numbers(key):
            found.append(override)
    return found


def settings(result: Mapping[str, Any]) -> list[str]:
    """The run's overrides that concern what was run, not where or with which seed."""
    return [o for o in setting_overrides(result) if key_of(o) != "experiment"]


def without_budget(words: Iterable[str]) -> list[str]:
    """The overrides but those of ``BUDGET``."""
    return [word for word in words if key_of(word) not in BUDGET]


@cache
def changes_numbers(key: str) -> bool:
    """Whether the setting of this dotted key can change a number of a run on known data."""
    return is_material(key, (*IMMATERIAL, *RAW_FILES))


def is_simulated(result: Mapping[str, Any]) -> bool:
    """Whether the run's data come from a simulator."""
    named_so = bool(result["dataset"].startswith("simulated"))
    return named_so or bool(result.get("data", {}).get("simulated"))


def data_name(result: Mapping[str, Any]) -> str:
    """The data set's name as titles show it."""
    name = str(result["dataset"])
    return f"{name} (simulated)" if is_simulated(result) else name


def is_external(result: Mapping[str, Any]) -> bool:
    """Whether another program made the predictions (``recexp.evaluate --predictions``)."""
    return "external" in result


def is_of_lists(results: Iterable[Mapping[str, Any]], metric: str) -> bool:
    """Whether the metric is one of recommended lists, of which more is not always better."""
    name = metric.removeprefix("test/").partition("@")[0]
    return any(name in result.get("list_metrics", []) for result in results)


def is_smoke(result: Mapping[str, Any]) -> bool:
    """Whether the run had smoke scale: a test of the machinery, not of the systems."""
    asked = any(o.lstrip("+") == "scale=smoke" for o in result.get("overrides", []))
    return asked or "stand_in" in (result.get("config") or {})


def experiment_name(result: Mapping[str, Any]) -> str:
    """The experiment that the command line chose, such as ``ite/fig5_factors``; "" for none."""
    for override in result.get("overrides", []):
        if override.startswith(("experiment=", "+experiment=")):
            return str(override.split("=", 1)[1])
    return ""


def chose_on_test(result: Mapping[str, Any]) -> bool:
    """Whether the reported epoch was chosen by test metrics, as in the ITE paper."""
    return bool(result["selection"].startswith("test_peek"))


def trained_under(result: Mapping[str, Any]) -> str | None:
    """The protocol under which an evaluated run was trained and its epoch chosen, else None."""
    if "evaluated" not in result:
        return None
    return str(result["selection"].rpartition(", by ")[2])


def n_updates(result: Mapping[str, Any]) -> int | None:
    """Optimizer steps of the training that gave the tested model.

    None where neither ``result.json`` nor ``metrics.csv`` records them.
    """
    if result.get("refit"):
        refit_updates: int | None = result["refit"].get("updates")
        return refit_updates
    if result.get("updates") is not None:
        return int(result["updates"])
    rows = read_epochs(result)
    return int(rows[-1]["step"]) if rows and "step" in rows[-1] else None


def as_number(value: Any) -> float | None:
    """A setting as a number; of a list (weights per behavior) the first; None for other values."""
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def read_epochs(result: Mapping[str, Any]) -> list[dict[str, float]]:
    """The rows of ``metrics.csv`` without empty cells; no rows where the file was not kept.

    Raises RecexpError for a damaged file; ``collect`` has left such runs out.
    """
    if "curve" in result:
        rows: list[dict[str, float]] = result["curve"]
        return rows
    folder = Path(result["folder"])
    for place in [folder, folder.parent] if "evaluated" in result else [folder]:
        try:
            return read_epoch_table(place / "metrics.csv")
        except FileNotFoundError:
            continue
    return []


class _WithoutMetrics(Exception):
    """The run ended before it was tested, and its result says so."""


def _run_directories(folders: Iterable[str | Path], left_out: list[str]) -> list[Path]:
    """Directories with a config or a result, each once even where the folders overlap.

    Directories that cannot be searched are added to left_out.
    """
    found: dict[Path, Path] = {}
    for folder in map(Path, folders):
        if not os.path.lexists(folder):
            raise RecexpError(
                f"{folder} does not exist: name run directories, or a folder above them."
            )
        for run in sorted(_search(folder, left_out)):
            found.setdefault(run.resolve(), run)
    return list(found.values())


def _search(folder: Path, left_out: list[str]) -> list[Path]:
    """Run directories at and below the folder. Links to directories are not followed."""
    waiting = [folder]
    runs = []
    while waiting:
        place = waiting.pop()
        try:
            with os.scandir(place) as entries:
                is_folder = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
        except OSError as error:
            left_out.append(f"{place}: cannot be searched ({error.strerror})")
            continue
        if RUN_FILES & is_folder.keys() and place.name != ".hydra":
            runs.append(place)
        waiting += [place / name for name, is_one in is_folder.items() if is_one]
    return runs


def _read(run: Path) -> Result:
    result = read_json(run / "result.json")
    if isinstance(result, dict) and "interrupted" in result:
        text = f"{result['interrupted']} ended it after {result.get('epochs')} epochs"
        raise _WithoutMetrics(text)
    if isinstance(result, dict) and result.get("metrics") == {}:
        reason = result.get("stop_reason") or "its end is not recorded"
        raise _WithoutMetrics(f"no metrics ({reason})")
    if problem := find_problem(result):
        raise ValueError(problem)
    result = {key: value for key, value in result.items() if value is not None}
    overrides = with_new_words(result.get("overrides", []))
    result = result | {"overrides": overrides, "folder": str(run)}
    added = _config(run, result) | _training(run, result) | {"curve": read_epochs(result)}
    return DEFAULTS | result | added


def _config(run: Path, result: Result) -> Result:
    """The settings of the run, and whether they were recorded when it ran."""
    if result.get("config"):
        return {"config": with_new_keys(result["config"]), "recorded": True}
    for folder in [run, run.parent] if "evaluated" in result else [run]:
        try:
            return {"config": read_settings(folder / "config.yaml"), "recorded": True}
        except FileNotFoundError:
            continue
    return {"config": config_from_overrides(result), "recorded": False}


def _training(run: Path, result: Result) -> Result:
    """Validation metrics of the training behind an evaluated run; empty where they are not kept."""
    if "evaluated" not in result:
        return {}
    try:
        training = read_json(run.parent / "result.json")
    except FileNotFoundError:
        return {}
    if problem := find_problem(training):
        raise ValueError(f"result.json of its training: {problem}")
    metrics = training["metrics"]
    return {"trained": {name: v for name, v in metrics.items() if name.startswith("val/")}}


def config_from_overrides(result: Mapping[str, Any]) -> dict[str, Any]:
    """Today's YAML of the model with the loss and the values of the run's overrides merged into it.

    What experiments and tuned values set remains unknown.
    """
    assignments = []
    loss = OmegaConf.create({})
    for override in result.get("overrides", []):
        key, equals, value = override.lstrip("+~").partition("=")
        path = CONF / "loss" / f"{value}.yaml"
        if key == "loss" and path.is_file():
            loss = OmegaConf.create({"loss": OmegaConf.load(path)})
        if equals and "." in key and "@" not in key:
            plain_yaml(value)  # refuses what OmegaConf would unfold without end
            assignments.append(f"{key}={value}")
    model = _model_yaml(str(result["model"]))
    config = OmegaConf.merge(model, loss, OmegaConf.from_dotlist(assignments))
    plain = OmegaConf.to_container(config)
    assert isinstance(plain, dict)
    plain.pop("defaults", None)
    return {str(key): value for key, value in plain.items()}


@cache
def model_defaults(name: str) -> dict[str, Any]:
    """What today's YAML says of a model itself; empty for an unknown one. Not to be changed."""
    plain = OmegaConf.to_container(OmegaConf.create({"model": _model_yaml(name).get("model", {})}))
    assert isinstance(plain, dict)
    return dict(plain["model"])


@cache
def _model_yaml(name: str) -> DictConfig:
    """The YAML of a model merged into those it inherits from; empty for an unknown model."""
    path = CONF / "model" / f"{name}.yaml"
    is_one = re.fullmatch(r"\w{1,80}", name) and path.is_file()
    config = OmegaConf.load(path) if is_one else OmegaConf.create({})
    assert isinstance(config, DictConfig)
    defaults = [d for d in config.get("defaults", []) if isinstance(d, str) and d != "_self_"]
    merged = OmegaConf.merge(*map(_model_yaml, defaults), config)
    assert isinstance(merged, DictConfig)
    return merged


def _progress(run: Path) -> str:
    """How far an unfinished run came."""
    try:
        n_epochs = len(read_epochs({"folder": str(run)}))
    except RecexpError as error:
        return f"failed, or still running; {str(error).rstrip('.')}"
    if n_epochs:
        return f"interrupted or still running, {n_epochs} epochs done"
    return "failed, or still running"
