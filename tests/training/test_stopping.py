"""When a run ends, which epoch is selected, and what the result says about both."""

from __future__ import annotations

import csv
import json
import logging
import os
import signal
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate

from recexp.config.check import check_config
from recexp.contracts import Objective
from recexp.errors import RecexpError
from recexp.evaluation.metrics import RankingMetrics
from recexp.runs.convergence import FLOOR
from recexp.training.early_stopping import EarlyStopping
from recexp.training.learned import LEARNED
from recexp.training.module import RecModule
from recexp.training.signals import Interrupted
from tests.support.running import composed, run_here

SMALL = ["model=bpr_mf", "model.n_factors=8", "logger=none", "optimizer.lr=0.05"]
STEPS = 25  # of an epoch
PATIENT = "callbacks.early_stopping.min_steps=0"


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("stopping")


@pytest.fixture(autouse=True)
def curves(monkeypatch) -> list[list[dict]]:
    """The rows that would be drawn, per run. Drawing takes a third of the time of such a short
    run.
    """
    drawn = []
    monkeypatch.setattr("recexp.runs.run.save_curves", lambda path, rows, title: drawn.append(rows))
    return drawn


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def falling(monkeypatch):
    """Every validation is worse than the one before; ``falling(n)`` is better up to the nth."""
    compute, state = RankingMetrics.compute, {"calls": 0, "rise": 1}

    def planted(self):
        values = compute(self)
        state["calls"] += 1
        distance = abs(state["calls"] - state["rise"])
        return values | {"ndcg@10": 0.9 - 0.01 * distance}

    monkeypatch.setattr(RankingMetrics, "compute", planted)

    def falling(rise: int) -> None:
        state["calls"], state["rise"] = 0, rise

    return falling


@pytest.mark.parametrize(("every", "selection"), [(1, "val"), (3, "refit")])
def test_patience_counts_validations(shop, falling, every, selection):
    falling(2)
    words = [
        "trainer.max_epochs=40",
        f"trainer.check_val_every_n_epoch={every}",
        PATIENT,
        "callbacks.early_stopping.patience=3",
    ]
    folder = shop / f"patience-{every}-{selection}"
    result = run_here(folder, *SMALL, *words, f"selection={selection}")
    validated = [int(row["epoch"]) for row in table(folder) if row["val/ndcg@10"]]
    assert validated == [every * n + every - 1 for n in range(5)]  # best in the second, three more
    assert (result["epochs"], result["best_epoch"]) == (5 * every, 2 * every - 1)
    assert (
        result["stop_reason"]
        == f"early stopping: no better validation in the last 3 ({3 * every * STEPS} steps)"
    )
    if selection == "refit":
        refit = {key: result["refit"][key] for key in ("epochs", "updates")}
        assert refit == {"epochs": 2 * every, "updates": 2 * every * STEPS}
        assert "stop_reason" not in result["refit"]


@pytest.mark.parametrize(("min_steps", "epochs"), [(STEPS * 2, 3), (STEPS * 2 + 1, 4), (10**6, 6)])
def test_no_stop_before_the_floor_of_steps_since_the_best(shop, falling, min_steps, epochs):
    falling(1)
    words = [
        "trainer.max_epochs=6",
        f"callbacks.early_stopping.min_steps={min_steps}",
        "callbacks.early_stopping.patience=2",
    ]
    result = run_here(shop / f"floor-{min_steps}", *SMALL, *words)
    assert result["epochs"] == epochs
    assert result["stop_reason"].startswith("max_epochs" if epochs == 6 else "early stopping")


@pytest.mark.parametrize("lr", [1e-6, 0.003])
def test_no_stop_before_the_model_has_learned(shop, falling, caplog, lr):
    """Patience counts from the end of a plateau; with a tiny learning rate that never comes."""
    falling(1)
    words = [
        "trainer.max_epochs=12",
        PATIENT,
        "callbacks.early_stopping.patience=2",
        f"optimizer.lr={lr}",
    ]
    with caplog.at_level(logging.INFO, logger="recexp"):
        result = run_here(shop / f"learned-{lr}", *SMALL, *words)
    losses = [float(row["train/loss"]) for row in table(shop / f"learned-{lr}")]
    n_unlearned = sum(loss > 0.85 * result["constant_loss"] for loss in losses)
    if lr < 0.003:
        assert n_unlearned == 12
        assert result["stop_reason"] == "max_epochs reached"
        assert result["convergence"]["kind"] == "unlearned"
    else:
        assert 3 < n_unlearned < 10
        assert result["epochs"] == n_unlearned + 2
        assert result["stop_reason"].startswith(
            "early stopping: no better validation in the last 2"
        )
    said = [r.message for r in caplog.records if "the training goes on" in r.message]
    assert len(said) == 1
    assert "not yet 15% below" in said[0]
    falling(1)
    at_once = "callbacks.early_stopping.min_learned=0"
    assert run_here(shop / f"unlearned-{lr}", *SMALL, *words, at_once)["epochs"] == 3


