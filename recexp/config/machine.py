"""What this machine has."""

from __future__ import annotations

import torch

from recexp.errors import RecexpError


def find_gpu() -> torch.device | None:
    """The GPU that torch finds here."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return None


def no_gpu(setting: str, instead: str) -> RecexpError:
    """The error for a setting that asks for a GPU where there is none, and what to do instead."""
    return RecexpError(
        f"{setting}: torch {torch.__version__} finds no GPU here. {instead}, or install a torch "
        "that is built for the GPU of this machine."
    )
