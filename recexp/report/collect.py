"""Results of many runs, read from their directories."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from recexp.config import CONF
from recexp.errors import RecexpError
from recexp.runs.result import find_problem


def collect(folders: Iterable[str | Path]) -> tuple[list[dict[str, Any]], list[str]]:
    """Every ``result.json`` at or below the folders, with its ``folder`` and ``config``, and a line per run left out.

    config: the nested settings in ``result.json``, or those in ``config.yaml`` for older results.
    Where neither has them (``recorded`` is False), the model's YAML and the overrides stand in.
    An evaluation of a run under another protocol (``RUN_DIR/full_unseen``) is a result of its own,
    with the run's config and ``trained``: the validation metrics of the run's training.

    Raises RecexpError where a folder does not exist or nothing at all is found.
    """
    results, left_out, seen = [], [], set()
    for folder in map(Path, folders):
        if not folder.exists():
            raise RecexpError(
                f"{folder} does not exist: name run directories, or a folder above them."
            )
        runs = {
            p.parent
            for name in ("config.yaml", "result.json")
            for p in folder.rglob(name)
            if p.parent.name != ".hydra"
        }
        for run in sorted(runs):
            if (place := run.resolve()) in seen:  # folders given twice, or one inside another
                continue
            seen.add(place)
            try:
                results.append(_read(run))
            except _Interrupted as error:
                left_out.append(f"{run}: {error}")
            except FileNotFoundError:
                left_out.append(f"{run}: no result.json ({_state(run)})")
            except (
                OSError,
                ValueError,
                RecursionError,
                yaml.YAMLError,
                OmegaConfBaseException,
            ) as error:
                left_out.append(f"{run / 'result.json'}: not readable ({error})")
    if not results:
        raise RecexpError("No run with a result.json was found. " + "; ".join(left_out))
    return results, left_out


def setting(result: dict[str, Any], key: str, default: Any = None) -> Any:
    """The value of a dotted key such as ``model.num_factors`` in the run's config."""
    node: Any = result.get("config") or {}
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return default
        node = node[part]
    return node


def simulated(result: dict[str, Any]) -> bool:
    """Whether the run's data come from a simulator."""
    return bool(result.get("data", {}).get("simulated")) or result["dataset"].startswith(
        "simulated"
    )


def data_name(result: dict[str, Any]) -> str:
    """The data set's name as titles show it."""
    return f"{result['dataset']} (simulated)" if simulated(result) else result["dataset"]


def smoke(result: dict[str, Any]) -> bool:
    """Whether the run had smoke scale: a test of the machinery, not of the systems."""
    asked = any(o.lstrip("+") == "scale=smoke" for o in result.get("overrides", []))
    return asked or "stand_in" in (result.get("config") or {})


def trained_under(result: dict[str, Any]) -> str | None:
    """The protocol under which an evaluated run was trained and its epoch chosen, else None."""
    if "evaluated" not in result:
        return None
    return result["selection"].rpartition(", by ")[2]


def updates(result: dict[str, Any]) -> int | None:
    """Optimizer steps of the training that gave the tested model.

    None where neither ``result.json`` nor ``metrics.csv`` tells.
    """
    if "refit" in result:
        return result["refit"].get("updates")
    if result.get("updates") is not None:
        return int(result["updates"])
    rows = epochs_table(result)
    return int(rows[-1]["step"]) if rows and "step" in rows[-1] else None


def number(value: Any) -> float | None:
    """The number a setting stands for, of a list (weights per behaviour) the first; None for words and switches."""
    if isinstance(value, list) and value:
        value = value[0]
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def epochs_table(result: dict[str, Any]) -> list[dict[str, float]]:
    """The rows of ``metrics.csv``, cells without a number left out; empty where the file was not kept."""
    path = Path(result["folder"]) / "metrics.csv"
    if not path.is_file() and "evaluated" in result:
        path = path.parent.parent / "metrics.csv"
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if k and v} for row in csv.DictReader(file)]


class _Interrupted(Exception):
    """The run ended before its time and says so."""


def _read(run: Path) -> dict[str, Any]:
    result = json.loads((run / "result.json").read_text())
    if isinstance(result, dict) and "interrupted" in result:
        raise _Interrupted(f"{result['interrupted']} ended it after {result.get('epochs')} epochs")
    if isinstance(result, dict) and result.get("metrics") == {}:
        raise _Interrupted(f"no metrics ({result.get('stop_reason') or 'its end is not recorded'})")
    if wrong := find_problem(result):
        raise ValueError(wrong)
    empty = {
        "overrides": [],
        "git": {"commit": None, "dirty": None},
        "wall_time_s": None,
        "examples_per_s": None,
        "reconstruction": False,
    }
    return empty | result | _config(run, result) | _training(run, result) | {"folder": str(run)}


def _config(run: Path, result: dict[str, Any]) -> dict[str, Any]:
    """The settings of the run, and whether they were recorded when it ran."""
    if result.get("config"):
        return {"config": result["config"], "recorded": True}
    places = [run, run.parent] if "evaluated" in result else [run]
    path = next((p / "config.yaml" for p in places if (p / "config.yaml").is_file()), None)
    if path is None:
        return {"config": _from_overrides(result), "recorded": False}
    return {"config": OmegaConf.to_container(OmegaConf.load(path)), "recorded": True}


def _training(run: Path, result: dict[str, Any]) -> dict[str, Any]:
    """Validation metrics of the training behind an evaluated run; empty where they are not kept."""
    path = run.parent / "result.json"
    if "evaluated" not in result or not path.is_file():
        return {}
    metrics = json.loads(path.read_text()).get("metrics") or {}
    return {"trained": {k: v for k, v in metrics.items() if k.startswith("val/")}}


def _from_overrides(result: dict[str, Any]) -> dict[str, Any]:
    """The model's YAML as it is now with the run's overrides upon it. Experiments and tuned values remain unknown."""
    config = _model_yaml(str(result["model"]))
    pairs = [
        o.lstrip("+~").split("=", 1)
        for o in result.get("overrides", [])
        if "." in o.split("=", 1)[0] and "=" in o
    ]
    config = OmegaConf.merge(
        config, OmegaConf.from_dotlist([f"{k}={v}" for k, v in pairs if "@" not in k])
    )
    config.pop("defaults", None)
    return OmegaConf.to_container(config)


@cache
def _model_yaml(name: str) -> DictConfig:
    """The YAML of a model upon those it inherits from; empty for a model that is gone."""
    path = CONF / "model" / f"{name}.yaml"
    config = OmegaConf.load(path) if path.is_file() else OmegaConf.create({})
    parents = [
        _model_yaml(d) for d in config.get("defaults", []) if isinstance(d, str) and d != "_self_"
    ]
    return OmegaConf.merge(*parents, config) if parents else config


def _state(run: Path) -> str:
    """How far an unfinished run came."""
    rows = epochs_table({"folder": str(run)})
    return (
        f"interrupted or still running, {len(rows)} epochs done"
        if rows
        else "failed, or still running"
    )
