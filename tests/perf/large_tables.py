"""Memory of each process, and time of a step, with a large item table: one process, several with
whole tables (trainer=ddp), and several that share it out (trainer=sharded), on simulated data.

    python tests/perf/large_tables.py --devices 2 --trainer sharded --items 1000000

Memory is that beyond what the process holds before the model is built. --table measures a table
alone instead, under Adam: whole, by fully_shard, by look-ups in a DTensor, and as trainer=sharded.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import pytorch_lightning as pl  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from recexp.config.overrides import as_word  # noqa: E402
from recexp.nn.sharded import RowShard  # noqa: E402
from recexp.runs.assembly import assemble, build_trainer  # noqa: E402
from recexp.runs.run import prepare_data  # noqa: E402
from recexp.training.silence import silence_lightning  # noqa: E402
from tests.perf.shapes import overrides, write_events  # noqa: E402
from tests.support.running import composed  # noqa: E402

MODELS = {
    "sampled": [
        "model=sasrec",
        "loss=sampled_softmax",
        "objective.n_negatives=256",
        "objective.shared=batch",
        "sampler=popularity",
        "model.max_len=50",
    ],
    "all_items": ["model=sasrec_softmax", "model.max_len=50", "batch_size=4"],
    "pairs": ["model=bpr_mf", "batch_size=8192"],
}
WIDTH = 64
N_STEPS = 10
N_LOOKED_UP = 20_000  # rows per process and step of a table alone


def memory(name: str = "VmRSS") -> float:
    """MB of this process. name: VmRSS, or VmHWM for the peak since ``forget_peak``."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    return 0.0


def forget_peak() -> None:
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


class Phases(pl.Callback):
    """Peak memory of training steps, of a validation and of a checkpoint; seconds of a step."""

    def __init__(self, before: float) -> None:
        self.before = before
        self.said: dict[str, float] = {}

    def _keep(self, name: str) -> None:
        self.said[name] = memory("VmHWM") - self.before
        forget_peak()

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: Any, batch: Any, index: int
    ) -> None:
        if index == 2:  # the optimizer has its state
            forget_peak()
            self.wall = time.perf_counter()
            self.cpu = time.process_time()

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        if trainer.global_step == N_STEPS:
            self.said["step_wall_s"] = (time.perf_counter() - self.wall) / (N_STEPS - 2)
            self.said["step_cpu_s"] = (time.process_time() - self.cpu) / (N_STEPS - 2)
            self._keep("steps_mb")

    def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
        self._keep("validation_mb")

    def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
        self.said["rest_mb"] = memory() - self.before
        trainer.save_checkpoint(Path(trainer.default_root_dir) / "last.ckpt")
        self._keep("checkpoint_mb")


def run(a: argparse.Namespace) -> None:
    data = overrides(write_events(a.work / f"items-{a.items}", 40_000, a.items, 4 * a.items))
    words = [*MODELS[a.model], f"model.n_factors={WIDTH}", *data, *a.words]
    if a.trainer != "cpu":
        words += [f"trainer={a.trainer}", "trainer.accelerator=cpu"]
        words.append(f"trainer.devices={a.devices}")
    words += [
        f"+trainer.limit_train_batches={N_STEPS}",
        "trainer.limit_val_batches=2",
        "trainer.max_epochs=1",
        "+trainer.enable_progress_bar=false",
        "+trainer.enable_checkpointing=false",
        "threads=1",
        "protocol=full_unseen",
        "logger=none",
        "eval_batch_size=32",
        f"cache_dir={as_word(a.work / 'cache')}",
    ]
    torch.set_num_threads(1)
    silence_lightning()
    cfg = composed(a.work / "run", *words, small=())
    prepared = prepare_data(cfg)
    forget_peak()
    phases = Phases(memory())
    module, batches = assemble(cfg, prepared.protocol, prepared.store, prepared.splits)
    trainer = build_trainer(cfg, [phases], None)
    trainer.fit(module, batches)
    shown = " ".join(f"{name} {value:,.2f}" for name, value in phases.said.items())
    table = prepared.store.schema.V * WIDTH * 4 / 2**20
    print(f"{a.model} {a.trainer} rank {trainer.global_rank} table {table:,.0f} MB: {shown}")


# A table alone


def whole(table: torch.nn.Embedding) -> tuple[Callable[[torch.Tensor], torch.Tensor], Any]:
    return table, None


def by_fully_shard(table: torch.nn.Embedding) -> tuple[Callable[[torch.Tensor], Any], Any]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    fully_shard(table, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    return table, None


def by_dtensor(table: torch.nn.Embedding) -> tuple[Callable[[torch.Tensor], Any], Any]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    table.weight = torch.nn.Parameter(distribute_tensor(table.weight.detach(), mesh, [Shard(0)]))

    def look_up(id: torch.Tensor) -> Any:
        ids = DTensor.from_local(id, mesh, [Shard(0)]).redistribute(placements=[Replicate()])
        rows: Any = F.embedding(ids, table.weight)
        return rows.redistribute(placements=[Shard(0)]).to_local()

    return look_up, None


def by_rows(table: torch.nn.Embedding) -> tuple[Callable[[torch.Tensor], Any], Any]:
    assert dist.group.WORLD is not None
    shard = RowShard(table, dist.group.WORLD)

    def look_up(id: torch.Tensor) -> Any:
        shard.fetch(id)
        return table(id)

    return look_up, shard


WAYS = {
    "whole": (whole, 1),
    "fully_shard": (by_fully_shard, 2),
    "dtensor": (by_dtensor, 2),
    "rows": (by_rows, 2),
}


def table_alone(rank: int, way: str, n_items: int, file: str) -> None:
    torch.set_num_threads(1)
    prepare, world = WAYS[way]
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    before = memory()
    torch.manual_seed(0)
    table = torch.nn.Embedding(n_items, WIDTH)
    look_up, shard = prepare(table)
    optimizer = torch.optim.Adam(table.parameters(), fused=True)

    def step() -> None:
        look_up(torch.randint(n_items, (N_LOOKED_UP,))).square().sum().backward()
        if shard is not None:
            shard.push()
        optimizer.step()
        optimizer.zero_grad()

    step()
    forget_peak()
    wall = time.perf_counter()
    cpu = time.process_time()
    for _ in range(N_STEPS):
        step()
    wall = (time.perf_counter() - wall) / N_STEPS
    cpu = (time.process_time() - cpu) / N_STEPS
    peak = memory("VmHWM") - before
    rest = memory() - before
    print(
        f"{way} rank {rank} of {world}, table {n_items * WIDTH * 4 / 2**20:,.0f} MB: steps "
        f"{peak:,.0f} MB, rest {rest:,.0f} MB, step {wall:.2f} s, {cpu:.2f} s of CPU",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=10**6)
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--trainer", choices=["cpu", "ddp", "sharded"], default="sharded")
    parser.add_argument("--model", choices=MODELS, default="sampled")
    parser.add_argument("--table", nargs="*", choices=WAYS)
    parser.add_argument("--work", type=Path, default=Path("cache/large_tables"))
    parser.add_argument("--words", nargs="*", default=[], help="more overrides")
    a = parser.parse_args()
    if a.table is None:
        run(a)
        return
    for way in a.table or WAYS:
        with tempfile.TemporaryDirectory() as folder:
            arguments = (way, a.items, os.path.join(folder, "store"))
            torch.multiprocessing.spawn(table_alone, arguments, nprocs=WAYS[way][1])


if __name__ == "__main__":
    main()
