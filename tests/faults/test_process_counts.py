"""One checkpoint under 1, 2 and 3 processes: equal ranks, and equal metrics under evaluate."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from tests.support.processes import Run

MODEL = ["trainer=ddp_cpu2", "model=bpr_mf", "model.n_factors=8", "eval_batch_size=7"]


def read(folder: Path) -> tuple[dict, pl.DataFrame]:
    result = json.loads((folder / "result.json").read_text())
    return result, pl.read_parquet(folder / "ranks.parquet").sort("user")


def _of_test(result: dict) -> dict[str, float]:
    return {name: x for name, x in result["metrics"].items() if name.startswith("test/")}


@pytest.mark.slow  # runs of up to three processes
def test_one_checkpoint_gives_the_same_ranks_under_any_number_of_processes(tmp_path):
    """Trained and tested by two; then the finished run is resumed and only tested."""
    run = Run(tmp_path / "trained", *MODEL, training=False)
    assert run.ended() == 0, run.said()
    last = run.folder / "checkpoints" / "last.ckpt"
    original, ranks = read(run.folder)
    for n in (1, 2, 3):
        folder = tmp_path / f"again{n}"
        words = [*MODEL, f"trainer.devices={n}", f"ckpt_path={last}"]
        run = Run(folder, *words, training=False)
        assert run.ended() == 0, run.said()
        result, again = read(folder)
        assert again.equals(ranks) and _of_test(result) == _of_test(original)


@pytest.mark.slow  # runs of up to three processes
@pytest.mark.parametrize("n", [1, 2, 3])
def test_evaluate_repeats_the_metrics_of_a_run_of_several_processes(tmp_path, n):
    small = ["protocol=p2_uniform99", "protocol.candidates.n=99", "dataset.source.items=1000"]
    run = Run(tmp_path / "run", *MODEL, *small, f"trainer.devices={n}", training=False)
    assert run.ended() == 0, run.said()
    line = [sys.executable, "-m", "recexp.evaluate", str(run.folder), "p2_uniform99"]
    line += ["--cache-dir", f"{tmp_path}/cache", "--raw-dir", f"{tmp_path}/raw"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    result, ranks = read(run.folder)
    evaluated, ranks_again = read(run.folder / "p2_uniform99")
    assert _of_test(evaluated) == _of_test(result) and ranks_again.equals(ranks)
