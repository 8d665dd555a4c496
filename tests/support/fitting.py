"""Training of a module without files, progress and validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl


def fit(module: pl.LightningModule, data: Any, folder: Path, **options: Any) -> pl.Trainer:
    """Train on a CPU; options: of the trainer."""
    trainer = pl.Trainer(
        accelerator="cpu",
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
        **options,
    )
    trainer.fit(module, data)
    return trainer
