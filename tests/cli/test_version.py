"""``--version``: of recexp with its commit, of Python, torch and Lightning."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Every program but ``python -m recexp``, and where its options are.
PARSERS = {
    "recexp.report": ("recexp.report.__main__", "_parser"),
    "recexp.report.describe": ("recexp.report.describe", "_parser"),
    "recexp.evaluate": ("recexp.runs.evaluate", "parser"),
    "recexp.recommend": ("recexp.runs.recommend", "parser"),
    "recexp.serve": ("recexp.runs.serve", "parser"),
    "recexp.export": ("recexp.runs.export", "parser"),
    "recexp.data.export": ("recexp.runs.split_files", "parser"),
    "recexp.data.download": ("recexp.data.download.command", "parser"),
}


def git(*words, cwd=ROOT):
    done = subprocess.run(["git", *words], cwd=cwd, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def test_the_program_tells_its_versions_and_imports_nothing_heavy():
    line = [sys.executable, "-X", "importtime", "-m", "recexp", "--version"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
    recexp, python, torch, lightning = done.stdout.splitlines()
    assert recexp.startswith("recexp 0.")
    if commit := git("rev-parse", "HEAD"):
        assert f"(commit {commit[:12]}" in recexp
    assert python == f"python {sys.version.split()[0]}"
    assert torch.startswith("torch 2.") and lightning.startswith("pytorch-lightning 2.")
    assert "| torch" not in done.stderr and "| hydra" not in done.stderr


@pytest.mark.parametrize("name", PARSERS)
def test_every_program_tells_them(name, capsys):
    module, function = PARSERS[name]
    parser = getattr(import_module(module), function)()
    with pytest.raises(SystemExit) as end:
        parser.parse_args(["--version"])
    assert end.value.code == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "recexp",
        "python",
        "torch",
        "pytorch-lightning",
    ]
    assert "--version" in parser.format_help()


def test_a_checkout_of_something_else_around_the_package_is_not_its_own(tmp_path):
    """As where recexp is installed into the ``.venv`` of a project."""
    installed = tmp_path / ".venv" / "recexp"
    installed.mkdir(parents=True)
    for name in ("__init__.py", "version.py"):
        shutil.copy(ROOT / "recexp" / name, installed)
    (tmp_path / "file").touch()
    git("init", "-q", cwd=tmp_path)
    git("add", "file", cwd=tmp_path)
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a", cwd=tmp_path)
    assert git("rev-parse", "HEAD", cwd=tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", "from recexp.version import git_state; print(git_state())"],
        env=os.environ | {"PYTHONPATH": str(installed.parent)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "{'commit': None, 'dirty': None}"
