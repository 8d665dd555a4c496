"""What ``result.json`` must contain, and the errors where it does not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from recexp.errors import RecexpError
from recexp.runs.loading import read_result
from recexp.runs.result import RunResult, find_problem

ROOT = Path(__file__).parents[2]
KEPT = sorted((ROOT / "docs" / "results").rglob("result.json"))
RESULT = {
    "model": "pop",
    "dataset": "shop",
    "protocol": "full",
    "protocol_id": "abc",
    "seed": 0,
    "selection": "val",
    "metrics": {"test/mrr": 0.5},
    "best_epoch": 0,
    "epochs": 1,
    "stop_reason": "max_epochs reached",
    "data": {"fingerprint": "f"},
}


def test_kept_results_are_read_and_written_unchanged():
    assert KEPT
    for path in KEPT:
        content = json.loads(path.read_text())
        assert RunResult.parse(content).to_dict() == content, path


def test_keys_of_other_versions_are_kept():
    content = RESULT | {"color": "red"}
    assert RunResult.parse(content).to_dict() == content


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": True}, "its seed is 'True'"),
        ({"seed": "0"}, "its seed is '0'"),
        ({"best_epoch": float("inf")}, "its best_epoch is 'inf'"),
        ({"metrics": {}}, "its metrics lack test/mrr"),
        ({"metrics": {"test/mrr": float("nan")}}, "its metric 'test/mrr' is 'nan'"),
        ({"metrics": {"test/mrr": 1e300}}, "its metric 'test/mrr' is '1e+300'"),
        ({"overrides": [3]}, "its overrides.0 is '3'"),
        ({"git": 3}, "its git is '3'"),
    ],
    ids=str,
)
def test_a_wrong_value_is_named(change, says):
    assert find_problem(RESULT) == ""
    assert find_problem(RESULT | change) == says


def test_missing_keys_are_named_together():
    content = {key: value for key, value in RESULT.items() if key not in ("model", "data")}
    assert find_problem(content) == "it lacks model, data"


def test_an_interrupted_run_is_no_finished_run(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(RESULT | {"interrupted": "SIGINT"}))
    with pytest.raises(RecexpError, match="was interrupted"):
        read_result(tmp_path / "result.json")


def test_reading_results_needs_neither_torch_nor_lightning():
    code = (
        "import recexp, sys; assert not {'torch', 'hydra', 'omegaconf'} & set(sys.modules);"
        "import recexp.runs.loading, recexp.runs.identity, recexp.runs.convergence;"
        "print(sorted({'torch', 'pytorch_lightning', 'hydra'} & set(sys.modules)))"
    )
    said = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT)
    assert said.strip() == "[]"
