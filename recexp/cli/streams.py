"""Standard streams that cannot end a run: its results are in files."""

from __future__ import annotations

import io
import os
import sys
from typing import Any


class _LastingFile(io.FileIO):
    """A file whose failed writes are lost without an error: a closed pipe, a full disk."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(memoryview(data).cast("B"))


def make_streams_last() -> None:
    """Replace stdout and stderr by streams that take every text, whatever became of them.

    A closed descriptor is opened on the null device first: the next file that is opened would get
    its number, and the messages. Characters that the encoding lacks are written as escapes.
    """
    for number in (0, 1, 2):
        _open_if_closed(number)
    sys.stdout = _lasting(1, sys.stdout, line_buffering=_is_terminal(1))
    sys.stderr = _lasting(2, sys.stderr, line_buffering=True)


def _open_if_closed(number: int) -> None:
    try:
        os.fstat(number)
    except OSError:
        null = os.open(os.devnull, os.O_RDWR)
        if null != number:
            os.dup2(null, number)
            os.close(null)


def _is_terminal(number: int) -> bool:
    return os.isatty(number)


def _lasting(number: int, before: Any, *, line_buffering: bool) -> io.TextIOWrapper:
    raw = _LastingFile(number, "wb", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=getattr(before, "encoding", None) or "utf-8",
        errors="backslashreplace",
        line_buffering=line_buffering,
    )
