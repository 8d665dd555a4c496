"""The one exception of the project, and how other errors say that a resource ran out."""

from __future__ import annotations

import errno

# Of torch on a CPU and on a GPU, C++, Rust and the operating system.
_MEMORY_TEXTS = (
    "DefaultCPUAllocator",
    "out of memory",
    "bad_alloc",
    "annot allocate memory",
    "an't allocate memory",
    "memory allocation of",
)
_THREAD_TEXTS = ("can't start new thread", "Resource temporarily unavailable", "could not spawn")
_FILE_TEXTS = ("Too many open files",)
_THREAD_ADVICE = "Lower threads=, or raise the limit of processes (ulimit -u) or memory (ulimit -v)"
_FILE_ADVICE = "Raise the limit of open files (ulimit -n)"


class RecexpError(Exception):
    """An error for people: what was wrong, where, and what to do.

    The command line prints it without a traceback.
    """


def is_out_of_memory(error: BaseException) -> bool:
    """Is this how a library says that no memory is left?"""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, Exception) and _says(error, _MEMORY_TEXTS)


def shortage(error: BaseException) -> str | None:
    """What ran out and what to do, as one sentence without a period; None for other errors."""
    if is_out_of_memory(error):
        return (
            "Out of memory: lower batch_size, eval_batch_size or the number of events "
            "(dataset.filters), or raise the limit (ulimit -v)"
        )
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.EMFILE, errno.ENFILE) or _says(error, _FILE_TEXTS):
        return f"Too many open files. {_FILE_ADVICE}"
    if number == errno.EAGAIN or _says(error, _THREAD_TEXTS):
        return f"No further thread or process can be started. {_THREAD_ADVICE}"
    return None


def _says(error: BaseException, texts: tuple[str, ...]) -> bool:
    message = str(error)
    return any(text in message for text in texts)
