"""Windows of users' training histories, as row ids of ``store.train``."""

from __future__ import annotations

import torch
from torch import Tensor

from recexp.data.store import Store
from recexp.types import Query


def window_ends(store: Store, length: int, step: int, least: int) -> Tensor:
    """Ends of all users' windows of ``length`` events, as exclusive rows of ``store.train``, [N].

    A user's newest window ends at the newest event. Older ones end ``step`` events earlier each,
    until the history is covered. Users with fewer than ``least`` events have none.
    """
    ptr = store.train.ptr
    n_events_U = ptr[1:] - ptr[:-1]
    n_older_U = (n_events_U - length).clamp(min=0).add(step - 1).div(step, rounding_mode="floor")
    n_windows_U = torch.where(n_events_U >= least, 1 + n_older_U, 0)

    user_N = torch.repeat_interleave(torch.arange(len(n_events_U), device=ptr.device), n_windows_U)
    first_window_U = n_windows_U.cumsum(0) - n_windows_U
    number_N = torch.arange(len(user_N), device=ptr.device) - first_window_U[user_N]
    # The oldest window is as long as the others where the history is.
    shortest_N = n_events_U[user_N].clamp(max=length)
    return torch.maximum(ptr[user_N + 1] - number_N * step, ptr[user_N] + shortest_N)


def newest_ends(store: Store, most: int) -> Tensor:
    """Ends of the prefixes whose last event is one of a user's newest ``most`` but not their first.

    As exclusive rows of ``store.train``, [N].
    """
    ptr = store.train.ptr
    end_E = torch.arange(1, len(store.train) + 1, device=ptr.device)
    user_E = store.train.user
    is_first_E = end_E == ptr[user_E] + 1
    is_new_E = ptr[user_E + 1] - end_E < most
    return end_E[is_new_E & ~is_first_E]


def read_window(store: Store, end_B: Tensor, length: int) -> Query:
    """The last ``length`` training events before each end, of the user of the row before it."""
    user_B = store.train.user[end_B - 1]
    return store.window(store.train, user_B, store.train.ptr[user_B], end_B, length)


def window_rows(end_B: Tensor, length: int) -> Tensor:
    """The rows of ``store.train`` before each end, [B, L]; 0 where there are none.

    Those at the padding of a window belong to other users.
    """
    from_end_L = torch.arange(length, 0, -1, device=end_B.device)
    return (end_B[:, None] - from_end_L).clamp(min=0)
