"""Overrides of Hydra's command line, with values of any characters."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

_PLAIN = re.compile(r"/[\w./-]*", re.ASCII)  # a path that needs no quotes


def override(key: str, value: str | Path) -> str:
    """``key=value`` such that Hydra reads exactly this text, whatever it contains."""
    from hydra.core.override_parser.types import Quote, QuotedString

    text = str(value)
    if not _PLAIN.fullmatch(text):
        escaped = text.replace("${", "\\${")
        text = QuotedString(text=escaped, quote=Quote.double).with_quotes()
    return f"{key}={text}"


def resume_advice(run_dir: Path) -> str:
    """How to go on with the run that left a checkpoint in ``run_dir``, for a shell."""
    last = run_dir / "checkpoints" / "last.ckpt"
    if not last.exists():
        return "nothing was saved yet: start again"
    words = (override("ckpt_path", last), override("hydra.run.dir", run_dir))
    return f"to go on: the same command with {shlex.join(words)}"
