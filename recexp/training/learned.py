"""How much a model has learned, as far as its training loss tells."""

from __future__ import annotations

from collections.abc import Mapping

LEARNED = 0.15  # ``Objective.learned_share`` of most, and of runs that do not record theirs


def share_learned(row: Mapping[str, float], constant_loss: float | None) -> float | None:
    """How far the training loss lies below that of equal scores, as a share of the latter.

    row: an epoch's means by name, as in ``metrics.csv``. constant_loss: the training loss of a
    model that scores all items equal. None where one of them is not known.
    """
    loss = score_loss(row)
    return 1 - loss / constant_loss if constant_loss and loss is not None else None


def score_loss(row: Mapping[str, float]) -> float | None:
    """The part of the training loss that is about scores: equal scores say nothing of others."""
    return row.get("train/item_loss", row.get("train/loss"))
