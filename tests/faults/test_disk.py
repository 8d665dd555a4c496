"""Full disks and read-only directories: one error names the path, and the last complete files stay
unchanged.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from recexp.data.cache import prepare, verify, write_json
from recexp.errors import RecexpError
from recexp.io import atomic_write
from recexp.training.checkpoints import verify_checkpoint
from tests.support.events import P1, dataset, random_events, write
from tests.support.running import arguments

POP = ["model=pop", "protocol=full"]


@contextmanager
def mounted(place: Path, *options: str):
    """Mount a file system at ``place``; the test is skipped where mounting is not allowed."""
    place.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", *options, str(place)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"mount is not permitted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def small_disk(place: Path, kib: int):
    return mounted(place, "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs")


@contextmanager
def no_file_above(size: int):
    """As on a disk with ``size`` bytes left, for all paths: larger writes fail with EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_cannot_be_written_whole_is_what_it_was(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"good": 1})
    with (
        no_file_above(1000),
        pytest.raises(
            RecexpError, match=r"x\.json cannot be written: File too large.*before is unharmed"
        ),
    ):
        write_json(path, {"long": "x" * 5000})
    assert json.loads(path.read_text()) == {"good": 1} and os.listdir(tmp_path) == ["x.json"]
    with (
        no_file_above(1000),
        pytest.raises(RecexpError, match=r"y\.npy cannot be written"),
        atomic_write(tmp_path / "y.npy") as temporary,
    ):
        np.save(temporary.open("wb"), np.zeros(5000))
    assert os.listdir(tmp_path) == ["x.json"]


@pytest.mark.parametrize("size", [200, 700, 1500])
def test_a_cache_on_a_full_disk_leaves_nothing_that_counts(tmp_path, size):
    shop, cache = dataset(write(tmp_path / "raw", random_events(0))), tmp_path / "cache"
    with (
        no_file_above(size),
        pytest.raises(
            RecexpError, match=r"(cannot be prepared in .*cache|cache.*cannot be written)"
        ),
    ):
        prepare(shop, P1, cache)
    assert not [path for path in cache.iterdir() if path.is_dir()]
    verify(prepare(shop, P1, cache))


def test_a_real_full_disk_under_the_cache(tmp_path):
    shop = dataset(write(tmp_path / "raw", random_events(0)))
    with small_disk(tmp_path / "cache", 24) as cache:
        with pytest.raises(RecexpError, match=r"cannot be prepared in .*cache: .*cache_dir="):
            prepare(shop, P1, cache)
        assert not [path for path in cache.iterdir() if path.is_dir()]


def test_a_read_only_cache_serves_what_it_has_and_refuses_the_rest(tmp_path):
    shop, cache = dataset(write(tmp_path / "raw", random_events(0))), tmp_path / "cache"
    folder = prepare(shop, P1, cache)
    with mounted(cache, "--bind", "-o", "ro", str(cache)):
        if os.access(cache, os.W_OK):  # older kernels ignore ro on a first bind
            subprocess.run(["mount", "-o", "remount,bind,ro", str(cache)], check=True)
        assert prepare(shop, P1, cache) == folder
        with pytest.raises(
            RecexpError, match=r"cannot be prepared in .*cache: Read-only file system"
        ):
            prepare(dataset(tmp_path / "raw", merge="pairs"), P1, cache)


def run(folder: Path, *overrides: str) -> str:
    """The one error line of a run that must fail."""
    line = [
        sys.executable,
        "-m",
        "recexp",
        *arguments(folder, *POP, *overrides),
        f"hydra.run.dir={folder}",
    ]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    return said


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("disks")


# The sizes leave room for nothing; for Hydra's files; also for config.yaml; also for metrics.csv (a
# page is 4 KiB).
@pytest.mark.parametrize(
    ("kib", "says"),
    [
        (8, "error: No space left on device"),
        pytest.param(12, "config.yaml cannot be written", marks=pytest.mark.slow),
        pytest.param(16, "metrics.csv cannot be written", marks=pytest.mark.slow),
        pytest.param(20, "cannot be written", marks=pytest.mark.slow),
    ],
)
def test_a_run_on_a_full_disk(shop, kib, says):
    with small_disk(shop / f"run{kib}", kib) as folder:
        said = run(folder, "logger=none")
        assert says in said and ("room" in said) and "No space left" in said
        assert not (folder / "result.json").exists()
        for path in (folder / "checkpoints").glob("*.ckpt"):
            verify_checkpoint(path)


@pytest.mark.slow
def test_a_read_only_run_directory(shop):
    with mounted(shop / "ro", "-t", "tmpfs", "-o", "ro", "tmpfs") as folder:
        assert "Read-only file system" in run(folder / "run")


@pytest.mark.slow
def test_a_sweep_in_a_read_only_directory(shop):
    with mounted(shop / "sweep", "-t", "tmpfs", "-o", "ro", "tmpfs") as folder:
        line = [
            sys.executable,
            "-m",
            "recexp",
            "-m",
            *arguments(shop / "x", *POP),
            f"hydra.sweep.dir={folder}/s",
        ]
        done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
        assert (
            done.returncode == 1
            and "error: Read-only file system" in done.stderr
            and "Traceback" not in done.stderr
        )
