"""Where the time of a training step goes: sampling, forward pass, backward pass, optimizer, and the
rest, which is Lightning's loop and Python around it. Then the operators that take most.

    RECEXP_DATA=path python tests/perf/profile_steps.py bpr_mf gru4rec_plus

The cases are those of bench.py that learn by gradients. Milliseconds, medians over the steps.

    RECEXP_DATA=path python tests/perf/profile_steps.py --accelerator gpu --out gpu.json sasrec

On a GPU each part ends when its kernels have ended. Besides, it says how many kernels a step
starts, for how long the GPU is busy with them, the memory at its peak, and the floor: the matrix
products of a step and the bytes of the optimizer at the measured roofs of this GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from recexp.nn.lookup import Embedding
from tests.perf.bench import CASES

ROOT = Path(__file__).resolve().parent.parent.parent

PARTS = ("sampling", "forward", "backward", "optimizer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="+", choices=list(CASES), metavar="CASE")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--accelerator", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--precision", default="32-true", help="of a GPU: bf16-mixed, ...")
    parser.add_argument("--out", type=Path, help="write the figures as JSON, too")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    device = torch.device("cuda" if a.accelerator == "gpu" else "cpu")
    raw_dir = Path(os.environ["RECEXP_DATA"]).resolve() / "ml-1m"
    found = {}
    if device.type == "cuda":
        found["roofs"] = roofs(device)
        print({name: round(value) for name, value in found["roofs"].items()})
    with tempfile.TemporaryDirectory() as folder:
        for case in a.cases:
            words = ["dataset=ml_1m", f"dataset.raw_dir={raw_dir}", "protocol=full_unseen"]
            module, data = module_of(folder, [*CASES[case], *words], device)
            found[case] = show(case, module, data, a)
            if device.type == "cuda":
                found[case] |= on_gpu(module, data, found["roofs"])
                print("  " + ", ".join(f"{k} {v:.4g}" for k, v in found[case]["gpu"].items()))
    if a.out:
        a.out.write_text(json.dumps(found, indent=1) + "\n")


def module_of(folder: str, words: list[str], device: torch.device) -> tuple:
    """The run's LightningModule on its device, and its data."""
    from hydra import compose, initialize_config_dir
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import open_dict

    from recexp.config.build import build, register_resolvers
    from recexp.config.presets import apply_preset
    from recexp.data.cache import prepare
    from recexp.data.store import Store
    from recexp.runs.assembly import assemble
    from recexp.training.silence import silence_lightning

    silence_lightning()
    register_resolvers()
    words = [*words, "logger=none", f"run_dir={folder}", f"cache_dir={folder}/cache"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", words, return_hydra_config=True)
        apply_preset(cfg)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    protocol = build(cfg.protocol)
    dataset = build(cfg.dataset, _recursive_=False)
    store = Store.open(prepare(dataset, protocol.split, cfg.cache_dir))
    module, data = assemble(cfg, protocol, store, ("val",))
    module.to(device).setup("fit")
    return module, data


def show(case: str, module, data, a: argparse.Namespace) -> dict:
    whole = seconds_of_whole_steps(module, data, a)
    parts, operators, n_profiled = seconds_of_parts(module, data, a.steps)
    print(f"\n{case}: {1e3 * whole:.2f} ms a step")
    for name in PARTS:
        print(f"  {name:12}{1e3 * parts[name]:8.2f}")
    print(f"  {'rest':12}{1e3 * (whole - sum(parts.values())):8.2f}")
    for event in operators[:8]:
        print(f"    {event.key:44}{event.self_cpu_time_total / 1e3 / n_profiled:8.3f}", flush=True)
    return {"step_ms": 1e3 * whole, "parts_ms": {name: 1e3 * s for name, s in parts.items()}}


def roofs(device: torch.device) -> dict[str, float]:
    """TFLOP/s of a large product of random numbers by type, and GB/s of a large copy."""
    said = {}
    for name, dtype, n in (("fp32", torch.float32, 8192), ("bf16", torch.bfloat16, 8192)):
        x, y = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        said[f"{name}_tflops"] = 2 * n**3 / median_seconds(lambda x=x, y=y: x @ y) / 1e12
    x = torch.randn(2**29, device=device)
    y = torch.empty_like(x)
    said["copy_gb_s"] = 2 * x.numel() * 4 / median_seconds(lambda: y.copy_(x)) / 1e9
    return said


def median_seconds(action, rounds: int = 10) -> float:
    """By events on the GPU, after three rounds that are not counted."""
    times = []
    for at in range(rounds + 3):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        action()
        ended.record()
        ended.synchronize()
        if at >= 3:
            times.append(began.elapsed_time(ended) / 1e3)
    return statistics.median(times)


def on_gpu(module, data, roof: dict[str, float], n_steps: int = 4) -> dict:
    """How busy a training step keeps the GPU, and its floor."""
    from torch.utils.flop_counter import FlopCounterMode

    optimizer = module.configure_optimizers()
    optimizer = optimizer["optimizer"] if isinstance(optimizer, dict) else optimizer
    rows = [row for _, row in zip(range(n_steps), data.train_dataloader(), strict=False)]
    times: dict[str, list[float]] = {name: [] for name in PARTS}
    one_step(module, optimizer, rows[0], times)
    torch.cuda.reset_peak_memory_stats()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        for row in rows:
            one_step(module, optimizer, row, times)
    on_device = [e for e in seen.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    # The range that torch marks for the optimizer's step is no kernel.
    kernels = [e for e in on_device if not e.name.startswith("Optimizer.step")]
    peak = torch.cuda.max_memory_allocated()
    with FlopCounterMode(display=False) as counter:
        one_step(module, optimizer, rows[0], times)
    flops = counter.get_total_flops()
    weights = sum(p.numel() for p in module.model.parameters() if p.requires_grad)
    floor = max(flops / roof["fp32_tflops"] / 1e12, 4 * 7 * weights / roof["copy_gb_s"] / 1e9)
    longest: dict[str, float] = {}
    for kernel in kernels:
        longest[kernel.name] = longest.get(kernel.name, 0) + kernel.device_time / 1e3 / len(rows)
    for name, ms in sorted(longest.items(), key=lambda x: -x[1])[:6]:
        print(f"    {name[:90]:92}{ms:8.3f}", flush=True)
    said = {
        "busy_ms": sum(longest.values()),
        "kernels": len(kernels) / len(rows),
        "gflop": flops / 1e9,
        "floor_ms": 1e3 * floor,
        "peak_gb": peak / 1e9,
    }
    return {"gpu": said}


def seconds_of_whole_steps(module, data, a: argparse.Namespace) -> float:
    """A step of a training run, from the end of one to the end of the next."""
    import pytorch_lightning as pl

    ends = []

    class Clock(pl.Callback):
        def on_train_batch_end(self, *_):
            ends.append(time.perf_counter())

    pl.Trainer(
        accelerator=a.accelerator,
        devices=1,
        precision=a.precision,
        max_epochs=1 + a.steps // max(1, len(data.train_dataloader())),
        max_steps=a.steps,
        callbacks=[Clock()],
        logger=False,
        enable_checkpointing=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
    ).fit(module, data)
    return statistics.median(b - a for a, b in pairwise(ends))


def seconds_of_parts(module, data, n_steps: int) -> tuple[dict[str, float], list, int]:
    """Medians of each part of a step, without Lightning; the operators of so many steps."""
    module.to(module.store.device).model.train()
    optimizer = module.configure_optimizers()
    optimizer = optimizer["optimizer"] if isinstance(optimizer, dict) else optimizer
    for table in module.model.modules():
        if isinstance(table, Embedding):
            table.sparse = False  # as the training run set it, whose steps add such gradients up
    times: dict[str, list[float]] = {name: [] for name in PARTS}
    rows = [row for _, row in zip(range(n_steps), data.train_dataloader(), strict=False)]
    for row in rows:
        one_step(module, optimizer, row, times)
    parts = {name: statistics.median(found) for name, found in times.items()}
    if module.store.device.type == "cuda":
        return parts, [], len(rows)  # its kernels are counted instead
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for row in rows:
            one_step(module, optimizer, row, {name: [] for name in PARTS})
    operators = sorted(seen.key_averages(), key=lambda e: -e.self_cpu_time_total)
    return parts, operators, len(rows)


def one_step(module, optimizer, row, times: dict[str, list[float]]) -> None:
    device = module.store.device
    row = row.to(device)
    moments = [now(device)]
    generator = torch.Generator(device).manual_seed(len(moments))
    batch = module.objective.batch(module.store, row, generator)
    moments.append(now(device))
    loss = module.objective.losses(module.model, batch)["loss"]
    moments.append(now(device))
    loss.backward()
    moments.append(now(device))
    optimizer.step()
    optimizer.zero_grad()
    moments.append(now(device))
    for name, start, end in zip(PARTS, moments, moments[1:], strict=False):
        times[name].append(end - start)


def now(device: torch.device) -> float:
    """The time when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    main()
