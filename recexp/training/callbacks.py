"""The table of a run's epochs, and the progress bar."""

from __future__ import annotations

import csv
import io
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from recexp.io import atomic_write
from recexp.logs import duration
from recexp.training.time_left import time_left

SHORTEST = 1e-9  # seconds, to divide by
# Columns that loggers get, too; the module logs the losses and metrics itself.
LOGGED = ("epoch", "lr", "train/examples_per_s")

log = logging.getLogger(__name__)


class EpochTable(pl.Callback):
    """``metrics.csv``: one row per epoch with loss, learning rate and validation metrics.

    The file is rewritten atomically after every epoch, and each epoch logs one line.

    monitor: the metric that chooses the epoch; the line says where it is the best so far.
    """

    def __init__(self, path: str | Path, monitor: str = "") -> None:
        self.path = Path(path)
        self.monitor = monitor
        self.rows: list[dict[str, float]] = []
        # Start of this part of the run, and the number of epochs in the parts before it.
        self._part_started = time.perf_counter()
        self._n_before = 0
        # Of the current epoch: training rows in this process, seconds in earlier parts of the
        # run, start in this part, and seconds until validation started.
        self._n_rows = 0
        self._seconds_before = 0.0
        self._started = time.perf_counter()
        self._trained: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """The rows, and what the current epoch has cost so far.

        They are in the checkpoint, so that a resumed run has the rows of the epochs before it, and
        no others.
        """
        return {"rows": self.rows, "examples": self._n_rows, "seconds": self._seconds()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = state["rows"]
        self._n_rows = state.get("examples", 0)
        self._seconds_before = state.get("seconds", 0.0)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        # A resumed part may start within an epoch, without on_train_epoch_start.
        self._started = time.perf_counter()
        self._part_started = self._started
        self._n_before = len(self.rows)

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._n_rows = 0
        self._seconds_before = 0.0
        self._started = time.perf_counter()
        self._trained = None

    def _seconds(self) -> float:
        return self._seconds_before + time.perf_counter() - self._started

    def record(self) -> dict[str, float]:
        """Epochs, and training rows per second over all of them (validation not counted)."""
        seconds = [row["train/seconds"] for row in self.rows]
        n_rows = [row["train/examples_per_s"] * row["train/seconds"] for row in self.rows]
        rate = sum(n_rows) / max(sum(seconds), SHORTEST)
        return {"epochs": len(self.rows), "examples_per_s": rate}

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        self._n_rows += len(batch)

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._trained = self._seconds()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        row = self._row(trainer, module)
        self.rows.append(row)
        logged = {name: row[name] for name in LOGGED if name in row}
        for logger in trainer.loggers:
            logger.log_metrics(logged, step=trainer.global_step)
        self._write()
        self._tell(trainer)

    def _row(self, trainer: pl.Trainer, module: Any) -> dict[str, float]:
        """What the table says of the epoch that ends."""
        seconds = self._seconds() if self._trained is None else self._trained
        row: dict[str, float] = {"epoch": trainer.current_epoch, "step": trainer.global_step}
        row |= module.train_means()
        row["train/seconds"] = seconds
        row["train/examples_per_s"] = self._n_rows * trainer.world_size / max(seconds, SHORTEST)
        # In an epoch without validation the module still holds the results of an earlier one.
        if self._trained is not None:
            for split in module.splits:
                results = module.results.get(split, {})
                row |= {f"{split}/{name}": value for name, value in results.items()}
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        if groups:
            row["lr"] = groups[0]["lr"]
        return row

    @rank_zero_only
    def _write(self) -> None:
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=names)
        writer.writeheader()
        writer.writerows(self.rows)
        with atomic_write(self.path) as temporary:
            temporary.write_text(text.getvalue())

    @rank_zero_only
    def _tell(self, trainer: pl.Trainer) -> None:
        """Log a line about the epoch that ends."""
        row = self.rows[-1]
        n_epochs = trainer.max_epochs
        has_end = n_epochs is not None and n_epochs >= 0
        parts = [f"epoch {int(row['epoch']) + 1}{f'/{n_epochs}' if has_end else ''}"]
        for name, value in row.items():
            if name == self.monitor or name.endswith(("train/loss", "/hr@10", "/ndcg@10")):
                parts.append(f"{name} {value:.4f}")
        if is_best_so_far(self.rows, self.monitor):
            parts.append("best so far")
        parts.append(f"{row['train/examples_per_s']:,.0f} rows/s")
        seconds = time.perf_counter() - self._part_started
        left = time_left(trainer, seconds / max(1, len(self.rows) - self._n_before))
        if left is not None:
            parts.append(f"{left.bound} {duration(left.seconds)} left")
        log.info("  ".join(parts))


def is_best_so_far(rows: Sequence[Mapping[str, float]], monitor: str) -> bool:
    """Is the last epoch's value above all before it, in float32, as Lightning compares?"""
    values = [np.float32(row[monitor]) for row in rows if monitor in row]
    return monitor in rows[-1] and all(value < values[-1] for value in values[:-1])


class ProgressBar(TQDMProgressBar):
    """Lightning's bar with loss, rate, time left and the latest validation metrics.

    It is written to stdout, and only where that is a terminal. The lines of ``EpochTable`` stay
    above it, so that it is removed in the end.
    """

    def __init__(self) -> None:
        super().__init__(refresh_rate=10 if sys.stdout.isatty() else 0, leave=False)

    def init_train_tqdm(self) -> Tqdm:
        bar = super().init_train_tqdm()
        bar.leave = False
        return bar

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        super().on_train_epoch_start(trainer)
        # Epochs are counted from 1, as in the lines above the bar.
        self.train_progress_bar.set_description(f"epoch {trainer.current_epoch + 1}")

    def get_metrics(self, trainer: pl.Trainer, module: Any) -> dict[str, Any]:
        """The loss and the validation metrics, without Lightning's version number."""
        metrics: dict[str, Any] = {}
        latest_loss: Tensor | None = module.latest_loss
        if latest_loss is not None:
            metrics["loss"] = float(latest_loss)
        for name, value in super().get_metrics(trainer, module).items():
            if name != "v_num" and not name.startswith("train/"):
                metrics[name] = value
        return metrics
