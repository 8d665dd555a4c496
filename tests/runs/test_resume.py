"""A run that is interrupted at any batch and resumed equals the run that was not."""

from __future__ import annotations

import csv
import os
import signal
from pathlib import Path

import pytest
import torch

from recexp.errors import RecexpError
from recexp.runs import run as run_module
from recexp.runs.resume import finished
from recexp.runs.run import run
from recexp.training.module import RecModule
from recexp.training.signals import Interrupted
from tests.support.running import composed

TINY = (
    "dataset.source.users=30",
    "dataset.source.items=100",
    "dataset.source.categories=5",
    "logger=csv",
    "trainer.max_epochs=2",
    "protocol.candidates.n=10",
    "protocol.ks=[10]",
    "threads=1",
    "+trainer.enable_progress_bar=false",
)
TRANSFORMER = ("model.n_layers=1", "model.n_heads=1", "model.n_factors=4", "model.max_len=5")
# Objective -> a model for it, and the batch size that makes an epoch of a few batches.
OBJECTIVES = {
    "pointwise": ("model=gmf", "model.n_factors=4", "batch_counts=positives", "batch_size=400"),
    "pairwise": ("model=bpr_mf", "model.n_factors=4", "batch_size=400"),
    "next_item": ("model=sasrec", *TRANSFORMER, "batch_size=10"),
    "cloze": ("model=bert4rec", *TRANSFORMER, "batch_size=180"),
    # The second epoch is of another phase.
    "autoencode": (
        "model=recvae",
        "model.n_factors=4",
        "model.n_inner=8",
        "model.encoder_epochs=1",
        "batch_size=10",
    ),
    # An epoch has as many batches as the longest chain of sessions, so it is cut.
    "session_parallel": ("model=gru4rec", "model.n_factors=4", "+trainer.limit_train_batches=3"),
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(autouse=True)
def only_training(monkeypatch):
    """Leave out what takes most of the time of so short a run and changes no weights."""
    for name in ("check_config", "check_machine", "save_curves", "show_table"):
        monkeypatch.setattr(run_module, name, lambda *arguments: None)
    monkeypatch.setattr(run_module, "git_state", lambda: {"commit": None, "dirty": None})


class Signals:
    """Sends a signal within the nth batch of a run; counts the batches."""

    def __init__(self, monkeypatch) -> None:
        self.at: int | None = None
        self.signums = (signal.SIGTERM,)
        self.n_batches = 0
        step = RecModule.training_step

        def training_step(module, row, index):
            self.n_batches += 1
            if self.n_batches == self.at:
                for signum in self.signums:
                    os.kill(os.getpid(), signum)
            return step(module, row, index)

        monkeypatch.setattr(RecModule, "training_step", training_step)

    def count(self, at: int | None = None) -> None:
        self.at = at
        self.n_batches = 0


@pytest.fixture
def signals(monkeypatch) -> Signals:
    return Signals(monkeypatch)


def checkpoint(folder: Path, name: str = "last") -> dict:
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def losses(folder: Path) -> list[str]:
    with (folder / "metrics.csv").open() as file:
        return [row["train/loss"] for row in csv.DictReader(file)]


def assert_same(folder: Path, result: dict, whole: Path, expected: dict) -> None:
    for name in ("last", "best"):
        ours, theirs = (checkpoint(f, name)["state_dict"] for f in (folder, whole))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
    for key in ("metrics", "updates", "best_epoch", "epochs", "stop_reason"):
        assert result[key] == expected[key]
    assert [float(x) for x in losses(folder)] == pytest.approx([float(x) for x in losses(whole)])


@pytest.mark.parametrize("accumulate", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "objective",
    [
        pytest.param(name, marks=[] if name in ("pairwise", "cloze") else [pytest.mark.slow])
        for name in OBJECTIVES
    ],
)
def test_interrupted_at_every_batch_of_two_epochs(shop, signals, objective, accumulate):
    case = f"{objective}-{accumulate}"
    words = [*OBJECTIVES[objective], f"trainer.accumulate_grad_batches={accumulate}"]
    whole = shop / case / "whole"
    (shop / case).mkdir()
    cfg = composed(shop / "whole", *words, small=TINY)
    cfg.run_dir = str(whole)
    signals.count()
    expected = run(cfg)
    n_batches, n_steps = signals.n_batches, expected["updates"]
    assert n_batches == 6 and n_steps == 2 * -(-n_batches // 2 // accumulate)
    stops = set()
    for at in range(1, n_batches + 1):
        folder = shop / case / str(at)
        cfg.run_dir, cfg.ckpt_path = str(folder), None
        signals.count(at)
        with pytest.raises(Interrupted):
            run(cfg)
        n_before = signals.n_batches
        stops.add(n_before)
        last = folder / "checkpoints" / "last.ckpt"
        cfg.ckpt_path = str(last) if last.exists() else None
        signals.count()
        result = run(cfg)
        assert_same(folder, result, whole, expected)
        n_done = n_before + signals.n_batches
        # A signal during the last batch of an epoch takes effect in its validation, for which the
        # weights of the epoch before are kept.
        assert n_done in (n_batches, n_batches + n_batches // 2), f"interrupted in batch {at}"
    per_epoch = n_batches // 2
    assert all(stop % per_epoch % accumulate == 0 for stop in stops)


@pytest.fixture(scope="module")
def bpr(shop) -> tuple[Path, dict]:
    """An uninterrupted run, and its result."""
    folder = shop / "bpr"
    return folder, run(composed(folder, *OBJECTIVES["pairwise"], small=TINY))


def interrupted(folder: Path, signals: Signals, *, at: int):
    """The config of a run that was interrupted in its own directory."""
    cfg = composed(folder, *OBJECTIVES["pairwise"], small=TINY)
    signals.count(at)
    with pytest.raises(Interrupted):
        run(cfg)
    signals.count()
    return cfg


@pytest.mark.parametrize("killed", [False, True])
def test_the_same_command_in_its_own_directory_goes_on(shop, bpr, signals, caplog, killed):
    folder = shop / f"goes-on-{killed}"
    cfg = interrupted(folder, signals, at=5)
    if killed:  # a run that is killed writes no result
        (folder / "result.json").unlink()
    with caplog.at_level("INFO", "recexp"):
        result = run(cfg)
    assert f"goes on from {folder / 'checkpoints' / 'last.ckpt'}" in caplog.text
    assert signals.n_batches == 1, "of six, five were trained before"
    assert cfg.ckpt_path is None
    assert_same(folder, result, *bpr)


def test_a_run_starts_anew_where_it_is_told_to(shop, signals, caplog):
    cfg = interrupted(shop / "anew", signals, at=5)
    cfg.resume = "never"
    with caplog.at_level("INFO", "recexp"):
        run(cfg)
    assert signals.n_batches == 6
    assert "goes on from" not in caplog.text


def test_what_an_interrupted_run_trained_is_not_lost_to_other_settings(shop, signals):
    folder = shop / "other settings"
    cfg = interrupted(folder, signals, at=5)
    last = folder / "checkpoints" / "last.ckpt"
    trained = last.read_bytes()
    cfg.trainer.max_epochs = 3
    with pytest.raises(RecexpError, match=r"other settings \(trainer.max_epochs\)") as refused:
        run(cfg)
    assert f"ckpt_path={last}" in str(refused.value) and last.read_bytes() == trained

    cfg.ckpt_path = str(last)
    run(cfg)
    assert signals.n_batches == 4, "of nine, five were trained before"


def test_a_complete_run_is_trained_again(shop, bpr, signals):
    folder = shop / "complete"
    cfg = composed(folder, *OBJECTIVES["pairwise"], small=TINY)
    for _ in range(2):
        signals.count()
        result = run(cfg)
        assert signals.n_batches == 6
    assert_same(folder, result, *bpr)


@pytest.mark.parametrize(
    "signums",
    [
        (signal.SIGUSR1,),
        pytest.param((signal.SIGUSR2,), marks=pytest.mark.slow),
        (signal.SIGTERM, signal.SIGUSR2),
    ],
)
def test_a_run_whose_time_ends_goes_on(shop, bpr, signals, signums):
    """Also where a scheduler sends SIGTERM before: the one that asks for a new start counts."""
    folder = shop / f"time-{'-'.join(map(str, map(int, signums)))}"
    cfg = composed(folder, *OBJECTIVES["pairwise"], small=TINY)
    signals.signums = signums
    signals.count(at=2)
    with pytest.raises(Interrupted) as ended:
        run(cfg)
    assert ended.value.signum == signums[-1]
    signals.count()
    assert_same(folder, run(cfg), *bpr)
    assert signals.n_batches == 4


@pytest.mark.parametrize(
    "kind", ["damaged", "foreign", pytest.param("without its best epoch", marks=pytest.mark.slow)]
)
def test_a_checkpoint_that_cannot_be_gone_on_from_is_named_with_the_ways_out(shop, signals, kind):
    folder = shop / f"bad-{kind}"
    cfg = interrupted(folder, signals, at=5)
    last = folder / "checkpoints" / "last.ckpt"
    if kind == "damaged":
        last.write_bytes(last.read_bytes()[:-100])
    elif kind == "foreign":
        content = torch.load(last, weights_only=True)
        content["state_dict"] = {"other": torch.zeros(2)}
        torch.save(content, last)
    else:
        (folder / "checkpoints" / "best.ckpt").unlink()
    with pytest.raises(RecexpError) as error:
        run(cfg)
    said = str(error.value)
    assert said.startswith(f"The interrupted run cannot go on from {last}: ")
    assert said.endswith("add resume=never or delete the file.") and "ckpt_path" not in said
    last.unlink()
    run(cfg)
    assert signals.n_batches == 6


def test_a_checkpoint_that_was_named_keeps_its_own_error(shop, signals):
    folder = shop / "named"
    cfg = interrupted(folder, signals, at=5)
    cfg.ckpt_path = str(folder / "checkpoints" / "last.ckpt")
    Path(cfg.ckpt_path).write_bytes(b"nothing")
    with pytest.raises(RecexpError, match=r"^ckpt_path: .* is damaged"):
        run(cfg)


def test_a_finished_run_is_known_by_its_settings(shop, bpr, signals, caplog):
    folder, result = bpr
    cfg = composed(folder, *OBJECTIVES["pairwise"], small=TINY)
    with caplog.at_level("INFO", "recexp"):
        assert finished(cfg)["metrics"] == result["metrics"]
    assert "has its result already" in caplog.text
    assert finished(composed(folder, *OBJECTIVES["pairwise"], "seed=1", small=TINY)) is None
    stopped = interrupted(shop / "unfinished", signals, at=5)
    assert finished(stopped) is None
    stopped.run_dir = str(shop / "nowhere")
    assert finished(stopped) is None
