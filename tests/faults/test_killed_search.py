"""Searches of real runs: killed at any moment and started again, and shared by two workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from tests.support.running import SMALL

pytest.importorskip("optuna", reason="needs the extra search")
pytestmark = pytest.mark.slow

N_TRIALS = 5


def start(folder, *words):
    line = [sys.executable, "-m", "recexp", *SMALL, "logger=none", "model=bpr_mf", "search=bpr_mf"]
    line += ["dataset=simulated_shop", f"dataset.raw_dir={folder}/raw", f"cache_dir={folder}/cache"]
    line += [f"hydra.sweeper.n_trials={N_TRIALS}", *words]
    return subprocess.Popen(
        line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def trials(*folders):
    paths = [path for folder in folders for path in folder.glob("*/trial.json")]
    return [json.loads(path.read_text()) for path in paths]


@pytest.mark.parametrize(
    ("storage", "kill", "words_after"),
    [
        ("search.db", os.killpg, "goes on"),  # the search, its jobs and what forks them
        ("search.journal", os.kill, "has its result already"),  # the search: its jobs run on
    ],
)
def test_a_killed_search_goes_on_and_loses_and_repeats_nothing(
    tmp_path, storage, kill, words_after
):
    sweep = tmp_path / "sweep"
    words = [
        f"hydra.sweep.dir={sweep}",
        f"hydra.sweeper.storage={sweep}/{storage}",
        "trainer.max_epochs=20",
        "hydra.launcher.jobs=2",
    ]
    process = start(tmp_path, *words)
    deadline = time.monotonic() + 300
    while not list(sweep.glob("*/checkpoints/last.ckpt")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    kill(process.pid, signal.SIGKILL)
    process.wait()
    before = {trial["number"]: trial["values"] for trial in trials(sweep)}
    results = {path: path.stat().st_mtime_ns for path in sweep.glob("*/result.json")}
    assert before

    process = start(tmp_path, *words)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    after = trials(sweep)
    assert sorted(trial["number"] for trial in after) == list(range(N_TRIALS))
    assert {trial["state"] for trial in after} <= {"finished", "pruned"}
    assert before.items() <= {trial["number"]: trial["values"] for trial in after}.items()
    assert all(path.stat().st_mtime_ns == when for path, when in results.items())
    assert words_after in said
    assert "[search] best val/ndcg@10" in said


def test_two_workers_on_one_storage_make_the_trials_together(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    processes = [
        start(
            tmp_path,
            f"hydra.sweep.dir={folder}",
            f"hydra.sweeper.storage={tmp_path}/search.db",
            f"hydra.sweeper.preset={tmp_path}/preset/mine.yaml",
            "hydra.sweeper.pruner=none",
        )
        for folder in folders
    ]
    for process in processes:
        _, said = process.communicate(timeout=600)
        assert process.returncode == 0, said
        assert f"{N_TRIALS} finished, 0 pruned, 0 failed" in said
    assert Counter(t["number"] for t in trials(*folders)) == Counter(range(N_TRIALS))
    assert len({str(trial["values"]) for trial in trials(*folders)}) == N_TRIALS
    assert all(trials(folder) for folder in folders), "both have worked"
