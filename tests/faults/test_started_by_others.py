"""Runs of several processes, started by the program, by torchrun or by SLURM."""

import json
import os
import socket
import subprocess
import sys

import pytest

from recexp.cli.main import arguments_of_rank
from tests.support.running import arguments, command, run_here

TWO = ["trainer=ddp_cpu2", "model=bpr_mf", "model.n_factors=8"]


# Factors stay as they were drawn, so that only evaluation can differ between numbers of processes.
# Batches of 7 leave remainders.
FIXED = ["optimizer.lr=1e-30", "eval_batch_size=7"]


def metrics(folder):
    return json.loads((folder / "result.json").read_text())["metrics"]


def launched(folder, *overrides):
    """Metrics of a run of two processes that the program starts itself."""
    done = command(folder, *TWO, *overrides, f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr[-2000:]
    return metrics(folder)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return tmp_path_factory.mktemp("started")


@pytest.fixture(scope="module")
def two(shop):
    return launched(shop / "two", *FIXED)


def test_two_processes_count_every_user_once_and_give_the_same_digits(shop, two):
    one = run_here(shop / "one", *TWO[1:], *FIXED)
    assert two == one["metrics"] and two["test/ndcg@10"] > 0


def test_only_the_first_process_has_a_run_directory():
    words = ["model=ite", "hydra.run.dir=there"]
    for environment in ({}, {"RANK": "0"}, {"SLURM_PROCID": "0"}, {"LOCAL_RANK": "1"}):
        assert arguments_of_rank(words, environment) == words
    for environment in ({"RANK": "1"}, {"SLURM_PROCID": "3"}, {"RANK": "2", "SLURM_PROCID": "0"}):
        assert arguments_of_rank(words, environment) == [
            "model=ite",
            "hydra.run.dir=.",
            "hydra.output_subdir=null",
        ]


def torchrun(folder, *overrides):
    """What two machines of one process each print; the second one has its own working directory."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [
        *arguments(folder, *TWO, *overrides),
        "trainer.devices=1",
        "trainer.num_nodes=2",
        f"hydra.run.dir={folder}",
    ]
    machines = []
    for number in range(2):
        (home := folder.parent / f"{folder.name}-machine{number}").mkdir()
        line = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nnodes=2",
            f"--node-rank={number}",
            "--nproc-per-node=1",
        ]
        line += ["--master-addr=127.0.0.1", f"--master-port={port}", "-m", "recexp", *words]
        quiet = os.environ | {"OMP_NUM_THREADS": "1"}
        machines.append(
            subprocess.Popen(
                line,
                cwd=home,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=quiet,
            )
        )
    said = [machine.communicate(timeout=300)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], "\n".join(said)
    return said


@pytest.mark.slow  # a third start of two processes
def test_torchrun_gives_the_metrics_of_our_own_processes(shop, two):
    said = torchrun(shop / "torchrun", *FIXED)
    assert metrics(shop / "torchrun") == two
    assert not list((shop / "torchrun-machine1").iterdir())
    assert (
        "hr@10" in said[0].lower() and "hr@10" not in said[1].lower()
    )  # the table is printed once


@pytest.mark.slow  # the test above takes the same steps with factors that stay as they are
def test_torchrun_trains_to_the_metrics_of_our_own_processes(shop):
    torchrun(shop / "trained-torchrun")
    assert metrics(shop / "trained-torchrun") == launched(shop / "trained")


@pytest.mark.slow  # a whole program for one number
def test_threads_stay_what_they_were_set_to(tmp_path):
    """Lightning's launcher divides the cores among the processes, whatever ``threads`` says."""
    watch = (
        "import torch, atexit; atexit.register(lambda: print('threads', torch.get_num_threads()))"
    )
    code = f"{watch}\nimport sys\nfrom recexp.cli.main import main\nsys.argv[0] = 'recexp'\nmain()"
    words = [
        *arguments(
            tmp_path / "run",
            "trainer=ddp",
            "trainer.accelerator=cpu",
            "trainer.devices=1",
            "model=bpr_mf",
        ),
        "threads=3",
    ]
    clean = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    line = [sys.executable, "-c", code, *words, f"hydra.run.dir={tmp_path}/run"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, env=clean, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "threads 3"
