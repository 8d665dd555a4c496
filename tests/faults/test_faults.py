"""Injected faults: signals, kills, damaged checkpoints, losses that are not finite.

No result is lost, and a message says what happened.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from recexp.errors import RecexpError
from recexp.models.mf import MF
from recexp.report.collect import collect
from recexp.runs.evaluate import evaluate
from recexp.training.checkpoints import AtomicCheckpointIO, verify_checkpoint
from recexp.training.module import RecModule
from recexp.training.nan_report import bad_rows, first_bad_output, first_bad_parameter
from recexp.training.signals import Interrupted
from tests.support.running import arguments, command, run_here

SMALL = ["model=bpr_mf", "model.n_factors=8", "trainer.max_epochs=3"]
SESSIONS = ["model=gru4rec", "model.n_factors=8", "batch_size=20", "trainer.max_epochs=2"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def whole(shop) -> dict:
    """Results of runs without a fault."""
    return {
        "bpr": run_here(shop / "whole-bpr", *SMALL),
        "sessions": run_here(shop / "whole-sessions", *SESSIONS),
    }


@pytest.fixture(autouse=True)
def ctrl_c():
    """Handle SIGINT as at a terminal. A background job of a shell ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def at_step(monkeypatch, epoch: int, index: int, action) -> None:
    """Do something before one training step."""
    step = RecModule.training_step

    def training_step(self, row, i):
        if (self.current_epoch, i) == (epoch, index):
            action(self)
        return step(self, row, i)

    monkeypatch.setattr(RecModule, "training_step", training_step)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("name", "model"),
    [("bpr", SMALL), pytest.param("sessions", SESSIONS, marks=pytest.mark.slow)],
)
def test_a_run_stopped_by_a_signal_goes_on_to_the_same_metrics(
    shop, whole, monkeypatch, signum, name, model
):
    folder = shop / f"stopped-{name}-{signum}"
    with monkeypatch.context() as m:
        at_step(m, 1, 4, lambda module: os.kill(os.getpid(), signum))
        with pytest.raises(Interrupted) as stop:
            run_here(folder, *model)
    assert stop.value.signum == signum
    said = json.loads((folder / "result.json").read_text())
    assert (said["interrupted"], said["epochs"], said["metrics"]) == (
        signal.Signals(signum).name,
        1,
        {},
    )
    with pytest.raises(RecexpError, match=f"{signal.Signals(signum).name} ended it after 1 epochs"):
        collect([folder])
    with pytest.raises(RecexpError, match="was interrupted"):
        evaluate(folder, "p1_uniform999")
    last = folder / "checkpoints" / "last.ckpt"
    assert (
        torch.load(last, weights_only=True)["global_step"] % len_of_epoch(whole, shop, name) == 5
    )  # one epoch and the steps up to the signal
    seen = []
    with monkeypatch.context() as m:
        step = RecModule.training_step
        m.setattr(
            RecModule,
            "training_step",
            lambda self, row, i: (seen.append((self.current_epoch, i)), step(self, row, i))[1],
        )
        result = run_here(folder, *model, f"ckpt_path={last}")
    assert seen[0] == (1, 5)
    assert result["metrics"] == whole[name]["metrics"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def len_of_epoch(whole, shop, name) -> int:
    with (shop / f"whole-{name}" / "metrics.csv").open() as f:
        return int(next(csv.DictReader(f))["step"])


def start(folder: Path, *overrides: str) -> subprocess.Popen:
    """A run in a process of its own, once its first epoch is over."""
    line = [
        sys.executable,
        "-m",
        "recexp",
        *arguments(folder, *overrides),
        f"hydra.run.dir={folder}",
    ]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.02)
    return process


