"""Caches and run directories of other users, and users whose files are private.

Where the tests run as root, runs are started as a user without privileges.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from recexp.data.cache import prepare, verify
from tests.support.events import P1, dataset, random_events, write
from tests.support.running import arguments, run_here

OTHER = 65534  # a user who owns nothing here
BPR = ["model=bpr_mf", "model.n_factors=8", "logger=none"]


def as_other(*line: str, home: Path, umask: int = 0o022) -> subprocess.CompletedProcess:
    """A Python command as the other user. Skips the test where that is not possible."""
    if os.getuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("only root can start a process as another user, with setpriv")
    prefix = ["setpriv", f"--reuid={OTHER}", f"--regid={OTHER}", "--clear-groups", sys.executable]
    settings = {"HOME": str(home), "MPLCONFIGDIR": str(home)}
    start = partial(
        subprocess.run,
        cwd=home,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        preexec_fn=lambda: os.umask(umask),
    )
    if start([*prefix, "-c", "import recexp"]).returncode:
        pytest.skip("this Python cannot be started by another user")
    return start([*prefix, *line])


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that others can reach, unlike pytest's, with a home of the other user."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        folder.chmod(0o755)
        home = folder / "home"
        home.mkdir()
        if os.getuid() == 0:
            os.chown(home, OTHER, OTHER)
        yield folder


@pytest.fixture
def shared(place) -> dict:
    """A run whose cache, raw files and directory belong to this user."""
    return run_here(place / "ours", *BPR)


def said(done: subprocess.CompletedProcess) -> str:
    """The one sentence of a command that was refused."""
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    return line


@pytest.mark.slow  # four whole runs of other users; the umask test covers the rights of the files
def test_a_cache_that_only_its_owner_can_write_serves_other_users(place, shared):
    home = place / "home"
    words = arguments(place / "theirs", *BPR)
    done = as_other("-m", "recexp", *words, f"hydra.run.dir={home}/run", home=home)
    assert done.returncode == 0, done.stderr
    result = json.loads((home / "run" / "result.json").read_text())
    assert result["metrics"] == shared["metrics"]
    # What is not there yet cannot be prepared there, and the place is named.
    cache = place / "cache"
    other_data = [*words, "dataset.merge=none", f"hydra.run.dir={home}/run2"]
    sentence = said(as_other("-m", "recexp", *other_data, home=home))
    assert str(cache) in sentence and "Permission denied" in sentence and "cache_dir=" in sentence
    other_candidates = [*words, "protocol.candidates.n=40", f"hydra.run.dir={home}/run3"]
    sentence = said(as_other("-m", "recexp", *other_candidates, home=home))
    assert str(cache) in sentence and "Permission denied" in sentence
    assert not list(home.glob("run[23]/result.json"))


@pytest.mark.slow
def test_a_run_directory_of_another_user_is_refused_and_stays_as_it_is(place, shared):
    home = place / "home"
    ours = place / "ours"
    before = {p: p.read_bytes() for p in ours.rglob("*") if p.is_file()}
    words = arguments(place / "theirs", *BPR)
    sentence = said(as_other("-m", "recexp", *words, f"hydra.run.dir={ours}", home=home))
    assert "Permission denied" in sentence and "hydra.run.dir=" in sentence
    report = as_other("-m", "recexp.report", str(ours), home=home)
    assert report.returncode == 0 and "bpr_mf" in report.stdout, "reading needs no permission more"
    assert {p: p.read_bytes() for p in ours.rglob("*") if p.is_file()} == before


def test_the_umask_decides_who_can_read_what_a_run_leaves(tmp_path):
    """022: everybody; 077: the owner. Also folders, which ``tempfile`` would keep closed."""
    for umask in (0o022, 0o077):
        place = tmp_path / f"{umask:o}"
        place.mkdir()
        before = os.umask(umask)
        try:
            run_here(place / "run", *BPR)
        finally:
            os.umask(before)
        for path in place.rglob("*"):
            mode = stat.S_IMODE(path.stat().st_mode)
            full = 0o777 if path.is_dir() else 0o666
            is_lock = path.suffix == ".lock"
            assert mode == full & ~umask or (is_lock and not mode & umask), (path, oct(mode))


@pytest.mark.slow
def test_a_private_cache_is_named_to_other_users(place, shared):
    home = place / "home"
    (place / "cache").chmod(0o700)
    words = arguments(place / "theirs", *BPR)
    sentence = said(as_other("-m", "recexp", *words, f"hydra.run.dir={home}/run", home=home))
    assert str(place / "cache") in sentence and "Permission denied" in sentence


def test_a_lock_file_of_another_user_blocks_no_preparation(tmp_path):
    """In a cache that all users can write; lock files have their owners' permissions."""
    if os.getuid() != 0:
        pytest.skip("only root can give files away")
    shop, cache = dataset(write(tmp_path / "raw", random_events(0))), tmp_path / "cache"
    folder = prepare(shop, P1, cache)
    cache.chmod(0o777)
    for path in cache.iterdir():
        if path.name.endswith(".lock"):
            os.chown(path, OTHER, OTHER)
            path.chmod(0o600)
    for path in cache.glob("shop-*.json"):
        path.unlink()
    assert prepare(shop, P1, cache) == folder
    verify(folder)
