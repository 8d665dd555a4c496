"""Show the package's log messages, and names from outside, as plain text on a terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

MINUTE = 60
HOUR = 60 * MINUTE
DAY = 24 * HOUR


def printable(text: str) -> str:
    """The text on one line, safe for a terminal and in any encoding of Unicode.

    Names of data sets, models and folders may hold control sequences, line breaks and bytes that
    are no text; they are shown as escapes (``\\x1b``).
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """``printable`` of a text of several lines."""
    return "\n".join(map(printable, text.split("\n")))


def duration(seconds: float) -> str:
    """A time to wait, as a person would round it: ``40 s``, ``12 min``, ``3 h 20 min``, ``2 d``."""
    if seconds < MINUTE:
        return f"{max(1, round(seconds))} s"
    if seconds < HOUR:
        return f"{round(seconds / MINUTE)} min"
    if seconds < DAY:
        minutes = round(seconds / MINUTE)
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{seconds / DAY:.1f} d"


class _StderrHandler(logging.Handler):
    """Writes to what ``sys.stderr`` is at that moment: tests and notebooks replace it."""

    def emit(self, record: logging.LogRecord) -> None:
        with _bars_below():
            print(printable_lines(self.format(record)), file=sys.stderr, flush=True)


@contextmanager
def _bars_below() -> Iterator[None]:
    """Remove the progress bars from the terminal, and draw them again below what was written."""
    tqdm = sys.modules.get("tqdm")  # where nothing imported it, there is no bar
    if tqdm is None:
        yield
        return
    with tqdm.tqdm.external_write_mode(file=sys.stderr):
        yield


def show_logs(level: int = logging.INFO) -> None:
    """Print messages of ``recexp`` of this level and above; programs call it once they start.

    A second call only changes the level.
    """
    logger = logging.getLogger("recexp")
    logger.setLevel(level)
    if not any(isinstance(handler, _StderrHandler) for handler in logger.handlers):
        logger.addHandler(_StderrHandler())
