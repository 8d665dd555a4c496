"""What surrounds a run, such as streams, directories and limits, ends it with one sentence or not
at all.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from recexp.cli import slurm
from recexp.cli.main import (
    _errors_explained,
    _failures_of_job,
    drop_stray_ranks,
    overrides_first,
)
from recexp.errors import RecexpError, shortage
from recexp.io import advice, atomic_write
from tests.support.running import arguments

STREAMS = """
import sys
from recexp.cli.streams import make_streams_last
make_streams_last()
for n in range(3000):
    print("ä·日本")
    print("ä·日本", file=sys.stderr)
sys.stdout.flush()
open(sys.argv[1], "w").write("whole")
"""


def ended(error: BaseException) -> str:
    """What the program says at its end, for an error inside."""
    with pytest.raises(SystemExit) as end, _errors_explained():
        raise error
    assert isinstance(end.value.code, str)  # exit code 1
    return end.value.code


@pytest.mark.parametrize("number", sorted(errno.errorcode), ids=lambda n: errno.errorcode[n])
def test_an_error_of_the_system_is_one_sentence_with_its_path(number, tmp_path):
    said = ended(OSError(number, os.strerror(number), "some/path"))
    assert said.startswith(f"error: {os.strerror(number)}") and "\n" not in said
    assert advice(OSError(number, "")) in said
    assert "some/path" in said


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda place: place / "file" / "x", "Not a directory"),
        (lambda place: place / ("x" * 300), "File name too long.*shorter path"),
        (lambda place: place / "loop" / "x", "symbolic links.*point to each other"),
        (lambda place: place / "folder", "[Ii]s a directory"),
    ],
)
def test_a_file_in_an_impossible_place_is_named_with_advice(tmp_path, make, text):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with (
        pytest.raises(RecexpError, match=rf"(?s)cannot be written: .*{text}"),
        atomic_write(make(tmp_path)) as temporary,
    ):
        temporary.write_text("x")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (MemoryError(), "Out of memory: lower batch_size, eval_batch_size"),
        (np._core._exceptions._ArrayMemoryError((9,), np.dtype("f8")), "Out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "Out of memory"),
        (RuntimeError("std::bad_alloc"), "Out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "Out of memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "Out of memory"),
        (RuntimeError("can't start new thread"), "threads=.*ulimit -u"),
        (OSError(errno.EAGAIN, "Resource temporarily unavailable"), "ulimit -u"),
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
        (RuntimeError("unable to open shared memory: Too many open files"), "ulimit -n"),
    ],
)
def test_a_shortage_says_what_to_lower_or_to_raise(error, text):
    said = ended(error)
    assert said.startswith("error: ") and "\n" not in said
    assert re.search(text, said), said


def test_an_error_of_the_code_keeps_its_traceback():
    assert shortage(RuntimeError("shapes differ")) is None
    for error in (RuntimeError("shapes differ"), OSError("no number"), KeyError("x")):
        with pytest.raises(type(error)), _errors_explained():
            raise error


@pytest.mark.parametrize(
    ("environment", "kept"),
    [
        ({"RANK": "1"}, set()),
        ({"RANK": "1", "WORLD_SIZE": "2"}, {"WORLD_SIZE"}),
        ({"LOCAL_RANK": "1"}, set()),
        ({"SLURM_PROCID": "3"}, set()),
        (
            {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a"},
            {"RANK", "WORLD_SIZE", "MASTER_ADDR"},
        ),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, {"SLURM_PROCID", "SLURM_NTASKS"}),
        ({"LOCAL_RANK": "1", "MASTER_ADDR": "a"}, {"LOCAL_RANK", "MASTER_ADDR"}),
        ({}, set()),
    ],
)
def test_a_rank_that_no_launcher_set_is_dropped_with_a_warning(environment, kept, caplog):
    remaining = dict(environment)
    with caplog.at_level(logging.WARNING, "recexp"):
        drop_stray_ranks(remaining)
    assert set(remaining) == kept
    assert ("is ignored" in caplog.text) == (set(environment) != kept)


def test_a_rank_that_is_no_number_is_one_error():
    with pytest.raises(SystemExit, match="RANK='abc' must be a whole number"):
        drop_stray_ranks({"RANK": "abc", "WORLD_SIZE": "2", "MASTER_ADDR": "a"})


@pytest.mark.parametrize(
    "redirected",
    [">&-", ">&- 2>&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full", "2>&1 | true", "| head -c 3"],
)
def test_streams_that_take_nothing_end_nothing(tmp_path, redirected):
    line = f'"$0" -c "$1" "$2" {redirected}'
    words = ["bash", "-c", line, sys.executable, STREAMS, str(tmp_path / "out")]
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=120, env=environment, check=False
    )
    assert "Traceback" not in done.stderr and "Error" not in done.stderr
    assert (tmp_path / "out").read_text() == "whole"


def program(
    folder: Path, before: str, *words: str, after: str = ""
) -> subprocess.CompletedProcess[str]:
    """``python -m recexp`` on a small shop, as bash starts it."""
    own = [f"hydra.run.dir={folder}", *arguments(folder, "model=pop", *words)]
    line = f'{before} "$0" -m recexp "$@" {after}'
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        ["bash", "-c", line, sys.executable, *own],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        check=False,
    )


@pytest.mark.slow  # a whole run of the default experiment
def test_a_run_without_streams_and_with_a_stray_rank_writes_its_result(tmp_path):
    done = program(
        tmp_path / "run", "RANK=1 LC_ALL=C PYTHONIOENCODING=ascii", after=">&- 2>/dev/full"
    )
    assert done.returncode == 0
    assert (tmp_path / "run" / "result.json").is_file()
    assert (tmp_path / "run" / "metrics.csv").is_file()


def test_a_working_directory_that_is_gone_is_one_error(tmp_path):
    place = tmp_path / "gone"
    done = program(tmp_path / "run", f"mkdir {place}; cd {place}; rmdir {place};")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: the working directory cannot be used" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("key", ["hydra.run.dir", "cache_dir", "dataset.raw_dir", "ckpt_path"])
@pytest.mark.parametrize("place", ["file/x", "loop/x", "x" * 300])
def test_places_that_cannot_be_are_one_sentence(tmp_path, key, place):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    done = program(tmp_path / "run", "", f"{key}={tmp_path / place}")
    assert done.returncode == 1, done.stderr
    assert "error: " in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_model_too_large_for_the_limit_of_memory_is_one_sentence(tmp_path):
    words = ("model=bert4rec", "model.n_factors=16384", "model.n_heads=1")
    done = program(tmp_path / "run", "ulimit -v 8000000;", *words)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "out of memory while it was built. Lower its sizes" in done.stderr


def test_in_submitit_a_failure_ends_the_process(monkeypatch, capsys):
    """Hydra would take the exception for the value of a finished job."""
    monkeypatch.setenv(slurm.SUBMITIT, "slurm")
    with pytest.raises(SystemExit, match="1"), _failures_of_job():
        raise ValueError("shapes differ")
    assert "shapes differ" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="error: no data"), _failures_of_job():
        sys.exit("error: no data")


def test_in_other_launchers_a_failure_is_an_exception(monkeypatch):
    """Ray would start a job again whose process ended."""
    monkeypatch.delenv(slurm.SUBMITIT, raising=False)
    with pytest.raises(RuntimeError, match="error: no data"), _failures_of_job():
        sys.exit("error: no data")
    with pytest.raises(ValueError, match="shapes differ"), _failures_of_job():
        raise ValueError("shapes differ")


@pytest.mark.parametrize(
    ("words", "ordered"),
    [
        ("--cfg job seed=1", "seed=1 --cfg job"),
        ("seed=1 -m logger=csv ~callbacks", "seed=1 logger=csv ~callbacks -m"),
        ("--config-dir a=b seed=1", "seed=1 --config-dir a=b"),
        ("-cd=a=b -cn other +x=-1 --info", "+x=-1 -cd=a=b -cn other --info"),
        ("--info all seed=1", "seed=1 --info all"),
        ("--info seed=1 word", "seed=1 word --info"),
        ("-m", "-m"),
    ],
)
def test_overrides_go_before_options(words, ordered):
    assert overrides_first(words.split()) == ordered.split()


def test_hydras_own_help_is_shown(tmp_path):
    command = [sys.executable, "-m", "recexp", "--hydra-help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("Hydra"), done.stderr


@pytest.mark.parametrize(
    "words",
    [
        "logger=csv --cfg job",  # the default experiment is added
        "logger=csv --cfg job seed=1",
        "search=ease model=ease --cfg job",
        "sweep=rates model=ite --cfg job",
    ],
)
def test_options_may_stand_anywhere(tmp_path, words):
    command = [sys.executable, "-m", "recexp", *words.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("seed: ") and "_target_: recexp.models." in done.stdout
