"""The settings of a data set, as its YAML in ``conf/dataset`` gives them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from recexp.errors import RecexpError

MAX_BEHAVIORS = 31  # each has one bit of an int32 mask
MAX_COUNT = 2**31
MAX_SHOWN = 80  # characters of a value in an error
STEP_KEYS = {"user_min", "item_min", "user_max", "count"}  # of a filter step
BadRows = Literal["error", "drop"]
# What programs write where an id is missing.
MISSING_IDS = (
    "",
    "NA",
    "N/A",
    "#N/A",
    "<NA>",
    "null",
    "<null>",
    "(null)",
    "none",
    "nil",
    "nan",
    "NaT",
    "undefined",
    "\\N",
)


@dataclass
class Dataset:
    """Where the raw files are, how to read them and which of their events count.

    name: begins the names of prepared folders.
    raw_dir: folder of the raw files; not part of the fingerprint.
    source: config of the reader (``_target_``, ``_partial_`` and its options). It is instantiated
        only when raw files must be read.
    behaviors: the raw behaviors, weak to strong.
    explicit: those of them that count as explicit feedback.
    keep_behaviors: those of them whose events are taken; all other events, of behaviors that are
        not listed, too, are dropped and counted. None: all, and others are faults.
    value_behaviors: behavior -> least value, to derive behaviors from ratings; they replace
        ``behaviors``. None: the source's own behaviors.
    filters: steps as ``filters.apply_filters`` takes them.
    iterate_filters: repeat the steps until nothing changes (k-core).
    merge: "pairs" keeps one row per (user, item): its strongest behavior at its last explicit
        time. With protocol.split.purge=later, which holds out single events, only rows between two
        held-out events are merged. "none" keeps all events.
    window: {start, end} as ISO dates, end excluded; None keeps all times.
    on_bad_rows: "error" stops at the first bad row of a raw file, "drop" leaves bad rows out.
    missing_ids: texts, in upper or lower case, that are no user and no item; their events are
        dropped and counted, and blanks around ids are removed. None: ``MISSING_IDS``. Empty: all
        texts are ids as they stand, with their blanks (names that people chose). Ids that are
        numbers are not concerned.
    sessions: {gap_minutes}: a user's events fall into sessions, each a user of its own, where so
        many minutes pass without an event. None: users are users.
    behavior_names: text in the files -> name of a behavior, weak to strong, such as
        {1: click, 2: cart, 3: buy}; the names replace ``behaviors``. Texts may share a name. None:
        the texts are the names.
    download: where the raw files come from (``download.block``). It is in no fingerprint.
    """

    name: str
    raw_dir: str
    source: Mapping[str, Any]
    behaviors: Annotated[Sequence[str], Field(max_length=MAX_BEHAVIORS)]
    explicit: Sequence[str]
    value_behaviors: Mapping[str, float] | None = None
    filters: Sequence[Mapping[str, Any]] = field(default_factory=list)
    iterate_filters: bool = False
    merge: Literal["none", "pairs"] = "none"
    window: Mapping[str, str] | None = None
    on_bad_rows: BadRows = "error"
    missing_ids: Sequence[str] | None = None
    keep_behaviors: Sequence[str] | None = None
    sessions: Mapping[str, float] | None = None
    behavior_names: Mapping[Any, str] | None = None
    download: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.behavior_names and self.value_behaviors:
            raise RecexpError(
                "dataset.behavior_names and dataset.value_behaviors both name the behaviors: "
                "set one of them to null."
            )
        if self.behavior_names:
            self.behavior_names = {str(text): name for text, name in self.behavior_names.items()}
            self.behaviors = list(dict.fromkeys(self.behavior_names.values()))
        if thresholds := self.value_behaviors:
            _check_thresholds(thresholds)
            self.behaviors = sorted(thresholds, key=lambda name: thresholds[name])
        self._check()
        if self.keep_behaviors is not None:
            self._keep(list(self.keep_behaviors))

    def _keep(self, kept: Sequence[str]) -> None:
        """Leave only these behaviors."""
        if self.value_behaviors:
            raise RecexpError(
                "dataset.keep_behaviors is for behaviors of the files: leave a behavior out of "
                "dataset.value_behaviors instead."
            )
        if unknown := sorted(set(kept) - set(self.behaviors)):
            raise RecexpError(
                f"dataset.keep_behaviors names {_shown(unknown)}, which is not among "
                f"dataset.behaviors {_shown(list(self.behaviors))}."
            )
        explicit = [name for name in self.explicit if name in kept]
        if not kept or (self.explicit and not explicit):
            raise RecexpError(
                f"dataset.keep_behaviors={_shown(list(kept))} leaves none of dataset.explicit "
                f"{_shown(list(self.explicit))}: name a kept behavior there."
            )
        self.behaviors = [name for name in self.behaviors if name in kept]
        self.explicit = explicit

    @property
    def spellings_of_missing(self) -> tuple[str, ...]:
        """The texts that are no id."""
        return MISSING_IDS if self.missing_ids is None else tuple(self.missing_ids)

    def _check(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise RecexpError(
                f"dataset.name={_shown(self.name)} names files: use letters, digits, dots, - and "
                "_ only."
            )
        n_distinct = len(set(self.behaviors))
        if n_distinct != len(self.behaviors) or not 1 <= n_distinct <= MAX_BEHAVIORS:
            raise RecexpError(
                f"dataset.behaviors must be 1 to {MAX_BEHAVIORS} distinct names, "
                f"got {list(self.behaviors)}."
            )
        if unknown := set(self.explicit) - set(self.behaviors):
            raise RecexpError(
                f"dataset.explicit names {_shown(sorted(unknown))}, which is not among "
                f"dataset.behaviors {_shown(list(self.behaviors))}."
            )
        check_filters(self.filters)
        _check_window(self.window)
        _check_sessions(self.sessions)
        check_choice("dataset.merge", self.merge, ("none", "pairs"))
        missing = self.missing_ids
        if isinstance(missing, str) or not all(isinstance(text, str) for text in missing or ()):
            raise RecexpError(f"dataset.missing_ids={missing!r} must be a list of texts, or null.")
        check_choice("dataset.on_bad_rows", self.on_bad_rows, ("error", "drop"))


def _check_thresholds(thresholds: Mapping[str, float]) -> None:
    for name, least in thresholds.items():
        is_number = isinstance(least, int | float) and not isinstance(least, bool)
        if not (is_number and math.isfinite(least)):
            raise RecexpError(f"dataset.value_behaviors.{name}={_shown(least)}: must be a number.")


def check_filters(steps: object) -> None:
    """Raise RecexpError for a filter step that ``filters.apply_filters`` does not take."""
    if not isinstance(steps, Sequence) or isinstance(steps, str):
        raise RecexpError(f"dataset.filters={_shown(steps)}: must be a list of steps.")
    for number, step in enumerate(steps):
        place = f"dataset.filters[{number}]"
        if not isinstance(step, Mapping):
            raise RecexpError(f"{place}={_shown(step)}: must be a step such as {{user_min: 5}}.")
        if unknown := sorted(map(str, set(step) - STEP_KEYS)):
            raise RecexpError(
                f"dataset.filters: unknown key {unknown}; a filter step knows {sorted(STEP_KEYS)}."
            )
        for key in sorted(STEP_KEYS - {"count"}):
            least = step.get(key)
            is_count = isinstance(least, int) and not isinstance(least, bool) and least >= 0
            if least is not None and not (is_count and least <= MAX_COUNT):
                raise RecexpError(
                    f"{place}.{key}={_shown(least)}: must be a whole number at least 0 and at most "
                    f"{MAX_COUNT:,}."
                )
        check_choice(f"{place}.count", step.get("count", "events"), ("events", "items"))


def _check_window(window: object) -> None:
    """Raise RecexpError unless the window is None or has a start before its end."""
    if window is None:
        return
    if not isinstance(window, Mapping) or set(window) != {"start", "end"}:
        raise RecexpError(
            f"dataset.window={_shown(window)}: must be null, or {{start, end}} with ISO dates such "
            "as 2016-08-08."
        )
    if iso_milliseconds(window, "start") >= iso_milliseconds(window, "end"):
        raise RecexpError(
            f"dataset.window: start {window['start']} must be before end {window['end']}."
        )


def _check_sessions(sessions: object) -> None:
    if sessions is None:
        return
    if not isinstance(sessions, Mapping) or set(sessions) != {"gap_minutes"}:
        raise RecexpError(
            f"dataset.sessions={_shown(sessions)}: must be null, or {{gap_minutes: 30}}."
        )
    gap = sessions["gap_minutes"]
    is_number = isinstance(gap, int | float) and not isinstance(gap, bool)
    if not is_number or not 0 <= gap <= MAX_COUNT:
        raise RecexpError(
            f"dataset.sessions.gap_minutes={_shown(gap)}: must be a number at least 0 and at most "
            f"{MAX_COUNT:,}."
        )


def iso_milliseconds(window: Mapping[str, str], key: str) -> int:
    """The date at ``key`` in milliseconds since 1970; UTC where it names no zone."""
    try:
        moment = datetime.fromisoformat(str(window[key]))
    except ValueError as error:
        raise RecexpError(
            f"dataset.window.{key} must be an ISO date such as 2016-08-08: {error}"
        ) from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * 1000)


def check_choice(key: str, value: object, choices: Sequence[str]) -> None:
    """Raise RecexpError unless ``value`` is one of ``choices``. key: the setting's full name."""
    if not isinstance(value, str) or value not in choices:
        raise RecexpError(f"{key}={_shown(value)} is unknown; choose one of {', '.join(choices)}.")


def _shown(value: object) -> str:
    """The value in one line, shortened."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
