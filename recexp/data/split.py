"""Which events are trained on, validated on and tested on: the papers' splits as settings."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from recexp.data.dataset import check_choice
from recexp.data.rows import Rows
from recexp.errors import RecexpError

# Codes of rows.
TRAIN = 0
VAL = 1
TEST = 2
DROPPED = 3
PAST = 4  # read as history in evaluation, never trained on

Share = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True)
class Split:
    """How held-out targets are chosen. Part of the protocol and of the data's fingerprint.

    kind: "leave_one_out" (per user) or "global_time" (one cut for all users).
    target: which events can be targets: "any", "explicit" (any explicit behavior) or "strongest"
        (the last behavior only).
    purge: what else of the held-out (user, item) pair leaves training and histories: "pair" (every
        event of it), "later" (its events at or after the target's time) or "none". With "later" the
        weaker events before the target stay, and sampler=supportive_only draws that very pair as a
        negative: the sampler must not know what is held out.
    fallback: validation target of a user from whom no second eligible event can be held out: "any"
        (their last event before the test target) or "none".
    test_share, val_share: for global_time, the share of events after the test cut and between the
        two cuts.
    merge_val: validation targets are trained on (the second stage of selection=refit).
    test_without_history: a user is tested also where no training event precedes the target, as long
        as one follows it. Their history in evaluation is empty. A validation target always needs a
        training event before it.
    cold_targets: "drop" leaves out targets whose item has no training event, which most models can
        only guess: their users are not tested (or validated), and the events stay in histories.
        None keeps them; metrics under "<name>/cold" and "<name>/warm" tell them apart.
    """

    kind: Literal["leave_one_out", "global_time"] = "leave_one_out"
    target: Literal["any", "explicit", "strongest"] = "any"
    purge: Literal["pair", "later", "none"] = "none"
    fallback: Literal["any", "none"] = "none"
    test_share: Share = 0.1
    val_share: Share = 0.1
    merge_val: bool = False
    test_without_history: bool = False
    cold_targets: Literal["drop"] | None = None

    def __post_init__(self) -> None:
        check_choice("protocol.split.kind", self.kind, ("leave_one_out", "global_time"))
        check_choice("protocol.split.target", self.target, ("any", "explicit", "strongest"))
        check_choice("protocol.split.purge", self.purge, ("pair", "later", "none"))
        check_choice("protocol.split.fallback", self.fallback, ("any", "none"))
        if self.cold_targets is not None:
            check_choice("protocol.split.cold_targets", self.cold_targets, ("drop",))
        shares = (self.test_share, self.val_share)
        if not (min(shares) > 0 and sum(shares) < 1):
            raise RecexpError(
                "protocol.split.test_share and val_share must be positive and sum to less than 1."
            )
        if self.kind == "global_time" and (self.purge, self.fallback) != ("none", "none"):
            raise RecexpError(
                "protocol.split.purge and fallback belong to kind=leave_one_out; set both to none "
                "with kind=global_time."
            )
        if self.kind == "global_time" and self.test_without_history:
            raise RecexpError(
                "protocol.split.test_without_history belongs to kind=leave_one_out; set it to "
                "false with kind=global_time, which tests users known before the first cut only."
            )

    def identity(self) -> dict[str, Any]:
        """The settings as fingerprints and protocol ids hold them.

        An option that was added later is absent at its default, so that earlier ids stay valid.
        """
        settings = asdict(self)
        if not self.test_without_history:
            del settings["test_without_history"]
        if self.cold_targets is None:
            del settings["cold_targets"]
        return settings

    def assign(self, rows: Rows, explicit: list[bool]) -> np.ndarray:
        """Split code per row: int8 [E] of TRAIN, VAL, TEST, DROPPED, PAST.

        A user has at most one VAL and one TEST row, and the VAL row precedes the TEST row. A user
        keeps at least one TRAIN row before each; with test_without_history the TRAIN rows may all
        follow the TEST row. A user for whom that is impossible is only trained on (``left_out``
        counts them). explicit: per behavior, weak to strong.

        Raises:
            RecexpError: no user has a test target.
        """
        eligible = self._eligible(rows, explicit)
        if self.kind == "global_time":
            code = self._global_time(rows, eligible)
        else:
            code = self._leave_one_out(rows, eligible)
        if not (code == TEST).any():
            other = "other" if self.test_without_history else "earlier"
            raise RecexpError(
                f"No user has a test target: the split wants {self.target!r} events with at least "
                f"one {other} training event each. Check dataset.behaviors and dataset.explicit, "
                "loosen dataset.filters, or choose another protocol."
            )
        return code

    def left_out(self, rows: Rows, explicit: list[bool], code: np.ndarray) -> dict[str, int]:
        """Number of users whom ``code`` (of ``assign``) does not test or validate, by reason.

        The reasons that begin with "not tested" sum to the users without a test target, those that
        begin with "not validated" to the users without a validation target. Reasons without users
        are absent, and so is validation where ``merge_val`` trains on its targets.
        """
        tested_U = _users_of(rows, code == TEST)
        validated_U = _users_of(rows, code == VAL)
        if self.kind == "global_time":
            known_U = _users_of(rows, rows.time < self._cuts(rows)[0])
            reasons = {
                "not tested: no event before the first cut": ~known_U,
                "not tested: no event that can be a target after the test cut": known_U & ~tested_U,
                "not validated: no event before the first cut": ~known_U,
                "not validated: no event that can be a target between the cuts": known_U
                & ~validated_U,
            }
        else:
            eligible_U = _users_of(rows, self._eligible(rows, explicit))
            place = (
                "besides the target's pair" if self.test_without_history else "before the target"
            )
            reasons = {
                "not tested: no event that can be a target": ~eligible_U,
                f"not tested: no training event {place}": eligible_U & ~tested_U,
                "not validated: not tested": ~tested_U,
                "not validated: no target before the test target leaves a training event "
                "before it": tested_U & ~validated_U,
            }
        counts = {}
        for reason, is_left_out_U in reasons.items():
            is_relevant = reason.startswith("not tested") or not self.merge_val
            if is_relevant and is_left_out_U.any():
                counts[reason] = int(is_left_out_U.sum())
        return counts

    def drop_cold(self, rows: Rows, explicit: list[bool], code: np.ndarray) -> dict[str, int]:
        """Leave out the targets whose item has no training event: they become PAST.

        code: int8 [E] of ``assign``, changed in place. Returns the number of users by reason, as
        ``left_out`` does.

        Raises:
            RecexpError: no user has a test target then.
        """
        # Both stages of selection=refit test the same users: those of the first one.
        first = replace(self, merge_val=False).assign(rows, explicit) if self.merge_val else code
        is_trained_V = np.zeros(int(rows.item.max()) + 1, dtype=bool)
        is_trained_V[rows.item[first == TRAIN]] = True
        counts = {}
        for words, held_as in (("tested", TEST), ("validated", VAL)):
            is_cold = (code == held_as) & ~is_trained_V[rows.item]
            if is_cold.any():
                reason = f"not {words}: the target's item has no training event (cold)"
                counts[reason] = int(is_cold.sum())
                code[is_cold] = PAST
        if not (code == TEST).any():
            raise RecexpError(
                "No user has a test target whose item has a training event: set "
                "protocol.split.cold_targets=null, or loosen dataset.filters."
            )
        return counts

    def _eligible(self, rows: Rows, explicit: list[bool]) -> np.ndarray:
        """Can the row be a target? bool [E]."""
        if self.target == "any":
            return np.ones(len(rows), dtype=bool)
        if self.target == "explicit":
            wanted = [i for i, is_explicit in enumerate(explicit) if is_explicit]
        else:
            wanted = [len(explicit) - 1]
        return (rows.mask & sum(1 << i for i in wanted)) != 0

    def _cuts(self, rows: Rows) -> np.ndarray:
        """The times of the first cut and of the test cut, for global_time: int64 [2]."""
        last = len(rows) - 1
        shares_after = (self.val_share + self.test_share, self.test_share)
        ranks = [min(last, round((1 - share) * len(rows))) for share in shares_after]
        return np.partition(rows.time, ranks)[ranks]

    def _leave_one_out(self, rows: Rows, eligible: np.ndarray) -> np.ndarray:
        """Hold out each user's last eligible row for the test, and then the one before it."""
        n_users = int(rows.user[-1]) + 1
        index = np.arange(len(rows), dtype=rows.origin.dtype)
        code = np.zeros(len(rows), dtype=np.int8)  # TRAIN
        last_U = _last_per_user(index[eligible], rows.user, n_users)
        test_U = self._hold_out(code, TEST, last_U, rows, not self.test_without_history)
        if self.merge_val:
            return code
        before_test = index < test_U[rows.user]  # never where the user is not tested
        val_U = np.full(n_users, -1, dtype=index.dtype)
        candidates = [eligible]
        if self.fallback == "any":
            candidates.append(np.ones_like(eligible))
        for wanted in candidates:
            at = index[wanted & before_test & (code == TRAIN)]
            last_U = _last_per_user(at, rows.user, n_users)
            without_val_U = np.where(val_U < 0, last_U, -1)
            val_U = np.maximum(val_U, self._hold_out(code, VAL, without_val_U, rows, True))
        return code

    def _hold_out(
        self, code: np.ndarray, held_as: int, target_U: np.ndarray, rows: Rows, needs_history: bool
    ) -> np.ndarray:
        """Mark each user's target row and purge the rest of its pair, if a training row remains.

        code: int8 [E], changed in place. target_U: row numbers, -1 for none. needs_history: the
        training row must precede the target. Returns the targets held out, -1 for the others.
        """
        target_E = target_U[rows.user]
        held = code.copy()
        same_pair = (target_E >= 0) & (rows.item == rows.item[target_E]) & (code == TRAIN)
        if self.purge == "pair":
            held[same_pair] = DROPPED
        elif self.purge == "later":
            held[same_pair & (rows.time >= rows.time[target_E])] = DROPPED
        held[target_U[target_U >= 0]] = held_as
        train_at = np.flatnonzero(held == TRAIN).astype(target_U.dtype)
        first_train_U = _first_per_user(train_at, rows.user, len(target_U))
        must_precede = target_U if needs_history else len(rows)
        target_U = np.where(first_train_U < must_precede, target_U, -1)
        changed = target_U[rows.user] >= 0
        code[changed] = held[changed]
        return target_U

    def _global_time(self, rows: Rows, eligible: np.ndarray) -> np.ndarray:
        """Train before the first cut; each user's first eligible row after a cut is a target."""
        n_users = int(rows.user[-1]) + 1
        index = np.arange(len(rows), dtype=rows.origin.dtype)
        val_cut, test_cut = self._cuts(rows)
        # The tested users do not depend on merge_val: both stages of selection=refit report on the
        # same ones.
        n_known_U = np.bincount(rows.user[rows.time < val_cut], minlength=n_users)
        can_be_target = eligible & (n_known_U[rows.user] > 0)
        train_end = test_cut if self.merge_val else val_cut
        code = np.where(rows.time < train_end, TRAIN, PAST).astype(np.int8)
        after_test_cut = rows.time >= test_cut
        between_cuts = (rows.time >= val_cut) & ~after_test_cut
        within = {TEST: after_test_cut}
        if not self.merge_val:
            within[VAL] = between_cuts
        for held_as, inside in within.items():
            target_U = _first_per_user(index[can_be_target & inside], rows.user, n_users)
            code[target_U[target_U < len(rows)]] = held_as
        return code


def _users_of(rows: Rows, at: np.ndarray) -> np.ndarray:
    """Does the user own any of the selected rows? bool [U]. at: bool [E]."""
    found_U = np.zeros(int(rows.user[-1]) + 1, dtype=bool)
    found_U[rows.user[at]] = True
    return found_U


def _last_per_user(at: np.ndarray, user: np.ndarray, n_users: int) -> np.ndarray:
    """The last of the ascending row numbers ``at`` for each user, -1 where they have none."""
    last_U = np.full(n_users, -1, dtype=at.dtype)
    last_U[user[at]] = at  # ascending: the last assignment stays
    return last_U


def _first_per_user(at: np.ndarray, user: np.ndarray, n_users: int) -> np.ndarray:
    """The first of the ascending row numbers ``at`` per user, len(user) where they have none."""
    first_U = np.full(n_users, len(user), dtype=at.dtype)
    first_U[user[at[::-1]]] = at[::-1]
    return first_U
