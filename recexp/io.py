"""Files: atomic writes, bounded reads, checksums, locks, and the wording of errors."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from recexp.errors import RecexpError, shortage

if TYPE_CHECKING:
    from filelock import BaseFileLock
    from numpy.typing import NDArray

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

# How file systems without locks answer.
NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL})


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


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        FileNotFoundError: nothing is there.
        RecexpError: what is there is damaged: no regular file, or one that holds anything else.
    """
    if not path.is_file():  # opening a pipe would wait for a writer
        if os.path.lexists(path):
            raise RecexpError(f"{path} is damaged: it is no regular file")
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RecexpError(f"{path} is damaged: {reason(error)}") from error
    if not isinstance(content, dict):
        raise RecexpError(f"{path} is damaged: it holds no JSON object")
    return content


def remove(path: Path) -> None:
    """Remove a file, a link (not what it leads to) or a folder with all that it holds.

    Nothing happens where nothing is there.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def read_limited(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most ``limit`` bytes; for files of other people.

    Never waits: a pipe, socket or device in place of the file is refused, not read.

    Raises FileNotFoundError, and RecexpError for everything else that hinders reading.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise RecexpError(f"{path} is not a regular file.")
            content = file.read(limit + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RecexpError(f"{path} cannot be read: {error.strerror}.") from error
    if len(content) > limit:
        raise RecexpError(f"{path} is larger than {limit >> 10:,} KB: no run writes so much.")
    return content


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
        if error.errno not in NO_LOCKS:
            raise
        lock = SoftFileLock(path.with_name(f"{path.name}.held"))
        left_over = f"(if no process does: remove {lock.lock_file})"
        _acquire(lock, f"{waiting} {left_over}" if waiting else "")
    try:
        yield
    finally:
        lock.release()


def try_lock(path: Path) -> int | None:
    """Take the exclusive lock on the file ``path``, which is created; None if it is held.

    Returns the file's descriptor. The lock lasts until every process that has the descriptor has
    closed it or ended.

    Raises:
        OSError: the file cannot be opened, or its file system has no locks.
    """
    import fcntl

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def advice(error: OSError) -> str:
    """What to do about an error of the operating system, without a period."""
    if error.errno in _ADVICE:
        return _ADVICE[error.errno]
    text = shortage(error)
    return _NO_ROOM if text is None else text


def _acquire(lock: BaseFileLock, waiting: str) -> None:
    from filelock import Timeout

    try:
        lock.acquire(timeout=0)
    except Timeout:
        if waiting:
            print(f"[data] {waiting}", file=sys.stderr)
        lock.acquire()


def from_system(error: Exception) -> bool:
    """Did the operating system refuse something? polars wraps its errors in its own."""
    return isinstance(error, OSError) or "(os error" in str(error)


def reason(error: Exception) -> str:
    """The operating system's message, and the file it concerns if it names one."""
    if not isinstance(error, OSError):
        return str(error)
    text = error.strerror or str(error)
    path = error.filename if error.filename2 is None else error.filename2
    return f"{text} ({os.fsdecode(path)})" if isinstance(path, str | bytes) and path else text
