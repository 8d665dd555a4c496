"""Jobs that are forks of a warm parent end as jobs that were started anew."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from pathlib import Path

import pytest

from recexp.cli import job_processes
from recexp.cli.job_processes import WarmParent, has_warm_parent, may_be_forked, start_anew
from recexp.runs.directory import LOCK, DirectoryInUse, lock_directory
from tests.support.running import arguments, composed, run_here

pytestmark = pytest.mark.skipif(not has_warm_parent(), reason="this system forks no warm parent")


@pytest.fixture(scope="module")
def warm():
    return WarmParent()


def words(folder: Path, *overrides: str) -> list[str]:
    return [*arguments(folder, "model=pop", *overrides), f"hydra.run.dir={folder}"]


@pytest.mark.parametrize("kind", ["forked", pytest.param("anew", marks=pytest.mark.slow)])
def test_a_job_gives_the_result_of_a_run_here(warm, tmp_path, kind):
    expected = run_here(tmp_path / "here", "model=pop")
    folder = tmp_path / kind
    folder.mkdir()
    lock = lock_directory(folder)
    start = warm.start if kind == "forked" else start_anew
    process = start(words(folder), folder / "log.txt", lock)
    os.close(lock)
    assert process.wait(120) == 0, (folder / "log.txt").read_text()
    result = json.loads((folder / "result.json").read_text())
    assert "best epoch 1 of 1" in (folder / "log.txt").read_text()
    os.close(lock_directory(folder))  # the lock ended with the job
    assert result["metrics"] == expected["metrics"]
    assert result["config"] == expected["config"]


def test_a_forked_job_reports_its_error_and_its_code(warm, tmp_path):
    process = warm.start(words(tmp_path, "model=nosuch"), tmp_path / "log.txt", None)
    assert process.wait(60) == 1
    assert "Could not find 'model/nosuch'" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_signal_ends_a_forked_job_with_the_usual_code(warm, tmp_path, signum, code):
    lock = lock_directory(tmp_path)
    line = words(tmp_path, "model=bpr_mf", "trainer.max_epochs=100000")
    process = warm.start(line, tmp_path / "log.txt", lock)
    os.close(lock)
    while not (tmp_path / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None, (tmp_path / "log.txt").read_text()
        time.sleep(0.05)
    with pytest.raises(DirectoryInUse):
        lock_directory(tmp_path)
    {signal.SIGTERM: process.terminate, signal.SIGKILL: process.kill}[signum]()
    assert process.wait(60) == code


def test_the_warm_parent_holds_neither_threads_nor_locks(warm, tmp_path, monkeypatch):
    """Neither survives a fork: a thread is missing in the child, a lock is never released."""
    monkeypatch.setattr(job_processes, "_run", _report)
    lock = lock_directory(tmp_path)
    for number in range(2):
        process = warm.start([str(tmp_path)], tmp_path / f"{number}.json", lock)
        assert process.wait(60) == 0
    os.close(lock)
    for number in range(2):
        report = json.loads((tmp_path / f"{number}.json").read_text())
        assert report == {"threads": 1, "torch": True, "locked": True}
    os.close(lock_directory(tmp_path))


def _report(words: list[str], output: str, lock: object) -> None:
    """In place of a job: what it finds."""
    import sys

    with (Path(words[0]) / LOCK).open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_locked = False
        except BlockingIOError:
            is_locked = True
    found = {
        "threads": len(os.listdir("/proc/self/task")),
        "torch": "torch" in sys.modules,
        "locked": is_locked,
    }
    Path(output).write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("setting", "is_forked"),
    [
        ("trainer=cpu", True),
        ("trainer.devices=2", False),
        ("trainer=ddp_cpu2", False),
        ("trainer=gpu", False),
        ("trainer.accelerator=auto", False),
    ],
)
def test_only_jobs_of_one_cpu_process_are_forked(tmp_path, setting, is_forked):
    assert may_be_forked(composed(tmp_path, "model=pop", setting)) is is_forked
