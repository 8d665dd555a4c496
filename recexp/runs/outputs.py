"""The files that a run leaves in its directory, and the table it prints at its end."""

from __future__ import annotations

import logging
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from recexp.errors import RecexpError
from recexp.io import atomic_write, checksum, write_json
from recexp.logs import printable
from recexp.runs.convergence import WARNED
from recexp.runs.identity import PLACES, RAW_FILES, without
from recexp.runs.result import External, RunResult

CURVES = (("val/hr@10", "tab:blue"), ("val/ndcg@10", "tab:orange"), ("test/ndcg@10", "tab:red"))
KINDS = {
    "repeat": "repeat a pair of an equal or stronger behavior",
    "seen": "seen before through weaker behaviors only",
    "new": "new",
    "cold": "without a training event of their item (cold)",
    "warm": "with one",
}
FEW_EPOCHS = 30  # below this many, curves mark their points

log = logging.getLogger(__name__)


def kept_config(cfg: DictConfig) -> dict[str, Any]:
    """The resolved settings of a run without the places of files, for ``result.json``."""
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    return without(settings, (*PLACES, *RAW_FILES))


def save_config(path: Path, cfg: DictConfig) -> None:
    """``config.yaml``: every setting, resolved."""
    with atomic_write(path) as temporary:
        OmegaConf.save(cfg, temporary, resolve=True)


def save_result(path: Path, result: RunResult) -> None:
    """``result.json`` of a finished run."""
    write_json(path, result.to_dict())


def save_interrupted(
    run_dir: Path, about: Mapping[str, Any], signum: int, record: Mapping[str, Any]
) -> None:
    """The ``result.json`` of a run that a signal ended: how far it came, and no metrics."""
    name = signal.Signals(signum).name
    end = {"interrupted": name, "stop_reason": f"interrupted by {name}", "metrics": {}}
    write_json(run_dir / "result.json", {**about, **record, **end})


def save_ranks(path: Path, ranks: Mapping[str, Mapping[str, np.ndarray[Any, Any]]]) -> str:
    """``ranks.parquet``: user, better, tied, candidates, split, one row per evaluated user.

    Returns the checksum for ``result.json``.
    """
    import polars as pl

    frames = [
        pl.DataFrame(dict(columns)).with_columns(split=pl.lit(split))
        for split, columns in ranks.items()
    ]
    # A file and no path: polars takes every path for UTF-8, whatever the locale.
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        pl.concat(frames).write_parquet(file)
    return checksum(path)


def save_curves(path: Path, rows: Sequence[Mapping[str, float]], title: str) -> None:
    """``curves.png``: training loss and validation metrics against epochs.

    A picture that cannot be written is a warning: the result stands beside it.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    marker = "." if len(rows) < FEW_EPOCHS else None
    epochs = [row["epoch"] + 1 for row in rows]
    losses = [row.get("train/loss", float("nan")) for row in rows]
    left.plot(epochs, losses, color="tab:gray", marker=marker)
    left.set(xlabel="epoch", ylabel="training loss")
    for key, color in CURVES:
        validated = [row for row in rows if key in row]
        if validated:
            x = [row["epoch"] + 1 for row in validated]
            y = [row[key] for row in validated]
            right.plot(x, y, label=key, color=color, marker=marker)
    right.set(xlabel="epoch", ylim=(0, None))
    right.legend(frameon=False)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(title)
    try:
        with atomic_write(path) as temporary:
            figure.savefig(temporary, dpi=120, format="png")
    except RecexpError as error:
        log.warning("warning: %s", error)
    plt.close(figure)


def show_table(result: RunResult, run_dir: Path) -> None:
    """Print the result as a small table."""
    lines = [_title(result), *_metric_lines(result.metrics), *_kind_lines(result.metrics)]
    lines.append(_training_line(result, run_dir))
    convergence = result.convergence or {}
    if convergence.get("kind") in WARNED:
        lines.append(f"warning: {convergence['text']}")
    print("", *map(printable, lines), "", sep="\n")


def _title(result: RunResult) -> str:
    simulated = " (SIMULATED data)" if result.data.simulated else ""
    parts = (
        f"{result.model} on {result.dataset}{simulated}",
        f"{result.protocol} ({result.protocol_id})",
        f"seed {result.seed}",
        f"selected on {result.selection}",
    )
    return " · ".join(parts)


def _metric_lines(metrics: Mapping[str, float]) -> list[str]:
    prefix = "test/hr@"
    cutoffs = [key.removeprefix(prefix) for key in metrics if key.startswith(prefix)]
    ks = sorted(int(cutoff) for cutoff in cutoffs if cutoff.isdigit())
    first = "recall" if "test/targets" in metrics or "val/targets" in metrics else "hr"
    names = [f"{name}@{k}" for name in (first, "ndcg") for k in ks] + ["mrr"]
    lines = [" " * 8 + "".join(f"{name.upper():>{_width(name)}}" for name in names)]
    for split in ("val", "test"):
        if f"{split}/users" in metrics or f"{split}/mrr" in metrics:
            cells = [_cell(metrics.get(f"{split}/{name}"), _width(name)) for name in names]
            lines.append(f"{split:8}" + "".join(cells))
    return lines


def _width(name: str) -> int:
    """Width of a column of the table."""
    return max(9, len(name) + 1)


def _cell(value: float | None, width: int) -> str:
    """A value of the table; lists of another program may end before a metric is known."""
    return f"{'-':>{width}}" if value is None else f"{value:{width}.4f}"


def _kind_lines(metrics: Mapping[str, float]) -> list[str]:
    """NDCG@10 on the kinds of test targets, where there is more than one kind."""
    lines = []
    for kinds in (("repeat", "seen", "new"), ("cold", "warm")):
        counted = "targets" if "test/targets" in metrics else "users"
        counts = {kind: int(metrics.get(f"test/{counted}/{kind}", 0)) for kind in kinds}
        parts = [
            f"{n} {KINDS[kind]} {metrics[f'test/ndcg@10/{kind}']:.4f}"
            for kind, n in counts.items()
            if n and f"test/ndcg@10/{kind}" in metrics
        ]
        if len(parts) > 1 or counts.get("seen"):
            lines.append(f"test targets and NDCG@10: {', '.join(parts)}")
    return lines


def _training_line(result: RunResult, run_dir: Path) -> str:
    if result.external is not None:
        return f"{_external_line(result.external)}, in {run_dir}"
    line = f"best epoch {result.best_epoch + 1} of {result.epochs}"
    if result.updates:
        line += f", {result.updates:,} updates"
    line += f" ({result.stop_reason})"
    if result.wall_time_s is not None:
        line += f", {result.wall_time_s:.1f} s"
    n_parts = len(result.parts or [])
    if n_parts > 1:
        line += f" in {n_parts} parts"
    return f"{line}, in {run_dir}"


def _external_line(external: External) -> str:
    """What the predictions are, and what of them was not counted."""
    line = f"{external.kind} of {external.file}, {external.rows:,} rows"
    if external.exact_to is not None:
        line += f", ranks known to {external.exact_to}"
    counts = {
        "users missing (ranked last)": external.missing_users,
        "short lists (ranked last)": external.short_lists,
        "rows of unknown users": external.unknown_users,
        "rows of users without a target": external.other_users,
        "rows of unknown items": external.unknown_items,
        "rows of items that the protocol removes": external.seen_items,
        "rows of items that are no candidates": external.not_candidates,
    }
    parts = [f"{n:,} {words}" for words, n in counts.items() if n]
    return "; ".join([line, *parts])
