"""What a training shows: a line per epoch, a bar on a terminal, the time left."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
from pytorch_lightning.callbacks import Timer

from recexp.logs import duration, show_logs
from recexp.training.callbacks import is_best_so_far
from recexp.training.early_stopping import EarlyStopping
from recexp.training.time_left import time_left
from tests.support.running import run_here
from tests.support.terminal import terminal

STOPPING = EarlyStopping("val/ndcg@10")


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Runs of this folder share the prepared data."""
    return tmp_path_factory.mktemp("shop")


def test_on_a_terminal_lines_of_epochs_stay_above_the_bar(shop, monkeypatch):
    show_logs()
    with terminal(monkeypatch) as screen:
        run_here(shop / "terminal", "model=bpr_mf", "trainer.max_epochs=3", "logger=none")
    lines = screen.lines()
    epochs = [line for line in lines if line.startswith("epoch ")]
    number = r"\d\.\d{4}"
    for n, line in enumerate(epochs, 1):
        assert re.match(
            rf"epoch {n}/3  train/loss {number}  val/hr@10 {number}  val/ndcg@10 {number}  ", line
        )
    assert len(epochs) == 3
    assert "best so far" in epochs[0]
    assert all(re.search(r"  at most \d+ s left$", line) for line in epochs[:2])
    assert "left" not in epochs[2]
    assert re.search(r"\repoch 1: .*it/s, loss=", screen.raw), "the bar"
    about = [n for n, line in enumerate(lines) if str(shop / "terminal") in line]
    assert about[0] < lines.index(epochs[0]) < lines.index(epochs[2]) < about[-1]


def test_elsewhere_the_lines_have_no_control_characters(shop, capfd):
    show_logs()
    run_here(shop / "file", "model=bpr_mf", "logger=none")
    out, err = capfd.readouterr()
    assert err.count("\nepoch ") == 2
    assert (out + err).replace("\n", "").isprintable()
    assert str(shop / "file") in err and str(shop / "file") in out


def trainer(done: int, **changes):
    """At the end of an epoch; ``done`` epochs of 10 steps each."""
    values = {"max_epochs": 10, "max_steps": -1, "should_stop": False, "callbacks": []}
    return SimpleNamespace(current_epoch=done - 1, global_step=10 * done, **values | changes)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (trainer(4), (12.0, "about")),
        (trainer(4, callbacks=[STOPPING]), (12.0, "at most")),
        (trainer(4, callbacks=[Timer(duration={"hours": 1})]), (12.0, "at most")),
        (trainer(4, max_steps=55), (3.0, "about")),
        (trainer(4, max_epochs=-1, max_steps=60), (4.0, "about")),
        (trainer(10), None),
        (trainer(4, should_stop=True), None),
        (trainer(4, max_epochs=-1), None),
    ],
)
def test_the_time_left_goes_by_the_nearest_limit(state, expected):
    assert time_left(state, seconds_per_epoch=2.0) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.1], True),
        ([0.1, 0.2], True),
        ([0.2, 0.1], False),
        ([0.1, 0.1], False),
        ([0.1, 0.1 + 1e-12], False),  # equal in float32
        ([0.1, None], False),
    ],
)
def test_the_best_so_far_is_the_epoch_that_would_be_chosen(values, expected):
    rows = [{} if value is None else {"val/mrr": value} for value in values]
    assert is_best_so_far(rows, "val/mrr") is expected


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (59, "59 s"), (61, "1 min"), (3700, "1 h 2 min"), (200_000, "2.3 d")],
)
def test_durations_are_rounded(seconds, words):
    assert duration(seconds) == words
