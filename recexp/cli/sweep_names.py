"""``sweep=NAME``: a sweep that has a name, and so the same directory at every start."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from recexp.config.overrides import override
from recexp.errors import RecexpError

SWEEPS = Path("multirun_outputs")
KEY = "sweep"
_NAME = re.compile(r"\w[\w.+-]*(/\w[\w.+-]*)*", re.ASCII)


def with_sweep_directory(words: Sequence[str]) -> list[str]:
    """The command line with the directory of the sweep instead of its name.

    A command that names a sweep is one, also without ``-m``. Raises RecexpError for a name that is
    no name of a directory, and where the directory is given too.
    """
    names = [word.partition("=")[2] for word in words if word.startswith(f"{KEY}=")]
    if not names:
        return list(words)
    others = [word for word in words if not word.startswith(f"{KEY}=")]
    name = names[-1]
    if not _NAME.fullmatch(name):
        raise RecexpError(
            f"{KEY}={name!r}: must be a name of letters, digits, '.', '+', '-' and '_', such as "
            f"{KEY}=lr_study; it becomes a directory below {SWEEPS}."
        )
    if any(word.startswith("hydra.sweep.dir=") for word in others):
        raise RecexpError(f"{KEY}={name} and hydra.sweep.dir= name two directories: leave one out.")
    return [*others, override("hydra.sweep.dir", SWEEPS / name), "hydra.mode=MULTIRUN"]
