"""Running out of memory, on a GPU or under a limit on a CPU."""

from __future__ import annotations

import torch


def out_of_memory(error: BaseException) -> bool:
    """Is this torch's way of saying that no memory is left?"""
    return isinstance(error, torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))
