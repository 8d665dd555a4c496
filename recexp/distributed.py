"""Which of several processes this one is."""

from __future__ import annotations


def rank_and_world() -> tuple[int, int]:
    """Rank of this process and number of processes; (0, 1) outside a process group."""
    import torch.distributed as dist  # here: the command line and the launcher need no torch

    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def is_first_process() -> bool:
    """Is this the process that writes files? Also before the process group exists."""
    from pytorch_lightning.utilities import rank_zero_only

    rank: int = getattr(rank_zero_only, "rank", 0)  # Lightning reads it from the environment
    return rank == 0
