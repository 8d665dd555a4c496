"""Atomic writes, checksums, locks between processes, and the wording of disk errors."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from recexp.errors import RecexpError

if TYPE_CHECKING:
    from filelock import BaseFileLock
    from numpy.typing import NDArray

# A full, read-only or failing disk: the user can correct these, so they get no traceback.
_DISK_ERRORS = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
        errno.EIO,
    }
)

# How file systems without locks answer.
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL})


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
        kept = "What was there before is unharmed. " if path.exists() else ""
        raise RecexpError(
            f"{path} cannot be written: {reason(error)}. {kept}"
            "Make room there, or choose a place that can be written."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def new_folder(parent: Path, prefix: str) -> Path:
    """Create a folder in ``parent`` under a name of its own, with the permissions of the umask.

    Those of ``tempfile`` stay closed to other users, who may share a cache.
    """
    folder = parent / f"{prefix}{secrets.token_hex(8)}"
    folder.mkdir()
    return folder


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON by ``atomic_write``. Types that JSON lacks are written as text."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, default=str) + "\n")


def save_array(path: str | Path, array: NDArray[Any]) -> None:
    """Write an array as ``.npy``.

    Raises:
        OSError: the file cannot be written. ``numpy.save`` would not say why on a full disk.
    """
    import numpy as np

    with Path(path).open("wb") as file:
        # An object that is no file, so that numpy writes by Python's means and not by C's.
        np.save(SimpleNamespace(write=file.write), array)


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def file_lock(path: Path, waiting: str = "") -> Iterator[None]:
    """Hold an exclusive lock between processes on the file ``path``, which stays there afterwards.

    The operating system releases the lock when its process ends, so a killed process blocks no
    other. A file system without locks gets a file ``path.held`` instead, for as long as the lock
    is held; if its process was killed, the next process on that machine removes it.
    waiting: printed to stderr once if another process holds the lock.

    Raises:
        OSError: the file cannot be written.
    """
    from filelock import FileLock, SoftFileLock  # only where a lock is needed: not at start-up

    lock: BaseFileLock = FileLock(path, fallback_to_soft=False)
    try:
        _acquire(lock, waiting)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        lock = SoftFileLock(path.with_name(f"{path.name}.held"))
        left_over = f"(if no process does: remove {lock.lock_file})"
        _acquire(lock, f"{waiting} {left_over}" if waiting else "")
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: BaseFileLock, waiting: str) -> None:
    from filelock import Timeout

    try:
        lock.acquire(timeout=0)
    except Timeout:
        if waiting:
            print(f"[data] {waiting}", file=sys.stderr)
        lock.acquire()


def disk_trouble(error: OSError) -> bool:
    """Is the disk full, read-only or failing, rather than our code wrong?"""
    return error.errno in _DISK_ERRORS


def from_system(error: Exception) -> bool:
    """Did the operating system refuse something? polars wraps its errors in its own."""
    return isinstance(error, OSError) or "(os error" in str(error)


def reason(error: Exception) -> str:
    """The operating system's message, and the file it concerns if it names one."""
    if not isinstance(error, OSError):
        return str(error)
    text = error.strerror or str(error)
    return f"{text} ({error.filename})" if error.filename else text
