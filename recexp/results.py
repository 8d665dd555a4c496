"""What a run writes at its end, and where its numbers came from."""

from __future__ import annotations

import os
import platform
import resource
import signal
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from recexp.convergence import WARNED
from recexp.data.prepare import checksum, write_json
from recexp.files import whole
from recexp.types import moved


def describe() -> dict[str, Any]:
    """Versions, hardware and peak memory of this process."""
    return {
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in ("recexp", "torch", "pytorch-lightning", "polars")},
        "hardware": {
            "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else platform.processor() or platform.machine(),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def scoring_flops(model: torch.nn.Module, store, history: str) -> int:
    """Floating-point operations of the matrix products that score 100 items for the test user with the longest history."""
    from torch.utils.flop_counter import FlopCounterMode

    longest = (store.test.end - store.test.start).argmax()[None]
    home = next((x.device for x in (*model.parameters(), *model.buffers())), store.device)  # after training the host, wherever the data are
    query = moved(store.query_held_out(store.test, longest, model.history, history), home)
    items = torch.arange(1, 1 + min(100, store.schema.n_items), device=home)[None]
    was_training, learned = model.training, [p for p in model.parameters() if p.requires_grad]
    for parameter in learned:  # the counter hangs its hooks on whatever asks for a gradient, views of parameters under no_grad too
        parameter.requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        model.eval().score(query, items)
    for parameter in learned:
        parameter.requires_grad_(True)
    model.train(was_training)
    return counter.get_total_flops()


def save_interrupted(
    run_dir: Path, about: dict[str, Any], signum: int, record: dict[str, Any]
) -> None:
    """The ``result.json`` of a run that a signal ended: how far it came, and no metrics."""
    name = signal.Signals(signum).name
    done = {"interrupted": name, "stop_reason": f"interrupted by {name}", "metrics": {}}
    write_json(run_dir / "result.json", about | record | done)


def git_state() -> dict[str, Any]:
    """Commit and dirty flag of the checkout the code runs from; None outside one."""

    def ask(*words: str) -> str | None:
        done = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        commit = ask("rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(ask("status", "--porcelain")) if commit else None}
    except FileNotFoundError:
        return {"commit": None, "dirty": None}


def save_ranks(path: Path, ranks: dict[str, dict[str, Any]]) -> str:
    """``ranks.parquet``: user, better, tied, candidates, split, one row per evaluated user. Returns the checksum ``result.json`` should hold."""
    import polars as pl

    frames = [pl.DataFrame(columns).with_columns(split=pl.lit(split)) for split, columns in ranks.items()]
    with whole(path) as temporary:
        pl.concat(frames).write_parquet(temporary)
    return checksum(path)


def save_curves(path: Path, rows: list[dict[str, float]], title: str) -> None:
    """``curves.png``: loss and HR/NDCG@10 against epochs."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    epochs = [r["epoch"] + 1 for r in rows]
    left.plot(epochs, [r.get("train/loss", float("nan")) for r in rows], color="tab:gray", marker="." if len(rows) < 30 else None)
    left.set(xlabel="epoch", ylabel="training loss")
    for key, colour in (("val/hr@10", "tab:blue"), ("val/ndcg@10", "tab:orange"), ("test/ndcg@10", "tab:red")):
        points = [(r["epoch"] + 1, r[key]) for r in rows if key in r]
        if points:
            right.plot(*zip(*points, strict=True), label=key, color=colour, marker="." if len(rows) < 30 else None)
    right.set(xlabel="epoch", ylim=(0, None))
    right.legend(frameon=False)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(title)
    with whole(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    plt.close(figure)


def show_table(result: dict[str, Any], run_dir: Path) -> None:
    """The result as a small table on the terminal."""
    metrics = result["metrics"]
    ks = sorted(int(k[8:]) for k in metrics if k.startswith("test/hr@") and k[8:].isdigit())
    about = (f"{result['model']} on {result['dataset']}", f"{result['protocol']} ({result['protocol_id']})", f"seed {result['seed']}")
    print("\n" + " · ".join((*about, f"selected on {result['selection']}")))
    print(f"{'':8}" + "".join(f"{f'HR@{k}':>9}" for k in ks) + "".join(f"{f'NDCG@{k}':>9}" for k in ks) + f"{'MRR':>9}")
    for split in ("val", "test"):
        if f"{split}/mrr" in metrics:
            values = [metrics[f"{split}/{name}@{k}"] for name in ("hr", "ndcg") for k in ks] + [metrics[f"{split}/mrr"]]
            print(f"{split:8}" + "".join(f"{v:9.4f}" for v in values))
    new, seen = int(metrics.get("test/users/new", 0)), int(metrics.get("test/users/seen", 0))
    if seen:
        on_new = f", on new ones {metrics['test/ndcg@10/new']:.4f}" if new else ""
        print(f"test targets seen before through a weaker behaviour: {seen} of {seen + new}; NDCG@10 {metrics['test/ndcg@10/seen']:.4f}{on_new}")
    parts = len(result.get("parts") or [])
    took = f"{result['wall_time_s']:.1f} s" + (f" in {parts} parts" if parts > 1 else "")
    epochs = f"best epoch {result['best_epoch'] + 1} of {result['epochs']}"
    updates = f", {result['updates']:,} updates" if result.get("updates") else ""
    print(f"{epochs}{updates} ({result['stop_reason']}), {took}, in {run_dir}")
    convergence = result.get("convergence") or {}
    if convergence.get("kind") in WARNED:
        print(f"warning: {convergence['text']}")
    print()
