"""Who is trained on, validated on and tested on: the papers' splits as data, not as branches."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from recexp.data.rows import Rows
from recexp.errors import RecexpError

TRAIN, VAL, TEST, DROPPED, PAST = (
    0,
    1,
    2,
    3,
    4,
)  # PAST: read as history in evaluation, never trained on


@dataclass(frozen=True)
class Split:
    """How held-out targets are chosen. Part of the protocol, and of the prepared data's fingerprint.

    kind: "leave_one_out" (per user) or "global_time" (one cut for everybody).
    target: which events can be targets: "any", "explicit" (any explicit behaviour) or "strongest" (the last behaviour only).
    purge: what else of the held-out (user, item) pair leaves training and histories: "pair" (every
        event of it), "later" (its events at or after the target's time) or "none". With "later" the
        weaker events before the target stay, and sampler=supportive_only draws that very pair as a
        negative: the sampler must not know what is held out.
    fallback: validation target of a user from whom no second eligible event can be held out: "any"
        (their last event before the test target) or "none".
    merge_val: validation targets are trained on (the second stage of selection=refit).
    test_share, val_share: for global_time, the share of events after the test cut and between the two cuts.
    test_without_history: a user is tested also where no training event precedes the target, as long
        as one follows it. Their history in evaluation is empty. A validation target always needs a
        training event before it.
    """

    kind: str = "leave_one_out"
    target: str = "any"
    purge: str = "none"
    fallback: str = "none"
    test_share: float = 0.1
    val_share: float = 0.1
    merge_val: bool = False
    test_without_history: bool = False

    def __post_init__(self):
        for name, value, known in (
            ("kind", self.kind, ("leave_one_out", "global_time")),
            ("target", self.target, ("any", "explicit", "strongest")),
            ("purge", self.purge, ("pair", "later", "none")),
            ("fallback", self.fallback, ("any", "none")),
        ):
            if value not in known:
                raise RecexpError(
                    f"protocol.split.{name}={value!r} is unknown; choose one of {', '.join(known)}."
                )
        if not (
            0 < self.test_share < 1
            and 0 < self.val_share < 1
            and self.test_share + self.val_share < 1
        ):
            raise RecexpError(
                "protocol.split.test_share and val_share must be positive and sum to less than 1."
            )
        if self.kind == "global_time" and (self.purge, self.fallback) != ("none", "none"):
            raise RecexpError(
                "protocol.split.purge and fallback belong to kind=leave_one_out; set both to none with kind=global_time."
            )
        if self.kind == "global_time" and self.test_without_history:
            raise RecexpError(
                "protocol.split.test_without_history belongs to kind=leave_one_out; set it to false "
                "with kind=global_time, which tests users known before the first cut only."
            )

    def said(self) -> dict[str, Any]:
        """The settings as fingerprints and protocol ids hold them.

        An option that came later is absent at its default, so that ids from before it stay.
        """
        said = asdict(self)
        if not self.test_without_history:
            said.pop("test_without_history")
        return said

    def assign(self, rows: Rows, explicit: list[bool]) -> np.ndarray:
        """Split code per row: int8 [rows] of TRAIN, VAL, TEST, DROPPED, PAST.

        A user has at most one VAL and one TEST row, and the VAL row precedes the TEST row. A user
        keeps at least one TRAIN row before each; with test_without_history the TRAIN rows may all
        follow the TEST row. A user for whom that cannot be had only trains (``left_out`` counts
        them). Raises RecexpError where no user at all has a test target.
        """
        eligible = self._eligible(rows, explicit)
        code = (self._global_time if self.kind == "global_time" else self._leave_one_out)(
            rows, eligible
        )
        if not (code == TEST).any():
            other = "other" if self.test_without_history else "earlier"
            raise RecexpError(
                f"No user has a test target: the split wants {self.target!r} events with at least one "
                f"{other} training event each. "
                "Check dataset.behaviours and dataset.explicit, loosen dataset.filters, or choose another protocol."
            )
        return code

    def left_out(self, rows: Rows, explicit: list[bool], code: np.ndarray) -> dict[str, int]:
        """Users whom ``code`` (of ``assign``) does not test or does not validate, by reason.

        The reasons that begin with "not tested" sum to the users without a test target, those that
        begin with "not validated" to the users without a validation target. Reasons without users
        are absent, and so is validation where ``merge_val`` trains on its targets.
        """
        n_users = int(rows.user[-1]) + 1

        def users(at: np.ndarray) -> np.ndarray:
            found = np.zeros(n_users, dtype=bool)
            found[rows.user[at]] = True
            return found

        tested, validated = users(code == TEST), users(code == VAL)
        if self.kind == "global_time":
            known = users(rows.time < self._cuts(rows)[0])
            reasons = {
                "not tested: no event before the first cut": ~known,
                "not tested: no event that can be a target after the test cut": known & ~tested,
                "not validated: no event before the first cut": ~known,
                "not validated: no event that can be a target between the cuts": known & ~validated,
            }
        else:
            can = users(self._eligible(rows, explicit))
            anywhere = self.test_without_history
            place = "besides the target's pair" if anywhere else "before the target"
            reasons = {
                "not tested: no event that can be a target": ~can,
                f"not tested: no training event {place}": can & ~tested,
                "not validated: not tested": ~tested,
                "not validated: no target before the test target leaves a training event before it":
                    tested & ~validated,
            }  # fmt: skip
        if self.merge_val:
            reasons = {k: who for k, who in reasons.items() if k.startswith("not tested")}
        return {reason: int(who.sum()) for reason, who in reasons.items() if who.any()}

    def _eligible(self, rows: Rows, explicit: list[bool]) -> np.ndarray:
        """bool per row: can it be a target?"""
        if self.target == "any":
            return np.ones(len(rows), dtype=bool)
        wanted = [len(explicit) - 1]
        if self.target == "explicit":
            wanted = [i for i, is_explicit in enumerate(explicit) if is_explicit]
        return (rows.mask & sum(1 << i for i in wanted)) != 0

    def _cuts(self, rows: Rows) -> np.ndarray:
        """The times of the first cut and of the test cut, for global_time."""
        last = len(rows) - 1
        after = self.val_share + self.test_share, self.test_share
        rank = [min(last, round((1 - share) * len(rows))) for share in after]
        return np.partition(rows.time, rank)[rank]

    def _leave_one_out(self, rows: Rows, eligible: np.ndarray) -> np.ndarray:
        n_users, index = int(rows.user[-1]) + 1, np.arange(len(rows), dtype=rows.origin.dtype)
        code = np.zeros(len(rows), dtype=np.int8)
        last = _last_per_user(index[eligible], rows.user, n_users)
        test = self._hold_out(code, TEST, last, rows, not self.test_without_history)
        if self.merge_val:
            return code
        before_test = index < test[rows.user]  # who is not tested is not validated
        val = np.full(n_users, -1, dtype=index.dtype)
        for wanted in [eligible, np.ones_like(eligible)][: 2 if self.fallback == "any" else 1]:
            last = _last_per_user(index[wanted & before_test & (code == TRAIN)], rows.user, n_users)
            still = np.where(val < 0, last, -1)
            val = np.maximum(val, self._hold_out(code, VAL, still, rows, True))
        return code

    def _hold_out(
        self, code: np.ndarray, which: int, target: np.ndarray, rows: Rows, history_needed: bool
    ) -> np.ndarray:
        """Mark each user's target row (-1: none) and purge the rest of its pair, where a training
        row remains: before the target with ``history_needed``, else anywhere.

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
        first = _first_per_user(
            np.flatnonzero(held == TRAIN).astype(target.dtype), rows.user, len(target)
        )
        target = np.where(first < (target if history_needed else len(rows)), target, -1)
        changed = target[rows.user] >= 0
        code[changed] = held[changed]
        return target

    def _global_time(self, rows: Rows, eligible: np.ndarray) -> np.ndarray:
        """Train before the first cut; the targets are each user's first eligible events after the first and the second cut."""
        n_users, index = int(rows.user[-1]) + 1, np.arange(len(rows), dtype=rows.origin.dtype)
        val_cut, test_cut = self._cuts(rows)
        # Who is tested does not depend on merge_val: both stages of selection=refit report on the same users.
        known = np.bincount(rows.user[rows.time < val_cut], minlength=n_users)[rows.user] > 0
        code = np.where(rows.time < (test_cut if self.merge_val else val_cut), TRAIN, PAST).astype(
            np.int8
        )
        after = rows.time >= test_cut
        for which, inside in ((TEST, after), (VAL, (rows.time >= val_cut) & ~after)):
            if which == TEST or not self.merge_val:
                target = _first_per_user(index[eligible & inside & known], rows.user, n_users)
                code[target[target < len(rows)]] = which
        return code


def _last_per_user(rows: np.ndarray, user: np.ndarray, n_users: int) -> np.ndarray:
    """The last of the ascending rows for each user, -1 where they have none."""
    last = np.full(n_users, -1, dtype=rows.dtype)
    last[user[rows]] = rows  # ascending, so the last assignment wins
    return last


def _first_per_user(rows: np.ndarray, user: np.ndarray, n_users: int) -> np.ndarray:
    """The first of the ascending rows for each user, len(user) where they have none."""
    first = np.full(n_users, len(user), dtype=rows.dtype)
    first[user[rows[::-1]]] = rows[::-1]
    return first
