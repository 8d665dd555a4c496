"""Which of several systems stands for them: chosen by validation, never by test."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from recexp.report.collect import trained_under
from recexp.report.seeds import seed_margin
from recexp.report.tables import System

METRIC = "val/ndcg@10"


def by_validation(found: Sequence[System]) -> list[System]:
    """Best first; those trained under another protocol come last."""
    return sorted(found, key=_place)


def choose(able: Sequence[System], found: Sequence[System]) -> System:
    """The system that stands for ``able``, which come in the order of ``by_validation``.

    The first of them, unless another has more seeds and the first is ahead of it by no more than
    ``seed_margin``: the best of many single runs is partly so by chance. found: all systems, whose
    seeds give the margin.
    """
    first = able[0]
    best = _mean(first)
    if best is None:
        return first
    alike = [first]
    for other in able[1:]:
        value = _mean(other)
        margin = seed_margin(first, other, found, _values)
        same_training = trained_under(other.first) == trained_under(first.first)
        if value is not None and same_training and best - value <= margin:
            alike.append(other)
    return max(alike, key=lambda system: len(system.runs))


def _values(system: System) -> list[float]:
    """The validation of every run that has one."""
    known = []
    for run in system.runs:
        metrics = run["trained"] if "trained" in run else run["metrics"]
        if METRIC in metrics:
            known.append(metrics[METRIC])
    return known


def _mean(system: System) -> float | None:
    known = _values(system)
    return fmean(known) if known else None


def _place(system: System) -> tuple[bool, float, str]:
    mean = _mean(system)
    distance = 1.0 if mean is None else -mean
    return bool(trained_under(system.first)), distance, system.first["folder"]