# Slow: tests/faults/test_processes.py has the code and the words for SIGTERM.
@pytest.mark.parametrize(
    ("signum", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
)
def test_exit_codes_and_words_for_people(shop, signum, code):
    folder = shop / f"exit-{code}"
    process = start(folder, *SMALL, "trainer.max_epochs=5000", "callbacks.early_stopping=null")
    process.send_signal(signum)
    error = process.communicate(timeout=300)[1]
    assert process.returncode == code, error
    assert (
        f"{signal.Signals(signum).name} ended the run" in error
        and "ckpt_path=" in error
        and "Traceback" not in error
    )
    assert (
        json.loads((folder / "result.json").read_text())["interrupted"]
        == signal.Signals(signum).name
    )


def test_a_killed_run_goes_on_from_its_last_checkpoint_to_the_same_metrics(shop, whole):
    folder = shop / "killed"
    process = start(folder, *SMALL)
    process.kill()
    process.wait()
    verify_checkpoint(folder / "checkpoints" / "last.ckpt")
    result = run_here(folder, *SMALL, f"ckpt_path={folder / 'checkpoints' / 'last.ckpt'}")
    assert result["metrics"] == whole["bpr"]["metrics"]


@pytest.mark.slow  # tests/cli/test_launcher.py tests the command line that such a job is given
def test_an_interrupted_job_of_a_sweep_goes_on_from_its_checkpoint(shop, whole):
    words = ["-m", *SMALL, "seed=0", f"hydra.sweep.dir={shop}/sweep"]
    assert command(shop / "sweep", *words).returncode == 0
    job = shop / "sweep" / "0"
    epochs = (job / "metrics.csv").read_text().count("\n")
    (job / "result.json").write_text(
        json.dumps({"interrupted": "SIGTERM", "epochs": 3, "metrics": {}})
    )
    again = command(shop / "sweep", *words)
    assert again.returncode == 0 and "job 0 goes on" in again.stderr, again.stderr
    assert json.loads((job / "result.json").read_text())["metrics"] == whole["bpr"]["metrics"]
    assert (job / "metrics.csv").read_text().count("\n") == epochs and "epoch 1/3" not in (
        job / "log.txt"
    ).read_text()


@pytest.mark.slow  # three program starts; tests/cli/test_launcher.py plays it with a held lock
def test_a_job_that_outlives_its_killed_sweep_is_not_started_twice(shop, whole):
    """SIGKILL takes the sweep's process only. The same command waits for the job's end."""
    folder = shop / "orphan"
    # Epochs last long enough for the second sweep to start while the job runs.
    words = [*SMALL, "trainer.max_epochs=60", "callbacks.early_stopping=null"]
    line = [sys.executable, "-m", "recexp", "-m", *arguments(folder, *words)]
    line.append(f"hydra.sweep.dir={folder}")
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not (folder / "0" / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert not (folder / "0" / "result.json").exists()
    again = command(folder, "-m", *words, f"hydra.sweep.dir={folder}")
    assert again.returncode == 0, again.stderr
    assert "job 0 waits" in again.stderr and "is in use" in again.stderr, again.stderr
    assert "has its result already" in again.stderr, again.stderr
    result = json.loads((folder / "0" / "result.json").read_text())
    assert len(result["parts"]) == 1 and result["epochs"] == 60
    assert sorted(path.name for path in folder.iterdir() if path.name.isdigit()) == ["0"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "absent"])
def test_a_damaged_checkpoint_is_refused_by_name(shop, whole, tmp_path, damage):
    path = tmp_path / "last.ckpt"
    content = bytearray((shop / "whole-bpr" / "checkpoints" / "last.ckpt").read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    if damage != "absent":
        path.write_bytes(
            {"cut": content[: len(content) // 2], "flipped": content, "empty": b""}[damage]
        )
    with pytest.raises(RecexpError, match=r"checkpoint .*last\.ckpt"):
        run_here(shop / f"damaged-{damage}", *SMALL, f"ckpt_path={path}")


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    io, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint({"x": torch.ones(3)}, path)

    def full(self, content):
        self.write_text("half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr(Path, "write_bytes", full)
        with pytest.raises(RecexpError, match="No space left on device"):
            io.save_checkpoint({"x": torch.zeros(3)}, path)
    verify_checkpoint(path)
    assert torch.equal(io.load_checkpoint(path, weights_only=True)["x"], torch.ones(3))
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_loss_that_is_no_number_stops_the_run_at_its_step_and_names_the_parameter(
    shop, monkeypatch
):
    folder = shop / "infinite"

    def spoil(module):
        with torch.no_grad():
            module.model.item.weight[7, 2] = float("inf")

    at_step(monkeypatch, 1, 0, spoil)
    with pytest.raises(
        RecexpError,
        match=r"not finite in step 1 of epoch 2: "
        r"parameter item\.weight is not finite at \[\[7, 2\]\]",
    ):
        run_here(folder, *SMALL, "batch_size=4096")
    kept = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.isfinite(x).all() for x in kept.values() if x.is_floating_point())


def test_rows_and_layers_that_make_a_loss_infinite_are_found():
    bad = {3, 17, 18}
    rows = torch.arange(40)

    def loss_of(row):
        return torch.tensor(float("nan") if bad & set(row.tolist()) else 1.0)

    assert set(bad_rows(rows, loss_of).tolist()) == bad
    assert len(bad_rows(rows, lambda row: torch.tensor(1.0))) == 0

    class Root(nn.Module):
        def forward(self, x):
            return x.sqrt()

    model = nn.Sequential(nn.Linear(2, 2), Root(), nn.Linear(2, 1))
    nn.init.constant_(model[0].weight, -1.0)
    assert first_bad_output(model, lambda: model(torch.ones(3, 2))) == "1"
    assert first_bad_parameter(model) is None
    with torch.no_grad():
        model[2].bias[0] = float("nan")
    assert "2.bias" in first_bad_parameter(model)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory"),
    ],
)
def test_evaluation_that_runs_out_of_memory_goes_on_in_smaller_pieces(
    shop, whole, monkeypatch, error
):
    score = MF.score

    def little(self, query, item=None):
        if not self.training and len(query) > 20:
            raise error
        return score(self, query, item)

    monkeypatch.setattr(MF, "score", little)
    with pytest.warns(UserWarning, match="going on with half as many"):
        result = run_here(shop / f"little-{type(error).__name__}", *SMALL)
    assert result["metrics"] == whole["bpr"]["metrics"]


def test_training_that_runs_out_of_memory_says_what_to_lower(shop, monkeypatch):
    at_step(
        monkeypatch,
        0,
        2,
        lambda module: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory")),
    )
    with pytest.raises(RecexpError, match=r"lower batch_size \(now 256\)"):
        run_here(shop / "no-memory", *SMALL)
