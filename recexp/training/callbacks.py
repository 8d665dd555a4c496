"""What a run leaves on disk while it goes, and what a person sees."""

from __future__ import annotations

import csv
import io
import sys
import time
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.utilities import rank_zero_only

from recexp.io import atomic_write


class EpochTable(pl.Callback):
    """``metrics.csv``: one row per epoch with the loss, rate and validation metrics, rewritten whole after every epoch.

    Where no terminal shows a progress bar, each epoch prints one line.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.rows: list[dict[str, float]] = []
        self._examples = 0  # of the epoch under way, in this process
        self._seconds_before = 0.0  # of the epoch under way, in the parts of the run before this
        self._started = time.perf_counter()
        self._trained: float | None = None

    def state_dict(self) -> dict:
        """The rows travel in the checkpoint: a resumed run has those of the epochs before it, and
        no others. So does what the epoch under way has cost so far.
        """
        return {"rows": self.rows, "examples": self._examples, "seconds": self._seconds()}

    def load_state_dict(self, state: dict) -> None:
        self.rows = state["rows"]
        self._examples = state.get("examples", 0)
        self._seconds_before = state.get("seconds", 0.0)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._started = time.perf_counter()  # of a part that goes on in the middle of an epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._examples = 0
        self._seconds_before = 0.0
        self._started = time.perf_counter()
        self._trained = None

    def _seconds(self) -> float:
        return self._seconds_before + time.perf_counter() - self._started

    def record(self) -> dict[str, float]:
        """Epochs, and training rows a second over all of them (validation not counted)."""
        seconds = [row["train/seconds"] for row in self.rows]
        examples = [row["train/examples_per_s"] * row["train/seconds"] for row in self.rows]
        return {"epochs": len(self.rows), "examples_per_s": sum(examples) / max(sum(seconds), 1e-9)}

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self._examples += len(batch)

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._trained = self._seconds()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        seconds = self._trained or self._seconds()
        row = {"epoch": trainer.current_epoch, "step": trainer.global_step}
        row |= module.train_means() | {
            "train/seconds": seconds,
            "train/examples_per_s": self._examples * trainer.world_size / max(seconds, 1e-9),
        }
        for split in (
            module.splits if self._trained else ()
        ):  # else the results are those of an earlier epoch
            row |= {f"{split}/{k}": v for k, v in module.results.get(split, {}).items()}
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        if groups:
            row["lr"] = groups[0]["lr"]
        self.rows.append(row)
        for logger in trainer.loggers:
            logger.log_metrics(
                {"train/examples_per_s": row["train/examples_per_s"]}, step=trainer.global_step
            )
        self._write(trainer.max_epochs)

    @rank_zero_only
    def _write(self, epochs: int | None) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(
            text, fieldnames=list(dict.fromkeys(k for row in self.rows for k in row))
        )
        writer.writeheader()
        writer.writerows(self.rows)
        with atomic_write(self.path) as temporary:
            temporary.write_text(text.getvalue())
        if not sys.stderr.isatty():
            row = self.rows[-1]
            shown = [
                f"{k} {row[k]:.4f}"
                for k in row
                if k == "train/loss" or k.endswith(("/hr@10", "/ndcg@10"))
            ]
            rate = f"{row['train/examples_per_s']:,.0f} rows/s"
            print(
                f"epoch {int(row['epoch']) + 1}/{epochs}  {'  '.join(shown)}  {rate}",
                file=sys.stderr,
                flush=True,
            )


class ProgressBar(TQDMProgressBar):
    """Lightning's bar (loss, rate, time left, latest validation metrics) on a terminal; silent elsewhere."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=10 if sys.stderr.isatty() else 0, leave=False)

    def get_metrics(self, trainer, module):
        """Without the version number, which tells nothing about the model."""
        loss = {} if module.latest_loss is None else {"loss": float(module.latest_loss)}
        return loss | {
            k: v
            for k, v in super().get_metrics(trainer, module).items()
            if k != "v_num" and not k.startswith("train/")
        }
