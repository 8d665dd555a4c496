"""A run has its directory alone, and nothing of an older run is taken for its own."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from recexp.config.presets import compose_config
from recexp.errors import RecexpError
from recexp.io import checksum
from recexp.runs import directory
from recexp.runs.directory import DirectoryInUse, claimed, lock_directory
from recexp.runs.run import run
from recexp.training.module import RecModule
from tests.runs.test_resume import TINY, only_training  # noqa: F401, a fixture
from tests.support.running import composed

MODEL = ("model=bpr_mf", "model.n_factors=4", "batch_size=400")
HOLDS = """
import sys, time
from pathlib import Path
from recexp.runs.directory import lock_directory
lock_directory(Path(sys.argv[1]))
print("locked", flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("directory")


def config(shop: Path, folder: Path, *words: str):
    cfg = composed(shop / "x", *MODEL, *words, small=TINY)
    cfg.run_dir = str(folder)
    return cfg


def test_a_second_run_in_a_directory_in_use_is_refused_and_changes_nothing(shop, tmp_path):
    lock = lock_directory(tmp_path)
    (tmp_path / "result.json").write_text("of the other run")
    with pytest.raises(DirectoryInUse, match=f"in use by another run .process {os.getpid()} on"):
        run(config(shop, tmp_path))
    assert (tmp_path / "result.json").read_text() == "of the other run"
    os.close(lock)
    assert run(config(shop, tmp_path))["epochs"] == 2


def test_the_lock_dies_with_its_process(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"locked\n"
    with pytest.raises(DirectoryInUse), claimed(tmp_path):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with claimed(tmp_path):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_one_warning(tmp_path, monkeypatch, caplog, number):
    def no_locks(path):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(directory, "try_lock", no_locks)
    directory._warn_of_missing_locks.cache_clear()
    with caplog.at_level(logging.WARNING, "recexp"):
        for name in ("a", "b"):
            with claimed(tmp_path / name):
                pass
    assert caplog.text.count("file system without locks") == 1


def test_directories_are_named_by_more_than_a_second():
    name = compose_config(["model=pop"])._get_node("hydra").run._get_node("dir")._value()
    assert name.endswith("%H-%M-%S-%f}")


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_new_run_in_a_used_directory_removes_what_the_older_one_left(
    shop, tmp_path, monkeypatch, caplog
):
    run(config(shop, tmp_path, "selection=refit"))
    (tmp_path / "full").mkdir()
    for name in ("full/result.json", "full/ranks.parquet", "curves.png"):
        (tmp_path / name).write_text("old")
    (tmp_path / "mine.txt").write_text("not of a run")

    def dies(self, row, index):
        raise ZeroDivisionError

    monkeypatch.setattr(RecModule, "training_step", dies)
    with caplog.at_level(logging.INFO, "recexp"), pytest.raises(ZeroDivisionError):
        run(config(shop, tmp_path))
    assert files(tmp_path) == {".run.lock", "config.yaml", "mine.txt"}
    (line,) = [text for text in caplog.messages if text.startswith("removed what an earlier run")]
    assert "result.json" in line and "refit.ckpt" in line


def test_results_go_before_the_checkpoints_that_they_are_of(shop, tmp_path, monkeypatch):
    """So that a kill in between leaves no result beside weights of another run."""
    run(config(shop, tmp_path, "selection=refit"))
    removed = []
    monkeypatch.setattr(directory, "_remove", lambda path: removed.append(path.name))
    directory.clear(tmp_path, keep_progress=False)
    assert removed[:2] == ["result.json", "ranks.parquet"]
    assert {"best.ckpt", "last.ckpt", "refit.ckpt"} <= set(removed[2:])


def test_an_older_run_is_unharmed_by_a_run_that_cannot_start(shop, tmp_path):
    run(config(shop, tmp_path))
    before = {name: checksum(tmp_path / name) for name in files(tmp_path) - {".run.lock"}}
    with pytest.raises(RecexpError, match="There is no checkpoint"):
        run(config(shop, tmp_path, f"ckpt_path={tmp_path}/absent.ckpt"))
    after = {name: checksum(tmp_path / name) for name in files(tmp_path) - {".run.lock"}}
    assert after == before


@pytest.mark.parametrize(("selection", "file"), [("val", "best"), ("refit", "refit")])
def test_a_result_names_the_checkpoint_that_was_tested(shop, tmp_path, selection, file):
    run(config(shop, tmp_path, f"selection={selection}"))
    said = json.loads((tmp_path / "result.json").read_text())["checkpoint"]
    path = tmp_path / "checkpoints" / f"{file}.ckpt"
    assert said == {"file": f"checkpoints/{file}.ckpt", "sha256": checksum(path)}
