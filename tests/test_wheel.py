"""A wheel works outside the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_a_wheel_installed_elsewhere_runs_outside_the_checkout(tmp_path):
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    copy = tmp_path / "source"  # building writes into the tree
    copy.mkdir()
    subprocess.run(
        [
            "cp",
            "-r",
            *(str(ROOT / p) for p in ("pyproject.toml", "README.md", "recexp", "conf")),
            str(copy),
        ],
        check=True,
    )
    subprocess.run(
        [*pip, "wheel", "--no-build-isolation", "--no-deps", "-w", str(tmp_path), str(copy)],
        check=True,
    )
    wheel = next(tmp_path.glob("recexp-*.whl"))
    subprocess.run(
        [*pip, "install", "--no-deps", "--target", str(tmp_path / "site"), str(wheel)], check=True
    )
    away = tmp_path / "away"
    away.mkdir()
    line = [
        sys.executable,
        "-m",
        "recexp",
        "model=pop",
        "logger=csv",
        "dataset.source.users=150",
        "protocol=p2_uniform99",
        "hydra.run.dir=out",
    ]
    away_from_home = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        line, cwd=away, env=away_from_home, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (away / "out" / "result.json").exists()
    where = [sys.executable, "-c", "import recexp; print(recexp.__file__)"]
    assert str(tmp_path) in subprocess.check_output(where, cwd=away, env=away_from_home, text=True)
    (prepared,) = (away / "cache").glob("simulated_shop-*/")
    for words in (
        ["recexp.evaluate", "out", "p2_uniform99"],
        ["recexp.report", "out", "--out", "page"],
        ["recexp.data.describe", str(prepared)],
    ):
        command = [sys.executable, "-m", *words]
        done = subprocess.run(
            command, cwd=away, env=away_from_home, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (words, done.stderr[-2000:])
    result = json.loads((away / "out" / "result.json").read_text())
    again = json.loads((away / "out" / "p2_uniform99" / "result.json").read_text())
    assert again["metrics"]["test/mrr"] == result["metrics"]["test/mrr"]
    assert (away / "page" / "index.html").exists()
