"""A disk that fills up at any stage of a run: one sentence that names the place, nothing half
written, and the run goes on to the undisturbed metrics once there is room.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pytest

from recexp.data.cache import verify
from recexp.errors import RecexpError
from recexp.report.collect import collect
from recexp.runs.directory import LOCK
from recexp.training.checkpoints import verify_checkpoint
from tests.support.running import run_here

BPR = ["model=bpr_mf", "model.n_factors=8", "logger=none"]
MIB = 1024


class Disk:
    """A file system in memory; the test is skipped where mounting is not allowed."""

    def __init__(self, place: Path, kib: int) -> None:
        self.place = place
        place.mkdir(exist_ok=True)
        self._mount("-t", "tmpfs", "-o", f"size={kib}k")

    def resize(self, kib: int) -> None:
        self._mount("-o", f"remount,size={kib}k")

    def _mount(self, *options: str) -> None:
        line = ["mount", *options, "tmpfs", str(self.place)]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"mount is not permitted here: {done.stderr.strip()}")

    def files(self) -> list[Path]:
        return sorted(path for path in self.place.rglob("*") if path.is_file())


@contextmanager
def disk(place: Path, kib: int) -> Iterator[Disk]:
    made = Disk(place, kib)
    try:
        yield made
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("small")


@pytest.fixture(scope="module")
def whole(shop) -> dict:
    return run_here(shop / "whole", *BPR)


def check_whole(files: list[Path]) -> None:
    """Every file that has its name is complete."""
    for path in files:
        assert path.name == LOCK or not path.name.startswith("."), f"half written: {path}"
        if path.suffix == ".ckpt":
            verify_checkpoint(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".parquet":
            pl.read_parquet(path)
        elif path.suffix == ".csv":
            pl.read_csv(path)


# Sizes of the disk under the run directory. A run writes about 160 KiB.
SIZES = range(4, 200, 4)
QUICK = (40, 72, 120, 148)  # the first best.ckpt, the first last.ckpt, the second ones, the ranks


@pytest.mark.parametrize(
    "sizes", [QUICK, pytest.param(SIZES, marks=pytest.mark.slow, id="every page: minutes")]
)
def test_a_run_whose_disk_is_full_at_any_page_goes_on_when_there_is_room(
    shop, whole, sizes, tmp_path, monkeypatch
):
    failed = set()
    elsewhere = tmp_path / "temporary"
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    for kib in sizes:
        place = shop / f"disk{kib}-{len(sizes)}"
        where = [f"dataset.raw_dir={shop}/raw", f"cache_dir={shop}/cache"]
        with disk(place, kib) as small:
            run_dir = place / "run"
            try:
                result = run_here(run_dir, *BPR, *where)
            except RecexpError as error:
                said = str(error)
                assert "No space left on device" in said and "\n" not in said
                assert said.startswith(str(run_dir)) and "(" not in said, "no other file is named"
                assert not (run_dir / "result.json").exists()
                failed.add(Path(said.split(" cannot be")[0]).name)
            except OSError as error:  # before there is a directory to name
                assert "No space left on device" in str(error) and kib < 8
            else:
                assert result["metrics"] == whole["metrics"]
                collect([run_dir])
            check_whole(small.files())
            small.resize(4 * MIB)
            last = run_dir / "checkpoints" / "last.ckpt"
            advised = [f"ckpt_path={last}"] if last.exists() else []
            assert run_here(run_dir, *BPR, *where, *advised)["metrics"] == whole["metrics"]
            check_whole(small.files())
    assert {"best.ckpt", "last.ckpt"} <= failed
    if sizes is SIZES:
        assert {"config.yaml", "metrics.csv", "ranks.parquet", "result.json"} & failed
    assert not list(elsewhere.iterdir())
    print(f"{len(sizes)} sizes, failed at {sorted(failed)}")


@pytest.mark.parametrize(
    "name",
    [
        "result.json",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("ranks.parquet", "metrics.csv", "config.yaml")
        ),
    ],
)
def test_one_file_that_finds_no_room(shop, whole, monkeypatch, name):
    """As on a disk that another program fills in that moment: the file's write fails half way."""
    import recexp.io

    folder = shop / f"one-{name}"
    replace = recexp.io.os.replace

    def no_room(source, target):
        if Path(target).name == name:
            raise OSError(28, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as m:
        m.setattr(recexp.io.os, "replace", no_room)
        with pytest.raises(RecexpError, match=rf"{name} cannot be written: No space left on dev"):
            run_here(folder, *BPR)
    assert not (folder / "result.json").exists()
    check_whole([path for path in folder.rglob("*") if path.is_file()])
    last = folder / "checkpoints" / "last.ckpt"
    advised = [f"ckpt_path={last}"] if last.exists() else []
    assert run_here(folder, *BPR, *advised)["metrics"] == whole["metrics"]


def test_curves_that_find_no_room_are_a_warning(shop, whole, monkeypatch, caplog):
    import recexp.io

    replace = recexp.io.os.replace

    def no_room(source, target):
        if Path(target).name == "curves.png":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(recexp.io.os, "replace", no_room)
    folder = shop / "no-curves"
    assert run_here(folder, *BPR)["metrics"] == whole["metrics"]
    assert "curves.png cannot be written: No space left on device" in caplog.text
    check_whole([path for path in folder.rglob("*") if path.is_file()])


@pytest.mark.parametrize(
    ("kib", "what"),
    [
        pytest.param(64, "raw", marks=pytest.mark.slow),
        pytest.param(600, "raw", marks=pytest.mark.slow),
        (64, "cache"),
        pytest.param(200, "cache", marks=pytest.mark.slow),
        pytest.param(360, "cache", marks=pytest.mark.slow),
    ],
)
def test_raw_simulation_and_preparation_on_a_full_disk(shop, whole, kib, what):
    folder = shop / f"{what}{kib}"
    folder.mkdir()
    with disk(folder / what, kib) as small:
        with pytest.raises(RecexpError, match="No space left on device") as refused:
            run_here(folder / "run", *BPR)
        assert str(folder / what) in str(refused.value) and "\n" not in str(refused.value)
        assert not [path for path in small.files() if path.suffix != ".lock"]
        small.resize(16 * MIB)
        assert run_here(folder / "run", *BPR)["metrics"] == whole["metrics"]
        for prepared in (folder / "cache").glob("simulated_shop-*/"):
            verify(prepared)


@pytest.mark.slow
def test_candidates_that_find_no_room(shop, whole):
    """The cache has room for the prepared data and not for the candidates."""
    folder = shop / "candidates"
    folder.mkdir()
    with disk(folder / "cache", 4 * MIB) as small:
        run_here(folder / "run", *BPR)
        drawn = [path for path in small.files() if path.name.startswith("candidates-")]
        assert len(drawn) == 4, "two tables and their checksums"
        for path in drawn:
            path.unlink()
        in_use = subprocess.check_output(["du", "-sk", str(small.place)], text=True)
        small.resize(int(in_use.split()[0]) + 8)
        with pytest.raises(RecexpError, match=r"candidates-.*No space left on device"):
            run_here(folder / "run", *BPR)
        assert not [path for path in small.files() if "candidates-" in path.name]
        small.resize(4 * MIB)
        assert run_here(folder / "run", *BPR)["metrics"] == whole["metrics"]
