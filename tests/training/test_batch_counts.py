"""What ``batch_size`` counts, and how many updates a run makes of it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from recexp.config.check import check_config
from recexp.data.datamodule import rows_per_step
from recexp.errors import RecexpError
from recexp.objectives.pairwise import Pairwise
from recexp.objectives.pointwise import Pointwise
from recexp.objectives.samplers import Uniform
from recexp.training.module import RecModule
from recexp.training.signals import Interrupted
from tests.support.running import command, composed, run_here

NCF = ["model=mf", "model.n_factors=4", "objective.n_negatives=4", "logger=none"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("batches")


@pytest.fixture(autouse=True)
def no_curves(monkeypatch) -> None:
    """Draw no curves: this takes a third of the time of such a short run."""
    monkeypatch.setattr("recexp.runs.run.save_curves", lambda path, rows, title: None)


@pytest.mark.parametrize(
    ("objective", "batch_size", "positives", "rows"),
    [
        (Pointwise(Uniform(), n_negatives=4), 2048, 2048, 409),
        (Pointwise(Uniform(), n_negatives=9), 512, 512, 51),
        (Pointwise(Uniform(), n_negatives=4), 5, 5, 1),
        (Pairwise(Uniform(), n_negatives=1), 512, 512, 512),
        (Pairwise(Uniform(), n_negatives=5), 512, 512, 102),
    ],
)
def test_rows_a_step(objective, batch_size, positives, rows):
    assert rows_per_step(objective, batch_size, "positives") == positives
    assert rows_per_step(objective, batch_size, "instances") == rows


def test_a_batch_of_less_than_one_positives_instances_is_one_positive_with_a_warning():
    with pytest.warns(UserWarning, match="batch_size=3 instances is less than the 5"):
        assert rows_per_step(Pointwise(Uniform(), n_negatives=4), 3, "instances") == 1


@pytest.mark.parametrize("model", ["sasrec", "gru4rec", "item_knn"])
def test_rows_that_make_no_instances_are_refused_before_any_work(shop, model):
    cfg = composed(shop / "x", f"model={model}", "batch_counts=instances")
    with pytest.raises(RecexpError, match=r"batch_counts=instances.*no instances to count"):
        check_config(cfg)
    check_config(composed(shop / "x", f"model={model}"))
    with pytest.raises(RecexpError, match="batch_counts='examples': must be one of positives"):
        check_config(composed(shop / "x", f"model={model}", "batch_counts=examples"))


def test_instances_are_positives_divided_by_what_each_makes(shop):
    counted = run_here(shop / "instances", *NCF, "batch_size=256", "batch_counts=instances")
    plain = run_here(shop / "positives", *NCF, "batch_size=51")
    whole = run_here(shop / "whole", *NCF, "batch_size=256")
    assert counted["metrics"] == plain["metrics"] != whole["metrics"]
    assert [r["batch_counts"] for r in (counted, plain, whole)] == [
        "instances",
        "positives",
        "positives",
    ]
    assert (
        counted["updates_per_epoch"] == plain["updates_per_epoch"] > 4 * whole["updates_per_epoch"]
    )
    assert counted["updates"] == 2 * counted["updates_per_epoch"]


def test_updates_take_gradient_accumulation_into_account(shop):
    once = run_here(shop / "once", *NCF, "batch_size=100")
    third = run_here(shop / "third", *NCF, "batch_size=100", "trainer.accumulate_grad_batches=3")
    assert third["updates_per_epoch"] == -(-once["updates_per_epoch"] // 3)
    assert third["updates"] == 2 * third["updates_per_epoch"]


def test_a_run_goes_on_within_an_epoch_with_the_same_batches_only(shop, monkeypatch):
    words = [*NCF, "batch_size=256", "batch_counts=instances"]
    step = RecModule.training_step

    def training_step(self, row, i):
        if (self.current_epoch, i) == (1, 7):
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, row, i)

    with monkeypatch.context() as m:
        m.setattr(RecModule, "training_step", training_step)
        with pytest.raises(Interrupted):
            run_here(shop / "parts", *words)
    last = f"ckpt_path={shop / 'parts' / 'checkpoints' / 'last.ckpt'}"
    with pytest.raises(RecexpError, match="Resume with the same batch_size, batch_counts"):
        run_here(shop / "parts", *words[:-1], last)
    resumed = run_here(shop / "parts", *words, last)
    whole = run_here(shop / "unbroken", *words)
    assert resumed["metrics"] == whole["metrics"] and resumed["updates"] == whole["updates"]


@pytest.mark.slow
def test_two_processes_halve_the_updates(shop):
    one = run_here(shop / "single", *NCF, "batch_size=250", "batch_counts=instances")
    done = command(
        shop / "two",
        *NCF,
        "batch_size=250",
        "batch_counts=instances",
        "trainer=ddp_cpu2",
        f"hydra.run.dir={shop}/two",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    two = json.loads((shop / "two" / "result.json").read_text())
    assert two["updates_per_epoch"] == -(-one["updates_per_epoch"] // 2)
    assert two["updates"] == 2 * two["updates_per_epoch"]
