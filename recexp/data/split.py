"""Who is trained on, validated on and tested on (models.md §1.2-1.6 as data, not as branches)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from recexp.types import RecexpError

TRAIN, VAL, TEST, DROPPED, PAST = 0, 1, 2, 3, 4  # PAST: read as history in evaluation, never trained on


@dataclass(frozen=True)
class Split:
    """How held-out targets are chosen. Part of the protocol, and of the prepared data's fingerprint.

    kind: "leave_one_out" (per user) or "global_time" (one cut for everybody).
    target: which events can be targets: "any", "explicit" (any explicit behaviour) or "strongest" (the last behaviour only).
    purge: what else of the held-out (user, item) pair leaves: "pair" (every event of it, S000), "later" (its events at or after the target's
        time, S001) or "none".
    fallback: validation target of a user without a second eligible event: "any" (his last event before the test target) or "none".
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

    def assign(self, events: pl.DataFrame, explicit: list[bool]) -> np.ndarray:
        """Split code per row of ``events`` (columns user, item, behaviour, time; sorted by user, time, source row).

        Returns int8 [rows] of TRAIN, VAL, TEST, DROPPED, PAST. A user has at most one VAL and one TEST row, keeps at least one TRAIN row before each,
        and every VAL row precedes his TEST row. Raises RecexpError where no user at all has a target.
        """
        user, item, behaviour, time = (events[c].to_numpy() for c in ("user", "item", "behaviour", "time"))
        eligible = {
            "any": np.ones(len(user), dtype=bool),
            "explicit": np.asarray([False, *explicit])[behaviour],
            "strongest": behaviour == len(explicit),
        }[self.target]
        code = np.zeros(len(user), dtype=np.int8)
        if self.kind == "global_time":
            self._global_time(code, eligible, user, time)
        else:
            self._leave_one_out(code, eligible, user, item, time)
        if self.merge_val:
            code[code == VAL] = TRAIN
        if not (code == TEST).any():
            raise RecexpError(
                f"No user has a test target: the split wants {self.target!r} events with at least one earlier training event each. "
                "Check dataset.behaviours and dataset.explicit, loosen dataset.filters, or choose another protocol."
            )
        return code

    def _leave_one_out(self, code, eligible, user, item, time) -> None:
        n_users = int(user[-1]) + 1
        rows = np.arange(len(user))
        test = _last_per_user(rows[eligible], user, n_users)
        self._hold_out(code, TEST, test, user, item, time)
        before_test = rows < test[user]  # users without a test target (-1) have no validation target either
        val = _last_per_user(rows[eligible & before_test & (code == TRAIN)], user, n_users)
        if self.fallback == "any":
            weaker = _last_per_user(rows[before_test & (code == TRAIN)], user, n_users)
            val = np.where(val < 0, weaker, val)
        # Validation must leave something to train on and to predict from.
        alone = _first_per_user(rows[(code == TRAIN)], user, n_users) >= val
        val[alone] = -1
        self._hold_out(code, VAL, val, user, item, time)
        # A test target without any earlier training event has nothing to predict from: the user only trains.
        first = _first_per_user(rows[(code == TRAIN) | (code == VAL)], user, n_users)
        lonely = np.flatnonzero((test >= 0) & (first >= test))
        code[test[lonely]] = TRAIN

    def _hold_out(self, code, which, target, user, item, time) -> None:
        """Mark the target rows (-1: none) and purge the rest of their pairs."""
        has = target[user] >= 0
        same = has & (item == item[target[user]]) & (code == TRAIN)
        if self.purge == "pair":
            code[same] = DROPPED
        elif self.purge == "later":
            code[same & (time >= time[target[user]])] = DROPPED
        code[target[target >= 0]] = which

    def _global_time(self, code, eligible, user, time) -> None:
        """Train before the first cut; the targets are each user's first eligible events after the first and the second cut."""
        n_users = int(user[-1]) + 1
        rows = np.arange(len(user))
        val_cut, test_cut = np.quantile(time, [1 - self.val_share - self.test_share, 1 - self.test_share])
        has_train = np.zeros(n_users, dtype=bool)
        has_train[user[time < val_cut]] = True
        code[time >= (test_cut if self.merge_val else val_cut)] = PAST
        for which, inside in (((VAL, (time >= val_cut) & (time < test_cut)),) * (not self.merge_val)) + ((TEST, time >= test_cut),):
            target = _first_per_user(rows[eligible & inside & has_train[user]], user, n_users)
            code[target[target < len(user)]] = which


def _last_per_user(rows: np.ndarray, user: np.ndarray, n_users: int) -> np.ndarray:
    """The last of the ascending rows for each user, -1 where he has none."""
    last = np.full(n_users, -1, dtype=np.int64)
    last[user[rows]] = rows  # ascending, so the last assignment wins
    return last


def _first_per_user(rows: np.ndarray, user: np.ndarray, n_users: int) -> np.ndarray:
    """The first of the ascending rows for each user, len(user) where he has none."""
    first = np.full(n_users, len(user), dtype=np.int64)
    first[user[rows[::-1]]] = rows[::-1]
    return first
