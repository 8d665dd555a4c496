"""W&B without surprises: never a prompt, never a crash for want of a network."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any


def wandb_logger(mode: str = "auto", **settings: Any):
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
            warnings.warn(f"W&B cannot be reached ({error}); logging offline. Upload later with: wandb sync", stacklevel=2)
            logger = WandbLogger(offline=True, settings=_settings(), **settings)
    # Curves against epochs, whatever the number of steps: runs with other batch sizes lie on one axis.
    for pattern in ("train/*", "val/*", "test/*"):
        logger.experiment.define_metric(pattern, step_metric="epoch")
    return logger


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    return netrc.exists() and "api.wandb.ai" in netrc.read_text(errors="ignore")


def _settings():
    import wandb

    return wandb.Settings(init_timeout=30, console="off", x_disable_stats=True)
