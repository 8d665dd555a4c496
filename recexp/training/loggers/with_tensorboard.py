"""TensorBoard: one event file per run, with a table of settings and results at its end."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pytorch_lightning.loggers import TensorBoardLogger

from recexp.training.loggers.tracker import Guard, Tracker, at_epoch, flat, run_name, started


def tensorboard_logger(
    save_dir: str = "tensorboard",
    *,
    name: str | None = None,
    overrides: Sequence[str] | None = None,
) -> Tracker | None:
    """Lightning's TensorBoardLogger; None where it cannot start, and in all processes but one.

    save_dir: the run gets a folder of its name below it, by which TensorBoard lists it. name,
    overrides: as of ``wandb_logger``.
    """
    return started("TensorBoard", lambda: _start(save_dir, name, overrides or ()))


def _start(save_dir: str, name: str | None, overrides: Sequence[str]) -> Tracker:
    folder = re.sub(r"[^\w=.,+-]+", "_", run_name(name, overrides) or "run")
    logger = TensorBoardLogger(save_dir, name="", version=folder, default_hp_metric=False)
    return TensorBoardTracker(logger, Guard("TensorBoard", f"Its records lie in {save_dir}."))


class TensorBoardTracker(Tracker):
    """The step of its curves is the epoch, so that runs with other batch sizes are comparable.

    The summary, under ``summary/``, and the settings are the run's row in the tab HPARAMS.
    """

    def __init__(self, logger: TensorBoardLogger, guard: Guard) -> None:
        super().__init__(logger, guard)
        self.settings: dict[str, Any] = {}
        self.summary: dict[str, float] = {}
        self.tensorboard = logger

    def _log_metrics(self, metrics: Mapping[str, float], step: int | None) -> None:
        super()._log_metrics(*at_epoch(metrics, step))

    def _log_settings(self, settings: Mapping[str, Any]) -> None:
        self.settings |= flat(settings)

    def _summarize(self, summary: Mapping[str, Any]) -> None:
        for name, value in summary.items():
            if isinstance(value, str):  # only numbers are metrics
                self.settings[name] = value
            else:
                self.summary[f"summary/{name}"] = value

    def _end(self, exit_code: int) -> None:
        step = int(self.summary.get("summary/best_epoch", 0))
        self.tensorboard.log_hyperparams(self.settings, self.summary, step)
        super()._end(exit_code)
