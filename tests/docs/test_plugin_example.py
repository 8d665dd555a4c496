"""The example package of docs/examples/plugin, as its users run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import recexp
from recexp.errors import RecexpError
from recexp.testing import ModelContract
from tests.support.running import arguments

PLUGIN = Path(__file__).parents[2] / "docs" / "examples" / "plugin"
WORDS = ["plugins=[my_recsys]", "hydra.searchpath=[pkg://my_recsys.conf]", "model=history_mean"]


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(PLUGIN)


class TestHistoryMean(ModelContract):
    @staticmethod
    def model(schema):
        from my_recsys.models import HistoryMean

        return HistoryMean(schema, n_factors=8)


def test_a_plugin_trains_and_recommends(tmp_path):
    run_dir = tmp_path / "run"
    words = [*WORDS, "loss=hinge", "loss.margin=0.5", "model.n_factors=8", "protocol=full"]
    line = arguments(run_dir, *words, f"hydra.run.dir={run_dir}")
    path = os.pathsep.join([str(PLUGIN), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "recexp", *line],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((run_dir / "result.json").read_text())
    assert (result["model"], result["loss"]) == ("history_mean", "hinge")

    places = {"raw_dir": str(tmp_path / "raw"), "cache_dir": str(tmp_path / "cache")}
    with pytest.raises(RecexpError, match=r"my_recsys\.\S+ is not allowed.*plugins"):
        recexp.load(run_dir, **places)  # a run directory names no code of its own accord
    trained = recexp.load(run_dir, plugins=["my_recsys"], **places)
    assert len(trained.recommend(k=3)) == 3 * len(trained.users)


def test_a_plugin_that_is_not_there_is_one_sentence(tmp_path):
    from recexp.config.check import load_plugins

    with pytest.raises(RecexpError, match="no_such_package cannot be imported"):
        load_plugins(["no_such_package"])
    with pytest.raises(RecexpError, match=r"'\.\./evil' is no name of a package"):
        load_plugins(["../evil"])
