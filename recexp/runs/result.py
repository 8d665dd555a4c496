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
from omegaconf import DictConfig, OmegaConf
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from recexp.data.cache import checksum, write_json
from recexp.io import atomic_write
from recexp.models.common import SequenceModel
from recexp.runs.convergence import WARNED
from recexp.types import moved


def describe() -> dict[str, Any]:
    """Versions, hardware and peak memory of this process."""
    return {
        "versions": {"python": platform.python_version()}
        | {p: _version(p) for p in ("recexp", "torch", "pytorch-lightning", "polars")},
        "hardware": {
            "device": torch.cuda.get_device_name(0)
            if torch.cuda.is_available()
            else platform.processor() or platform.machine(),
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


class Operations(TorchDispatchMode):
    """Counts the floating-point operations of what runs inside it.

    products: multiply-adds of matrix products, k for each output of a product over k terms.
    others: one for each number that an element-wise operation puts out and for each that a sum
    takes in, 7 per number of a layer normalization, 4 per number of a softmax, 2 per weighted row that a
    bag of embeddings adds. Look-ups, selections and copies count nothing.

    Attention must run in its plain form (``SDPBackend.MATH``): fused kernels show no products.
    """

    MOVES = ("clone", "copy_", "where", "masked_fill", "masked_fill_", "fill_")
    PER_NUMBER = {"native_layer_norm": 7, "_softmax": 4, "_safe_softmax": 4, "_log_softmax": 4}
    BAGS = ("_embedding_bag", "_embedding_bag_forward_only")

    def __init__(self):
        super().__init__()
        self.products = 0
        self.others = 0

    @property
    def flops(self) -> int:
        """A multiply-add is two operations."""
        return 2 * self.products + self.others

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        first = out[0] if isinstance(out, tuple | list) else out
        if packet in flop_registry:
            self.products += flop_registry[packet](*args, **(kwargs or {}), out_val=out) // 2
        elif isinstance(first, torch.Tensor) and first.is_floating_point():
            self.others += self._others(func, packet.__name__, args, first)
        return out

    def _others(self, func, name: str, args: tuple, out: torch.Tensor) -> int:
        if name in self.MOVES:
            return 0
        if name in self.PER_NUMBER:
            return self.PER_NUMBER[name] * out.numel()
        if name in self.BAGS:
            weighted = len(args) > 6 and args[6] is not None
            return (1 + weighted) * args[1].numel() * out.shape[-1]
        if torch.Tag.reduction in func.tags or name == "cumsum":
            return args[0].numel()
        return out.numel() if torch.Tag.pointwise in func.tags else 0


def scoring_operations(model: torch.nn.Module, store, history: str) -> Operations:
    """What one forward pass over the longest test history and the scores of 100 items cost.

    A sequence model computes the states of all positions here, as a paper's count of a forward pass
    does, though ranking needs the last one only.
    """
    longest = (store.test.end - store.test.start).argmax()[None]
    # After training the model is on the host, wherever the data are.
    tensors = (*model.parameters(), *model.buffers())
    home = next((x.device for x in tensors), store.device)
    query = moved(store.query_held_out(store.test, longest, model.history, history), home)
    items = torch.arange(1, 1 + min(100, store.schema.n_items), device=home)[None]
    was_training = model.training
    whole_pass = isinstance(model, SequenceModel)
    if whole_pass:
        encode = model.encode
        model.encode = lambda query, last_only=False, **options: encode(query, **options)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), Operations() as counted:
            model.eval().score(query, items)
    finally:
        if whole_pass:
            del model.encode
        model.train(was_training)
    return counted


def scoring_flops(model: torch.nn.Module, store, history: str) -> int:
    """Floating-point operations of ``scoring_operations``, a multiply-add counting as two."""
    return scoring_operations(model, store, history).flops


def scoring_costs(model: torch.nn.Module, store, history: str) -> dict[str, float]:
    """gflops: 10^9 floating-point operations of ``scoring_operations``. gops: the same with a
    multiply-add as one.

    The "FLOPs" of Liu et al. 2021 (NOVA-BERT), arXiv:2103.03578, Table 5, appear to be the latter
    over 50 positions: three layers 512 wide make 50 * 3 * 12 * 512^2 + 3 * 2 * 50^2 * 512 = 0.4795e9
    multiply-adds, where the paper prints 0.4796e9. It says neither how it counted nor of how many
    positions, and its 35.5 MB are fewer parameters than such layers have.
    """
    counted = scoring_operations(model, store, history)
    return {"gflops": counted.flops / 1e9, "gops": (counted.products + counted.others) / 1e9}


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
        done = subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        commit = ask("rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(ask("status", "--porcelain")) if commit else None}
    except FileNotFoundError:
        return {"commit": None, "dirty": None}


# Settings that say where things lie or who is told, not what is run.
_PLACES = (
    "ckpt_path",
    "run_dir",
    "cache_dir",
    "logger",
    "names",
    "group",
    "tags",
    "raw_dir",
    "dirpath",
    "save_dir",
)


def kept_config(cfg: DictConfig) -> dict[str, Any]:
    """The resolved settings of a run without the places of files, for ``result.json``."""

    def kept(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: kept(value) for key, value in node.items() if key not in _PLACES}
        return [kept(value) for value in node] if isinstance(node, list) else node

    return kept(OmegaConf.to_container(cfg, resolve=True))


def save_ranks(path: Path, ranks: dict[str, dict[str, Any]]) -> str:
    """``ranks.parquet``: user, better, tied, candidates, split, one row per evaluated user. Returns the checksum ``result.json`` should hold."""
    import polars as pl

    frames = [
        pl.DataFrame(columns).with_columns(split=pl.lit(split)) for split, columns in ranks.items()
    ]
    with atomic_write(path) as temporary:
        pl.concat(frames).write_parquet(temporary)
    return checksum(path)


def save_curves(path: Path, rows: list[dict[str, float]], title: str) -> None:
    """``curves.png``: loss and HR/NDCG@10 against epochs."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    epochs = [r["epoch"] + 1 for r in rows]
    left.plot(
        epochs,
        [r.get("train/loss", float("nan")) for r in rows],
        color="tab:gray",
        marker="." if len(rows) < 30 else None,
    )
    left.set(xlabel="epoch", ylabel="training loss")
    for key, colour in (
        ("val/hr@10", "tab:blue"),
        ("val/ndcg@10", "tab:orange"),
        ("test/ndcg@10", "tab:red"),
    ):
        points = [(r["epoch"] + 1, r[key]) for r in rows if key in r]
        if points:
            right.plot(
                *zip(*points, strict=True),
                label=key,
                color=colour,
                marker="." if len(rows) < 30 else None,
            )
    right.set(xlabel="epoch", ylim=(0, None))
    right.legend(frameon=False)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(title)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    plt.close(figure)


def show_table(result: dict[str, Any], run_dir: Path) -> None:
    """The result as a small table on the terminal."""
    metrics = result["metrics"]
    ks = sorted(int(k[8:]) for k in metrics if k.startswith("test/hr@") and k[8:].isdigit())
    simulated = " (SIMULATED data)" if result["data"].get("simulated") else ""
    about = (
        f"{result['model']} on {result['dataset']}{simulated}",
        f"{result['protocol']} ({result['protocol_id']})",
        f"seed {result['seed']}",
    )
    print("\n" + " · ".join((*about, f"selected on {result['selection']}")))
    print(
        f"{'':8}"
        + "".join(f"{f'HR@{k}':>9}" for k in ks)
        + "".join(f"{f'NDCG@{k}':>9}" for k in ks)
        + f"{'MRR':>9}"
    )
    for split in ("val", "test"):
        if f"{split}/mrr" in metrics:
            values = [metrics[f"{split}/{name}@{k}"] for name in ("hr", "ndcg") for k in ks] + [
                metrics[f"{split}/mrr"]
            ]
            print(f"{split:8}" + "".join(f"{v:9.4f}" for v in values))
    new, seen = int(metrics.get("test/users/new", 0)), int(metrics.get("test/users/seen", 0))
    if seen:
        on_new = f", on new ones {metrics['test/ndcg@10/new']:.4f}" if new else ""
        print(
            f"test targets seen before through a weaker behaviour: {seen} of {seen + new}; NDCG@10 {metrics['test/ndcg@10/seen']:.4f}{on_new}"
        )
    parts = len(result.get("parts") or [])
    took = f"{result['wall_time_s']:.1f} s" + (f" in {parts} parts" if parts > 1 else "")
    epochs = f"best epoch {result['best_epoch'] + 1} of {result['epochs']}"
    updates = f", {result['updates']:,} updates" if result.get("updates") else ""
    print(f"{epochs}{updates} ({result['stop_reason']}), {took}, in {run_dir}")
    convergence = result.get("convergence") or {}
    if convergence.get("kind") in WARNED:
        print(f"warning: {convergence['text']}")
    print()
