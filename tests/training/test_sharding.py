"""``trainer=sharded``: large tables shared out among processes. Results are those of DDP."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
import torch
import torch.distributed as dist

import recexp
from recexp.errors import RecexpError
from tests.support.processes import Run
from tests.support.running import run_here

SHARDED = ("trainer=sharded", "trainer.accelerator=cpu", "trainer.strategy.min_rows=1")
TWO = (*SHARDED, "trainer.devices=2")
TINY = ("model.n_factors=8", "batch_size=128")
SASREC = ("model=sasrec_softmax", "model.max_len=20", *TINY)


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def ranks(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "ranks.parquet").sort("user")


def trained(folder: Path, *words: str) -> Path:
    run = Run(folder, *words, training=False)
    assert run.ended() == 0, run.said()
    return folder


def assert_same_weights(one: Path, other: Path) -> None:
    """Weights and states of the optimizer in the last checkpoints, by names and numbers.

    Adam divides gradients by their size, so a gradient near 0 makes its rounding errors visible:
    weights differ by up to a tenth of a step of 0.001.
    """
    a, b = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        for folder in (one, other)
    )
    assert a["state_dict"].keys() == b["state_dict"].keys()
    for name, value in a["state_dict"].items():
        assert torch.allclose(value, b["state_dict"][name], rtol=1e-4, atol=1e-4), name
    states = [content["optimizer_states"][0]["state"] for content in (a, b)]
    assert states[0].keys() == states[1].keys()
    for number, state in states[0].items():
        assert state.keys() == states[1][number].keys()
        for name, value in state.items():
            other_value = states[1][number][name]
            assert torch.allclose(value, other_value, rtol=1e-3, atol=1e-7), (number, name)


@pytest.fixture
def no_group(monkeypatch):
    """Takes back what the strategy and Lightning leave in this process."""
    for name in ("RECEXP_MAIN_PID", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def test_a_process_alone_trains_shared_tables_as_whole_ones(tmp_path, no_group):
    words = (*SASREC, "trainer.gradient_clip_val=0.5", "trainer.max_epochs=1")
    whole = run_here(tmp_path / "whole", *words)
    shared = run_here(tmp_path / "shared", *words, *SHARDED, "trainer.devices=1")
    assert shared["parameters"] == whole["parameters"]
    assert shared["metrics"] == pytest.approx(whole["metrics"], abs=1e-12)
    assert_same_weights(tmp_path / "whole", tmp_path / "shared")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=gru4rec"], "cannot share out the tables of GRU4Rec"),
        (["model=sasrec_softmax", "model.item_side=all"], "vectors have side information"),
        (["model=bpr_mf", "trainer.precision=16-mixed"], "cannot train with precision=16-mixed"),
    ],
)
def test_what_cannot_be_shared_out_is_refused_before_training(tmp_path, words, message):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "result.json").write_text("{}")
    with pytest.raises(RecexpError, match=message):
        run_here(folder, *SHARDED, "trainer.devices=1", *words)
    assert (folder / "result.json").read_text() == "{}"  # of an earlier run


MODELS = {
    "all_items": SASREC,
    "drawn_items": ("model=sasrec", "model.max_len=20", *TINY),
    "own_candidates": ("model=gsasrec", "objective.n_negatives=20", "model.max_len=20", *TINY),
    "masks": ("model=bert4rec", "model.max_len=20", *TINY, "trainer.gradient_clip_val=0.1"),
    "sides": ("model=ite_si", *TINY),
    "pairs": ("model=bpr_mf", *TINY),
    "rows": ("model=bpr_mf", "optimizer=row_adam", *TINY),
    "accumulated": ("model=bpr_mf", "trainer.accumulate_grad_batches=2", *TINY),
    "refit": ("model=bpr_mf", "selection=refit", *TINY),
    "side_vectors": ("model=nova_bert", "model.max_len=20", *TINY),
}


@pytest.mark.slow  # two runs of two processes each
@pytest.mark.parametrize("name", MODELS)
def test_shared_tables_give_the_results_of_ddp(tmp_path, name):
    whole = trained(tmp_path / "whole", "trainer=ddp_cpu2", *MODELS[name])
    shared = trained(tmp_path / "shared", *TWO, *MODELS[name])
    assert result(shared)["metrics"] == pytest.approx(result(whole)["metrics"], abs=2e-3)
    assert_same_weights(whole, shared)


@pytest.mark.slow  # four runs, three of two processes
def test_checkpoints_go_from_shared_tables_to_whole_ones_and_back(tmp_path):
    """Trained for two epochs at once, or one epoch each way and then the other's way."""
    once = trained(tmp_path / "once", *TWO, *SASREC)
    for name, first, second in (("to", TWO, ["trainer=ddp_cpu2"]), ("from", TWO, TWO)):
        half = trained(tmp_path / f"half_{name}", *first, *SASREC, "trainer.max_epochs=1")
        last = half / "checkpoints" / "last.ckpt"
        words = [*second, *SASREC, f"ckpt_path={last}"]
        both = trained(tmp_path / f"both_{name}", *words)
        assert_same_weights(once, both)


@pytest.mark.slow  # a run of two processes
def test_one_process_ranks_the_checkpoint_of_two_exactly_as_they_did(tmp_path):
    shared = trained(tmp_path / "shared", *TWO, *SASREC)
    last = shared / "checkpoints" / "last.ckpt"
    run_here(tmp_path / "alone", *SASREC, f"ckpt_path={last}")
    assert ranks(tmp_path / "alone").equals(ranks(shared))
    tests = [
        {key: x for key, x in result(folder)["metrics"].items() if key.startswith("test/")}
        for folder in (shared, tmp_path / "alone")
    ]
    assert tests[0] == tests[1]
    lists = recexp.load(shared, raw_dir=tmp_path / "raw", cache_dir=tmp_path / "cache").recommend(
        k=5
    )
    assert len(lists)
