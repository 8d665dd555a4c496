"""Runs of several processes that lose one process or receive a signal.

All processes end, and the last checkpoint is complete.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from recexp.training.checkpoints import verify_checkpoint
from recexp.training.processes import is_peer_lost
from tests.support.processes import Run
from tests.support.running import arguments

TWO = ["trainer=ddp_cpu2", "model=bpr_mf", "model.n_factors=8"]
LONG = [*TWO, "trainer.max_epochs=5000", "callbacks.early_stopping=null"]
GONE = "Another process of this run is lost"


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("processes")


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("signum", "to", "code"),
    [
        pytest.param(signal.SIGTERM, "child", 143, marks=slow),
        pytest.param(signal.SIGTERM, "main", 143, marks=slow),
        pytest.param(signal.SIGTERM, "all", 143, marks=slow),
        pytest.param(signal.SIGINT, "all", 130, marks=slow),
        pytest.param(signal.SIGINT, "main", 130, marks=slow),
    ],
)
def test_a_signal_to_any_process_ends_all_at_the_same_step(shop, signum, to, code):
    run = Run(shop / f"{signum}-{to}", *LONG)
    main, child = run.pids()
    for pid in {"main": [main], "child": [child], "all": [main, child]}[to]:
        os.kill(pid, signum)
    assert run.ended() == code, run.said()
    said = run.said()
    assert said.count(f"{signum.name} ended the run") == 1 and "ckpt_path=" in said
    assert GONE not in said and "Traceback" not in said
    assert result(run.folder)["interrupted"] == signum.name
    verify_checkpoint(run.folder / "checkpoints" / "last.ckpt")


@slow
@pytest.mark.parametrize("lost", [pytest.param(1, id="child"), pytest.param(0, id="main")])
def test_where_one_process_is_killed_the_other_ends_with_a_message(shop, lost):
    run = Run(shop / f"killed-{lost}", *LONG)
    os.kill(run.pids()[lost], signal.SIGKILL)
    assert run.ended() == (1 if lost else -signal.SIGKILL)
    said = run.said()
    assert (
        GONE in said
        and f"ckpt_path={run.folder}/checkpoints/last.ckpt" in said
        and "Traceback" not in said
    )
    verify_checkpoint(run.folder / "checkpoints" / "last.ckpt")


def test_what_a_lost_process_looks_like():
    """With error texts of gloo, copied from runs; other errors of training are not lost
    processes.
    """
    for words in (
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer",
        "Application timeout caused pair closure",
    ):
        assert is_peer_lost(RuntimeError(words))
    assert not is_peer_lost(RuntimeError("shape mismatch")) and not is_peer_lost(ValueError("gloo"))


@slow
def test_a_process_that_no_longer_answers_is_given_up(shop):
    run = Run(shop / "frozen", *LONG, "trainer.strategy.timeout_s=30")
    os.kill(run.pids()[1], signal.SIGSTOP)
    assert run.ended() == 1 and GONE in run.said()


@slow
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_lost_before_training_ends_the_other(shop, signum):
    run = Run(shop / f"early-{signum}", *LONG, training=False)
    run.wait_until(lambda: len(run.pids()) == 2)
    os.kill(run.pids()[1], signum)
    assert run.ended() == (1 if signum == signal.SIGKILL else 143) and GONE in run.said()


@slow
@pytest.mark.parametrize("how", ["killed", "told"])
def test_what_two_processes_left_goes_on_to_the_same_metrics(shop, how):
    words = [*TWO, "trainer.max_epochs=12", "callbacks.early_stopping=null"]
    whole, parts = shop / f"whole-{how}", shop / f"parts-{how}"
    assert Run(whole, *words).ended() == 0
    run = Run(parts, *words)
    main, child = run.pids()
    os.kill(*((child, signal.SIGKILL) if how == "killed" else (main, signal.SIGTERM)))
    assert run.ended() == (1 if how == "killed" else 143), run.said()
    again = Run(parts, *words, f"ckpt_path={parts}/checkpoints/last.ckpt")
    assert again.ended() == 0, again.said()
    assert result(parts)["metrics"] == result(whole)["metrics"]
    assert (
        result(parts)["updates"]
        == result(whole)["updates"]
        == 12 * result(whole)["updates_per_epoch"]
    )
    assert len(result(parts)["parts"]) == 2


@slow
@pytest.mark.parametrize(
    "model",
    [["model=item_knn"], ["model=bpr_mf", "model.n_factors=8", "optimizer.lr=1e-30"]],
    ids=["knn", "mf"],
)
def test_one_two_and_three_processes_give_the_same_digits(shop, model):
    """lr=1e-30: factors as they were drawn, so that nothing but evaluation can differ.

    Batches of 7 leave remainders everywhere.
    """
    metrics = []
    for n in (1, 2, 3):
        run = Run(
            shop / f"{n}-{model[0][6:]}",
            "trainer=ddp_cpu2",
            f"trainer.devices={n}",
            *model,
            "eval_batch_size=7",
            training=False,
        )
        run.main.wait(240)
        assert run.ended() == 0, run.said()
        metrics.append(result(run.folder)["metrics"])
    assert metrics[0] == metrics[1] == metrics[2]
    assert (
        sum(metrics[0][f"test/users/{kind}"] for kind in ("new", "seen")) % 7
        and metrics[0]["test/ndcg@10"] > 0
    )


@slow
def test_two_jobs_of_two_processes_in_a_sweep(shop):
    line = [
        sys.executable,
        "-m",
        "recexp",
        "-m",
        *arguments(shop / "sweep", *TWO, "seed=0,1", "hydra.launcher.jobs=2"),
    ]
    done = subprocess.run(
        [*line, f"hydra.sweep.dir={shop}/sweep"],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(result(shop / "sweep" / job)["seed"] == int(job) for job in "01")
    assert all(
        (shop / "sweep" / job / "log.txt").read_text().count("epoch 1/2") == 1 for job in "01"
    ), "only the first process speaks"
