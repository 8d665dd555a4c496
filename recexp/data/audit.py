"""What preparation reports: events dropped, users left out, and leaks between the splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from recexp.data.rows import TEST, TRAIN, Rows


@dataclass(frozen=True)
class Acquaintance:
    """What is known of Q targets before they are predicted: bool [Q] each.

    A target is one of three: repeat, seen or, where it is neither, new. Whether it is cold is
    independent of that.
    """

    seen: np.ndarray  # the user met the item before, through weaker behaviors only
    repeat: np.ndarray  # the user met it before through an equal or a stronger behavior
    cold: np.ndarray  # the item has no training event

    def sorted_as(self, at: np.ndarray, was_held: np.ndarray) -> Acquaintance:
        """The same in another order of the targets.

        at: row numbers of the targets in the new order. was_held: bool [E], the rows of the targets
        in the order that they have here.
        """
        place = (np.cumsum(was_held) - 1)[at]
        return Acquaintance(self.seen[place], self.repeat[place], self.cold[place])

    def shares(self) -> dict[str, float]:
        """The share of repeat, seen, new and cold targets; 0 where there are no targets."""
        n = max(1, len(self.seen))
        new = ~(self.seen | self.repeat)
        return {
            "repeat": float(self.repeat.sum() / n),
            "seen": float(self.seen.sum() / n),
            "new": float(new.sum() / n),
            "cold": float(self.cold.sum() / n),
        }


@dataclass
class Report:
    """Filled step by step during preparation; it is printed and kept in ``meta.json``.

    lines: one line of text per finding. left_out: reason -> number of users who are not evaluated.
    """

    lines: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)

    def add(self, line: str) -> None:
        self.lines.append(line)

    def leave_out(self, reason: str, n_users: int) -> None:
        """Count users as left out for this reason; a reason without users is not listed."""
        if n_users > 0:
            self.left_out[reason] = n_users

    def left_out_line(self) -> str:
        listed = "; ".join(f"{n:,} {reason}" for reason, n in self.left_out.items())
        return f"users left out: {listed or 'none'}"


def audit_leaks(
    rows: Rows, code: np.ndarray, known: Mapping[str, Acquaintance], in_time_order: bool = True
) -> dict[str, float]:
    """Shares that limit how far results can be trusted.

    rows: all rows that are kept. code: int8 [E], their split. known: of the "val" and
    "test" targets. in_time_order: are the rows of a user sorted by time?

    Returns:
        tied_targets: test targets that share their time with another event of their user.
        repeat_targets, seen_targets, new_targets, cold_targets: kinds of test targets, see
            ``Acquaintance``; the same with val_ before it for the validation targets.
        future_events: training events after the (first) test event of their user.
    """
    if not in_time_order:
        by_time = np.lexsort((rows.time, rows.user))
        rows = rows[by_time]
        code = code[by_time]
    test_at = np.flatnonzero(code == TEST)
    same_user = np.diff(rows.user) == 0
    same_time = np.diff(rows.time) == 0
    # False at every user's last row, the very last row included: index test_at - 1 is thus right
    # where a target is its user's first row, and also where it is row 0.
    same_as_next = np.append(same_user & same_time, False)
    tied = same_as_next[test_at] | same_as_next[test_at - 1]

    test_time_U = np.full(rows.user[-1] + 1, np.iinfo(np.int64).max)
    earliest_last = test_at[::-1]  # of several assignments to a user the last one stays
    test_time_U[rows.user[earliest_last]] = rows.time[earliest_last]
    after_test = rows.time > test_time_U[rows.user]
    return {
        "tied_targets": float(tied.mean()),
        "future_events": float(after_test[code == TRAIN].mean()),
        **{f"{kind}_targets": share for kind, share in known["test"].shares().items()},
        **{f"val_{kind}_targets": share for kind, share in known["val"].shares().items()},
    }


def audit_of_several(rows: Rows, code: np.ndarray) -> dict[str, float]:
    """More shares for splits with several targets per user; arguments as of ``audit_leaks``.

    Returns:
        trained_after_first_target: training events after the first test target of any user, from
            which a model can learn what was popular at the time of the targets.
        tested_users_trained: tested users who have a training event.
    """
    is_test = code == TEST
    is_train = code == TRAIN
    first_time = rows.time[is_test].min()
    n_users = int(rows.user[-1]) + 1
    is_tested_U = np.zeros(n_users, dtype=bool)
    is_tested_U[rows.user[is_test]] = True
    is_trained_U = np.zeros(n_users, dtype=bool)
    is_trained_U[rows.user[is_train]] = True
    return {
        "trained_after_first_target": float((rows.time[is_train] > first_time).mean()),
        "tested_users_trained": float(is_trained_U[is_tested_U].mean()),
    }


def weaker_only_share(
    train_pairs: dict[str, np.ndarray], user: np.ndarray, item: np.ndarray, n_behaviors: int
) -> float:
    """Share of targets whose pair is in training, but without the strongest behavior.

    train_pairs: unique (user, item) with ``mask``, sorted. user, item: int [Q] of the targets,
    users ascending, no pair twice. 0 where there are no targets.
    """
    if not len(user):
        return 0.0
    if (np.diff(user) == 0).any():
        return _weaker_only_share_of_several(train_pairs, user, item, n_behaviors)
    n_users = 1 + max(int(user.max()), int(train_pairs["user"].max()))
    target_U = np.zeros(n_users, dtype=train_pairs["item"].dtype)
    target_U[user] = item
    lacks_strongest = (train_pairs["mask"] >> (n_behaviors - 1)) & 1 == 0
    is_target = train_pairs["item"] == target_U[train_pairs["user"]]
    return float((lacks_strongest & is_target).sum() / len(user))


def _weaker_only_share_of_several(
    train_pairs: dict[str, np.ndarray], user: np.ndarray, item: np.ndarray, n_behaviors: int
) -> float:
    """As ``weaker_only_share``, where a user may have several targets."""
    target = np.sort((user.astype(np.int64) << 32) + item)
    n_users = 1 + max(int(user.max()), int(train_pairs["user"].max()))
    is_asked_U = np.zeros(n_users, dtype=bool)
    is_asked_U[user] = True
    at = np.flatnonzero(is_asked_U[train_pairs["user"]])
    pair = (train_pairs["user"][at].astype(np.int64) << 32) + train_pairs["item"][at]
    place = np.searchsorted(target, pair).clip(max=len(target) - 1)
    lacks_strongest = (train_pairs["mask"][at] >> (n_behaviors - 1)) & 1 == 0
    return float(((target[place] == pair) & lacks_strongest).sum() / len(user))


def audit_line(audit: dict[str, float], behaviors: Sequence[str]) -> str:
    """The audit as one line of the report."""
    of_several = ""
    if "tested_users_trained" in audit:
        of_several = (
            f"{audit['trained_after_first_target']:.1%} of training events happened after the "
            f"first test target of any user; {audit['tested_users_trained']:.1%} of tested users "
            "have training events; "
        )
    return (
        "audit of leaks: "
        f"{audit['tied_targets']:.1%} of test targets share their time with another event of the "
        "user; "
        f"{audit['repeat_targets']:.1%} repeat a pair of an equal or stronger behavior; "
        f"{audit['seen_targets']:.1%} were seen before through weaker behaviors only; "
        f"the items of {audit['cold_targets']:.1%} have no training event (cold); "
        f"{audit['future_events']:.1%} of training events happened after their user's test event; "
        f"{of_several}"
        f"{audit['test_targets_weaker_only']:.1%} of test and "
        f"{audit['val_targets_weaker_only']:.1%} of validation targets stand "
        f"in training through behaviors weaker than {behaviors[-1]} only, so that "
        "sampler=supportive_only draws them as negatives for their own user"
    )
