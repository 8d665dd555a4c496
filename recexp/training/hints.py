"""What Lightning says that does not concern our users."""

from __future__ import annotations

import logging
import sys
import warnings

HINTS = (
    "many workers",
    "isinstance.treespec",
    "LeafSpec",
    "smaller than the logging interval",
    "with no optimizer",
)
HINTS += (
    "dataloader is not resumable",
)  # recexp.data.datamodule skips what a resumed epoch has seen
HINTS += (
    "across ranks is zero",
    "sync_dist",
)  # an empty validation loader when refitting; metrics are synchronised by torchmetrics


def quiet() -> None:
    """Silence these hints; hints about workers, for one, are about a loader that only deals out indices."""
    for text in HINTS:
        warnings.filterwarnings("ignore", f".*{text}.*")
    warnings.filterwarnings(
        "ignore", category=UserWarning, module="pytorch_lightning.*checkpoint.*"
    )
    if not sys.warnoptions:
        for name in ("pytorch_lightning", "lightning_fabric"):
            logging.getLogger(name).setLevel(logging.WARNING)
