"""How long a training will go on, from the epochs that it has done."""

from __future__ import annotations

from typing import Literal, NamedTuple

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.callbacks.early_stopping import EarlyStopping


class TimeLeft(NamedTuple):
    """bound: "at most" where early stopping or a limit of time may end the training before."""

    seconds: float
    bound: Literal["about", "at most"]


def time_left(trainer: pl.Trainer, seconds_per_epoch: float) -> TimeLeft | None:
    """The time left at the end of an epoch; None after the last one, and where there is no limit.

    seconds_per_epoch: with its validation.
    """
    n_done = trainer.current_epoch + 1
    limits = []
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        limits.append(float(trainer.max_epochs - n_done))
    if trainer.max_steps >= 0 and trainer.global_step > 0:
        n_steps_left = trainer.max_steps - trainer.global_step
        limits.append(n_steps_left * n_done / trainer.global_step)
    if not limits or min(limits) <= 0 or trainer.should_stop:
        return None
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    may_end_before = any(isinstance(each, EarlyStopping | Timer) for each in callbacks)
    return TimeLeft(min(limits) * seconds_per_epoch, "at most" if may_end_before else "about")
