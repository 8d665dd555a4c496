"""Ctrl-C and SIGTERM end a run at the next step, with a checkpoint from which it goes on exactly."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import SIGTERMException


class Interrupted(Exception):
    """A signal ended the run in ``run_dir``; its ``result.json`` says so."""

    def __init__(self, signum: int, run_dir: Path) -> None:
        super().__init__(f"{signal.Signals(signum).name} ended the run in {run_dir}")
        self.signum, self.run_dir = signum, run_dir


class Interruption(pl.Callback):
    """``with Interruption(path) as stop: trainer.fit(...)``, the trainer having it as a callback.

    While batches are worked on, a signal is only noted. Between two batches all processes agree whether one of them has been told to end, and then
    end together: in training with the checkpoint ``path`` (if any), in evaluation the last epoch's stands. At other times a signal takes effect at
    once. A second Ctrl-C ends the process at once in any case.

    signum: the signal that came, to this process or another; None while there is none.
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self.signum, self._in_batches, self._before = path, None, False, {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGTERM, signal.SIGINT):
                if (
                    signal.getsignal(signum) is not signal.SIG_IGN
                ):  # as in a shell's background jobs, which go on ignoring Ctrl-C
                    self._before[signum] = signal.signal(signum, self._on_signal)
        return self

    def __exit__(self, *exception: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        if self.signum is None:
            self.signum = signum
            if not self._in_batches:
                raise SIGTERMException

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        # Lightning's own handler talks to the other processes from inside the handler, where it may meet them in another exchange and hang.
        trainer._signal_connector.register_signal_handlers = lambda: None

    def _agree(
        self, trainer: pl.Trainer, module: pl.LightningModule, path: Path | None = None
    ) -> None:
        signum = self.signum or 0
        if trainer.world_size > 1:
            signum = int(
                trainer.strategy.reduce(
                    torch.tensor(signum, device=trainer.strategy.root_device), reduce_op="max"
                )
            )
        if signum:
            self.signum, self._in_batches = signum, False
            if path is not None and not module.gradient_free:
                trainer.save_checkpoint(path)
            raise SIGTERMException

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._in_batches = True

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch, index: int
    ) -> None:
        self._agree(trainer, module, self.path)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, *batch
    ) -> None:
        self._agree(trainer, module)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._agree(trainer, module)
        self._in_batches = False

    def on_test_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._in_batches = True

    def on_test_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *batch) -> None:
        self._agree(trainer, module)

    def on_test_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._agree(trainer, module)
        self._in_batches = False
