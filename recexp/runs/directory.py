"""The directory of a run: one process at a time has it, and nothing of an older run stays."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from recexp.config import CONF
from recexp.distributed import is_first_process
from recexp.errors import RecexpError
from recexp.io import NO_LOCKS, try_lock

LOCK = ".run.lock"
# Environment variable: the descriptor of the lock that the launcher took for this process.
INHERITED = "RECEXP_RUN_LOCK"
# Environment variable: the directory, which only the first process of a run has in its config.
RUN_DIR = "RECEXP_RUN_DIR"
# What a run leaves. Results come first: an older result must not lie beside newer weights.
TESTED = ("result.json", "ranks.parquet", "lists.parquet", "list_values.parquet")
RESULTS = (*TESTED, "curves.png")
CHECKPOINTS = "checkpoints"

log = logging.getLogger(__name__)


class DirectoryInUse(RecexpError):
    """Another run has the directory."""


@contextmanager
def claimed(run_dir: Path) -> Iterator[None]:
    """Create the directory and have it alone until the block or the process ends.

    Only the first process of a run claims it; the others share it.

    Raises DirectoryInUse where another run has it.
    """
    if not is_first_process():
        yield
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    descriptor = _inherited_lock(run_dir)
    if descriptor is None:
        descriptor = lock_directory(run_dir)
    else:
        _write_holder(descriptor)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def lock_directory(run_dir: Path) -> int | None:
    """Lock the directory; the descriptor of the lock, None on a file system without locks.

    Raises DirectoryInUse where another run has the directory.
    """
    path = run_dir / LOCK
    try:
        descriptor = try_lock(path)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        _warn_of_missing_locks(run_dir.parent)
        return None
    if descriptor is None:
        raise DirectoryInUse(
            f"{run_dir} is in use by another run ({_holder(run_dir)}): wait for its end, or "
            "choose another directory with hydra.run.dir=..."
        )
    _write_holder(descriptor)
    return descriptor


@cache
def _warn_of_missing_locks(folder: Path) -> None:
    """Warn once per folder and process."""
    log.warning(
        "warning: %s is on a file system without locks: two runs in one directory would not be "
        "noticed. Give each run a directory of its own.",
        folder,
    )


def _write_holder(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)


def _holder(run_dir: Path) -> str:
    """The process that locked the directory last, in words."""
    try:
        text = (run_dir / LOCK).read_text()
    except (OSError, ValueError):
        text = ""
    return text or "an unknown process"


def _inherited_lock(run_dir: Path) -> int | None:
    """The lock that the launcher took; None where it took none, or one of another directory."""
    text = os.environ.pop(INHERITED, "")
    if not text.isdigit():
        return None
    descriptor = int(text)
    try:
        is_ours = os.path.samestat(os.fstat(descriptor), os.stat(run_dir / LOCK))
    except OSError:
        return None
    if not is_ours:
        return None
    os.set_inheritable(descriptor, False)
    return descriptor


def clear(run_dir: Path, *, keep_progress: bool) -> None:
    """Remove what an earlier run left in the directory, results first, and log what went.

    keep_progress: keep checkpoints and the table of epochs, for a run that goes on from them.
    """
    checkpoints = run_dir / CHECKPOINTS
    old = [run_dir / name for name in RESULTS]
    for folder in _evaluations(run_dir):
        old += [folder / name for name in TESTED]
    old += [run_dir / "metrics_refit.csv", checkpoints / "refit.ckpt"]
    if not keep_progress:
        old += [run_dir / "metrics.csv", *sorted(checkpoints.glob("*.ckpt"))]
    leftovers = [*run_dir.glob(".*.*.[0-9]*"), *checkpoints.glob(".*.ckpt.[0-9]*")]
    removed = [path for path in dict.fromkeys(old) if _remove(path)]
    for path in leftovers:
        _remove(path)
    if removed:
        names = ", ".join(str(path.relative_to(run_dir)) for path in removed)
        log.info("removed what an earlier run left in %s: %s", run_dir, names)


def _evaluations(run_dir: Path) -> list[Path]:
    """Folders that ``recexp.evaluate`` made below the directory."""
    protocols = [path.stem for path in (CONF / "protocol").glob("*.yaml")]
    names = sorted([*protocols, *(f"{name}-own-split" for name in protocols)])
    return [run_dir / name for name in names if not (run_dir / name).is_symlink()]


def _remove(path: Path) -> bool:
    """Remove a file; was there one?"""
    if not (path.is_file() or path.is_symlink()):
        return False
    path.unlink()
    return True
