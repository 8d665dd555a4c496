"""Small prepared data sets, built straight as a Store: no files, no reading."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from recexp.data.store import Events, Pairs, Store, Targets
from recexp.types import Schema
from tests.support import toy

BEHAVIOURS, EXPLICIT = ("view", "buy"), (False, True)


def store(
    rows: Sequence[Sequence[int]],
    n_users: int,
    n_items: int,
    *,
    behaviours: tuple[str, ...] = BEHAVIOURS,
    explicit: tuple[bool, ...] = EXPLICIT,
    n_values: int = 0,
    side: bool = False,
    held_out: Sequence[int] | None = None,
) -> Store:
    """rows: (user, item, behaviour code[, value id]) in time order. held_out: the item of each user's validation target, after all his events."""
    event = torch.tensor([[*row, *[1] * (4 - len(row))] for row in rows], dtype=torch.int64).view(
        -1, 4
    )
    event = event[event[:, 0].argsort(stable=True)]
    item_features = toy.features(n_items, torch.Generator().manual_seed(0)) if side else {}
    items_of = (
        [sorted(set(event[event[:, 0] == u, 1].tolist())) for u in range(n_users)] if side else []
    )
    bags = {name: toy.bag(f, items_of) for name, f in item_features.items() if f.kind != "numeric"}
    schema = Schema(n_users, n_items, behaviours, explicit, n_values, item_features, bags)
    target = torch.tensor(
        [] if held_out is None else list(enumerate(held_out)), dtype=torch.int64
    ).view(-1, 2)
    ones = torch.ones(len(target), 2, dtype=torch.int64)
    past = torch.cat([event, torch.cat([target, len(behaviours) * ones[:, :1], ones[:, :1]], 1)])
    past = _events(past[past[:, 0].argsort(stable=True)], n_users, n_values)
    val = Targets(
        target[:, 0], target[:, 1], past.time[past.ptr[1:] - 1][: len(target)], ones[:, 0].to(torch.int8), ones[:, 0] == 0,
        past.ptr[target[:, 0]], past.ptr[target[:, 0] + 1] - 1,
    )  # fmt: skip
    pairs = _pairs(event, n_users)
    meta = {"fingerprint": "world", "users": n_users, "items": n_items}
    count = torch.bincount(event[:, 1], minlength=n_items + 1)
    return Store(
        schema, meta, Path(), _events(event, n_users, n_values), past, pairs, pairs, val, val, count
    )


def _ptr(user: Tensor, n_users: int) -> Tensor:
    return torch.cat(
        [torch.zeros(1, dtype=torch.int64), torch.bincount(user, minlength=n_users).cumsum(0)]
    )


def _events(event: Tensor, n_users: int, n_values: int) -> Events:
    user, item, code, value = event.T
    time = 1000 * torch.arange(1, len(event) + 1)
    mask = (1 << (code - 1)).int()
    return Events(
        _ptr(user, n_users),
        item.int(),
        code.to(torch.int8),
        time,
        mask,
        value.to(torch.int16) if n_values else None,
    )


def _pairs(event: Tensor, n_users: int) -> Pairs:
    key, at, count = (event[:, 0] * 2**32 + event[:, 1]).unique(
        return_inverse=True, return_counts=True
    )
    mask = torch.zeros(len(key), dtype=torch.int64)
    for code in event[:, 2].unique():
        mask[at[event[:, 2] == code].unique()] |= 1 << (int(code) - 1)
    return Pairs(_ptr(key >> 32, n_users), (key % 2**32).int(), mask.int(), count.int())


def random_store(
    n_users: int = 12,
    n_items: int = 30,
    *,
    seed: int = 0,
    behaviours=BEHAVIOURS,
    explicit=EXPLICIT,
    **more,
) -> Store:
    """Histories of all lengths, with repeats; the last user has none, the last but one a single event."""
    g = torch.Generator().manual_seed(seed)
    sizes = [*(2 + 3 * u % 14 for u in range(n_users - 2)), 1, 0]
    rows = []
    for u, size in enumerate(sizes):
        item = torch.randint(1, n_items + 1, (size,), generator=g)
        code = torch.randint(1, len(behaviours) + 1, (size,), generator=g)
        value = torch.randint(1, 6, (size,), generator=g)
        rows += [(u, *row) for row in torch.stack([item, code, value], 1).tolist()]
    return store(
        rows, n_users, n_items, behaviours=behaviours, explicit=explicit, n_values=5, **more
    )


def planted(
    n_users: int = 50,
    n_items: int = 200,
    n_groups: int = 5,
    length: int = 18,
    *,
    shuffled: bool = False,
) -> Store:
    """Users belong to groups, a group's items form a ring, and every user walks along his group's ring from somewhere. The held-out item is his next.

    Who knows the groups finds the next item among the group's items the user has not yet had; who knows the ring finds it at once; chance is
    10 / (n_items - length). shuffled: the same events with their items permuted over all users.
    """
    g = torch.Generator().manual_seed(1)
    size = n_items // n_groups
    ring = 1 + torch.randperm(n_items, generator=g).view(n_groups, size)
    start = torch.randint(0, size, (n_users, 1), generator=g)
    walk = ring[
        (torch.arange(n_users) % n_groups)[:, None], (start + torch.arange(length + 1)) % size
    ]
    item = walk[:, :-1]
    if shuffled:
        item = item.flatten()[torch.randperm(item.numel(), generator=g)].view_as(item)
    code = torch.randint(1, 3, item.shape, generator=g)
    code[:, -1] = 2
    user = torch.arange(n_users)[:, None].expand_as(item)
    rows = torch.stack([user, item, code], -1).view(-1, 3)
    return store(
        rows.tolist(), n_users, n_items, n_values=5, side=True, held_out=walk[:, -1].tolist()
    )
