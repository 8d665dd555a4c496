"""Atomic writes, checksums, locks between processes, and the wording of disk errors."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from recexp.errors import RecexpError
from recexp.shortage import shortage

# What to do, by the error of the operating system.
_ADVICE = {
    errno.ENOTDIR: "A part of the path is a file: choose another path",
    errno.EEXIST: "A file stands where a directory should be: choose another path",
    errno.EISDIR: "A directory stands where a file should be: choose another path",
    errno.ENAMETOOLONG: "Choose a shorter path",
    errno.ELOOP: "Symbolic links of the path point to each other: choose another path",
    errno.ENOENT: "It does not exist, or was removed meanwhile: check the path",
    errno.ESTALE: "The network file system lost it: mount it again, or choose another path",
    errno.EINVAL: "The file system does not take it: choose another path",
    errno.EMFILE: "Raise the limit of open files (ulimit -n)",
    errno.EILSEQ: "The file system does not take the name: choose another path",
}
_NO_ROOM = "Make room there, or choose a place that can be written"


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success, rename it to ``path``.

    Readers see the old file or the complete new one, never a part of it.

    Raises:
        RecexpError: the file cannot be written; ``path`` is then unchanged, or still absent.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        kept = "What was there before is unharmed. " if os.path.exists(path) else ""
        raise RecexpError(
            f"{path} cannot be written: {reason(error)}. {kept}{advice(error)}."
        ) from error
    finally:
        with suppress(OSError):  # it is not there after success, and in places that cannot be
            temporary.unlink()


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON by ``atomic_write``. Types that JSON lacks are written as text."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, default=str) + "\n")


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def file_lock(path: Path, waiting: str = "") -> Iterator[None]:
    """Hold an exclusive lock between processes on the file ``path``, which stays there afterwards.

    The operating system releases the lock when its process ends, so a killed process blocks no
    other. waiting: printed to stderr once if another process holds the lock.
    """
    from filelock import FileLock, Timeout  # only where a lock is needed: not at start-up

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if waiting:
            print(f"[data] {waiting}", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def advice(error: OSError) -> str:
    """What to do about an error of the operating system, without a period."""
    if error.errno in _ADVICE:
        return _ADVICE[error.errno]
    text = shortage(error)
    return _NO_ROOM if text is None else text


def reason(error: Exception) -> str:
    """The operating system's message, and the file it concerns if it names one."""
    if not isinstance(error, OSError):
        return str(error)
    text = error.strerror or str(error)
    path = error.filename if error.filename2 is None else error.filename2
    return f"{text} ({os.fsdecode(path)})" if isinstance(path, str | bytes) and path else text
