"""Which of several processes this one is, and what the others have."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


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


def gather(value: T) -> list[T]:
    """The values of all processes in the first one, by rank; an empty list in the others.

    Every process must call it.
    """
    import torch.distributed as dist

    rank, world = rank_and_world()
    if world == 1:
        return [value]
    values: list[T | None] | None = [None] * world if rank == 0 else None
    dist.gather_object(value, values, dst=0)
    return [each for each in values or [] if each is not None]
