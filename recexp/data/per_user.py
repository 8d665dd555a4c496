"""What holds for each user among rows that are sorted by user and time.

Suffixes of shapes: E rows, U users.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recexp.data.rows import Rows

Flags = NDArray[np.bool_]
Ints = NDArray[np.int64]


def place_from_end(user_E: np.ndarray, eligible_E: Flags) -> Ints:
    """0 for the last eligible row of a user, 1 for the one before, ...; -1 for other rows."""
    number_E = np.cumsum(eligible_E)
    last_U = np.cumsum(np.bincount(user_E)) - 1  # of a user without rows: the last one before
    place_E: Ints = number_E[last_U[user_E]] - number_E
    return np.where(eligible_E, place_E, -1)


def random_place(user_E: np.ndarray, eligible_E: Flags, seed: int) -> Ints:
    """As ``place_from_end``, with the eligible rows of each user in random order."""
    draw_E = np.random.default_rng(seed).random(len(user_E))
    at = np.flatnonzero(eligible_E)
    order = at[np.lexsort((draw_E[at], user_E[at]))]
    place_E = np.full(len(user_E), -1, dtype=np.int64)
    # The eligible rows of a user keep their places among the rows; their numbers are permuted.
    place_E[order] = place_from_end(user_E[at], np.ones(len(at), dtype=bool))
    return place_E


def share_of(n_U: Ints, share: float) -> Ints:
    """Nearest whole number of share * n, halves up."""
    return np.floor(share * n_U + 0.5).astype(np.int64)


def first_of_pairs(rows: Rows, at: np.ndarray) -> Flags:
    """Is the row the first one of its (user, item) pair among these? bool per row of ``at``.

    at: ascending row numbers.
    """
    key = (rows.user[at].astype(np.int64) << 32) + rows.item[at]
    _, first = np.unique(key, return_index=True)
    is_first = np.zeros(len(at), dtype=bool)
    is_first[first] = True
    return is_first


def has_row(user_E: np.ndarray, chosen_E: Flags) -> Flags:
    """Does the user own a chosen row? bool [U]."""
    found_U = np.zeros(int(user_E[-1]) + 1, dtype=bool)
    found_U[user_E[chosen_E]] = True
    return found_U


def first_row(user_E: np.ndarray, chosen_E: Flags) -> Ints:
    """Number of each user's first chosen row, int64 [U]; the number of rows where there is none."""
    first_U = np.full(int(user_E[-1]) + 1, len(user_E), dtype=np.int64)
    at = np.flatnonzero(chosen_E)[::-1]
    first_U[user_E[at]] = at  # descending: the last assignment is the first row
    return first_U


def last_of(at: np.ndarray, user_E: np.ndarray, n_users: int) -> np.ndarray:
    """The last of the ascending row numbers ``at`` for each user, -1 where they have none."""
    last_U = np.full(n_users, -1, dtype=at.dtype)
    last_U[user_E[at]] = at  # ascending: the last assignment stays
    return last_U


def first_of(at: np.ndarray, user_E: np.ndarray, n_users: int) -> np.ndarray:
    """The first of the ascending row numbers ``at`` per user, the number of rows where none is."""
    first_U = np.full(n_users, len(user_E), dtype=at.dtype)
    first_U[user_E[at[::-1]]] = at[::-1]  # descending: the first one stays
    return first_U


def folds(n_users: int, n_folds: int, seed: int) -> Ints:
    """A random fold 0..n_folds-1 for each user, int64 [U]; their sizes differ by at most one."""
    return np.random.default_rng(seed).permutation(n_users) % n_folds
