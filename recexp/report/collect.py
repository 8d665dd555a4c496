"""Results of many runs, read from their directories."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from recexp.config import CONF
from recexp.errors import RecexpError
from recexp.renamed import with_new_keys, with_new_words
from recexp.runs.identity import IMMATERIAL, RAW_FILES, is_material, key_of
from recexp.runs.result import find_problem

# One result.json with the keys that ``collect`` adds: folder, config, recorded, trained.
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
UNREADABLE = (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException)


def collect(folders: Iterable[str | Path]) -> tuple[list[Result], list[str]]:
    """Read every ``result.json`` at or below the folders; the second list names the runs left out.

    Each result gets its ``folder`` and ``config``: the nested settings in ``result.json``, or those
    of ``config.yaml`` for older results. Where neither has them (``recorded`` is False), the
    model's YAML and the overrides stand in.
    An evaluation of a run under another protocol (``RUN_DIR/full_unseen``) is a result of its own,
    with the run's config and ``trained``: the validation metrics of the run's training.

    Raises RecexpError where a folder does not exist or no result is found.
    """
    results: list[Result] = []
    left_out: list[str] = []
    for run in _run_directories(folders):
        try:
            results.append(_read(run))
        except _WithoutMetrics as error:
            left_out.append(f"{run}: {error}")
        except FileNotFoundError:
            left_out.append(f"{run}: no result.json ({_progress(run)})")
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
    if "refit" in result:
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
    return float(value)


def read_epochs(result: Mapping[str, Any]) -> list[dict[str, float]]:
    """The rows of ``metrics.csv`` without empty cells; no rows where the file was not kept."""
    path = Path(result["folder"]) / "metrics.csv"
    if not path.is_file() and "evaluated" in result:
        path = path.parent.parent / "metrics.csv"
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [_numbers(row) for row in csv.DictReader(file)]


class _WithoutMetrics(Exception):
    """The run ended before it was tested, and its result says so."""


def _run_directories(folders: Iterable[str | Path]) -> list[Path]:
    """Directories with a config or a result, each once even where the folders overlap."""
    found: dict[Path, Path] = {}
    for folder in map(Path, folders):
        if not folder.exists():
            raise RecexpError(
                f"{folder} does not exist: name run directories, or a folder above them."
            )
        files = [*folder.rglob("config.yaml"), *folder.rglob("result.json")]
        runs = {path.parent for path in files if path.parent.name != ".hydra"}
        for run in sorted(runs):
            found.setdefault(run.resolve(), run)
    return list(found.values())


def _read(run: Path) -> Result:
    result = json.loads((run / "result.json").read_text())
    if isinstance(result, dict) and "interrupted" in result:
        text = f"{result['interrupted']} ended it after {result.get('epochs')} epochs"
        raise _WithoutMetrics(text)
    if isinstance(result, dict) and result.get("metrics") == {}:
        reason = result.get("stop_reason") or "its end is not recorded"
        raise _WithoutMetrics(f"no metrics ({reason})")
    if problem := find_problem(result):
        raise ValueError(problem)
    overrides = with_new_words(result.get("overrides", []))
    result = result | {"overrides": overrides}
    added = _config(run, result) | _training(run, result) | {"folder": str(run)}
    return DEFAULTS | result | added


def _config(run: Path, result: Result) -> Result:
    """The settings of the run, and whether they were recorded when it ran."""
    if result.get("config"):
        return {"config": with_new_keys(result["config"]), "recorded": True}
    folders = [run, run.parent] if "evaluated" in result else [run]
    for folder in folders:
        path = folder / "config.yaml"
        if path.is_file():
            config = with_new_keys(OmegaConf.to_container(OmegaConf.load(path)))
            return {"config": config, "recorded": True}
    return {"config": config_from_overrides(result), "recorded": False}


def _training(run: Path, result: Result) -> Result:
    """Validation metrics of the training behind an evaluated run; empty where they are not kept."""
    path = run.parent / "result.json"
    if "evaluated" not in result or not path.is_file():
        return {}
    metrics = json.loads(path.read_text()).get("metrics") or {}
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
            assignments.append(f"{key}={value}")
    model = _model_yaml(str(result["model"]))
    config = OmegaConf.merge(model, loss, OmegaConf.from_dotlist(assignments))
    plain = OmegaConf.to_container(config)
    assert isinstance(plain, dict)
    plain.pop("defaults", None)
    return {str(key): value for key, value in plain.items()}


@cache
def _model_yaml(name: str) -> DictConfig:
    """The YAML of a model merged into those it inherits from; empty for an unknown model."""
    path = CONF / "model" / f"{name}.yaml"
    config = OmegaConf.load(path) if path.is_file() else OmegaConf.create({})
    assert isinstance(config, DictConfig)
    defaults = [d for d in config.get("defaults", []) if isinstance(d, str) and d != "_self_"]
    merged = OmegaConf.merge(*map(_model_yaml, defaults), config)
    assert isinstance(merged, DictConfig)
    return merged


def _progress(run: Path) -> str:
    """How far an unfinished run came."""
    n_epochs = len(read_epochs({"folder": str(run)}))
    if n_epochs:
        return f"interrupted or still running, {n_epochs} epochs done"
    return "failed, or still running"


def _numbers(row: Mapping[str, str]) -> dict[str, float]:
    return {name: float(cell) for name, cell in row.items() if name and cell}
