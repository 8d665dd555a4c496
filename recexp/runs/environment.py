"""Where a run's numbers came from: code, library versions, hardware."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("recexp", "torch", "pytorch-lightning", "polars")


def describe() -> dict[str, Any]:
    """Versions, hardware and peak memory (in MB) of this process."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    versions |= {package: _version(package) for package in PACKAGES}
    hardware = {
        "device": _device_name(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"versions": versions, "hardware": hardware, "peak_memory_mb": peak_kb / 1024}


def git_state() -> dict[str, Any]:
    """Commit and dirty flag of the checkout the code runs from; None outside a checkout."""
    try:
        commit = _git("rev-parse", "HEAD")
        dirty = bool(_git("status", "--porcelain")) if commit else None
    except FileNotFoundError:  # git is not installed
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": dirty}


def _git(*words: str) -> str | None:
    done = subprocess.run(
        ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else None


def _device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
