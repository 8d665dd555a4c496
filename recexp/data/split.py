"""Who is trained on, validated on and tested on (models.md §1.2-1.6 as data, not as branches)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recexp.data.rows import Rows
from recexp.types import RecexpError

TRAIN, VAL, TEST, DROPPED, PAST = 0, 1, 2, 3, 4  # PAST: read as history in evaluation, never trained on


@dataclass(frozen=True)
class Split:
    """How held-out targets are chosen. Part of the protocol, and of the prepared data's fingerprint.

    kind: "leave_one_out" (per user) or "global_time" (one cut for everybody).
    target: which events can be targets: "any", "explicit" (any explicit behaviour) or "strongest" (the last behaviour only).
    purge: what else of the held-out (user, item) pair leaves: "pair" (every event of it, S000), "later" (its events at or after the target's
        time, S001) or "none".
    fallback: validation target of a user from whom no second eligible event can be held out: "any" (his last event before the test target) or
        "none".
    merge_val: validation targets are trained on (the second stage of selection=refit).
    test_share, val_share: for global_time, the share of events after the test cut and between the two cuts.
    """

    kind: str = "leave_one_out"
    target: str = "any"
    purge: str = "none"
    fallback: str = "none"
    test_share: float = 0.1
    val_share: float = 0.1
    merge_val: bool = False

    def __post_init__(self):
        for name, value, known in (
            ("kind", self.kind, ("leave_one_out", "global_time")),
            ("target", self.target, ("any", "explicit", "strongest")),
            ("purge", self.purge, ("pair", "later", "none")),
            ("fallback", self.fallback, ("any", "none")),
        ):
            if value not in known:
                raise RecexpError(f"protocol.split.{name}={value!r} is unknown; choose one of {', '.join(known)}.")
        if not (0 < self.test_share < 1 and 0 < self.val_share < 1 and self.test_share + self.val_share < 1):
            raise RecexpError("protocol.split.test_share and val_share must be positive and sum to less than 1.")
        if self.kind == "global_time" and (self.purge, self.fallback) != ("none", "none"):
            raise RecexpError("protocol.split.purge and fallback belong to kind=leave_one_out; set both to none with kind=global_time.")

    def assign(self, rows: Rows, explicit: list[bool]) -> np.ndarray:
        """Split code per row: int8 [rows] of TRAIN, VAL, TEST, DROPPED, PAST.

        A user has at most one VAL and one TEST row, keeps at least one TRAIN row before each, and his VAL row precedes his TEST row; a user for whom
        that cannot be had only trains. Raises RecexpError where no user at all has a test target.
        """
        bits = {"any": -1, "explicit": sum(1 << i for i, e in enumerate(explicit) if e), "strongest": 1 << (len(explicit) - 1)}[self.target]
        eligible = (rows.mask & bits) != 0
        code = (self._global_time if self.kind == "global_time" else self._leave_one_out)(rows, eligible)
        if not (code == TEST).any():
            raise RecexpError(
                f"No user has a test target: the split wants {self.target!r} events with at least one earlier training event each. "
                "Check dataset.behaviours and dataset.explicit, loosen dataset.filters, or choose another protocol."
            )
        return code

    def _leave_one_out(self, rows: Rows, eligible: np.ndarray) -> np.ndarray:
        n_users, index = int(rows.user[-1]) + 1, np.arange(len(rows), dtype=rows.origin.dtype)
        code = np.zeros(len(rows), dtype=np.int8)
        test = self._hold_out(code, TEST, _last_per_user(index[eligible], rows.user, n_users), rows)
        if self.merge_val:
            return code
        before_test = index < test[rows.user]  # nobody is validated who is not tested
        val = np.full(n_users, -1, dtype=index.dtype)
        for wanted in [eligible, np.ones_like(eligible)][: 2 if self.fallback == "any" else 1]:
            last = _last_per_user(index[wanted & before_test & (code == TRAIN)], rows.user, n_users)
            val = np.maximum(val, self._hold_out(code, VAL, np.where(val < 0, last, -1), rows))
        return code

    def _hold_out(self, code: np.ndarray, which: int, target: np.ndarray, rows: Rows) -> np.ndarray:
        """Mark each user's target row (-1: none) and purge the rest of its pair, where a training row before it remains.

        Changes ``code``; returns the targets held out, -1 for the others.
        """
        mine = target[rows.user]
        held = code.copy()
        pair = (mine >= 0) & (rows.item == rows.item[mine]) & (code == TRAIN)
        if self.purge == "pair":
            held[pair] = DROPPED
        elif self.purge == "later":
            held[pair & (rows.time >= rows.time[mine])] = DROPPED
        held[target[target >= 0]] = which
        first = _first_per_user(np.flatnonzero(held == TRAIN).astype(target.dtype), rows.user, len(target))
        target = np.where(first < target, target, -1)
        changed = target[rows.user] >= 0
        code[changed] = held[changed]
        return target

    def _global_time(self, rows: Rows, eligible: np.ndarray) -> np.ndarray:
        """Train before the first cut; the targets are each user's first eligible events after the first and the second cut."""
        n_users, index = int(rows.user[-1]) + 1, np.arange(len(rows), dtype=rows.origin.dtype)
        rank = [min(len(rows) - 1, round((1 - share) * len(rows))) for share in (self.val_share + self.test_share, self.test_share)]
        val_cut, test_cut = np.partition(rows.time, rank)[rank]
        # Who is tested does not depend on merge_val: both stages of selection=refit report on the same users.
        known = np.bincount(rows.user[rows.time < val_cut], minlength=n_users)[rows.user] > 0
        code = np.where(rows.time < (test_cut if self.merge_val else val_cut), TRAIN, PAST).astype(np.int8)
        after = rows.time >= test_cut
        for which, inside in ((TEST, after), (VAL, (rows.time >= val_cut) & ~after)):
            if which == TEST or not self.merge_val:
                target = _first_per_user(index[eligible & inside & known], rows.user, n_users)
                code[target[target < len(rows)]] = which
        return code


def _last_per_user(rows: np.ndarray, user: np.ndarray, n_users: int) -> np.ndarray:
    """The last of the ascending rows for each user, -1 where he has none."""
    last = np.full(n_users, -1, dtype=rows.dtype)
    last[user[rows]] = rows  # ascending, so the last assignment wins
    return last


def _first_per_user(rows: np.ndarray, user: np.ndarray, n_users: int) -> np.ndarray:
    """The first of the ascending rows for each user, len(user) where he has none."""
    first = np.full(n_users, len(user), dtype=rows.dtype)
    first[user[rows[::-1]]] = rows[::-1]
    return first
