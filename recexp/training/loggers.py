"""W&B without surprises: never a prompt, never a crash for want of a network."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Literal


def wandb_logger(mode: Literal["auto", "online", "offline"] = "auto", **settings: Any):
    """Lightning's WandbLogger. mode: "online", "offline", or "auto" (online where a key is configured, else offline).

    Online without a reachable server falls back to offline with a warning; ``wandb sync`` uploads such runs later.
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
    _steady(logger)
    # Curves against epochs, whatever the number of steps: runs with other batch sizes lie on one axis.
    for pattern in ("train/*", "val/*", "test/*"):
        logger.guard(
            lambda pattern=pattern: logger.experiment.define_metric(pattern, step_metric="epoch")
        )()
    return logger


def finish(logger: Any) -> None:
    """Have the logger write its last records; W&B does so when its run is finished."""
    logger.finalize("success")
    getattr(logger, "guard", lambda call: call)(
        getattr(logger.experiment, "finish", lambda: None)
    )()


def _steady(logger: Any) -> None:
    """The first error of a call ends the logging, with one warning, and not the run. ``logger.guard`` guards other calls likewise."""
    lost = []

    def guard(call: Callable) -> Callable:
        @wraps(call)
        def guarded(*arguments: Any, **settings: Any) -> Any:
            if lost:
                return None
            try:
                return call(*arguments, **settings)
            except (
                Exception
            ) as error:  # whatever W&B thinks of: no record of a run is worth the run
                lost.append(error)
                warnings.warn(
                    f"W&B failed ({error}) and records no more of this run; metrics.csv and result.json hold everything.",
                    stacklevel=2,
                )
                return None

        return guarded

    logger.guard = guard
    for name in ("log_metrics", "log_hyperparams", "after_save_checkpoint", "save", "finalize"):
        setattr(logger, name, guard(getattr(logger, name)))


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    return netrc.exists() and "api.wandb.ai" in netrc.read_text(errors="ignore")


def _settings():
    import wandb

    return wandb.Settings(init_timeout=30, console="off", x_disable_stats=True)
