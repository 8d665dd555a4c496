"""The parts of a run that was interrupted and resumed: its whole time and all its steps."""

from __future__ import annotations

import math
import time
from typing import Any

import pytorch_lightning as pl

from recexp.errors import RecexpError


class Parts(pl.Callback):
    """Counts wall time, epochs and optimizer steps of this part; those before it are in the
    checkpoint it was resumed from.

    A killed part counts up to its last checkpoint: what it did afterwards is lost and is done
    again. started: ``time.perf_counter()`` at the beginning of this part.

    updates: optimizer steps over all parts; 0 for models that are fitted in closed form.
    updates_per_epoch: optimizer steps of a whole epoch, gradient accumulation and the number of
    processes taken into account.
    """

    def __init__(self, started: float) -> None:
        self.started = started
        self.updates = 0
        self.updates_per_epoch = 0
        self._before: list[dict[str, Any]] = []
        self._resumed_from: dict[str, int] | None = None
        # How many epochs, and batches of the next one, are done.
        self._place = {"epoch": 0, "batch": 0}
        self._cut = False  # did the last epoch end before its last batch?

    def state_dict(self) -> dict[str, Any]:
        return {"parts": self.all(), "place": dict(self._place), "cut": self._cut}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._cut = state["cut"]
        self._before = state["parts"]
        self._resumed_from = dict(state["place"])
        self._place = dict(state["place"])
        self.updates = sum(part["updates"] for part in self._before)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self._cut:
            raise RecexpError(
                "The run of this checkpoint was ended within an epoch, by trainer.max_steps or "
                "trainer.max_time, and Lightning cannot go on with the rest of that epoch. Start "
                "again with a larger limit."
            )

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *batch: object) -> None:
        self._count(trainer, module)
        self._place["batch"] += 1

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._cut = self._place["batch"] < trainer.num_training_batches
        self._place = {"epoch": trainer.current_epoch + 1, "batch": 0}

    def on_fit_end(self, trainer: pl.Trainer, module: Any) -> None:
        self._count(trainer, module)  # a finished run that is resumed has no batch

    def _count(self, trainer: pl.Trainer, module: Any) -> None:
        if not module.gradient_free:
            batches = trainer.num_training_batches / trainer.accumulate_grad_batches
            self.updates = trainer.global_step
            self.updates_per_epoch = math.ceil(batches)

    def all(self) -> list[dict[str, Any]]:
        """Every part so far, this one last.

        resumed_from: the epochs that were done and the batches of the next one, None for the
        first part. epochs: those that ended in the part. updates: its optimizer steps.
        """
        from_epoch = self._resumed_from["epoch"] if self._resumed_from else 0
        this = {
            "resumed_from": self._resumed_from,
            "epochs": self._place["epoch"] - from_epoch,
            "updates": self.updates - sum(part["updates"] for part in self._before),
            "wall_time_s": time.perf_counter() - self.started,
        }
        return [*self._before, this]

    def record(self) -> dict[str, Any]:
        """What ``result.json`` says of them; ``wall_time_s`` is the time of all parts."""
        parts = self.all()
        return {
            "updates": self.updates,
            "updates_per_epoch": self.updates_per_epoch,
            "wall_time_s": sum(part["wall_time_s"] for part in parts),
            "parts": parts,
        }