def test_sessions_have_learned_with_a_smaller_fall_of_the_loss(shop, falling):
    """The other sessions' targets are as popular, so popularity does not lower GRU4Rec's loss."""
    falling(1)
    words = [
        "model=gru4rec",
        "model.n_factors=2",
        "logger=none",
        "optimizer.lr=0.07",
        "trainer.max_epochs=12",
        PATIENT,
        "callbacks.early_stopping.patience=2",
    ]
    result = run_here(shop / "sessions", *words)
    shares = [
        1 - float(row["train/loss"]) / result["constant_loss"] for row in table(shop / "sessions")
    ]
    assert result["learned_share"] == 0.05
    n_unlearned = sum(share < 0.05 for share in shares)
    assert n_unlearned > 0 and max(shares) < 0.15
    assert result["epochs"] == n_unlearned + 2
    assert result["convergence"]["kind"] != "unlearned"


def test_peeking_stops_by_the_test_metric(shop, falling):
    falling(1)
    words = [
        "selection=test_peek",
        "trainer.max_epochs=9",
        PATIENT,
        "callbacks.early_stopping.patience=2",
    ]
    result = run_here(shop / "peek", *SMALL, *words)  # two values a validation: of val and of test
    assert result["epochs"] == 3 and result["stop_reason"].startswith("early stopping")


def test_the_floor_is_one_of_optimizer_steps(shop, falling):
    """A pass over all data is one step of the trainer, and no step of an optimizer."""
    falling(1)
    words = [
        "model=wmf",
        "model.n_factors=4",
        "logger=none",
        "trainer.max_epochs=9",
        "callbacks.early_stopping.patience=2",
    ]
    result = run_here(shop / "sweeps", *words)
    assert result["epochs"] == 3
    assert (result["updates"], result["updates_per_epoch"]) == (0, 0)


def test_the_minima_are_what_the_verdict_asks_for(shop):
    cfg = composed(shop / "x")
    assert cfg.callbacks.early_stopping.min_steps == FLOOR
    assert cfg.callbacks.early_stopping.min_learned is None  # the objective's
    assert Objective.learned_share == LEARNED
    assert isinstance(instantiate(cfg.callbacks.early_stopping), EarlyStopping)


def test_best_ckpt_holds_the_weights_of_the_best_validated_epoch(
    shop, falling, monkeypatch, curves
):
    """Also where epochs without validation follow, which repeat the metrics of the last
    validation.
    """
    every = 3
    falling(2)
    seen = {}
    end = RecModule.on_validation_epoch_end

    def on_validation_epoch_end(self):
        seen[self.current_epoch] = self.model.item.weight.detach().clone()
        end(self)

    monkeypatch.setattr(RecModule, "on_validation_epoch_end", on_validation_epoch_end)
    folder = shop / f"best-{every}"
    result = run_here(
        folder,
        *SMALL,
        f"trainer.check_val_every_n_epoch={every}",
        f"trainer.max_epochs={4 * every + every - 1}",
    )
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert result["best_epoch"] == best["epoch"] == 2 * every - 1
    assert torch.equal(best["state_dict"]["model.item.weight"], seen[2 * every - 1])
    assert not torch.equal(seen[2 * every - 1], seen[3 * every - 1])
    assert result["metrics"]["val/ndcg@10"] == pytest.approx(0.9)
    assert len(table(folder)) == len(curves[-1]) == result["epochs"] == 5 * every - 1


@pytest.mark.parametrize(
    ("words", "reason", "updates"),
    [
        (["trainer.max_epochs=2"], "max_epochs reached", 2 * STEPS),
        (
            ["trainer.max_epochs=2", f"trainer.max_steps={STEPS + 7}"],
            "max_steps reached",
            STEPS + 7,
        ),
        (["trainer.max_epochs=9", "trainer.max_steps=7"], "max_steps reached", 7),
        (
            [
                "trainer.max_epochs=9999",
                "+trainer.max_time={seconds: 0.5}",
                "callbacks.early_stopping.patience=9999",
            ],
            "max_time reached",
            None,
        ),
    ],
    ids=["epochs", "steps within the last epoch", "steps within the first epoch", "time"],
)
def test_a_run_says_what_ended_it(shop, request, words, reason, updates):
    folder = shop / request.node.callspec.id.replace(" ", "-")
    result = run_here(folder, *SMALL, *words)
    assert result["stop_reason"] == reason
    rows = table(folder)
    assert int(rows[-1]["step"]) == result["updates"] and updates in (None, result["updates"])
    assert rows[-1]["val/ndcg@10"]  # the last weights are validated, within an epoch too
    assert result["updates_per_epoch"] == STEPS


