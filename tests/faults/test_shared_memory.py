"""Runs without shared memory, or with a few kilobytes of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from tests.support.running import arguments, run_here

WORDS = ["trainer=ddp_cpu2", "model=bpr_mf", "model.n_factors=8"]


@pytest.mark.slow  # runs of two processes
@pytest.mark.parametrize("options", ["size=8k", "size=4k,ro"])
def test_two_processes_with_next_to_no_shared_memory(tmp_path, options):
    """A name space of its own with another /dev/shm; skipped where that is not allowed."""
    shell = f'mount -t tmpfs -o {options} tmpfs /dev/shm && exec "$@"'
    prefix = ["unshare", "--mount", "sh", "-c", shell, "sh"]
    allowed = (
        shutil.which("unshare") and not subprocess.run([*prefix, "true"], check=False).returncode
    )
    if not allowed:
        pytest.skip("mounting in a name space of its own is not permitted here")
    metrics = []
    for name, before in (("plain", []), ("small", prefix)):
        folder = tmp_path / name
        line = [sys.executable, "-m", "recexp", *arguments(folder, *WORDS)]
        done = subprocess.run(
            [*before, *line, f"hydra.run.dir={folder}"],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        metrics.append(json.loads((folder / "result.json").read_text())["metrics"])
    assert metrics[0] == metrics[1]


def test_a_run_needs_no_semaphores(tmp_path, monkeypatch):
    """multiprocessing's live in /dev/shm; batches are loaded in the process itself."""
    from multiprocessing import synchronize

    def none_left(*_, **__):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(synchronize.SemLock, "__init__", none_left)
    assert run_here(tmp_path / "run", "model=bpr_mf", "model.n_factors=8")["metrics"]
