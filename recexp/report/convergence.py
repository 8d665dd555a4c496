"""Was every system trained for long enough, and did each get the same chance? An under-trained baseline is the field's commonest fault."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recexp.report.collect import epochs_table, setting
from recexp.report.significance import system
from recexp.runs.convergence import KINDS, Verdict, judge

COUNTED = (
    "trials",
    "epochs",
    "steps",
)  # budgets that can be unequal by fault; seconds and rows differ by the nature of systems


@dataclass(frozen=True)
class Budget:
    """What one system got under one protocol id. trials: its runs, seeds and settings alike; seeds: distinct ones.

    epochs, steps (of the optimiser), rows (training rows seen) and seconds (wall time) are means over its trials, None where no file tells.
    share: each of these and trials, over the largest of any system under the protocol id. verdicts: how many trials ended how.
    flags: where the share is too small, in words.
    """

    protocol_id: str
    system: str
    trials: int
    seeds: int
    epochs: float | None
    steps: float | None
    rows: float | None
    seconds: float | None
    share: dict[str, float]
    verdicts: dict[str, int]
    flags: tuple[str, ...]


def verdict(
    result: Mapping[str, Any], folder: str | Path | None = None, *, threshold: float = 0.01
) -> Verdict:
    """Whether more epochs would have helped: what the run itself found, else what its
    ``metrics.csv`` tells (in ``folder``, or where the result says it lies); see ``judge``.
    """
    own = result.get("convergence") or {}
    if own.get("kind") in KINDS and isinstance(own.get("text"), str):
        return Verdict(own["kind"], own["text"])
    rows = epochs_table({**result, **({} if folder is None else {"folder": str(folder)})})
    peeked = result["selection"].startswith("test_peek")
    monitor = setting(result, "callbacks.checkpoint.monitor") or (
        "test/ndcg@10" if peeked else "val/ndcg@10"
    )
    return judge(
        rows,
        monitor,
        stop_reason=result["stop_reason"],
        constant_loss=result.get("constant_loss"),
        threshold=threshold,
    )


def ledger(
    results: Sequence[Mapping[str, Any]],
    *,
    label: Callable[[Mapping[str, Any]], str] = system,
    factor: float = 2.0,
) -> list[Budget]:
    """One row per system and protocol id: what was spent on it, and a flag where another system got more than ``factor`` times as much.

    results: dicts as ``collect`` returns them; runs with the same label are trials of one system. ``label=lambda r: r["model"]`` counts every
    setting tried as a trial of the model, which shows unequal tuning. Flags are raised for trials, epochs and optimiser steps; not for seconds,
    which differ by design. Systems of one pass are judged by trials alone.
    """
    rows = []
    for protocol_id in dict.fromkeys(r["protocol_id"] for r in results):
        groups: dict[str, list[Mapping[str, Any]]] = {}
        for r in results:
            if r["protocol_id"] == protocol_id:
                groups.setdefault(label(r), []).append(r)
        spent = {name: _spent(runs) for name, runs in groups.items()}
        verdicts = {
            name: dict(Counter(verdict(r).kind for r in runs)) for name, runs in groups.items()
        }
        most = {
            k: max(((s[k], name) for name, s in spent.items() if s[k] is not None), default=(0, ""))
            for k in next(iter(spent.values()))
        }
        for name, runs in groups.items():
            share = {
                k: v / most[k][0] for k, v in spent[name].items() if v is not None and most[k][0]
            }
            counted = COUNTED[:1] if set(verdicts[name]) == {"one_pass"} else COUNTED
            why = (
                " (by patience)" if all(r["stop_reason"].startswith("early") for r in runs) else ""
            )
            flags = [
                f"{k}: {share[k]:.0%} of what {most[k][1]} got{why if k != 'trials' else ''}"
                for k in counted
                if k in share and share[k] * factor < 1
            ]
            seeds = len({r["seed"] for r in runs})
            rows.append(
                Budget(
                    protocol_id,
                    name,
                    seeds=seeds,
                    **spent[name],
                    share=share,
                    verdicts=verdicts[name],
                    flags=tuple(flags),
                )
            )
    return rows


def _spent(runs: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    tables = [epochs_table(dict(r)) for r in runs]
    seen = [
        [
            row["train/examples_per_s"] * row["train/seconds"]
            for row in t
            if "train/examples_per_s" in row
        ]
        for t in tables
    ]
    return {
        "trials": len(runs),
        "epochs": _mean([r["epochs"] for r in runs]),
        "steps": _mean([t[-1].get("step") if t else None for t in tables]),
        "rows": _mean([round(sum(s)) if s else None for s in seen]),
        "seconds": _mean([r.get("wall_time_s") for r in runs]),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    """None where any is unknown: a mean over the others would pass for one over all."""
    return None if None in values else sum(values) / len(values)
