"""Show the package's log messages, and names from outside, as plain text on a terminal."""

from __future__ import annotations

import logging
import sys


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


class _StderrHandler(logging.Handler):
    """Writes to what ``sys.stderr`` is at that moment: tests and notebooks replace it."""

    def emit(self, record: logging.LogRecord) -> None:
        print(printable_lines(self.format(record)), file=sys.stderr, flush=True)


def show_logs(level: int = logging.INFO) -> None:
    """Print messages of ``recexp`` of this level and above; programs call it once they start.

    A second call only changes the level.
    """
    logger = logging.getLogger("recexp")
    logger.setLevel(level)
    if not any(isinstance(handler, _StderrHandler) for handler in logger.handlers):
        logger.addHandler(_StderrHandler())
