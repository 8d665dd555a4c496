"""When training ends before its last epoch, and what is said about it."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.callbacks.early_stopping import EarlyStopping as LightningEarlyStopping
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason
from torch import Tensor

# Reported where a value, not patience, ended training.
VALUES = {
    EarlyStoppingReason.NON_FINITE_METRIC: "the validation metric is not finite",
    EarlyStoppingReason.STOPPING_THRESHOLD: "the validation metric reached stopping_threshold",
    EarlyStoppingReason.DIVERGENCE_THRESHOLD: "the validation metric fell below divergence_threshold",
}


class EarlyStopping(LightningEarlyStopping):
    """Ends training after ``patience`` validations in a row without a better value.

    Lightning's class counts epochs, also those without validation, whose value is the last
    validation's. This one counts validations only.

    min_steps: no stop before this many optimizer steps since the best validation. Models that
    fit by sweeps have no optimizer, so the floor does not apply to them.

    A run resumed after such a stop does not train on, unless ``patience`` or ``min_steps`` is
    larger than before.
    """

    def __init__(
        self,
        monitor: str,
        mode: str = "max",
        patience: int = 5,
        min_steps: int = 0,
        min_delta: float = 0.0,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
    ) -> None:
        super().__init__(
            monitor,
            min_delta=min_delta,
            patience=patience,
            mode=mode,
            stopping_threshold=stopping_threshold,
            divergence_threshold=divergence_threshold,
            check_on_train_epoch_end=False,
        )
        self.min_steps = min_steps
        self.best_step = 0
        self.checked_step = 0
        self._floor = min_steps

    def state_dict(self) -> dict[str, Any]:
        steps = {"best_step": self.best_step, "checked_step": self.checked_step}
        return super().state_dict() | steps

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        patience = self.patience  # of this part of the run: the command may have raised it
        super().load_state_dict(state_dict)
        self.patience = patience
        self.best_step = state_dict.get("best_step", 0)
        self.checked_step = state_dict.get("checked_step", 0)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._floor = 0 if pl_module.gradient_free else self.min_steps
        if self.stopping_reason == EarlyStoppingReason.PATIENCE_EXHAUSTED and not self._exhausted():
            self.stopping_reason = EarlyStoppingReason.NOT_STOPPED
        if self.stopping_reason != EarlyStoppingReason.NOT_STOPPED:
            trainer.should_stop = True

    def _run_early_stopping_check(self, trainer: pl.Trainer) -> None:
        self.checked_step = trainer.global_step
        super()._run_early_stopping_check(trainer)

    def _evaluate_stopping_criteria(self, current: Tensor) -> tuple[bool, str | None]:
        should_stop, reason = super()._evaluate_stopping_criteria(current)
        if self.wait_count == 0:
            self.best_step = self.checked_step
        if self.stopping_reason == EarlyStoppingReason.PATIENCE_EXHAUSTED and not self._exhausted():
            self.stopping_reason = EarlyStoppingReason.NOT_STOPPED
            return False, None
        return should_stop, reason

    def _exhausted(self) -> bool:
        return (
            self.wait_count >= self.patience and self.checked_step - self.best_step >= self._floor
        )

    def why(self) -> str | None:
        """Why it ended training; None where it did not."""
        if self.stopping_reason == EarlyStoppingReason.NOT_STOPPED:
            return None
        if self.stopping_reason != EarlyStoppingReason.PATIENCE_EXHAUSTED:
            return VALUES[self.stopping_reason]
        steps = self.checked_step - self.best_step
        return f"no better validation in the last {self.wait_count} ({steps:,} steps)"


def stop_reason(trainer: pl.Trainer) -> str:
    """Why ``trainer.fit`` ended: "early stopping: ...", "max_epochs reached", "max_steps reached",
    "max_time reached" or "stopped by a callback".
    """
    for callback in trainer.callbacks:
        if isinstance(callback, EarlyStopping) and (why := callback.why()):
            return f"early stopping: {why}"
        if isinstance(callback, LightningEarlyStopping) and callback.stopping_reason_message:
            return f"early stopping: {callback.stopping_reason_message}"
    if 0 <= trainer.max_steps <= trainer.global_step:
        return "max_steps reached"
    timers = [c.time_remaining() for c in trainer.callbacks if isinstance(c, Timer)]
    if trainer.should_stop and any(left is not None and left <= 0 for left in timers):
        return "max_time reached"
    if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= trainer.current_epoch:
        return "max_epochs reached"
    return "stopped by a callback"


class ValidateAtLastStep(pl.Callback):
    """Has the weights of step ``trainer.max_steps`` validated, where it lies within an epoch."""

    def on_train_batch_end(self, trainer: pl.Trainer, *step: object) -> None:
        if 0 <= trainer.max_steps <= trainer.global_step:
            trainer.should_stop = True
