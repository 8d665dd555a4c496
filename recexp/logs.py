"""Show the package's log messages as plain lines on stderr."""

from __future__ import annotations

import logging
import sys


class _StderrHandler(logging.Handler):
    """Writes to what ``sys.stderr`` is at that moment: tests and notebooks replace it."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


def show_logs(level: int = logging.INFO) -> None:
    """Print messages of ``recexp`` of this level and above; programs call it once they start.

    A second call only changes the level.
    """
    logger = logging.getLogger("recexp")
    logger.setLevel(level)
    if not any(isinstance(handler, _StderrHandler) for handler in logger.handlers):
        logger.addHandler(_StderrHandler())
