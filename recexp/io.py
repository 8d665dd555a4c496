"""Files that are whole or absent, and disks that are full."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recexp.errors import RecexpError


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """``with atomic_write(path) as temporary``: what is written to ``temporary``, which lies beside ``path``, becomes ``path`` by one rename.

    Raises RecexpError where it cannot be written; ``path`` is then what it was, or absent.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        kept = "What was there before is unharmed. " if path.exists() else ""
        raise RecexpError(
            f"{path} cannot be written: {reason(error)}. {kept}Make room there, or choose a place that can be written."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def file_lock(path: Path, waiting: str = "") -> Iterator[None]:
    """One process at a time; the lock goes with the process, so a killed one leaves nothing behind that blocks. waiting: what those say that wait."""
    import fcntl

    with path.open("w") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting:
                print(f"[data] {waiting}", file=sys.stderr)
            fcntl.flock(f, fcntl.LOCK_EX)
        yield


def disk_trouble(error: OSError) -> bool:
    """Is it the disk (full, read-only, failing), which a person can mend, and not a mistake of ours?"""
    return error.errno in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
        errno.EIO,
    )


def reason(error: Exception) -> str:
    """The system's words, with the file it speaks of where it says so."""
    file = getattr(error, "filename", None)
    return (getattr(error, "strerror", None) or str(error)) + (f" ({file})" if file else "")
