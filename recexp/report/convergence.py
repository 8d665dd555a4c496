"""Was every system trained for long enough, and did all get the same budget?

Under-trained baselines are a common fault of comparisons between recommenders.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recexp.report.collect import chose_on_test, read_epochs, setting
from recexp.report.comparison import Labeler, Runs, system_name
from recexp.runs.convergence import KINDS, Verdict, judge
from recexp.training.learned import LEARNED

# Amounts that can be unequal by mistake; seconds and rows differ by the nature of the systems.
COUNTED = ("trials", "epochs", "steps")

Amounts = dict[str, float | None]


@dataclass(frozen=True)
class Budget:
    """What one system got under one protocol id.

    trials: its runs, seeds and settings alike; seeds: distinct ones. epochs, steps (of the
    optimizer), rows (training rows seen) and seconds (wall time) are means over its trials, None
    where no file records them. share: each of these and trials, over the largest of any system
    under the protocol id. verdicts: how many trials ended how. flags: where the share is too small,
    in words.
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
    """Whether more epochs would have helped.

    What the run itself found, else what its ``metrics.csv`` tells (in ``folder``, or where the
    result says it lies); see ``recexp.runs.convergence.judge``.
    """
    own = result.get("convergence") or {}
    if own.get("kind") in KINDS and isinstance(own.get("text"), str):
        return Verdict(own["kind"], own["text"])
    default_monitor = "test/ndcg@10" if chose_on_test(result) else "val/ndcg@10"
    return judge(
        read_epochs(result if folder is None else _moved_to(folder, result)),
        setting(result, "callbacks.checkpoint.monitor") or default_monitor,
        stop_reason=result["stop_reason"],
        constant_loss=result.get("constant_loss"),
        learned_share=result.get("learned_share", LEARNED),
        threshold=threshold,
    )


def _moved_to(folder: str | Path, result: Mapping[str, Any]) -> dict[str, Any]:
    """The result as if its files lay in the folder."""
    return {key: value for key, value in result.items() if key != "curve"} | {"folder": str(folder)}


def ledger(results: Runs, *, label: Labeler = system_name, factor: float = 2.0) -> list[Budget]:
    """One row per system and protocol id: what was spent on it.

    results: dicts as ``collect`` returns them; runs with the same label are trials of one system.
    ``label=lambda r: r["model"]`` counts every setting tried as a trial of the model, which shows
    unequal tuning. A flag says where another system got more than ``factor`` times as much: of
    trials, epochs and optimizer steps; not of seconds, which differ by design. Systems of one pass
    are judged by trials alone.
    """
    budgets: list[Budget] = []
    for protocol_id in dict.fromkeys(r["protocol_id"] for r in results):
        groups: dict[str, list[Mapping[str, Any]]] = {}
        for result in results:
            if result["protocol_id"] == protocol_id:
                groups.setdefault(label(result), []).append(result)
        budgets += _budgets(protocol_id, groups, factor)
    return budgets


def _budgets(
    protocol_id: str, groups: Mapping[str, Sequence[Mapping[str, Any]]], factor: float
) -> list[Budget]:
    spent = {name: _spent(runs) for name, runs in groups.items()}
    most = _largest(spent)
    budgets = []
    for name, runs in groups.items():
        share = {}
        for amount, value in spent[name].items():
            if value is not None and most[amount][0]:
                share[amount] = value / most[amount][0]
        verdicts = dict(Counter(verdict(run).kind for run in runs))
        budget = Budget(
            protocol_id=protocol_id,
            system=name,
            trials=len(runs),
            seeds=len({run["seed"] for run in runs}),
            epochs=spent[name]["epochs"],
            steps=spent[name]["steps"],
            rows=spent[name]["rows"],
            seconds=spent[name]["seconds"],
            share=share,
            verdicts=verdicts,
            flags=tuple(_flags(runs, verdicts, share, most, factor)),
        )
        budgets.append(budget)
    return budgets


def _largest(spent: Mapping[str, Amounts]) -> dict[str, tuple[float, str]]:
    """Per amount the largest value and its system."""
    largest = {}
    for amount in next(iter(spent.values())):
        known = []
        for name, amounts in spent.items():
            value = amounts[amount]
            if value is not None:
                known.append((value, name))
        largest[amount] = max(known, default=(0.0, ""))
    return largest


def _flags(
    runs: Sequence[Mapping[str, Any]],
    verdicts: Mapping[str, int],
    share: Mapping[str, float],
    most: Mapping[str, tuple[float, str]],
    factor: float,
) -> list[str]:
    counted = ("trials",) if set(verdicts) == {"one_pass"} else COUNTED
    by_patience = all(run["stop_reason"].startswith("early") for run in runs)
    flags = []
    for amount in counted:
        if amount in share and share[amount] * factor < 1:
            reason = " (by patience)" if by_patience and amount != "trials" else ""
            flags.append(f"{amount}: {share[amount]:.0%} of what {most[amount][1]} got{reason}")
    return flags


def _spent(runs: Sequence[Mapping[str, Any]]) -> Amounts:
    tables = [read_epochs(run) for run in runs]
    return {
        "trials": len(runs),
        "epochs": _mean([run["epochs"] for run in runs]),
        "steps": _mean([table[-1].get("step") if table else None for table in tables]),
        "rows": _mean([_rows_seen(table) for table in tables]),
        "seconds": _mean([run.get("wall_time_s") for run in runs]),
    }


def _rows_seen(table: Sequence[Mapping[str, float]]) -> int | None:
    """Training rows of all epochs, from their rate and time; None where these are not recorded."""
    seen = []
    for epoch in table:
        if "train/examples_per_s" in epoch:
            seen.append(epoch["train/examples_per_s"] * epoch["train/seconds"])
    return round(sum(seen)) if seen else None


def _mean(values: Sequence[float | None]) -> float | None:
    """None where any is unknown: a mean over the others could be taken for one over all."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None
