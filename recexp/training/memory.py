"""How much to do at once; running out of memory, on a GPU or under a limit on a CPU."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

SCORES = (
    2**25
)  # of a catalogue held at once on a CPU: 128 MB, and as much again while they are compared


def out_of_memory(error: BaseException) -> bool:
    """Is this torch's way of saying that no memory is left?"""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def users_at_once(device: torch.device, n_items: int) -> int:
    """How many users' scores of all items are held at once: on a GPU as many as fill an eighth of what is free."""
    scores = torch.cuda.mem_get_info(device)[0] // 32 if device.type == "cuda" else SCORES
    return max(1, scores // n_items)


def too_large(store, device: torch.device) -> bool:
    """Would the data, with the keys and owners derived from them, fill more than half of what is free on the device? Never so on a CPU."""
    if device.type == "cpu":
        return False
    columns = (getattr(part, f.name) for part in (getattr(store, f.name) for f in dataclasses.fields(store)) if dataclasses.is_dataclass(part)
               for f in dataclasses.fields(part))  # fmt: skip
    held = sum(x.numel() * x.element_size() for x in columns if isinstance(x, Tensor))
    derived = 8 * (2 * len(store.train) + 2 * len(store.train_pairs))
    return held + derived > torch.get_device_module(device).mem_get_info(device)[0] // 2
