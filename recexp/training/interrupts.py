"""What signals do to a program of recexp outside training.

The program tells its stage. In a stage with nothing to clean up, a signal ends the process at
once. In any other, it raises ``Stopped``, so that temporary files are removed and locks released.
During training and testing, ``recexp.training.signals`` handles signals instead.

This module imports only the standard library: it is loaded before everything else.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from types import FrameType

# With these, a scheduler says that the time of its job is nearly over.
REQUEUE = (signal.SIGUSR1, signal.SIGUSR2)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, *REQUEUE)
RANKS = ("RANK", "SLURM_PROCID", "LOCAL_RANK")  # of torchrun, SLURM and Lightning


class Stopped(BaseException):
    """A signal came. No Exception, so that no library takes it for one of its own errors."""

    def __init__(self, signum: int) -> None:
        super().__init__(describe(signum))
        self.signum = signum


@dataclass
class _Stage:
    """words: what a signal does to the run. received: a signal, also one whose Stopped was lost."""

    words: str = "ended the program"
    ends_at_once: bool = True
    received: int | None = None


_stage = _Stage()


def handle_signals() -> None:
    """Set the handlers, except for signals that the process was started to ignore."""
    for signum in SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, _on_signal)


def enter_stage(words: str, *, ends_at_once: bool) -> None:
    """From now on a signal has this effect. words: the rest of a sentence about the signal."""
    _stage.words = words
    _stage.ends_at_once = ends_at_once


def received() -> int | None:
    """The signal that came, if any: a library may have dropped the exception."""
    return _stage.received


def describe(signum: int) -> str:
    """What the signal did, as a sentence."""
    return f"{signal.Signals(signum).name} {_stage.words}"


def says_so() -> bool:
    """Does this process print messages? Only the first one of a run does."""
    return all(os.environ.get(name) in (None, "", "0") for name in RANKS)


def _on_signal(signum: int, frame: FrameType | None) -> None:
    if signum == signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C ends the process at once
    _stage.received = _stage.received or signum
    if not _stage.ends_at_once:
        raise Stopped(signum)
    if says_so():
        os.write(2, f"{describe(signum)}\n".encode())
    os._exit(128 + signum)
