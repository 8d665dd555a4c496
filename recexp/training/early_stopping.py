"""When training ends before its last epoch, and the reason that is recorded."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytorch_lightning as pl
from pydantic import Field
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.callbacks.early_stopping import EarlyStopping as LightningEarlyStopping
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason
from torch import Tensor

# Recorded where a value, not patience, ended training.
REASONS = {
    EarlyStoppingReason.NON_FINITE_METRIC: "the validation metric is not finite",
    EarlyStoppingReason.STOPPING_THRESHOLD: "the validation metric reached stopping_threshold",
    EarlyStoppingReason.DIVERGENCE_THRESHOLD: (
        "the validation metric fell below divergence_threshold"
    ),
}


class EarlyStopping(LightningEarlyStopping):
    """Ends training after ``patience`` validations in a row without a better value.

    Lightning's class counts epochs, also those without validation, whose value is the last
    validation's. This one counts validations only.

    min_steps: no stop before this many optimizer steps since the best validation. Models that
    are fitted in closed form have no optimizer, so this minimum does not apply to them.

    A run resumed after such a stop does not train on, unless ``patience`` or ``min_steps`` is
    larger than before.
    """

    def __init__(
        self,
        monitor: str,
        mode: Literal["max", "min"] = "max",
        patience: Annotated[int, Field(ge=0)] = 5,
        min_steps: Annotated[int, Field(ge=0)] = 0,
        min_delta: Annotated[float, Field(ge=0)] = 0.0,
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
        patience = self.patience  # a resumed run may have been given a larger one
        super().load_state_dict(state_dict)
        self.patience = patience
        self.best_step = state_dict.get("best_step", 0)
        self.checked_step = state_dict.get("checked_step", 0)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
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

    def reason(self) -> str | None:
        """Why this callback ended training; None where it did not."""
        if self.stopping_reason == EarlyStoppingReason.NOT_STOPPED:
            return None
        if self.stopping_reason != EarlyStoppingReason.PATIENCE_EXHAUSTED:
            return REASONS[self.stopping_reason]
        steps = self.checked_step - self.best_step
        return f"no better validation in the last {self.wait_count} ({steps:,} steps)"


def stop_reason(trainer: pl.Trainer) -> str:
    """Why ``trainer.fit`` ended: "early stopping: ...", "max_epochs reached", "max_steps reached",
    "max_time reached" or "stopped by a callback".
    """
    may_stop_early = _has_trained_minimum(trainer)
    for callback in _callbacks(trainer) if may_stop_early else ():
        if isinstance(callback, EarlyStopping):
            reason = callback.reason()
        elif isinstance(callback, LightningEarlyStopping):
            reason = callback.stopping_reason_message
        else:
            continue
        if reason:
            return f"early stopping: {reason}"
    if 0 <= trainer.max_steps <= trainer.global_step:
        return "max_steps reached"
    if trainer.should_stop and any(_is_time_over(callback) for callback in _callbacks(trainer)):
        return "max_time reached"
    if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= trainer.current_epoch:
        return "max_epochs reached"
    return "stopped by a callback"


def _has_trained_minimum(trainer: pl.Trainer) -> bool:
    """Are ``min_epochs`` and ``min_steps`` reached? Until then a wish to stop has no effect."""
    min_epochs, min_steps = trainer.min_epochs or 0, trainer.min_steps or 0
    return trainer.current_epoch >= min_epochs and trainer.global_step >= min_steps


def _callbacks(trainer: pl.Trainer) -> list[pl.Callback]:
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return callbacks


def _is_time_over(callback: pl.Callback) -> bool:
    if not isinstance(callback, Timer):
        return False
    seconds_left = callback.time_remaining()
    return seconds_left is not None and seconds_left <= 0


class ValidateAtLastStep(pl.Callback):
    """Validates the weights of step ``trainer.max_steps``, also within an epoch."""

    def on_train_batch_end(self, trainer: pl.Trainer, *step: object) -> None:
        if 0 <= trainer.max_steps <= trainer.global_step:
            trainer.should_stop = True
