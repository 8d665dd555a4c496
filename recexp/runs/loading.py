"""Read the files of a run directory, which may come from another person.

Values are read; nothing is computed or executed. This module imports no torch; checkpoints are read
by ``recexp.training.checkpoints``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from recexp.errors import RecexpError
from recexp.renamed import with_new_keys
from recexp.runs.result import RunResult


def read_result(path: Path) -> RunResult:
    """``result.json`` of a finished run.

    Raises RecexpError where the file is missing or damaged, the run was interrupted, or a value
    is not what a run writes.
    """
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise RecexpError(f"{path} is missing: only a finished run can be evaluated.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RecexpError(f"{path} is damaged: {error}") from error
    if isinstance(content, dict) and "interrupted" in content:
        raise RecexpError(f"{path.parent} was interrupted: only a finished run can be evaluated.")
    try:
        result = RunResult.parse(content)
        if result.data.fingerprint is None:
            raise RecexpError("its data have no fingerprint")
    except RecexpError as error:
        raise RecexpError(f"{path} is no run's result: {error}.") from None
    return result


def read_config(path: Path) -> DictConfig:
    """``config.yaml`` as a run writes it: plain values.

    Raises RecexpError for anything that would be computed while reading it (``${...}``, YAML tags).
    """
    try:
        cfg = OmegaConf.create(with_new_keys(yaml.safe_load(path.read_text(encoding="utf-8"))))
    except FileNotFoundError:
        raise RecexpError(f"{path} is missing: it says what was trained.") from None
    except (
        OSError,
        ValueError,
        TypeError,
        RecursionError,
        yaml.YAMLError,
        OmegaConfBaseException,
    ) as error:
        raise RecexpError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(cfg, DictConfig) or cfg._is_none():
        raise RecexpError(f"{path} is not the config of a run.")
    for key, text in _strings(OmegaConf.to_container(cfg), ""):
        if "${" in text or text == "???":
            raise RecexpError(
                f"{path}: {key}={text} is to be computed; a run writes down plain values, so no "
                "run wrote this file. Nothing of it was used."
            )
    return cfg


def _strings(node: Any, path: str) -> Iterator[tuple[str, str]]:
    """Every string at or below the node, keys included, with its dotted path."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _strings(str(key), f"{path}.<key>".lstrip("."))
            yield from _strings(value, f"{path}.{key}".lstrip("."))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _strings(value, f"{path}[{i}]")
    elif isinstance(node, str):
        yield path, node
