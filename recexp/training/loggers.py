"""W&B that never asks for a key, and never ends a run because of a missing network."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pytorch_lightning.loggers import WandbLogger

GUARDED = ("log_metrics", "log_hyperparams", "after_save_checkpoint", "save", "finalize")


def wandb_logger(
    mode: Literal["auto", "online", "offline"] = "auto", **settings: Any
) -> WandbLogger:
    """Lightning's WandbLogger.

    mode: "online", "offline", or "auto": online where a key is configured, else offline. If the
    server cannot be reached, logging falls back to offline with a warning; ``wandb sync`` uploads
    such runs later.
    """
    from pytorch_lightning.loggers import WandbLogger

    if mode == "auto":
        mode = "online" if _has_key() else "offline"
    os.environ.setdefault("WANDB_SILENT", "true")
    logger = WandbLogger(offline=mode == "offline", settings=_settings(), **settings)
    if mode == "online":
        import wandb

        try:
            _ = logger.experiment
        except (wandb.errors.Error, OSError) as error:
            warnings.warn(
                f"W&B cannot be reached ({error}); logging offline. Upload later with: wandb sync",
                stacklevel=2,
            )
            logger = WandbLogger(offline=True, settings=_settings(), **settings)
    guard = _Guard()
    for name in GUARDED:
        setattr(logger, name, guard(getattr(logger, name)))
    setattr(logger, "guard", guard)  # noqa: B010, for ``finish``
    guard(_plot_against_epochs)(logger)
    return logger


def finish(logger: Any) -> None:
    """Have the logger write its last records; W&B does so when its run is finished."""
    logger.finalize("success")
    guard = getattr(logger, "guard", None)
    end = _end_experiment if guard is None else guard(_end_experiment)
    end(logger)


class _Guard:
    """Wraps calls to W&B: the first error ends the logging, with one warning, but not the run."""

    def __init__(self) -> None:
        self.has_failed = False

    def __call__(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def guarded(*arguments: Any, **settings: Any) -> Any:
            if self.has_failed:
                return None
            try:
                return call(*arguments, **settings)
            except Exception as error:  # W&B raises many kinds, and none is worth losing the run
                self.has_failed = True
                warnings.warn(
                    f"W&B failed ({error}) and records no more of this run; metrics.csv and "
                    "result.json hold everything.",
                    stacklevel=2,
                )
                return None

        return guarded


def _end_experiment(logger: Any) -> None:
    finish_run = getattr(logger.experiment, "finish", None)  # only W&B's has it
    if finish_run is not None:
        finish_run()


def _plot_against_epochs(logger: WandbLogger) -> None:
    """Curves against epochs, not steps, so that runs with other batch sizes are comparable."""
    for pattern in ("train/*", "val/*", "test/*"):
        logger.experiment.define_metric(pattern, step_metric="epoch")


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    return netrc.exists() and "api.wandb.ai" in netrc.read_text(errors="ignore")


def _settings() -> Any:
    import wandb

    return wandb.Settings(init_timeout=30, console="off", x_disable_stats=True)
