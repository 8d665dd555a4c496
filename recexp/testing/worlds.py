"""Small prepared data sets as a ``Store``, built in memory without files or readers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recexp.data.store import Events, Pairs, Store, Targets
from recexp.testing import toy
from recexp.types import Schema

BEHAVIORS = ("view", "buy")
EXPLICIT = (False, True)
_ITEM_BITS = 32  # a (user, item) pair as one integer: user << 32 | item


def store(
    rows: Sequence[Sequence[int]],
    n_users: int,
    n_items: int,
    *,
    behaviors: tuple[str, ...] = BEHAVIORS,
    explicit: tuple[bool, ...] = EXPLICIT,
    n_values: int = 0,
    side: bool = False,
    held_out: Sequence[int] | None = None,
) -> Store:
    """A store of the given training events.

    rows: (user, item, behavior code[, value id]) in time order; the value id defaults to 1.
    side: with one item feature of each kind. held_out: the item of each user's validation target,
    which comes after all of the user's events; the test targets are the same.
    """
    complete_rows = [[*row, *[1] * (4 - len(row))] for row in rows]
    event_E4 = torch.tensor(complete_rows, dtype=torch.int64).view(-1, 4)
    event_E4 = _sorted_by_user(event_E4)
    user_E, item_E = event_E4[:, 0], event_E4[:, 1]

    target_Q2 = torch.tensor(list(enumerate(held_out or ())), dtype=torch.int64).view(-1, 2)
    ones_Q1 = torch.ones(len(target_Q2), 1, dtype=torch.int64)
    target_event_Q4 = torch.cat([target_Q2, len(behaviors) * ones_Q1, ones_Q1], dim=1)
    past = _events(_sorted_by_user(torch.cat([event_E4, target_event_Q4])), n_users, n_values)

    pairs = _pairs(event_E4, n_users)
    targets = _targets(target_Q2, past)
    return Store(
        _schema(user_E, item_E, n_users, n_items, behaviors, explicit, n_values, side),
        {"fingerprint": "world", "users": n_users, "items": n_items},
        Path(),
        _events(event_E4, n_users, n_values),
        past,
        pairs,
        pairs,
        targets,
        targets,
        torch.bincount(item_E, minlength=n_items + 1),
    )


def random_store(
    n_users: int = 12,
    n_items: int = 30,
    *,
    seed: int = 0,
    behaviors: tuple[str, ...] = BEHAVIORS,
    **more: Any,
) -> Store:
    """Histories of all lengths, with repeated items.

    The last user has no event, the last but one a single event. more: keywords of ``store``.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = [*(2 + 3 * user % 14 for user in range(n_users - 2)), 1, 0]
    rows: list[list[int]] = []
    for user, size in enumerate(sizes):
        item = torch.randint(1, n_items + 1, (size,), generator=generator)
        code = torch.randint(1, len(behaviors) + 1, (size,), generator=generator)
        value = torch.randint(1, 6, (size,), generator=generator)
        events = torch.stack([item, code, value], dim=1).tolist()
        rows += [[user, *event] for event in events]
    return store(rows, n_users, n_items, behaviors=behaviors, n_values=5, **more)


def planted(
    n_users: int = 50,
    n_items: int = 200,
    n_groups: int = 5,
    length: int = 18,
    *,
    shuffled: bool = False,
) -> Store:
    """Data with a pattern: users belong to groups, and the items of a group form a ring.

    Every user walks along the ring of their group from a random start; the held-out item is the
    next one. A model that knows the groups finds it among the group's items that the user does not
    have; a model that knows the ring finds it exactly; the HR@10 of chance is
    10 / (n_items - length). shuffled: the control, the same events with their items permuted over
    all users.
    """
    generator = torch.Generator().manual_seed(1)
    ring_size = n_items // n_groups
    ring_GR = 1 + torch.randperm(n_items, generator=generator).view(n_groups, ring_size)
    start_U1 = torch.randint(0, ring_size, (n_users, 1), generator=generator)
    group_U1 = (torch.arange(n_users) % n_groups)[:, None]
    walk_UL = ring_GR[group_U1, (start_U1 + torch.arange(length + 1)) % ring_size]

    item_UL = walk_UL[:, :-1]
    if shuffled:
        order = torch.randperm(item_UL.numel(), generator=generator)
        item_UL = item_UL.flatten()[order].view_as(item_UL)
    code_UL = torch.randint(1, 3, item_UL.shape, generator=generator)
    code_UL[:, -1] = 2
    user_UL = torch.arange(n_users)[:, None].expand_as(item_UL)
    rows = torch.stack([user_UL, item_UL, code_UL], dim=-1).view(-1, 3).tolist()
    held_out = walk_UL[:, -1].tolist()
    return store(rows, n_users, n_items, n_values=5, side=True, held_out=held_out)


def _schema(
    user_E: Tensor,
    item_E: Tensor,
    n_users: int,
    n_items: int,
    behaviors: tuple[str, ...],
    explicit: tuple[bool, ...],
    n_values: int,
    side: bool,
) -> Schema:
    if not side:
        return Schema(n_users, n_items, behaviors, explicit, n_values)
    item_features = toy.features(n_items, torch.Generator().manual_seed(0))
    items_of_users = [item_E[user_E == user].unique().tolist() for user in range(n_users)]
    user_features = toy.bags(item_features, items_of_users)
    return Schema(n_users, n_items, behaviors, explicit, n_values, item_features, user_features)


def _sorted_by_user(event_E4: Tensor) -> Tensor:
    return event_E4[event_E4[:, 0].argsort(stable=True)]


def _ptr(user: Tensor, n_users: int) -> Tensor:
    """CSR row pointers, int64 [U+1], of users in ascending order."""
    n_rows_U = torch.bincount(user, minlength=n_users)
    return torch.cat([torch.zeros(1, dtype=torch.int64), n_rows_U.cumsum(0)])


def _events(event_E4: Tensor, n_users: int, n_values: int) -> Events:
    user, item, code, value = event_E4.T
    time = 1000 * torch.arange(1, len(event_E4) + 1)
    mask = (1 << (code - 1)).int()
    stored_value = value.to(torch.int16) if n_values else None
    return Events(_ptr(user, n_users), item.int(), code.to(torch.int8), time, mask, stored_value)


def _pairs(event_E4: Tensor, n_users: int) -> Pairs:
    """Distinct (user, item) pairs with the bits of their behaviors and their number of events."""
    user, item, code, _ = event_E4.T
    key, at, count = ((user << _ITEM_BITS) + item).unique(return_inverse=True, return_counts=True)
    mask = torch.zeros(len(key), dtype=torch.int64)
    for c in code.unique():
        mask[at[code == c].unique()] |= 1 << (int(c) - 1)
    pair_item = key & ((1 << _ITEM_BITS) - 1)
    return Pairs(_ptr(key >> _ITEM_BITS, n_users), pair_item.int(), mask.int(), count.int())


def _targets(target_Q2: Tensor, past: Events) -> Targets:
    """The last event of each target's user; the history is every event before it."""
    user, item = target_Q2[:, 0], target_Q2[:, 1]
    last = past.ptr[user + 1] - 1
    behavior = torch.ones(len(user), dtype=torch.int8)
    repeated = torch.zeros(len(user), dtype=torch.bool)
    cold = torch.zeros_like(repeated)
    return Targets(
        user, item, past.time[last], behavior, repeated, past.ptr[user], last, cold, cold
    )
