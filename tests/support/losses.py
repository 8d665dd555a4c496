"""Losses by the names of their YAMLs."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from recexp.config import CONF
from recexp.config.build import build
from recexp.contracts import Loss

NAMES = sorted(path.stem for path in (CONF / "loss").glob("*.yaml") if path.stem != "none")


def loss(name: str, **parameters: Any) -> Loss:
    """The loss of ``conf/loss/<name>.yaml``."""
    return build(OmegaConf.load(CONF / "loss" / f"{name}.yaml"), **parameters)


def names_of(kind: type[Loss]) -> list[str]:
    """The YAMLs whose loss is of this kind."""
    return [name for name in NAMES if isinstance(loss(name), kind)]
