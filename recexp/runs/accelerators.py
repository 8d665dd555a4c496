"""On which device a finished run's model works."""

from __future__ import annotations

import argparse
from typing import Literal, get_args

import torch

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
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if torch.backends.mps.is_available():
        return torch.device("mps")
    if accelerator == "auto":
        return torch.device("cpu")
    raise RecexpError(
        f"accelerator=gpu: torch {torch.__version__} finds no GPU here. Leave the option out, or "
        "install a torch that is built for the GPU of this machine."
    )
