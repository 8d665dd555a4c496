"""File systems that lack what others have: locks, renames, links.

Processes meet them through a filter of system calls (``tests.support.system_calls``).
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from recexp.data.cache import prepare, verify
from recexp.errors import RecexpError
from recexp.io import atomic_write, file_lock, write_json
from tests.support.events import P1, dataset, random_events, write
from tests.support.running import arguments
from tests.support.system_calls import can_refuse, refuse

WITHOUT_LOCKS = ("ENOLCK", "EOPNOTSUPP", "ENOSYS")
filtered = pytest.mark.skipif(not can_refuse(), reason="system calls of this machine are unknown")

# Prepares argv[1] in argv[2] and prints the folder; "killed": dies while it has the lock.
PREPARE = """
import json, os, signal, sys
import recexp.data.cache as cache
from recexp.data.dataset import Dataset
from recexp.data.split import Split

if "killed" in sys.argv:
    cache._publish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
print(cache.prepare(Dataset(**json.loads(sys.argv[1])), Split(), sys.argv[2]))
"""


def started(shop, cache: Path, *words: str, **errors: int) -> subprocess.Popen:
    line = [sys.executable, "-c", PREPARE, json.dumps(vars(shop)), str(cache), *words]
    return subprocess.Popen(
        line,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(refuse, **errors),
    )


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.mark.parametrize("name", WITHOUT_LOCKS)
def test_a_lock_without_the_systems_locks_excludes_and_is_released(tmp_path, monkeypatch, name):
    path = tmp_path / "x.lock"
    path.touch()  # as an earlier preparation elsewhere leaves it
    number = getattr(errno, name)

    def no_locks(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    for _ in range(2):
        with file_lock(path):
            held = path.with_name("x.lock.held")
            assert held.exists()
        assert not held.exists()


def test_another_error_of_locking_is_not_taken_for_a_missing_lock(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError, match="Input/output error"), file_lock(tmp_path / "x.lock"):
        pass
    shop = dataset(write(tmp_path / "raw", random_events(0)))
    with pytest.raises(RecexpError, match=r"cannot be prepared in .*cache: Input/output error"):
        prepare(shop, P1, tmp_path / "cache")


@filtered
@pytest.mark.slow
@pytest.mark.parametrize("name", WITHOUT_LOCKS)
def test_processes_share_a_cache_without_locks(tmp_path, name):
    """Two at once: one prepares, the other waits and reads. A killed one blocks no later one."""
    shop = dataset(write(tmp_path / "raw", random_events(0)))
    cache = tmp_path / "cache"
    refused = {"flock": getattr(errno, name)}
    code, _, _ = ended(started(shop, cache, "killed", **refused))
    assert code == -signal.SIGKILL and list(cache.glob(".*.held")), "it died with the lock"
    both = [started(shop, cache, **refused) for _ in range(2)]
    results = [ended(process) for process in both]
    assert [code for code, _, _ in results] == [0, 0], results
    (folder,) = {out.strip() for _, out, _ in results}
    verify(Path(folder))
    assert sum("prepared in" in err for _, _, err in results) == 1
    assert [path.name for path in cache.iterdir() if path.is_dir()] == [Path(folder).name]
    assert not list(cache.glob(".*.held"))


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.ENOSYS, errno.EINVAL])
def test_a_rename_that_fails_leaves_the_old_file_and_one_sentence(tmp_path, monkeypatch, number):
    path = tmp_path / "x.json"
    write_json(path, {"good": 1})

    def no_rename(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", no_rename)
    with (
        pytest.raises(RecexpError, match=rf"x\.json cannot be written: {os.strerror(number)}"),
        atomic_write(path) as temporary,
    ):
        temporary.write_text("new")
    assert json.loads(path.read_text()) == {"good": 1} and os.listdir(tmp_path) == ["x.json"]


@filtered
@pytest.mark.parametrize(
    "name", ["EPERM", *(pytest.param(n, marks=pytest.mark.slow) for n in ("EXDEV", "ENOSYS"))]
)
def test_a_run_where_nothing_can_be_renamed(tmp_path, name):
    line = [sys.executable, "-m", "recexp", *arguments(tmp_path / "run", "model=pop")]
    line.append(f"hydra.run.dir={tmp_path}/run")
    done = subprocess.run(
        line,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        preexec_fn=partial(refuse, rename=getattr(errno, name)),
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert os.strerror(getattr(errno, name)) in said
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".config.yaml")]
    assert not (tmp_path / "run" / "result.json").exists()


@filtered
@pytest.mark.slow
def test_a_preparation_that_cannot_rename_its_folder(tmp_path):
    shop = dataset(write(tmp_path / "raw", random_events(0)))
    code, _, error = ended(started(shop, tmp_path / "cache", rename=errno.EPERM))
    assert code == 1
    assert error.splitlines()[-1].startswith("recexp.errors.RecexpError:")
    assert "Operation not permitted" in error.splitlines()[-1]
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    verify(prepare(shop, P1, tmp_path / "cache"))


@filtered
@pytest.mark.slow
def test_nothing_needs_hard_links(tmp_path):
    shop = dataset(write(tmp_path / "raw", random_events(0)))
    code, _, error = ended(started(shop, tmp_path / "cache", link=errno.EPERM))
    assert code == 0, error
