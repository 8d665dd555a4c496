"""Where a run's numbers came from: library versions, hardware."""

from __future__ import annotations

import os
import platform
import resource
from typing import Any

import torch

from recexp.version import installed_version

PACKAGES = ("recexp", "torch", "pytorch-lightning", "polars")


def describe() -> dict[str, Any]:
    """Versions, hardware and peak memory (in MB) of this process."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    versions |= {package: installed_version(package) for package in PACKAGES}
    hardware = {
        "device": _device_name(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"versions": versions, "hardware": hardware, "peak_memory_mb": peak_kb / 1024}


def _device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    return platform.processor() or platform.machine()