def test_what_would_choose_no_epoch_is_said(shop):
    few = [
        "trainer.max_epochs=9",
        "trainer.check_val_every_n_epoch=3",
        f"trainer.max_steps={STEPS}",
    ]
    with pytest.raises(RecexpError, match=r"\(max_steps reached\) before its first validation"):
        run_here(shop / "never", *SMALL, *few)
    for word in ("fast_dev_run=true", "val_check_interval=0.5", "val_check_interval=10"):
        with pytest.raises(RecexpError, match=rf"trainer\.{word.split('=')[0]}"):
            check_config(composed(shop / "x", *SMALL, f"+trainer.{word}"))
    check_config(composed(shop / "x", *SMALL, "+trainer.val_check_interval=1.0"))
    with pytest.raises(RecexpError, match=r"limit_val_batches"):
        check_config(composed(shop / "x", *SMALL, "trainer.limit_val_batches=0"))


def interrupt(monkeypatch, epoch: int, index: int) -> None:
    step = RecModule.training_step

    def training_step(self, row, i):
        if (self.current_epoch, i) == (epoch, index):
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, row, i)

    monkeypatch.setattr(RecModule, "training_step", training_step)


def rows_trained(folder: Path) -> list[float]:
    """Number of rows per epoch."""
    return [
        float(row["train/examples_per_s"]) * float(row["train/seconds"]) for row in table(folder)
    ]


def test_a_resumed_run_reports_the_whole_and_the_parts(shop, monkeypatch):
    folder, index = shop / "parts", STEPS - 2  # the signal is noticed before the last step
    with monkeypatch.context() as m:
        interrupt(m, 1, index)
        with pytest.raises(Interrupted):
            run_here(folder, *SMALL, "trainer.max_epochs=4")
    first = json.loads((folder / "result.json").read_text())
    said = (first["stop_reason"], first["epochs"], first["updates"])
    assert said == ("interrupted by SIGTERM", 1, STEPS + index + 1)
    assert len(first["parts"]) == 1 and first["wall_time_s"] == first["parts"][0]["wall_time_s"] > 0
    last = f"ckpt_path={folder / 'checkpoints' / 'last.ckpt'}"
    with monkeypatch.context() as m:
        interrupt(m, 2, 3)
        with pytest.raises(Interrupted):
            run_here(folder, *SMALL, "trainer.max_epochs=4", last)
    whole = run_here(folder, *SMALL, "trainer.max_epochs=4", last)
    places = [None, {"epoch": 1, "batch": index + 1}, {"epoch": 2, "batch": 4}]
    assert [part["resumed_from"] for part in whole["parts"]] == places
    assert [part["epochs"] for part in whole["parts"]] == [1, 1, 2]
    updates = [STEPS + index + 1, STEPS + 3 - index, 2 * STEPS - 4]
    assert [part["updates"] for part in whole["parts"]] == updates
    assert (whole["updates"], whole["epochs"]) == (4 * STEPS, 4)
    assert whole["wall_time_s"] == pytest.approx(sum(p["wall_time_s"] for p in whole["parts"]))
    assert all(part["wall_time_s"] > 0 for part in whole["parts"])
    once = run_here(shop / "once", *SMALL, "trainer.max_epochs=4")
    assert len(once["parts"]) == 1 and once["metrics"] == whole["metrics"]
    # Rows a second are those of all rows; an epoch in two parts has the rows and the time of both.
    assert rows_trained(folder) == pytest.approx([rows_trained(shop / "once")[0]] * 4)
    seconds = sum(float(row["train/seconds"]) for row in table(folder))
    assert whole["examples_per_s"] == pytest.approx(sum(rows_trained(folder)) / seconds)


