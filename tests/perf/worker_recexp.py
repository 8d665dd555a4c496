"""One measurement of recexp in a process of its own; the last line of its output is JSON.

See versus_peers.py.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import time

SPEC = json.loads(sys.argv[1])
os.environ["OMP_NUM_THREADS"] = str(SPEC["threads"])


def since_start() -> float:
    return time.time() - SPEC["born"]


def main() -> None:
    from hydra import compose, initialize_config_dir
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import open_dict

    from recexp.config.build import register_resolvers
    from recexp.config.presets import apply_preset

    register_resolvers()
    with initialize_config_dir(SPEC["conf"], version_base="1.3"):
        cfg = compose(
            "config", [*SPEC["overrides"], f"run_dir={SPEC['folder']}"], return_hydra_config=True
        )
        apply_preset(cfg)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]

    import pytorch_lightning as pl
    import torch

    from recexp.config.build import build
    from recexp.data.cache import prepare
    from recexp.data.store import Store
    from recexp.runs.assembly import assemble
    from recexp.training.silence import silence_lightning

    silence_lightning()
    torch.set_num_threads(SPEC["threads"])
    started, protocol = time.perf_counter(), build(cfg.protocol)
    store = Store.open(
        prepare(build(cfg.dataset, _recursive_=False), protocol.split, cfg.cache_dir)
    )
    said = {"prepare_s": time.perf_counter() - started, "peak_prepared_gb": peak_gb()}
    module, data = assemble(cfg, protocol, store, ("val",))

    class Clock(pl.Callback):
        """Seconds of the steps: whole epochs where the time allows, else from the mean step on."""

        ends: list[float] = []

        def on_train_epoch_start(self, trainer, module):
            self.began = time.perf_counter()
            self.batches = int(trainer.num_training_batches)

        def on_train_batch_end(self, trainer, module, outputs, batch, index):
            if "first_step_s" not in said:
                said["first_step_s"] = since_start()
            self.ends.append(time.perf_counter())
            if self.ends[-1] - self.ends[0] > SPEC["train_s"]:
                trainer.should_stop = True

        paused = 0.0  # seconds of validation, where the clock is to leave them out

        def on_validation_start(self, trainer, module):
            self.validation_began = time.perf_counter()

        def on_validation_end(self, trainer, module):
            if "until" in SPEC:
                now = time.perf_counter()
                if SPEC.get("training_only"):
                    self.paused += now - self.validation_began
                history.append((now - began - self.paused, module.results["val"]["ndcg@10"]))
                trainer.should_stop |= history[-1][1] >= SPEC["until"]

    clock, history, began = Clock(), [], time.perf_counter()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=SPEC.get("epochs", 1),
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        check_val_every_n_epoch=1 if "until" in SPEC else SPEC.get("epochs", 1) + 1,  # else never
        num_sanity_val_steps=0,
        enable_model_summary=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
        default_root_dir=SPEC["folder"],
    )
    trainer.fit(module, data)
    if "until" in SPEC:
        print(
            "\n"
            + json.dumps(
                said | {"history": history, "peak_gb": peak_gb(), "total_s": since_start()}
            ),
            flush=True,
        )
        return
    steps = [b - a for a, b in zip(clock.ends, clock.ends[1:], strict=False)]
    said |= {
        "step_s": statistics.mean(steps[5:] or steps),
        "steps": len(steps),
        "steps_per_epoch": clock.batches,
        "peak_train_gb": peak_gb(),
        "epoch_s": statistics.mean(steps[5:] or steps) * clock.batches,
        "users": len(store.val),
        "items": store.schema.n_items,
        "events": len(store.train),
    }
    if SPEC.get("count"):
        said |= counted(module, data)
    times = []
    for _ in range(SPEC.get("rankings", 3)):
        began = time.perf_counter()
        if "rank_users" in SPEC:  # so many alone
            module.eval()
            with torch.inference_mode():
                for row in torch.arange(min(SPEC["rank_users"], len(store.val))).split(
                    cfg.eval_batch_size
                ):
                    module._rank("val", row)
        else:
            trainer.validate(module, data, verbose=False)
        times.append(time.perf_counter() - began)
    if SPEC.get("lists"):
        said["lists_s"] = statistics.median(seconds_of_lists(module, cfg))
    said |= {
        "rank_s": statistics.median(times),
        "rank_all_s": times,
        "peak_gb": peak_gb(),
        "total_s": since_start(),
    }
    print("\n" + json.dumps(said), flush=True)


def seconds_of_lists(module, cfg, rounds: int = 3) -> list[float]:
    """Seconds of the ten best unseen items of all users, in raw ids."""
    from recexp.config.build import build
    from recexp.runs.trained import Trained

    dataset = build(cfg.dataset, _recursive_=False)
    trained = Trained(SPEC["folder"], None, module, dataset, {})
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        trained.recommend(k=10)
        times.append(time.perf_counter() - began)
    return times


def counted(module, data, batches: int = 3) -> dict[str, float]:
    """Floating-point operations of the products of a training step and of ranking all validation
    users, and the bytes that a step of the optimizer must move: weights, gradients and
    its two moments read, and all but the gradients written.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    if module.gradient_free:
        return counted_pass(module)
    # Weighted sums of rows are products with sparse matrices, which the counter does not know.
    bags = {
        torch.ops.aten._embedding_bag: lambda table, index, *_, **__: 2 * index[0] * table[1],
        torch.ops.aten._embedding_bag_dense_backward: lambda grad, index, *_, **__: (
            2 * index[0] * grad[1]
        ),
    }
    flops = []
    for at, row in enumerate(data.train_dataloader()):
        if at == batches:
            break
        generator = torch.Generator().manual_seed(at)
        with FlopCounterMode(display=False, custom_mapping=bags) as counter:
            module.objective.losses(
                module.model.train(), module.objective.batch(module.store, row, generator)
            )["loss"].backward()
        flops.append(counter.get_total_flops())
    weights = sum(p.numel() for p in module.model.parameters() if p.requires_grad)
    said = {
        "step_flops": statistics.mean(flops),
        "step_bytes": 4 * weights * 7,
        "rows": len(data.train_dataloader().dataset),
    }
    loader = data.val_dataloader()[0]
    learned = [p for p in module.eval().parameters() if p.requires_grad]
    for p in learned:  # the counter hangs its hooks on whatever asks for a gradient
        p.requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        module._rank("val", next(iter(loader)))
    for p in learned:
        p.requires_grad_(True)
    module.metrics["val"].reset()
    # Scores have to be written and read once.
    return said | {
        "rank_flops": counter.get_total_flops() * len(loader),
        "rank_bytes": 8 * len(module.store.val) * module.store.schema.n_items,
    }


