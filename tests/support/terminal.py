"""A terminal for stdout and stderr of this process, and what stands on its screen."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager

ROWS = 200
COLUMNS = 160
# A control sequence, a control character, or text.
_PIECES = re.compile(r"\x1b\[[?\d;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+|\x1b")


class Screen:
    """raw: all that was written, once the terminal is closed."""

    def __init__(self) -> None:
        self.raw = ""

    def lines(self) -> list[str]:
        """The rows of the screen as they look at the end, of endless length."""
        rows: list[list[str]] = [[]]
        row = column = 0
        for piece in _PIECES.findall(self.raw):
            if piece == "\r":
                column = 0
            elif piece == "\n":
                row += 1
                if row == len(rows):
                    rows.append([])
            elif piece.endswith("A") and piece[0] == "\x1b":
                row = max(0, row - int(piece[2:-1] or 1))
            elif piece[0] != "\x1b":
                rows[row] += " " * (column - len(rows[row]))
                rows[row][column : column + len(piece)] = piece
                column += len(piece)
        return ["".join(cells).rstrip() for cells in rows]


@contextmanager
def terminal(monkeypatch, columns: int = COLUMNS) -> Iterator[Screen]:
    """Within it, ``sys.stdout`` and ``sys.stderr`` are a terminal of this width."""
    screen = Screen()
    master, slave = pty.openpty()
    size = struct.pack("HHHH", ROWS, columns, 0, 0)
    fcntl.ioctl(slave, termios.TIOCSWINSZ, size)
    chunks: list[bytes] = []

    def read() -> None:
        while True:
            try:
                chunk = os.read(master, 1 << 16)
            except OSError:  # the other end is closed
                return
            if not chunk:
                return
            chunks.append(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        with (
            open(slave, "w", encoding="utf-8", buffering=1) as stream,
            monkeypatch.context() as patch,
        ):
            patch.setenv("TERM", "xterm-256color")
            for name in ("NO_COLOR", "COLUMNS", "LINES"):
                patch.delenv(name, raising=False)
            patch.setattr(sys, "stdout", stream)
            patch.setattr(sys, "stderr", stream)
            yield screen
    finally:
        reader.join()
        os.close(master)
        screen.raw = b"".join(chunks).decode().replace("\r\n", "\n").replace("\n", "\r\n")