def test_a_run_that_patience_ended_stays_ended(shop, falling):
    """A run that is interrupted in its test phase resumes from a checkpoint of its last epoch."""
    words = [*SMALL, "trainer.max_epochs=9", PATIENT, "callbacks.early_stopping.patience=2"]
    falling(1)
    first = run_here(shop / "stays", *words)
    last = f"ckpt_path={shop / 'stays' / 'checkpoints' / 'last.ckpt'}"
    falling(1)
    again = run_here(shop / "stays", *words, last)
    assert first["epochs"] == again["epochs"] == 3 and first["stop_reason"] == again["stop_reason"]
    assert [part["updates"] for part in again["parts"]] == [3 * STEPS, 0]
    assert again["updates_per_epoch"] == STEPS
    more = run_here(shop / "stays", *words[:-1], "callbacks.early_stopping.patience=4", last)
    # The patience is that of the new command; validations counted before still count.
    assert more["epochs"] == 5


def interrupt_refit(monkeypatch, after: int) -> None:
    """SIGTERM in the training step that follows ``after`` others."""
    step = RecModule.training_step
    n_steps = 0

    def training_step(self, row, index):
        nonlocal n_steps
        n_steps += 1
        if n_steps == after + 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, row, index)

    monkeypatch.setattr(RecModule, "training_step", training_step)


def test_an_interrupted_refit_goes_on_to_the_same_result(shop, falling, monkeypatch):
    """The first training, which patience ended, is not trained again, and trains no further."""
    words = [*SMALL, "trainer.max_epochs=9", PATIENT, "callbacks.early_stopping.patience=2"]
    words.append("selection=refit")
    falling(2)
    whole = run_here(shop / "refit-whole", *words)
    assert (whole["refit"]["epochs"], whole["refit"]["updates"]) == (2, 2 * STEPS)
    folder = shop / "refit-cut"
    falling(2)
    with monkeypatch.context() as m:
        interrupt_refit(m, whole["updates"] + STEPS)
        with pytest.raises(Interrupted):
            run_here(folder, *words)
    said = json.loads((folder / "result.json").read_text())
    assert said["stop_reason"] == "interrupted by SIGTERM"
    falling(2)
    last = folder / "checkpoints" / "last.ckpt"
    again = run_here(folder, *words, f"ckpt_path={last}")
    for key in ("best_epoch", "epochs", "stop_reason", "refit", "updates"):
        assert again[key] == whole[key], key
    planted = "test/ndcg@10"  # by the number of the call
    for result in (again, whole):
        del result["metrics"][planted]
    assert again["metrics"] == whole["metrics"]
    assert [part["updates"] for part in again["parts"]] == [whole["updates"], 0]


def test_best_epochs_come_along_into_another_directory(shop, falling):
    falling(1)
    run_here(shop / "here", *SMALL, "trainer.max_epochs=3")
    last = shop / "here" / "checkpoints" / "last.ckpt"
    whole = run_here(shop / "there", *SMALL, "trainer.max_epochs=4", f"ckpt_path={last}")
    assert whole["best_epoch"] == 0
    best = [
        torch.load(shop / name / "checkpoints" / "best.ckpt", weights_only=True)
        for name in ("here", "there")
    ]
    assert best[0]["epoch"] == best[1]["epoch"] == 0
    assert torch.equal(
        best[0]["state_dict"]["model.item.weight"], best[1]["state_dict"]["model.item.weight"]
    )
    (last.parent / "best.ckpt").unlink()
    with pytest.raises(RecexpError, match=r"best\.ckpt is missing"):
        run_here(shop / "elsewhere", *SMALL, "trainer.max_epochs=4", f"ckpt_path={last}")


def test_a_run_cut_within_an_epoch_does_not_pretend_to_go_on(shop):
    folder = shop / "cut"
    run_here(folder, *SMALL, "trainer.max_epochs=9", f"trainer.max_steps={STEPS + 5}")
    last = f"ckpt_path={folder / 'checkpoints' / 'last.ckpt'}"
    with pytest.raises(RecexpError, match="ended within an epoch"):
        run_here(folder, *SMALL, "trainer.max_epochs=9", f"trainer.max_steps={3 * STEPS}", last)


def test_the_end_of_a_run_warns_of_what_was_not_learned(shop, capsys):
    result = run_here(shop / "unlearned", *SMALL, "trainer.max_epochs=3", "optimizer.lr=1e-6")
    assert result["convergence"]["kind"] == "unlearned"
    assert result["constant_loss"] == pytest.approx(0.6931, abs=1e-4)
    said = capsys.readouterr().out
    assert f"warning: {result['convergence']['text']}" in said and "before it learned" in said
    assert f"{3 * STEPS} updates" in said
    rising = run_here(shop / "rising", *SMALL, "trainer.max_epochs=2")
    assert rising["convergence"]["kind"] == "rising" and "still rising" in capsys.readouterr().out
    stored = json.loads((shop / "rising" / "result.json").read_text())
    assert stored["convergence"] == rising["convergence"]