def counted_pass(module) -> dict[str, float]:
    """What a pass over the store must compute and move at least, and what ranking must.

    Factor models: the matrix products of a pass, and the vectors that both halves read per pair.
    Linear item-item models: 2 operations per two items of a user; and EASE V^3 for its inverse,
    SLIM the products of the Gram matrix with all weights in each sweep. Neighbors: the events are
    read once.
    """
    from torch.utils.flop_counter import FlopCounterMode

    from recexp.models.ease import EASE
    from recexp.models.slim import SLIM
    from recexp.models.wmf import WMF

    model, store = module.model, module.store
    V = store.schema.V
    with FlopCounterMode(display=False) as counter:
        model.fit_pass(store)
    said = {
        "step_flops": counter.get_total_flops(),
        "step_bytes": 8 * len(store.train),
        "rows": len(store.train),
        "rank_flops": 0,
        # Scores have to be written and read once.
        "rank_bytes": 8 * len(store.val) * store.schema.n_items,
    }
    n_read = int((store.val.end - store.val.start).clamp(max=model.history).sum())
    n_meetings = int(store.train_pairs.ptr.diff().square().sum())
    if isinstance(model, WMF):
        width = model.item_VD.shape[1]
        said["step_bytes"] = 2 * 4 * width * len(store.train_pairs)
        said["rank_flops"] = 2 * width * len(store.val) * store.schema.n_items
    elif isinstance(model, EASE):
        said["step_flops"] = 2 * n_meetings + V**3
        said["step_bytes"] = 8 * V**2
        said["rank_flops"] = 2 * n_read * V
    elif isinstance(model, SLIM):
        said["step_flops"] += 2 * n_meetings
        said["rank_flops"] = 2 * int((model.weight_Vn > 0).sum()) * len(store.val)
    return said


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


main()
