"""A signal ends a run at the next optimizer step, with a checkpoint to resume from exactly."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import SIGTERMException

from recexp.training.interrupts import REQUEUE, SIGNALS, received


class Interrupted(Exception):
    """A signal ended the run in ``run_dir``; its ``result.json`` says so.

    has_result: the signal came so late that the run has a complete result.
    """

    def __init__(self, signum: int, run_dir: Path, *, has_result: bool = False) -> None:
        name = signal.Signals(signum).name
        if has_result:
            super().__init__(f"{name} came after the run in {run_dir} had its result")
        else:
            super().__init__(f"{name} ended the run in {run_dir}")
        self.signum = signum
        self.run_dir = run_dir
        self.has_result = has_result


class Interruption(pl.Callback):
    """``with Interruption(path) as stop: trainer.fit(...)``; the trainer has it as a callback.

    While batches are processed, a signal is only noted. Between two batches all processes agree
    whether one of them was told to end, and then end together: in training after an optimizer step
    and with the checkpoint ``path`` (if any); in evaluation the last epoch's checkpoint stays. At
    other times a signal takes effect at once. A second Ctrl-C always ends the process at once.

    signum: the signal that came to this process or another one; None while there is none.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.signum: int | None = None
        self._in_batches = False
        self._handlers_before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is not threading.main_thread():
            return self  # only the main thread may set handlers
        for signum in SIGNALS:
            # A shell's background jobs ignore Ctrl-C, and go on doing so.
            if signal.getsignal(signum) is not signal.SIG_IGN:
                self._handlers_before[signum] = signal.signal(signum, self._on_signal)
        return self

    def __exit__(self, *exception: object) -> None:
        for signum, handler in self._handlers_before.items():
            signal.signal(signum, handler)
        self._handlers_before = {}

    def catch_up(self) -> None:
        """Let a signal take effect that came before, where a library dropped its exception."""
        signum = received()
        if signum is not None:
            self._on_signal(signum, None)

    def hold(self) -> None:
        """From now on only note signals."""
        self._in_batches = True

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        is_first = self.signum is None
        # A scheduler may send SIGTERM first; the job is requeued only for the other one.
        if is_first or signum in REQUEUE:
            self.signum = signum
        if is_first and not self._in_batches:
            raise SIGTERMException

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        # Lightning's own handler communicates with the other processes from inside the handler,
        # where they may be in another exchange: both would hang.
        connector: Any = trainer._signal_connector
        connector.register_signal_handlers = lambda: None

    def _agree(self, trainer: pl.Trainer, module: Any, path: Path | None = None) -> None:
        """End all processes together if one of them got a signal; before, save to ``path``."""
        signum = self.signum or 0
        if trainer.world_size > 1:
            signum_here = torch.tensor(signum, device=trainer.strategy.root_device)
            largest: Any = trainer.strategy.reduce(signum_here, reduce_op="max")
            signum = int(largest)
        if not signum:
            return
        self.signum = signum
        self._in_batches = False
        if path is not None and not module.gradient_free:
            trainer.save_checkpoint(path)
        raise SIGTERMException

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._in_batches = True

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, index: int
    ) -> None:
        # Gradients gathered since the last optimizer step are in no checkpoint.
        if index % trainer.accumulate_grad_batches == 0:
            self._agree(trainer, module, self.path)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, *batch: Any
    ) -> None:
        self._agree(trainer, module)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._agree(trainer, module)
        self._in_batches = False

    def on_test_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._in_batches = True

    def on_test_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, *batch: Any
    ) -> None:
        self._agree(trainer, module)

    def on_test_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._agree(trainer, module)
        self._in_batches = False
