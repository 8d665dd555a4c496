"""Where a run's numbers came from: library versions, hardware."""

from __future__ import annotations

import os
import platform
import resource
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from recexp.version import installed_version

PACKAGES = ("recexp", "torch", "pytorch-lightning", "polars")


def describe(device: torch.device) -> dict[str, Any]:
    """Versions, hardware and peak memory (in MB) of this process.

    device: where the model worked. gpu_memory_mb is the most that tensors took there.
    """
    hardware: dict[str, Any] = {
        "device": _device_name(device),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        hardware["gpu_memory_mb"] = torch.cuda.max_memory_allocated(device) / 2**20
    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"versions": versions(), "hardware": hardware, "peak_memory_mb": peak_kb / 1024}


def versions() -> dict[str, str | None]:
    """The versions of Python and of the packages that compute."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    return found | {package: installed_version(package) for package in PACKAGES}


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with suppress(OSError):  # Linux; elsewhere Python knows the name
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
