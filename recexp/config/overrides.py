"""Overrides of Hydra's command line, with values of any characters."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_PLAIN = re.compile(r"/[\w./-]*", re.ASCII)  # a path that needs no quotes


def override(key: str, value: str | Path) -> str:
    """``key=value`` such that Hydra reads exactly this text, whatever it contains."""
    return f"{key}={as_word(str(value))}"


def as_word(value: Any) -> str:
    """A plain value in the grammar of Hydra's command line: text, number, list, mapping, null."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{as_word(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ",".join(map(as_word, value)) + "]"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    return _as_text(str(value))


def _as_text(text: str) -> str:
    from hydra.core.override_parser.types import Quote, QuotedString

    if _PLAIN.fullmatch(text):
        return text
    escaped = text.replace("${", "\\${")
    return QuotedString(text=escaped, quote=Quote.double).with_quotes()


def resume_advice(run_dir: Path) -> str:
    """How to go on with the run that left a checkpoint in ``run_dir``, for a shell."""
    last = run_dir / "checkpoints" / "last.ckpt"
    if not last.exists():
        return "nothing was saved yet: start again"
    words = (override("ckpt_path", last), override("hydra.run.dir", run_dir))
    return f"to go on: the same command with {shlex.join(words)}"
