"""Silence Lightning's messages that do not concern users of recexp."""

from __future__ import annotations

import logging
import sys
import warnings

HINTS = (
    "many workers",  # a loader that only deals out row numbers needs no workers
    "isinstance.treespec",
    "LeafSpec",
    "smaller than the logging interval",
    "with no optimizer",
    "dataloader is not resumable",  # the data module skips the batches that are done
    "across ranks is zero",  # an empty validation loader during a refit
    "command is available on your system but is not used",  # srun: one process is meant
    "sync_dist",  # torchmetrics synchronizes the metrics
)


def silence_lightning() -> None:
    """Ignore the warnings in ``HINTS`` and Lightning's messages below a warning."""
    for text in HINTS:
        warnings.filterwarnings("ignore", f".*{text}.*")
    warnings.filterwarnings(
        "ignore", category=UserWarning, module="pytorch_lightning.*checkpoint.*"
    )
    if not sys.warnoptions:
        for name in ("pytorch_lightning", "lightning_fabric"):
            logging.getLogger(name).setLevel(logging.WARNING)
