"""Where the time of a training step goes: sampling, forward pass, backward pass, optimizer, and the
rest, which is Lightning's loop and Python around it. Then the operators that take most.

    RECEXP_DATA=path python tests/perf/profile_steps.py bpr_mf gru4rec_plus

The cases are those of bench.py that learn by gradients. Milliseconds, medians over the steps.
"""

from __future__ import annotations

import argparse
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

from tests.perf.bench import CASES

ROOT = Path(__file__).resolve().parent.parent.parent

PARTS = ("sampling", "forward", "backward", "optimizer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="+", choices=list(CASES), metavar="CASE")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    raw_dir = Path(os.environ["RECEXP_DATA"]).resolve() / "ml-1m"
    for case in a.cases:
        with tempfile.TemporaryDirectory() as folder:
            words = ["dataset=ml_1m", f"dataset.raw_dir={raw_dir}", "protocol=full_unseen"]
            module, data = module_of(folder, [*CASES[case], *words])
            show(case, module, data, a.steps)


def module_of(folder: str, words: list[str]) -> tuple:
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
    module.setup("fit")
    return module, data


def show(case: str, module, data, n_steps: int) -> None:
    whole = seconds_of_whole_steps(module, data, n_steps)
    parts, operators, n_profiled = seconds_of_parts(module, data, n_steps)
    print(f"\n{case}: {1e3 * whole:.2f} ms a step")
    for name in PARTS:
        print(f"  {name:12}{1e3 * parts[name]:8.2f}")
    print(f"  {'rest':12}{1e3 * (whole - sum(parts.values())):8.2f}")
    for event in operators[:8]:
        print(f"    {event.key:44}{event.self_cpu_time_total / 1e3 / n_profiled:8.3f}")


def seconds_of_whole_steps(module, data, n_steps: int) -> float:
    """A step of a training run, from the end of one to the end of the next."""
    import pytorch_lightning as pl

    ends = []

    class Clock(pl.Callback):
        def on_train_batch_end(self, *_):
            ends.append(time.perf_counter())

    pl.Trainer(
        accelerator="cpu",
        max_epochs=1 + n_steps // max(1, len(data.train_dataloader())),
        max_steps=n_steps,
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
    optimizer = module.configure_optimizers()
    optimizer = optimizer["optimizer"] if isinstance(optimizer, dict) else optimizer
    module.model.train()
    times: dict[str, list[float]] = {name: [] for name in PARTS}
    rows = [row for _, row in zip(range(n_steps), data.train_dataloader(), strict=False)]
    for row in rows:
        one_step(module, optimizer, row, times)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for row in rows:
            one_step(module, optimizer, row, {name: [] for name in PARTS})
    operators = sorted(seen.key_averages(), key=lambda e: -e.self_cpu_time_total)
    parts = {name: statistics.median(found) for name, found in times.items()}
    return parts, operators, len(rows)


def one_step(module, optimizer, row, times: dict[str, list[float]]) -> None:
    moments = [time.perf_counter()]
    batch = module.objective.batch(module.store, row, torch.Generator().manual_seed(len(moments)))
    moments.append(time.perf_counter())
    loss = module.objective.losses(module.model, batch)["loss"]
    moments.append(time.perf_counter())
    loss.backward()
    moments.append(time.perf_counter())
    optimizer.step()
    optimizer.zero_grad()
    moments.append(time.perf_counter())
    for name, start, end in zip(PARTS, moments, moments[1:], strict=False):
        times[name].append(end - start)


if __name__ == "__main__":
    main()
