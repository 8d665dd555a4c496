"""When training ends before its last epoch, and the reason that is recorded."""

from __future__ import annotations

import logging
from typing import Annotated, Any, Literal, cast

import pytorch_lightning as pl
import torch
from pydantic import Field
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.callbacks.early_stopping import EarlyStopping as LightningEarlyStopping
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from recexp.training.learned import share_learned
from recexp.training.module import RecModule

log = logging.getLogger(__name__)

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

    min_steps: no stop before this many optimizer steps since the best validation.
    min_learned: no stop while the training loss is less than this share below that of a model that
    scores all items equal (``RecModule.constant_loss``). A model that knows little more than which
    items are popular may stay there for many epochs before it learns; validations and steps count
    from the end of that plateau. None: ``Objective.learned_share``. 0: no such minimum.

    Models that are fitted in closed form have no optimizer, so these minima do not apply to them.

    A run resumed after such a stop does not train on, unless ``patience`` or ``min_steps`` is
    larger than before.
    """

    def __init__(
        self,
        monitor: str,
        mode: Literal["max", "min"] = "max",
        patience: Annotated[int, Field(ge=0)] = 5,
        min_steps: Annotated[int, Field(ge=0)] = 0,
        min_learned: Annotated[float | None, Field(ge=0, le=1)] = None,
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
        self.min_learned = min_learned
        self.best_step = 0
        self.checked_step = 0
        self._floor = min_steps
        self._least_share = min_learned or 0.0
        # Of the last check: whether the model had learned enough for a stop.
        self._has_learned = True
        self._n_unlearned = 0  # checks without a better value before that

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
        if self.min_learned is None:
            self._least_share = pl_module.objective.learned_share
        if self.stopping_reason == EarlyStoppingReason.PATIENCE_EXHAUSTED and not self._exhausted():
            self.stopping_reason = EarlyStoppingReason.NOT_STOPPED
        if self.stopping_reason != EarlyStoppingReason.NOT_STOPPED:
            trainer.should_stop = True

    def _run_early_stopping_check(self, trainer: pl.Trainer) -> None:
        self.checked_step = trainer.global_step
        self._has_learned = self._learned_enough(trainer)
        super()._run_early_stopping_check(trainer)

    def _evaluate_stopping_criteria(self, current: Tensor) -> tuple[bool, str | None]:
        should_stop, reason = super()._evaluate_stopping_criteria(current)
        if self.wait_count == 0:
            self.best_step = self.checked_step
        if not self._has_learned:
            self._wait_to_learn()
        if self.stopping_reason == EarlyStoppingReason.PATIENCE_EXHAUSTED and not self._exhausted():
            self.stopping_reason = EarlyStoppingReason.NOT_STOPPED
            return False, None
        return should_stop, reason

    def _learned_enough(self, trainer: pl.Trainer) -> bool:
        """Is the training loss, a mean over all processes, low enough for a stop?"""
        module = cast(RecModule, trainer.lightning_module)
        if not self._least_share or module.gradient_free:
            return True
        share = share_learned(module.train_means(), module.constant_loss)
        if share is None:
            return True
        over_processes = trainer.strategy.reduce(
            torch.tensor(share, device=module.device), reduce_op="mean"
        )
        return float(over_processes) >= self._least_share

    def _wait_to_learn(self) -> None:
        """Start to count anew, and say so where patience would end the training."""
        self._n_unlearned = self._n_unlearned + 1 if self.wait_count else 0
        if self._n_unlearned == max(1, self.patience):
            self._tell_of_plateau()
        self.wait_count = 0
        self.best_step = self.checked_step

    @rank_zero_only
    def _tell_of_plateau(self) -> None:
        log.info(
            "no better validation in the last %d, but the training goes on: its loss is not yet "
            "%s below that of a model that scores all items alike",
            self._n_unlearned,
            f"{self._least_share:.0%}",
        )

    def _exhausted(self) -> bool:
        return (
            self._has_learned
            and self.wait_count >= self.patience
            and self.checked_step - self.best_step >= self._floor
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
