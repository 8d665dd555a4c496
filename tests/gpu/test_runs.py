"""Whole runs on an NVIDIA GPU, as users start them."""

from __future__ import annotations

import csv
import os
import signal

import pytest
import torch

from recexp.runs.trained import load
from recexp.training.module import RecModule
from recexp.training.signals import Interrupted
from tests.support.running import command, run_here

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

SEQUENCE = ("model=sasrec", "model.n_factors=16", "model.max_len=10", "model.dropout=0")
RUNS = {
    "bpr_mf": ("model=bpr_mf",),
    "sasrec": SEQUENCE,
    "bert4rec": ("model=bert4rec", "model.n_factors=16", "model.max_len=10"),
    "gru4rec": ("model=gru4rec", "batch_size=16"),
    "bert_ite_si": ("model=bert_ite_si", "model.n_factors=8", "model.max_len=5"),
    "wmf": ("model=wmf",),
    "recvae": ("model=recvae", "model.encoder_epochs=1"),
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return tmp_path_factory.mktemp("gpu")


@pytest.mark.parametrize("name", RUNS)
def test_a_run(shop, name):
    result = run_here(shop / name, *RUNS[name], "trainer=gpu")
    assert result["hardware"]["device"] == torch.cuda.get_device_name(0)
    assert result["hardware"]["gpu_memory_mb"] > 0
    assert 0 <= result["metrics"]["test/ndcg@10"] <= 1


@pytest.mark.parametrize("name", ["bpr_mf", "sasrec"])
def test_the_losses_are_those_of_the_cpu(shop, name):
    """Batches that are gathered in main memory draw the same negatives; there is no dropout."""
    losses = {}
    for trainer in ("cpu", "gpu"):
        folder = shop / f"{name}-losses-{trainer}"
        run_here(folder, *RUNS[name], f"trainer={trainer}", "store_on=host")
        rows = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
        losses[trainer] = [float(row["train/loss"]) for row in rows]
    assert losses["gpu"] == pytest.approx(losses["cpu"], rel=1e-3)


def test_a_run_on_the_cpu_names_no_gpu(shop):
    result = run_here(shop / "on_cpu", *RUNS["bpr_mf"])
    assert result["hardware"]["device"] != torch.cuda.get_device_name(0)


def test_clipping_in_mixed_precision(shop):
    result = run_here(
        shop / "clipped",
        *RUNS["bert4rec"],
        "trainer=gpu",
        "trainer.precision=bf16-mixed",
        "trainer.gradient_clip_val=5.0",
    )
    assert 0 <= result["metrics"]["test/ndcg@10"] <= 1


def test_the_cpu_ranks_a_model_of_the_gpu_alike(shop):
    """Of a finished run, read back on both devices."""
    folder = shop / "read"
    run_here(folder, *SEQUENCE, "trainer=gpu")
    lists = {}
    for accelerator in ("cpu", "gpu"):
        trained = load(
            folder, raw_dir=f"{shop}/raw", cache_dir=f"{shop}/cache", accelerator=accelerator
        )
        lists[accelerator] = trained.recommend(trained.users[:50], k=5)["item"].to_list()
    assert lists["cpu"] == lists["gpu"]


@pytest.mark.parametrize("store_on", ["host", "device"])
def test_where_the_data_are(shop, store_on):
    result = run_here(shop / store_on, *SEQUENCE, "trainer=gpu", f"store_on={store_on}")
    assert 0 <= result["metrics"]["test/ndcg@10"] <= 1


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("name", ["sasrec", "bert4rec", "bert_ite_si", "gru4rec", "bpr_mf"])
def test_precision(shop, name, precision):
    result = run_here(
        shop / f"{name}-{precision}", *RUNS[name], "trainer=gpu", f"trainer.precision={precision}"
    )
    assert 0 <= result["metrics"]["test/ndcg@10"] <= 1


def test_a_resumed_run_equals_an_uninterrupted_one(shop, monkeypatch):
    whole = run_here(shop / "whole", *SEQUENCE, "trainer=gpu")
    step = RecModule.training_step
    with monkeypatch.context() as patched:

        def interrupted(module, row, index):
            if module.current_epoch == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(module, row, index)

        patched.setattr(RecModule, "training_step", interrupted)
        with pytest.raises(Interrupted):
            run_here(shop / "parts", *SEQUENCE, "trainer=gpu")
    resumed = run_here(shop / "parts", *SEQUENCE, "trainer=gpu")
    assert resumed["updates"] == whole["updates"]
    for name, value in whole["metrics"].items():
        assert resumed["metrics"][name] == pytest.approx(value, rel=1e-4), name


@pytest.mark.parametrize("trainer", ["ddp", "sharded"])
def test_nccl(shop, trainer):
    """One process, whose process group is that of several GPUs."""
    done = command(
        shop / trainer,
        *SEQUENCE,
        f"trainer={trainer}",
        "trainer.accelerator=gpu",
        "trainer.devices=1",
        f"hydra.run.dir={shop / trainer}",
    )
    assert done.returncode == 0, done.stderr
    assert (shop / trainer / "result.json").is_file()
