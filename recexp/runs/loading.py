"""Run directories that somebody else may have made: what they say is read, and nothing of it is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from recexp.errors import RecexpError
from recexp.runs.shape import fault
from recexp.training.checkpoints import verify_checkpoint


def read_result(path: Path) -> dict[str, Any]:
    """``result.json`` of a finished run. RecexpError where it is missing, damaged, or says something else than a run does."""
    try:
        result = json.loads(path.read_text())
    except FileNotFoundError:
        raise RecexpError(f"{path} is missing: only a finished run can be evaluated.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RecexpError(f"{path} is damaged: {error}") from error
    if isinstance(result, dict) and "interrupted" in result:
        raise RecexpError(f"{path.parent} was interrupted: only a finished run can be evaluated.")
    wrong = fault(result) or (
        "" if isinstance(result["data"].get("fingerprint"), str) else "its data have no fingerprint"
    )
    if wrong:
        raise RecexpError(f"{path} is no run's result: {wrong}.")
    return result


def read_config(path: Path) -> DictConfig:
    """``config.yaml`` as a run writes it: plain values. RecexpError for anything that would be computed while reading it (``${...}``, YAML tags)."""
    try:
        cfg = OmegaConf.create(yaml.safe_load(path.read_text()))
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
        raise RecexpError(f"{path} is no config of a run.")
    for key, text in _texts(OmegaConf.to_container(cfg), ""):
        if "${" in text or text == "???":
            raise RecexpError(
                f"{path}: {key}={text} is to be computed; a run writes down values, so this file is no run's. Nothing of it was used."
            )
    return cfg


def _texts(node: Any, path: str):
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _texts(str(key), f"{path}.<key>".lstrip("."))
            yield from _texts(value, f"{path}.{key}".lstrip("."))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _texts(value, f"{path}[{i}]")
    elif isinstance(node, str):
        yield path, node


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of ours: tensors and plain values. RecexpError for a damaged one, and for one that would run code: none of it is run."""
    verify_checkpoint(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader trips in a dozen ways
        raise RecexpError(
            f"{path} is no checkpoint of ours: it holds more than tensors and plain values. Nothing of it was run."
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise RecexpError(f"{path} is no checkpoint of a run: it has no state_dict.")
    return content


def check_fit(path: Path, module: nn.Module, fingerprint: str | None = None) -> dict[str, Any]:
    """The checkpoint's content, if its weights are those of the module and it was trained on the data of this fingerprint; RecexpError otherwise."""
    content = read_checkpoint(path)
    saved, own = (
        {k: tuple(v.shape) for k, v in d.items() if hasattr(v, "shape")}
        for d in (content["state_dict"], module.state_dict())
    )
    if differing := sorted(k for k in saved.keys() | own.keys() if saved.get(k) != own.get(k)):
        key = differing[0]
        here, there = (f"is {d[key]}" if key in d else "is not there" for d in (own, saved))
        raise RecexpError(
            f"{path} does not fit this model and data: {key} {there} in the checkpoint and {here} here ({len(differing)} weights differ). "
            "Use the model=, model.* and dataset= settings that it was trained with; its run's config.yaml has them."
        )
    trained_on = content.get("data_fingerprint")
    if fingerprint is not None and trained_on is not None and trained_on != fingerprint:
        raise RecexpError(
            f"{path} was trained on other data (fingerprint {trained_on}, here {fingerprint}): check dataset.* and protocol.split.*."
        )
    return content
