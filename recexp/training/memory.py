"""How much is worked on at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from recexp.data.store import Store

# Scores of all items that a CPU holds at once: 128 MB, and as much again while they are compared.
MAX_SCORES_ON_CPU = 2**25
INT64_BYTES = 8


def users_at_once(device: torch.device, n_items: int) -> int:
    """For how many users the scores of all items are held at once.

    On a GPU as many as fill an eighth of the free memory.
    """
    if device.type != "cuda":
        return max(1, MAX_SCORES_ON_CPU // n_items)
    float32_bytes = 4
    n_scores = torch.cuda.mem_get_info(device)[0] // (8 * float32_bytes)
    return max(1, n_scores // n_items)


def too_large(store: Store, device: torch.device) -> bool:
    """Would the data fill more than half of the free memory of the device? Never on a CPU.

    Counts the keys and owners that are derived from the data on the device, too.
    """
    if device.type == "cpu":
        return False
    n_bytes = sum(x.numel() * x.element_size() for x in _columns(store))
    n_bytes += INT64_BYTES * (2 * len(store.train) + 2 * len(store.train_pairs))
    n_free: int = torch.get_device_module(device).mem_get_info(device)[0]
    return n_bytes > n_free // 2


def _columns(store: Store) -> Iterator[Tensor]:
    """Every tensor of the store's tables."""
    for field in dataclasses.fields(store):
        table = getattr(store, field.name)
        if dataclasses.is_dataclass(table):
            for column in dataclasses.fields(table):
                value = getattr(table, column.name)
                if isinstance(value, Tensor):
                    yield value
                elif isinstance(value, dict):  # features of events
                    yield from (x for x in value.values() if isinstance(x, Tensor))
