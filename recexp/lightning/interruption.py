"""Ctrl-C and SIGTERM end a run at the next step, with a checkpoint from which it goes on exactly."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from types import FrameType

import pytorch_lightning as pl
from pytorch_lightning.utilities.exceptions import SIGTERMException


class Interrupted(Exception):
    """A signal ended the run in ``run_dir``; its ``result.json`` says so."""

    def __init__(self, signum: int, run_dir: Path) -> None:
        super().__init__(f"{signal.Signals(signum).name} ended the run in {run_dir}")
        self.signum, self.run_dir = signum, run_dir


class Interruption(pl.Callback):
    """``with Interruption(path) as stop: trainer.fit(...)``, the trainer having it as a callback.

    The first Ctrl-C is passed on as SIGTERM, for which Lightning has a way that all processes of a run take together; the second one ends the
    process at once. Interrupted between two training steps, the run saves ``path`` (if any); during validation the last epoch's checkpoint stands.

    signum: the signal that came, None while there is none.
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self.signum, self._before = path, None, None

    def __enter__(self) -> Interruption:
        # Around the trainer, which puts back the handlers it found. A shell's background jobs ignore Ctrl-C, and go on doing so.
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            self._before = signal.signal(signal.SIGINT, self._on_ctrl_c)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _on_ctrl_c(self, signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.signum = signal.SIGINT
        os.kill(os.getpid(), signal.SIGTERM)

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch, index: int) -> None:
        # With several processes Lightning itself asks after every step, so that all stop at the same one.
        if trainer.received_sigterm and trainer.world_size == 1:
            raise SIGTERMException

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, SIGTERMException):
            return
        self.signum = self.signum or signal.SIGTERM
        if self.path is not None and trainer.training and not module.gradient_free:
            trainer.save_checkpoint(self.path)
