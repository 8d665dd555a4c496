"""What a run's ``result.json`` must be made of for others to rely on it."""

from __future__ import annotations

from typing import Any

NUMBER = (int, float)
NEEDED = {
    "model": str, "dataset": str, "protocol": str, "protocol_id": str, "seed": int, "selection": str, "metrics": dict, "best_epoch": int,
    "epochs": int, "stop_reason": str, "data": dict,
}  # fmt: skip
OPTIONAL = {
    "objective": str, "sampler": str, "overrides": list, "git": dict, "wall_time_s": NUMBER, "examples_per_s": NUMBER, "parameters": int,
    "gflops": NUMBER, "gops": NUMBER,
    "reconstruction": bool, "versions": dict, "hardware": dict, "peak_memory_mb": NUMBER, "audit": dict, "evaluated": dict,
    "ranks_sha256": str, "left_out": dict, "updates": int, "updates_per_epoch": int, "batch_counts": str,
    "parts": list, "convergence": dict, "constant_loss": NUMBER, "refit": dict, "config": dict,
}  # fmt: skip
HUGE = 1e15  # nothing we count or measure comes near


def fault(result: Any) -> str:
    """What is wrong with it, "" if nothing. Reads, and computes nothing from it."""
    if not isinstance(result, dict):
        return "it is no object with names"
    if missing := [key for key in NEEDED if key not in result]:
        return f"it lacks {', '.join(missing)}"
    for key, kind in (NEEDED | OPTIONAL).items():
        value = result.get(key)
        good = (
            isinstance(value, kind) and isinstance(value, bool) <= (kind is bool) and _sane(value)
        )
        if not good and (key in NEEDED or value is not None):
            return f"its {key} is {str(value)[:40]!r}"
    for key, value in result["metrics"].items():
        if not isinstance(value, NUMBER) or isinstance(value, bool) or not _sane(value):
            return f"its metric {key[:40]!r} is {str(value)[:40]!r}"
    if "test/mrr" not in result["metrics"]:
        return "its metrics lack test/mrr"
    if any(not isinstance(word, str) for word in result.get("overrides") or []):
        return "its overrides are not all texts"
    return ""


def _sane(value: Any) -> bool:
    return not isinstance(value, NUMBER) or -HUGE < value < HUGE  # not for NaN either
