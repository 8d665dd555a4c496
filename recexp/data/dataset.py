"""The settings of a data set, as its YAML in ``conf/dataset`` gives them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from recexp.errors import RecexpError

MAX_BEHAVIORS = 31  # each has one bit of an int32 mask
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

    def __post_init__(self) -> None:
        if thresholds := self.value_behaviors:
            self.behaviors = sorted(thresholds, key=lambda name: thresholds[name])
        self._check()

    @property
    def spellings_of_missing(self) -> tuple[str, ...]:
        """The texts that are no id."""
        return MISSING_IDS if self.missing_ids is None else tuple(self.missing_ids)

    def _check(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise RecexpError(
                f"dataset.name={self.name!r} names files: use letters, digits, dots, - and _ only."
            )
        n_distinct = len(set(self.behaviors))
        if n_distinct != len(self.behaviors) or not 1 <= n_distinct <= MAX_BEHAVIORS:
            raise RecexpError(
                f"dataset.behaviors must be 1 to {MAX_BEHAVIORS} distinct names, "
                f"got {list(self.behaviors)}."
            )
        if unknown := set(self.explicit) - set(self.behaviors):
            raise RecexpError(
                f"dataset.explicit names {sorted(unknown)}, which is not among "
                f"dataset.behaviors {list(self.behaviors)}."
            )
        check_choice("dataset.merge", self.merge, ("none", "pairs"))
        missing = self.missing_ids
        if isinstance(missing, str) or not all(isinstance(text, str) for text in missing or ()):
            raise RecexpError(f"dataset.missing_ids={missing!r} must be a list of texts, or null.")
        check_choice("dataset.on_bad_rows", self.on_bad_rows, ("error", "drop"))


def check_choice(key: str, value: object, choices: Sequence[str]) -> None:
    """Raise RecexpError unless ``value`` is one of ``choices``. key: the setting's full name."""
    if value not in choices:
        raise RecexpError(f"{key}={value!r} is unknown; choose one of {', '.join(choices)}.")
