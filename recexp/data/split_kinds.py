"""The kinds of splits: how each chooses the rows that are held out.

Codes of rows are those of ``recexp.data.rows``. Suffixes of shapes: E rows, sorted by user and
time; U users.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from recexp.data import per_user
from recexp.data.rows import DROPPED, PAST, TEST, TRAIN, VAL, Rows
from recexp.errors import RecexpError

if TYPE_CHECKING:
    from recexp.data.split import Split


class SplitKind(ABC):
    """One value of ``Split.kind``. The methods are given the settings.

    options: the settings of ``Split`` that only some kinds have, this one among them.
    """

    options: ClassVar[tuple[str, ...]] = ()

    def has_several_targets(self, split: Split) -> bool:
        """May a user have several targets in one ranked list?"""
        return True

    def is_in_time_order(self, split: Split) -> bool:
        """Do a user's targets come after their history?"""
        return split.order == "time"

    @abstractmethod
    def assign(self, split: Split, rows: Rows, eligible: np.ndarray) -> np.ndarray:
        """Code per row, int8 [E]. eligible: can the row be a target? bool [E]."""

    @abstractmethod
    def reasons(
        self,
        split: Split,
        rows: Rows,
        eligible: np.ndarray,
        tested_U: np.ndarray,
        validated_U: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """Why users are not tested or validated, and whom each reason concerns, bool [U].

        tested_U, validated_U: has the user a target? The reasons begin with "not tested" or "not
        validated".
        """


class LeaveOneOut(SplitKind):
    """Each user's last eligible row for the test, and the one before it for validation."""

    options = ("test_without_history",)

    def has_several_targets(self, split: Split) -> bool:
        return False

    def assign(self, split: Split, rows: Rows, eligible: np.ndarray) -> np.ndarray:
        n_users = int(rows.user[-1]) + 1
        index = np.arange(len(rows), dtype=rows.origin.dtype)
        code = np.zeros(len(rows), dtype=np.int8)  # TRAIN
        last_U = per_user.last_of(index[eligible], rows.user, n_users)
        needs_history = not split.test_without_history
        test_U = self._hold_out(split, code, TEST, last_U, rows, needs_history)
        if split.merge_val:
            return code
        before_test = index < test_U[rows.user]  # never where the user is not tested
        val_U = np.full(n_users, -1, dtype=index.dtype)
        candidates = [eligible]
        if split.fallback == "any":
            candidates.append(np.ones_like(eligible))
        for wanted in candidates:
            at = index[wanted & before_test & (code == TRAIN)]
            last_U = per_user.last_of(at, rows.user, n_users)
            without_val_U = np.where(val_U < 0, last_U, -1)
            val_U = np.maximum(val_U, self._hold_out(split, code, VAL, without_val_U, rows, True))
        return code

    def reasons(
        self,
        split: Split,
        rows: Rows,
        eligible: np.ndarray,
        tested_U: np.ndarray,
        validated_U: np.ndarray,
    ) -> dict[str, np.ndarray]:
        eligible_U = per_user.has_row(rows.user, eligible)
        place = "besides the target's pair" if split.test_without_history else "before the target"
        return {
            "not tested: no event that can be a target": ~eligible_U,
            f"not tested: no training event {place}": eligible_U & ~tested_U,
            "not validated: not tested": ~tested_U,
            "not validated: no target before the test target leaves a training event before it": (
                tested_U & ~validated_U
            ),
        }

    def _hold_out(
        self,
        split: Split,
        code: np.ndarray,
        held_as: int,
        target_U: np.ndarray,
        rows: Rows,
        needs_history: bool,
    ) -> np.ndarray:
        """Mark each user's target row and purge the rest of its pair, if a training row remains.

        code: int8 [E], changed in place. target_U: row numbers, -1 for none. needs_history: the
        training row must precede the target. Returns the targets held out, -1 for the others.
        """
        target_E = target_U[rows.user]
        held = code.copy()
        same_pair = (target_E >= 0) & (rows.item == rows.item[target_E]) & (code == TRAIN)
        if split.purge == "pair":
            held[same_pair] = DROPPED
        elif split.purge == "later":
            held[same_pair & (rows.time >= rows.time[target_E])] = DROPPED
        held[target_U[target_U >= 0]] = held_as
        train_at = np.flatnonzero(held == TRAIN).astype(target_U.dtype)
        first_train_U = per_user.first_of(train_at, rows.user, len(target_U))
        must_precede = target_U if needs_history else len(rows)
        target_U = np.where(first_train_U < must_precede, target_U, -1)
        changed = target_U[rows.user] >= 0
        code[changed] = held[changed]
        return target_U


class LastOfEach(SplitKind):
    """Each user's last eligible rows, or random ones, and those before them for validation."""

    @abstractmethod
    def n_targets(self, split: Split, n_eligible_U: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How many test and validation targets a user is to have, int64 [U] each."""

    def assign(self, split: Split, rows: Rows, eligible: np.ndarray) -> np.ndarray:
        code = np.zeros(len(rows), dtype=np.int8)  # TRAIN
        place = _places(split, rows, eligible)
        n_test_U, n_val_U = self.n_targets(split, _counts(rows, eligible))
        n_test = n_test_U[rows.user]
        is_test = (place >= 0) & (place < n_test)
        _hold_out(split, code, TEST, rows, is_test, ~is_test)
        if not split.merge_val:
            is_val = (place >= n_test) & (place < n_test + n_val_U[rows.user])
            is_val &= per_user.has_row(rows.user, code == TEST)[rows.user]
            _hold_out(split, code, VAL, rows, is_val, (code == TRAIN) & ~is_val)
        if split.order == "time":
            held_from_U = per_user.first_row(rows.user, (code == TEST) | (code == VAL))
            is_later = np.arange(len(rows)) >= held_from_U[rows.user]
            code[is_later & (code == TRAIN)] = PAST
        return code

    def reasons(
        self,
        split: Split,
        rows: Rows,
        eligible: np.ndarray,
        tested_U: np.ndarray,
        validated_U: np.ndarray,
    ) -> dict[str, np.ndarray]:
        has_enough_U = self.n_targets(split, _counts(rows, eligible))[0] > 0
        return {
            "not tested: too few events that can be targets": ~has_enough_U,
            "not tested: no training event before the targets": has_enough_U & ~tested_U,
            "not validated: not tested": ~tested_U,
            "not validated: too few events before the test targets": tested_U & ~validated_U,
        }


class LeaveKOut(LastOfEach):
    """Each user's last k eligible rows, and the k before them."""

    options = ("k",)

    def n_targets(self, split: Split, n_eligible_U: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        n_test_U = np.where(n_eligible_U >= split.k, split.k, 0)
        return n_test_U, np.where(n_eligible_U >= 2 * split.k, split.k, 0)


class Ratio(LastOfEach):
    """The last shares of each user's eligible rows, or random ones."""

    options = ("order", "seed")

    def n_targets(self, split: Split, n_eligible_U: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        n_test_U = per_user.share_of(n_eligible_U, split.test_share)
        return n_test_U, per_user.share_of(n_eligible_U, split.val_share)


class GlobalTime(SplitKind):
    """Train before a first cut in time; targets are the first eligible rows after a cut, or all."""

    options = ("later", "n_windows", "window")

    def has_several_targets(self, split: Split) -> bool:
        return split.later == "all"

    def assign(self, split: Split, rows: Rows, eligible: np.ndarray) -> np.ndarray:
        n_users = int(rows.user[-1]) + 1
        index = np.arange(len(rows), dtype=rows.origin.dtype)
        val_cut, test_cut, *end = _cuts(split, rows)
        # The tested users do not depend on merge_val: both stages of selection=refit report on the
        # same ones.
        n_known_U = np.bincount(rows.user[rows.time < val_cut], minlength=n_users)
        can_be_target = eligible & (n_known_U[rows.user] > 0)
        train_end = test_cut if split.merge_val else val_cut
        code = np.where(rows.time < train_end, TRAIN, PAST).astype(np.int8)
        after_test_cut = rows.time >= test_cut
        if end:
            code[rows.time >= end[0]] = DROPPED
            after_test_cut &= rows.time < end[0]
        between_cuts = (rows.time >= val_cut) & (rows.time < test_cut)
        within = {TEST: after_test_cut}
        if not split.merge_val:
            within[VAL] = between_cuts
        for held_as, inside in within.items():
            at = index[can_be_target & inside]
            if split.later == "all":
                code[at[per_user.first_of_pairs(rows, at)]] = held_as
                continue
            target_U = per_user.first_of(at, rows.user, n_users)
            code[target_U[target_U < len(rows)]] = held_as
        return code

    def reasons(
        self,
        split: Split,
        rows: Rows,
        eligible: np.ndarray,
        tested_U: np.ndarray,
        validated_U: np.ndarray,
    ) -> dict[str, np.ndarray]:
        known_U = per_user.has_row(rows.user, rows.time < _cuts(split, rows)[0])
        no_target = "no event that can be a target"
        return {
            "not tested: no event before the first cut": ~known_U,
            f"not tested: {no_target} after the test cut": known_U & ~tested_U,
            "not validated: no event before the first cut": ~known_U,
            f"not validated: {no_target} between the cuts": known_U & ~validated_U,
        }


class UserFolds(SplitKind):
    """The last eligible rows, or random ones, of the users of two folds."""

    options = ("order", "seed", "n_folds", "fold")

    def assign(self, split: Split, rows: Rows, eligible: np.ndarray) -> np.ndarray:
        n_users = int(rows.user[-1]) + 1
        fold = per_user.folds(n_users, split.n_folds, split.seed)[rows.user]
        n_targets_U = per_user.share_of(_counts(rows, eligible), split.test_share).clip(min=1)
        place = _places(split, rows, eligible)
        is_target = (place >= 0) & (place < n_targets_U[rows.user])
        code = np.zeros(len(rows), dtype=np.int8)  # TRAIN
        held_out = {TEST: split.fold}
        if not split.merge_val:
            held_out[VAL] = _next_fold(split)
        for held_as, number in held_out.items():
            of_fold = fold == number
            code[of_fold] = PAST
            wanted = of_fold & is_target
            _hold_out(split, code, held_as, rows, wanted, of_fold & ~is_target)
        return code

    def reasons(
        self,
        split: Split,
        rows: Rows,
        eligible: np.ndarray,
        tested_U: np.ndarray,
        validated_U: np.ndarray,
    ) -> dict[str, np.ndarray]:
        fold_U = per_user.folds(len(tested_U), split.n_folds, split.seed)
        of_test_U = fold_U == split.fold
        of_val_U = fold_U == _next_fold(split)
        besides = "no event that can be a target besides a history"
        return {
            "not tested: in another fold": ~of_test_U,
            f"not tested: {besides}": of_test_U & ~tested_U,
            "not validated: in another fold": ~of_val_U,
            f"not validated: {besides}": of_val_U & ~validated_U,
        }


class Given(SplitKind):
    """The rows that the data name, and more to validate on where they name none."""

    options = ("test_without_history",)

    def is_in_time_order(self, split: Split) -> bool:
        return False

    def assign(self, split: Split, rows: Rows, eligible: np.ndarray) -> np.ndarray:
        part = _parts(rows)
        code = np.where(part == TRAIN, TRAIN, DROPPED).astype(np.int8)
        is_test = eligible & (part == TEST)
        has_history = np.ones_like(is_test) if split.test_without_history else part != TEST
        _hold_out(split, code, TEST, rows, is_test, has_history)
        is_train = part == TRAIN
        if (part == VAL).any():
            is_val = eligible & (part == VAL)
        else:
            is_val = per_user.place_from_end(rows.user, eligible & is_train) == 0
            is_val &= per_user.has_row(rows.user, code == TEST)[rows.user]
        if split.merge_val:
            code[part == VAL] = TRAIN
        else:
            _hold_out(split, code, VAL, rows, is_val, is_train & ~is_val)
        return code

    def reasons(
        self,
        split: Split,
        rows: Rows,
        eligible: np.ndarray,
        tested_U: np.ndarray,
        validated_U: np.ndarray,
    ) -> dict[str, np.ndarray]:
        has_test_U = per_user.has_row(rows.user, eligible & (_parts(rows) == TEST))
        return {
            "not tested: no event of the test part that can be a target": ~has_test_U,
            "not tested: no event of another part": has_test_U & ~tested_U,
            "not validated: no validation target with a training event": ~validated_U,
        }


KINDS: dict[str, SplitKind] = {
    "leave_one_out": LeaveOneOut(),
    "leave_k_out": LeaveKOut(),
    "ratio": Ratio(),
    "global_time": GlobalTime(),
    "user_folds": UserFolds(),
    "given": Given(),
}


def _counts(rows: Rows, eligible: np.ndarray) -> np.ndarray:
    """Number of eligible rows, int64 [U]."""
    return np.bincount(rows.user[eligible], minlength=int(rows.user[-1]) + 1)


def _places(split: Split, rows: Rows, eligible: np.ndarray) -> np.ndarray:
    """Place of each eligible row from the end of its user's, by time or random; else -1."""
    if split.order == "random":
        return per_user.random_place(rows.user, eligible, split.seed)
    return per_user.place_from_end(rows.user, eligible)


def _next_fold(split: Split) -> int:
    """The fold that is validated."""
    return (split.fold + 1) % split.n_folds


def _cuts(split: Split, rows: Rows) -> np.ndarray:
    """The times of the first cut and of the test cut: int64 [2].

    A third one ends the test period where another window's follows it.
    """
    last = len(rows) - 1
    n_later = split.n_windows - 1 - split.window
    test_share = (n_later + 1) * split.test_share
    shares_after = [split.val_share + test_share, test_share]
    if n_later:
        shares_after.append(n_later * split.test_share)
    ranks = [min(last, round((1 - share) * len(rows))) for share in shares_after]
    return np.partition(rows.time, ranks)[ranks]


def _parts(rows: Rows) -> np.ndarray:
    """TRAIN, VAL or TEST per row, as the data say. Raises RecexpError where they do not."""
    if rows.part is None:
        raise RecexpError(
            "protocol.split.kind=given takes data whose events say what they are for: read "
            "them by dataset=given, or choose another protocol."
        )
    return rows.part


def _hold_out(
    split: Split,
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
    first_U = per_user.first_row(rows.user, is_history)
    before_U = per_user.first_row(rows.user, wanted) if split.is_in_time_order else len(rows)
    at = np.flatnonzero(wanted & (first_U < before_U)[rows.user])
    code[at] = PAST if split.is_in_time_order else DROPPED
    code[at[per_user.first_of_pairs(rows, at)]] = held_as
