"""On which device a finished run's model works."""

from __future__ import annotations

import argparse
from typing import Literal, get_args

import torch

from recexp.config.machine import find_gpu, no_gpu
from recexp.errors import RecexpError

Accelerator = Literal["auto", "cpu", "gpu"]


def add_accelerator(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the option ``--accelerator``."""
    parser.add_argument(
        "--accelerator",
        choices=get_args(Accelerator),
        default="cpu",
        help="the device of the model; auto: a GPU where there is one (default: cpu)",
    )


def device_of(accelerator: Accelerator) -> torch.device:
    """Raises RecexpError for a GPU where torch finds none, and for another word."""
    known = get_args(Accelerator)
    if accelerator not in known:
        raise RecexpError(f"accelerator={accelerator!r} is unknown; choose {', '.join(known)}.")
    if accelerator == "cpu":
        return torch.device("cpu")
    gpu = find_gpu()
    if gpu is None and accelerator == "gpu":
        raise no_gpu("accelerator=gpu", "Leave the option out")
    return gpu or torch.device("cpu")
