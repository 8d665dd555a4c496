"""Which events are trained on, validated on and tested on: the papers' splits as settings."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import Field

from recexp.data import per_user
from recexp.data.dataset import check_choice
from recexp.data.rows import DROPPED, PAST, TEST, TRAIN, VAL, Rows
from recexp.data.split_kinds import KINDS, SplitKind
from recexp.errors import RecexpError

Share = Annotated[float, Field(gt=0, lt=1)]
Kind = Literal["leave_one_out", "leave_k_out", "ratio", "global_time", "user_folds", "given"]

# Options that came later than the first protocols: absent from ids at their defaults, so that
# earlier ids stay.
LATER_OPTIONS = (
    "test_without_history",
    "cold_targets",
    "repeat_targets",
    "k",
    "order",
    "seed",
    "later",
    "n_windows",
    "window",
    "n_folds",
    "fold",
)


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
            kinds = [name for name, kind in KINDS.items() if option.name in kind.options]
            value = getattr(self, option.name)
            if kinds and self.kind not in kinds and value != option.default:
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
        return self._kind.has_several_targets(self)

    @property
    def is_in_time_order(self) -> bool:
        """Do a user's targets come after their history? Else the time of events does not count."""
        return self._kind.is_in_time_order(self)

    @property
    def _kind(self) -> SplitKind:
        return KINDS[self.kind]

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
        code = self._kind.assign(self, rows, self._eligible(rows, explicit))
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
        tested_U = per_user.has_row(rows.user, code == TEST)
        validated_U = per_user.has_row(rows.user, code == VAL)
        eligible = self._eligible(rows, explicit)
        reasons = self._kind.reasons(self, rows, eligible, tested_U, validated_U)
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
            had_U = per_user.has_row(rows.user, is_held)
            code[is_held & unwanted] = PAST if self.is_in_time_order else DROPPED
            lost_U = had_U & ~per_user.has_row(rows.user, code == held_as)
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
