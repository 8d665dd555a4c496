"""The processes of a sweep's jobs: one per job, started anew or from a warm parent.

Importing torch and Lightning takes most of a small job's time. The warm parent is Python's own fork
server: it has imported both, and every job is a fork of it. A job keeps a process of its own, with
its own memory, streams and exit code.

The parent imports nothing that starts threads or opens an accelerator, because neither survives a
fork. Jobs that use an accelerator or several processes are started anew.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing import reduction
from pathlib import Path
from typing import Any, Protocol

from recexp.runs.directory import INHERITED
from recexp.training.interrupts import SIGNALS

# polars is missing on purpose: importing it starts threads.
PRELOADED = ["torch", "pytorch_lightning", "torchmetrics", "hydra", "pydantic"]


class JobProcess(Protocol):
    """The part of ``subprocess.Popen`` that the launcher uses."""

    def poll(self) -> int | None:
        """The exit code, -N for signal N; None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """The exit code. Raises subprocess.TimeoutExpired."""

    def terminate(self) -> None:
        """Send SIGTERM."""

    def kill(self) -> None:
        """Send SIGKILL."""


def start_anew(words: list[str], output: Path, lock: int | None) -> JobProcess:
    """A new interpreter for ``python -m recexp`` with these words.

    output: file of its streams. lock: descriptor of its directory's lock, which it inherits.
    """
    with output.open("w") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "recexp", *words],
            stdout=stream,
            stderr=subprocess.STDOUT,
            pass_fds=() if lock is None else (lock,),
            env=os.environ | {INHERITED: "" if lock is None else str(lock)},
        )


class WarmParent:
    """Starts jobs as forks of one process that has imported torch and Lightning."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)

    def start(self, words: list[str], output: Path, lock: int | None) -> JobProcess:
        """As ``start_anew``."""
        inherited = None if lock is None else _Descriptor(lock)
        process = self._context.Process(target=_run, args=(words, str(output), inherited))
        # The first start also starts the fork server. A scheduler sends its signals to all
        # processes of a job: the server must outlive them, for it reports the ends of the jobs.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return _Forked(process)


def has_warm_parent() -> bool:
    """Can this system fork safely? On macOS, system libraries may not be forked."""
    return sys.platform == "linux" and "forkserver" in multiprocessing.get_all_start_methods()


def may_be_forked(config: Mapping[str, Any]) -> bool:
    """Does the job of this config use one process and no accelerator?"""
    trainer = config.get("trainer")
    if not isinstance(trainer, Mapping):
        return False
    return trainer.get("accelerator") == "cpu" and trainer.get("devices") == 1


class _Descriptor:
    """A file descriptor that the fork server hands on to the process."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (reduction.DupFd(self.number),)


def _received(duplicate: Any) -> _Descriptor:
    return _Descriptor(duplicate.detach())


class _Forked:
    """A process of the fork server with the methods of ``JobProcess``."""

    def __init__(self, process: Any) -> None:
        self._process = process
        self.terminate = process.terminate
        self.kill = process.kill

    def poll(self) -> int | None:
        code: int | None = self._process.exitcode
        return code

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired("job", timeout or 0.0)
        return code


def _run(words: list[str], output: str, lock: _Descriptor | None) -> None:
    """The job, in its own process: what ``python -m recexp`` with these words does."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    stream = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    os.close(stream)
    os.environ[INHERITED] = "" if lock is None else str(lock.number)
    sys.argv = ["recexp", *words]
    try:
        runpy.run_module("recexp", run_name="__main__", alter_sys=True)
    finally:
        # multiprocessing ends its processes without the functions registered at exit.
        atexit._run_exitfuncs()
