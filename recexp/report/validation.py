"""The order of systems by validation, by which one of several is chosen: never by test."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from recexp.report.collect import trained_under
from recexp.report.tables import System

METRIC = "val/ndcg@10"


def by_validation(found: Sequence[System]) -> list[System]:
    """Best first; those trained under another protocol come last."""
    return sorted(found, key=_place)


def _place(system: System) -> tuple[bool, float, str]:
    known = []
    for run in system.runs:
        metrics = run["trained"] if "trained" in run else run["metrics"]
        if METRIC in metrics:
            known.append(metrics[METRIC])
    distance = -fmean(known) if known else 1.0
    return bool(trained_under(system.first)), distance, system.first["folder"]
