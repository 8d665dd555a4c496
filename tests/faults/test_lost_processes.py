"""A process of several is killed at a chosen step of a run: the others end in bounded time and say
so, nothing counts as finished, and the run goes on to the metrics of an undisturbed one.
"""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.support.processes import Run, killing

TWO = ["trainer=ddp_cpu2", "model=bpr_mf", "model.n_factors=8", "eval_batch_size=7"]
WORDS = {"fit": TWO, "refit": [*TWO, "selection=refit"]}
BOUND = 60  # seconds between a kill and the end of the others, on a busy machine
MODULE = "recexp.training.module:RecModule"


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("lost")


@pytest.fixture(scope="module")
def whole(shop) -> Callable[[str], dict[str, float]]:
    """The metrics of an undisturbed run of a kind."""

    @cache
    def metrics(kind: str) -> dict[str, float]:
        run = Run(shop / f"whole-{kind}", *WORDS[kind], training=False)
        assert run.ended() == 0, run.said()
        return result(run.folder)["metrics"]

    return metrics


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


# Place of the kill, rank, number of calls before.
PLACES = {
    "child in its preparation": ("fit", "recexp.data.cache:verify", 1, 0),
    "child in training": ("fit", f"{MODULE}.training_step", 1, 3),
    "child in validation": ("fit", f"{MODULE}.validation_step", 1, 1),
    "child in test": ("fit", f"{MODULE}.test_step", 1, 2),
    "main in test": ("fit", f"{MODULE}.test_step", 0, 2),
    "main in training": ("fit", f"{MODULE}.training_step", 0, 3),
    "main in validation": ("fit", f"{MODULE}.validation_step", 0, 1),
    "child at the end of test": ("fit", f"{MODULE}.on_test_epoch_end", 1, 0),
    "main at the end of test": ("fit", f"{MODULE}.on_test_epoch_end", 0, 0),
    "main before the result": ("fit", "recexp.runs.run:_write_result", 0, 0),
    "child before the second preparation": ("refit", "recexp.runs.run:prepare", 1, 1),
    "main before the second preparation": ("refit", "recexp.runs.run:prepare", 0, 1),
    "child in the second training": ("refit", "recexp.runs.run:_refit_record", 1, 0),
    "main in the second training": ("refit", "recexp.runs.run:_refit_record", 0, 0),
}
SILENT = ("main before the result",)  # the other process has nothing left to do


@pytest.mark.slow  # 40 s each; test_processes.py kills a child in training in the default suite
@pytest.mark.parametrize("place", PLACES)
def test_a_process_killed_at_any_step_ends_the_run_which_goes_on(shop, whole, place):
    kind, function, rank, call = PLACES[place]
    words = WORDS[kind]
    folder = shop / place.replace(" ", "-")
    run = Run(folder, *words, training=False, **killing(function, rank, call))
    run.wait_until_one_died(rank)
    died = time.monotonic()
    code = run.ended()
    assert time.monotonic() - died < BOUND
    said = run.said()
    assert code == (1 if rank else -signal.SIGKILL), said
    assert "Traceback" not in said
    assert not (folder / "result.json").exists()
    last = folder / "checkpoints" / "last.ckpt"
    advised = [f"ckpt_path={last}"] if last.exists() else []
    if place not in SILENT:
        assert said.count("Another process of this run is lost") == 1, said
        assert re.findall(r"with (ckpt_path=\S+)", said) == advised
    again = Run(folder, *words, *advised, training=False)
    assert again.ended() == 0, again.said()
    assert result(folder)["metrics"] == whole(kind)
