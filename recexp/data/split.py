"""Which events are trained on, validated on and tested on: the papers' splits as settings."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import Field

from recexp.data import several_targets as several
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
Kind = Literal["leave_one_out", "leave_k_out", "ratio", "global_time", "user_folds", "given"]

# Options that came later than the first protocols: absent from ids at their defaults, so that
# earlier ids stay. With them the kinds that have them; None: all.
LATER_OPTIONS: dict[str, tuple[str, ...] | None] = {
    "test_without_history": ("leave_one_out", "given"),
    "cold_targets": None,
    "repeat_targets": None,
    "k": ("leave_k_out",),
    "order": ("ratio", "user_folds"),
    "seed": ("ratio", "user_folds"),
    "later": ("global_time",),
    "n_windows": ("global_time",),
    "window": ("global_time",),
    "n_folds": ("user_folds",),
    "fold": ("user_folds",),
}


@dataclass(frozen=True)
class Split:
    """How held-out targets are chosen. Part of the protocol and of the data's fingerprint.

    kind:
        "leave_one_out": each user's last event, and the one before it for validation.
        "leave_k_out": each user's last k events, and the k before them.
        "ratio": the last shares of each user's events, or random ones (``order``).
        "global_time": one cut in time for all users.
        "user_folds": the users of one of ``n_folds`` random folds are tested and those of the next
            one validated. Neither are trained on: the last share of their events are the targets,
            those before are the history.
        "given": the rows of the data say whether they are for training, validation or test.
            Without validation rows the last training event of each tested user validates.
    target: which events can be targets: "any", "explicit" (any explicit behavior) or "strongest"
        (the last behavior only).
    purge: what else of the held-out (user, item) pair leaves training and histories: "pair" (every
        event of it), "later" (its events at or after the target's time) or "none". With "later" the
        weaker events before the target stay, and sampler=supportive_only draws that very pair as a
        negative: the sampler must not know what is held out.
    fallback: validation target of a user from whom no second eligible event can be held out: "any"
        (their last event before the test target) or "none".
    test_share, val_share: for global_time, the share of all events after the test cut and between
        the two cuts; for ratio, the share of the user's events that can be targets; for user_folds,
        test_share of those of the held-out users, for validation as well.
    merge_val: validation targets are trained on (the second stage of selection=refit).
    test_without_history: a user is tested also where no training event precedes the target, as long
        as one follows it (for given: also where they have no other event). Their history in
        evaluation is empty. A validation target always needs a training event before it.
    cold_targets: "drop" leaves out targets whose item has no training event, which most models can
        only guess: users without others are not tested (or validated), and the events stay in
        histories. None keeps them; metrics under "<name>/cold" and "<name>/warm" tell them apart.
    repeat_targets: "drop" leaves out, in the same way, targets whose item the user had met through
        an equal or a stronger behavior. None keeps them; see "<name>/repeat".
    k: for leave_k_out. A user with fewer than k events that can be targets is only trained on.
    order: which of a user's events are the targets: the last in "time", or "random" ones.
    seed: of the random order, and of the folds.
    later: for global_time, the targets of a user: their "first" event after a cut or "all".
    n_windows, window: for global_time, a sequence of cuts: the test periods of the windows 0, 1,
        ... n_windows - 1 follow each other, each with test_share of all events, and the last one
        ends with the data. Nothing after its own test period is in a window's data.
    n_folds, fold: for user_folds, the number of folds, and the one that is tested.
    """

    kind: Kind = "leave_one_out"
    target: Literal["any", "explicit", "strongest"] = "any"
    purge: Literal["pair", "later", "none"] = "none"
    fallback: Literal["any", "none"] = "none"
    test_share: Share = 0.1
    val_share: Share = 0.1
    merge_val: bool = False
    test_without_history: bool = False
    cold_targets: Literal["drop"] | None = None
    repeat_targets: Literal["drop"] | None = None
    k: Annotated[int, Field(ge=1)] = 1
    order: Literal["time", "random"] = "time"
    seed: Annotated[int, Field(ge=0)] = 0
    later: Literal["first", "all"] = "first"
    n_windows: Annotated[int, Field(ge=1)] = 1
    window: Annotated[int, Field(ge=0)] = 0
    n_folds: Annotated[int, Field(ge=3)] = 5
    fold: Annotated[int, Field(ge=0)] = 0

    def __post_init__(self) -> None:
        check_choice("protocol.split.kind", self.kind, get_args(Kind))
        check_choice("protocol.split.target", self.target, ("any", "explicit", "strongest"))
        check_choice("protocol.split.purge", self.purge, ("pair", "later", "none"))
        check_choice("protocol.split.fallback", self.fallback, ("any", "none"))
        check_choice("protocol.split.order", self.order, ("time", "random"))
        check_choice("protocol.split.later", self.later, ("first", "all"))
        for name in ("cold_targets", "repeat_targets"):
            if getattr(self, name) is not None:
                check_choice(f"protocol.split.{name}", getattr(self, name), ("drop",))
        if self.kind != "leave_one_out" and (self.purge, self.fallback) != ("none", "none"):
            raise RecexpError(
                "protocol.split.purge and fallback belong to kind=leave_one_out; set both to none "
                f"with kind={self.kind}."
            )
        self._check_options()
        self._check_numbers()

    def _check_options(self) -> None:
        """Raise RecexpError for an option that this kind does not have."""
        for option in fields(self):
            kinds = LATER_OPTIONS.get(option.name)
            value = getattr(self, option.name)
            if kinds is not None and self.kind not in kinds and value != option.default:
                raise RecexpError(
                    f"protocol.split.{option.name} belongs to kind={' and kind='.join(kinds)}; set "
                    f"it to {str(option.default).lower()} with kind={self.kind}."
                )

    def _check_numbers(self) -> None:
        shares = (self.test_share, self.val_share)
        if not (min(shares) > 0 and sum(shares) < 1):
            raise RecexpError(
                "protocol.split.test_share and val_share must be positive and sum to less than 1."
            )
        for name, least in (("k", 1), ("seed", 0), ("n_windows", 1), ("n_folds", 3)):
            if getattr(self, name) < least:
                raise RecexpError(
                    f"protocol.split.{name}={getattr(self, name)} must be at least {least}."
                )
        if self.n_windows * self.test_share + self.val_share >= 1:
            raise RecexpError(
                f"protocol.split.n_windows={self.n_windows} test periods with "
                f"test_share={self.test_share} of the events each and "
                f"val_share={self.val_share} before the first one leave none to train on: lower "
                "them."
            )
        for name, number, n in (
            ("window", self.window, self.n_windows),
            ("fold", self.fold, self.n_folds),
        ):
            if not 0 <= number < n:
                raise RecexpError(f"protocol.split.{name}={number} must be one of 0 to {n - 1}.")

    @property
    def has_several_targets(self) -> bool:
        """May a user have several targets in one ranked list?"""
        if self.kind == "global_time":
            return self.later == "all"
        return self.kind != "leave_one_out"

    @property
    def is_in_time_order(self) -> bool:
        """Do a user's targets come after their history? Else the time of events does not count."""
        return self.kind != "given" and self.order == "time"

    def identity(self) -> dict[str, Any]:
        """The settings as fingerprints and protocol ids hold them.

        An option that was added later is absent at its default, so that earlier ids stay valid.
        """
        settings = asdict(self)
        for option in fields(self):
            if option.name in LATER_OPTIONS and settings[option.name] == option.default:
                del settings[option.name]
        return settings

    def assign(self, rows: Rows, explicit: list[bool]) -> np.ndarray:
        """Split code per row: int8 [E] of TRAIN, VAL, TEST, DROPPED, PAST.

        A user has at most one VAL and one TEST row (unless ``has_several_targets``), and the VAL
        rows precede the TEST rows. A user keeps at least one TRAIN row before each; with
        test_without_history the TRAIN rows may all follow the TEST row. A user for whom that is
        impossible is only trained on (``left_out`` counts them). explicit: per behavior, weak to
        strong.

        Raises:
            RecexpError: no user has a test target.
        """
        assigned = {
            "leave_one_out": self._leave_one_out,
            "leave_k_out": self._last_of_each,
            "ratio": self._last_of_each,
            "global_time": self._global_time,
            "user_folds": self._user_folds,
            "given": self._given,
        }
        code = assigned[self.kind](rows, self._eligible(rows, explicit))
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
        elif self.kind == "leave_one_out":
            reasons = self._left_out_of_one(rows, explicit, tested_U, validated_U)
        else:
            reasons = self._left_out_of_several(rows, explicit, tested_U, validated_U)
        counts = {}
        for reason, is_left_out_U in reasons.items():
            is_relevant = reason.startswith("not tested") or not self.merge_val
            if is_relevant and is_left_out_U.any():
                counts[reason] = int(is_left_out_U.sum())
        return counts

    def _left_out_of_one(
        self, rows: Rows, explicit: list[bool], tested_U: np.ndarray, validated_U: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Reasons of ``left_out`` for leave_one_out, and who is concerned, bool [U]."""
        eligible_U = _users_of(rows, self._eligible(rows, explicit))
        place = "besides the target's pair" if self.test_without_history else "before the target"
        return {
            "not tested: no event that can be a target": ~eligible_U,
            f"not tested: no training event {place}": eligible_U & ~tested_U,
            "not validated: not tested": ~tested_U,
            "not validated: no target before the test target leaves a training event before it": (
                tested_U & ~validated_U
            ),
        }

    def _left_out_of_several(
        self, rows: Rows, explicit: list[bool], tested_U: np.ndarray, validated_U: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Reasons of ``left_out`` for kinds with several targets but global_time, bool [U] each."""
        eligible = self._eligible(rows, explicit)
        n_eligible_U = np.bincount(rows.user[eligible], minlength=len(tested_U))
        if self.kind == "user_folds":
            fold_U = several.folds(len(tested_U), self.n_folds, self.seed)
            of_test_U = fold_U == self.fold
            of_val_U = fold_U == (self.fold + 1) % self.n_folds
            besides = "no event that can be a target besides a history"
            return {
                "not tested: in another fold": ~of_test_U,
                f"not tested: {besides}": of_test_U & ~tested_U,
                "not validated: in another fold": ~of_val_U,
                f"not validated: {besides}": of_val_U & ~validated_U,
            }
        if self.kind == "given":
            has_test_U = _users_of(rows, eligible & (self._parts(rows) == TEST))
            return {
                "not tested: no event of the test part that can be a target": ~has_test_U,
                "not tested: no event of another part": has_test_U & ~tested_U,
                "not validated: no validation target with a training event": ~validated_U,
            }
        has_enough_U = self._numbers_of_targets(n_eligible_U)[0] > 0
        return {
            "not tested: too few events that can be targets": ~has_enough_U,
            "not tested: no training event before the targets": has_enough_U & ~tested_U,
            "not validated: not tested": ~tested_U,
            "not validated: too few events before the test targets": tested_U & ~validated_U,
        }

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
        reason = "the target's item has no training event (cold)"
        if self.has_several_targets:
            reason = "no target's item has a training event (cold)"
        counts = self._drop(rows, code, ~is_trained_V[rows.item], reason)
        if not (code == TEST).any():
            raise RecexpError(
                "No user has a test target whose item has a training event: set "
                "protocol.split.cold_targets=null, or loosen dataset.filters."
            )
        return counts

    def drop_repeats(self, rows: Rows, code: np.ndarray, is_repeat: np.ndarray) -> dict[str, int]:
        """As ``drop_cold``, for targets that repeat a pair. is_repeat: bool [E].

        Raises:
            RecexpError: no user has a test target then.
        """
        reason = "the target repeats a pair of an equal or stronger behavior"
        if self.has_several_targets:
            reason = "all targets repeat pairs of an equal or stronger behavior"
        counts = self._drop(rows, code, is_repeat, reason)
        if not (code == TEST).any():
            raise RecexpError(
                "Every test target repeats an item of its user's history: set "
                "protocol.split.repeat_targets=null."
            )
        return counts

    def _drop(
        self, rows: Rows, code: np.ndarray, unwanted: np.ndarray, reason: str
    ) -> dict[str, int]:
        """Make unwanted targets PAST, or DROPPED where time does not count; users by reason.

        unwanted: bool [E]. code: changed in place.
        """
        counts = {}
        for words, held_as in (("tested", TEST), ("validated", VAL)):
            is_held = code == held_as
            had_U = _users_of(rows, is_held)
            code[is_held & unwanted] = PAST if self.is_in_time_order else DROPPED
            lost_U = had_U & ~_users_of(rows, code == held_as)
            if lost_U.any():
                counts[f"not {words}: {reason}"] = int(lost_U.sum())
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
        """The times of the first cut and of the test cut, for global_time: int64 [2].

        A third one ends the test period where another window's follows it.
        """
        last = len(rows) - 1
        n_later = self.n_windows - 1 - self.window
        test_share = (n_later + 1) * self.test_share
        shares_after = [self.val_share + test_share, test_share]
        if n_later:
            shares_after.append(n_later * self.test_share)
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
        """Train before the first cut; targets are the first eligible rows after a cut, or all."""
        n_users = int(rows.user[-1]) + 1
        index = np.arange(len(rows), dtype=rows.origin.dtype)
        val_cut, test_cut, *end = self._cuts(rows)
        # The tested users do not depend on merge_val: both stages of selection=refit report on the
        # same ones.
        n_known_U = np.bincount(rows.user[rows.time < val_cut], minlength=n_users)
        can_be_target = eligible & (n_known_U[rows.user] > 0)
        train_end = test_cut if self.merge_val else val_cut
        code = np.where(rows.time < train_end, TRAIN, PAST).astype(np.int8)
        after_test_cut = rows.time >= test_cut
        if end:
            code[rows.time >= end[0]] = DROPPED
            after_test_cut &= rows.time < end[0]
        between_cuts = (rows.time >= val_cut) & (rows.time < test_cut)
        within = {TEST: after_test_cut}
        if not self.merge_val:
            within[VAL] = between_cuts
        for held_as, inside in within.items():
            at = index[can_be_target & inside]
            if self.later == "all":
                code[at[several.first_of_pairs(rows, at)]] = held_as
                continue
            target_U = _first_per_user(at, rows.user, n_users)
            code[target_U[target_U < len(rows)]] = held_as
        return code

    def _last_of_each(self, rows: Rows, eligible: np.ndarray) -> np.ndarray:
        """Hold out each user's last eligible rows, or random ones, and those before them."""
        code = np.zeros(len(rows), dtype=np.int8)  # TRAIN
        place = self._places(rows, eligible)
        n_eligible_U = np.bincount(rows.user[eligible], minlength=int(rows.user[-1]) + 1)
        n_test_U, n_val_U = self._numbers_of_targets(n_eligible_U)
        n_test = n_test_U[rows.user]
        is_test = (place >= 0) & (place < n_test)
        self._hold_out_several(code, TEST, rows, is_test, ~is_test)
        if not self.merge_val:
            is_val = (place >= n_test) & (place < n_test + n_val_U[rows.user])
            is_val &= _users_of(rows, code == TEST)[rows.user]
            self._hold_out_several(code, VAL, rows, is_val, (code == TRAIN) & ~is_val)
        if self.order == "time":
            held_from_U = several.first_row(rows.user, (code == TEST) | (code == VAL))
            is_later = np.arange(len(rows)) >= held_from_U[rows.user]
            code[is_later & (code == TRAIN)] = PAST
        return code

    def _numbers_of_targets(self, n_eligible_U: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How many test and validation targets a user is to have, int64 [U] each."""
        if self.kind == "ratio":
            n_test_U = several.share_of(n_eligible_U, self.test_share)
            return n_test_U, several.share_of(n_eligible_U, self.val_share)
        n_test_U = np.where(n_eligible_U >= self.k, self.k, 0)
        return n_test_U, np.where(n_eligible_U >= 2 * self.k, self.k, 0)

    def _places(self, rows: Rows, eligible: np.ndarray) -> np.ndarray:
        """Place of each eligible row from the end of its user's, by time or random; else -1."""
        if self.order == "random":
            return several.random_place(rows.user, eligible, self.seed)
        return several.place_from_end(rows.user, eligible)

    def _user_folds(self, rows: Rows, eligible: np.ndarray) -> np.ndarray:
        """Hold out the last eligible rows, or random ones, of the users of two folds."""
        n_users = int(rows.user[-1]) + 1
        fold = several.folds(n_users, self.n_folds, self.seed)[rows.user]
        n_eligible_U = np.bincount(rows.user[eligible], minlength=n_users)
        n_targets_U = several.share_of(n_eligible_U, self.test_share).clip(min=1)
        place = self._places(rows, eligible)
        is_target = (place >= 0) & (place < n_targets_U[rows.user])
        code = np.zeros(len(rows), dtype=np.int8)  # TRAIN
        held_out = {TEST: self.fold}
        if not self.merge_val:
            held_out[VAL] = (self.fold + 1) % self.n_folds
        for held_as, number in held_out.items():
            of_fold = fold == number
            code[of_fold] = PAST
            wanted = of_fold & is_target
            self._hold_out_several(code, held_as, rows, wanted, of_fold & ~is_target)
        return code

    def _given(self, rows: Rows, eligible: np.ndarray) -> np.ndarray:
        """Hold out the rows that the data name, and more to validate on where they name none."""
        part = self._parts(rows)
        code = np.where(part == TRAIN, TRAIN, DROPPED).astype(np.int8)
        is_test = eligible & (part == TEST)
        has_history = np.ones_like(is_test) if self.test_without_history else part != TEST
        self._hold_out_several(code, TEST, rows, is_test, has_history)
        is_train = part == TRAIN
        if (part == VAL).any():
            is_val = eligible & (part == VAL)
        else:
            is_val = several.place_from_end(rows.user, eligible & is_train) == 0
            is_val &= _users_of(rows, code == TEST)[rows.user]
        if self.merge_val:
            code[part == VAL] = TRAIN
        else:
            self._hold_out_several(code, VAL, rows, is_val, is_train & ~is_val)
        return code

    def _parts(self, rows: Rows) -> np.ndarray:
        """TRAIN, VAL or TEST per row, as the data say. Raises RecexpError where they do not."""
        if rows.part is None:
            raise RecexpError(
                "protocol.split.kind=given takes data whose events say what they are for: read "
                "them by dataset=given, or choose another protocol."
            )
        return rows.part

    def _hold_out_several(
        self,
        code: np.ndarray,
        held_as: int,
        rows: Rows,
        wanted: np.ndarray,
        is_history: np.ndarray,
    ) -> None:
        """Mark the wanted rows of users who have a history.

        A history is a row of ``is_history`` (bool [E]); in time order it must precede the wanted
        ones. Of several wanted rows with one item the first is marked; the others are neither
        trained on nor targets. code: int8 [E], changed in place.
        """
        first_U = several.first_row(rows.user, is_history)
        before_U = several.first_row(rows.user, wanted) if self.is_in_time_order else len(rows)
        at = np.flatnonzero(wanted & (first_U < before_U)[rows.user])
        code[at] = PAST if self.is_in_time_order else DROPPED
        code[at[several.first_of_pairs(rows, at)]] = held_as


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
