"""Runs of the whole program on a shop small enough for tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from recexp.config import CONF
from recexp.config.build import register_resolvers
from recexp.config.presets import apply_preset, with_quickstart

SMALL = (
    "dataset.source.users=150",
    "dataset.source.items=200",
    "dataset.source.categories=10",
    "logger=csv",
    "trainer.max_epochs=2",
    "batch_size=256",
    "protocol.candidates.n=50",
    "threads=1",
)
TUNED = {"model=ite", "model=bert_ite", "model=bert_ite_si"}  # on the simulated shop


def arguments(folder: Path, *overrides: str, small: tuple[str, ...] = SMALL) -> list[str]:
    """Overrides for a small run whose caches are shared by the tests of ``folder``'s parent."""
    shared = folder.parent
    words = [*small, f"dataset.raw_dir={shared}/raw", f"cache_dir={shared}/cache", *overrides]
    if TUNED.intersection(words) and not any(w.startswith(("dataset=", "preset=")) for w in words):
        words.append("preset=tuned")  # whose batches make far fewer steps
    return with_quickstart(words)


def composed(
    folder: Path,
    *overrides: str,
    searchpath: Path | None = None,
    small: tuple[str, ...] = SMALL,
) -> DictConfig:
    """The config that a command line with these overrides gives.

    searchpath: a config directory besides our own. small: overrides for the simulated shop.
    """
    register_resolvers()
    GlobalHydra.instance().clear()
    words = [*arguments(folder, *overrides, small=small), f"run_dir={folder}"]
    if searchpath:
        words.append(f"hydra.searchpath=[file://{searchpath}]")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", words, return_hydra_config=True)
        apply_preset(cfg)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def run_here(folder: Path, *overrides: str, **how):
    """Run in this process; returns the result."""
    from recexp.runs.run import run

    return run(composed(folder, *overrides, **how))


def command(folder: Path, *words: str) -> subprocess.CompletedProcess:
    """``python -m recexp`` in a process of its own."""
    flags = [w for w in words if w.startswith("-")]
    line = [
        sys.executable,
        "-m",
        "recexp",
        *flags,
        *arguments(folder, *(w for w in words if w not in flags)),
    ]
    return subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
