"""The table of a run's epochs, and the progress bar."""

from __future__ import annotations

import csv
import io
import logging
import sys
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from recexp.io import atomic_write

SHORTEST = 1e-9  # seconds, to divide by
# Columns that loggers get, too; the module logs the losses and metrics itself.
LOGGED = ("epoch", "lr", "train/examples_per_s")

log = logging.getLogger(__name__)


class EpochTable(pl.Callback):
    """``metrics.csv``: one row per epoch with loss, learning rate and validation metrics.

    The file is rewritten atomically after every epoch. Where no terminal shows a progress bar,
    each epoch logs one line.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.rows: list[dict[str, float]] = []
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
        self._write(trainer.max_epochs)

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
    def _write(self, n_epochs: int | None) -> None:
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=names)
        writer.writeheader()
        writer.writerows(self.rows)
        with atomic_write(self.path) as temporary:
            temporary.write_text(text.getvalue())
        if not sys.stderr.isatty():
            log.info(_line(self.rows[-1], n_epochs))


def _line(row: dict[str, float], n_epochs: int | None) -> str:
    """One line about an epoch."""
    shown = [name for name in row if name.endswith(("train/loss", "/hr@10", "/ndcg@10"))]
    metrics = "  ".join(f"{name} {row[name]:.4f}" for name in shown)
    speed = f"{row['train/examples_per_s']:,.0f} rows/s"
    return f"epoch {int(row['epoch']) + 1}/{n_epochs}  {metrics}  {speed}"


class ProgressBar(TQDMProgressBar):
    """Lightning's bar with loss, rate, time left and the latest validation metrics.

    Nothing is printed where there is no terminal.
    """

    def __init__(self) -> None:
        super().__init__(refresh_rate=10 if sys.stderr.isatty() else 0, leave=False)

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
