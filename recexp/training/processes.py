"""Several processes of one run: if one dies, the others end too, and no process is left behind."""

from __future__ import annotations

import atexit
import logging
import os
import subprocess
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.distributed as dist
from lightning_fabric.plugins.environments import SLURMEnvironment
from pydantic import Field
from pytorch_lightning.strategies import DDPStrategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from recexp.config.overrides import resume_advice
from recexp.errors import RecexpError
from recexp.training.interrupts import SIGNALS

MAIN = "RECEXP_MAIN_PID"  # environment variable of processes that the first one started
GRACE = 5.0  # seconds that a process has to end by itself
POLL = 0.2  # seconds between two looks at the other processes

log = logging.getLogger(__name__)


class WatchedDDP(DDPStrategy):
    """Lightning's DDP, whose processes watch each other.

    If a process dies, the others end within seconds, with a message, also those that wait inside
    an exchange that will never complete.

    timeout_s: seconds an exchange may wait for a process that lives but does not answer.
    run_dir: the directory that the message names. threads: of each process; Lightning's launcher
    would share out the cores instead, whatever was set before.
    """

    def __init__(
        self,
        timeout_s: Annotated[float, Field(gt=0)] = 600,
        run_dir: str | Path = ".",
        threads: Annotated[int, Field(ge=1)] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(timeout=timedelta(seconds=timeout_s), **settings)
        self.run_dir = Path(run_dir)
        self.threads = threads
        os.environ.setdefault(MAIN, str(os.getpid()))

    def setup_environment(self) -> None:
        if self.threads:
            torch.set_num_threads(self.threads)
        children = self._take_children()
        main_pid = int(os.environ[MAIN])
        is_child = main_pid != os.getpid() and os.environ.get("LOCAL_RANK", "0") != "0"
        if children or is_child:
            _Watch(self.run_dir, children, main_pid if is_child else None).start()
        super().setup_environment()

    def _setup_model(self, model: Any) -> Any:
        """Wrap the model in DDP, which leaves alone what ``_not_exchanged`` names."""
        if model.model.phases():
            self._ddp_kwargs["find_unused_parameters"] = True  # those of other phases
        names = self._not_exchanged(model)
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)
        return super()._setup_model(model)

    def _not_exchanged(self, model: nn.Module) -> list[str]:
        """Parameters and buffers that the first process does not send to the others.

        Buffers that are in no checkpoint come with the data, of which every process has the same.
        They may be mapped files, and writing to these would end the process.
        """
        kept = model.state_dict(keep_vars=True).keys()
        return [name for name, _ in model.named_buffers() if name not in kept]

    def _take_children(self) -> list[subprocess.Popen[bytes]]:
        """The processes that Lightning's launcher started, removed from its own list.

        Lightning would watch that list, too, and end this process by SIGKILL without a message.
        """
        processes = getattr(self.launcher, "procs", [])
        children = processes[:]
        processes.clear()
        return children


class SlurmTasks(SLURMEnvironment):
    """The processes that srun started. The end of their time is handled by ``recexp.cli.slurm``.

    Raises RecexpError where srun did not start this process, or not as many on every machine.
    """

    def __init__(self) -> None:
        if "SLURM_STEP_ID" not in os.environ or "SLURM_PROCID" not in os.environ:
            raise RecexpError(
                "trainer=slurm: srun did not start this process. Start it with "
                "srun python -m recexp ..., or choose trainer=gpu, ddp or cpu."
            )
        if "SLURM_NTASKS_PER_NODE" not in os.environ:
            raise RecexpError(
                "trainer=slurm: SLURM does not start as many processes on every machine "
                f"({os.environ.get('SLURM_STEP_TASKS_PER_NODE')}): set --ntasks-per-node=N."
            )
        super().__init__(auto_requeue=False)


class _Watch(threading.Thread):
    """Ends this process if a child fails or the parent is lost, and the main thread does not.

    parent: process id, None in the first process.
    """

    def __init__(
        self, run_dir: Path, children: list[subprocess.Popen[bytes]], parent: int | None
    ) -> None:
        super().__init__(daemon=True, name="watch over the other processes")
        self.run_dir = run_dir
        self.children = children
        self.parent = parent
        if children:
            atexit.register(self._end_children)

    def run(self) -> None:
        code = self._exit_code_of_lost_peer()
        while code is None:
            time.sleep(POLL)
            code = self._exit_code_of_lost_peer()
        time.sleep(GRACE)  # the main thread may notice by itself, and ends the process properly
        log.error("error: %s", peer_lost_message(self.run_dir))
        for child in self.children:
            child.kill()
        for signum in SIGNALS:
            if code in (-signum, 128 + signum):
                os._exit(128 + signum)
        os._exit(1)

    def _exit_code_of_lost_peer(self) -> int | None:
        if self.parent is not None and os.getppid() != self.parent:
            return 1
        for child in self.children:
            code = child.poll()
            if code:
                return code
        return None

    def _end_children(self) -> None:
        deadline = time.monotonic() + GRACE
        for child in self.children:
            try:
                child.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def is_peer_lost(error: BaseException) -> bool:
    """Is this how torch says that another process of the run died or does not answer?"""
    # gloo names its source file in most messages, but not in those of an abandoned exchange.
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError)
        and any(word in str(error) for word in ("gloo", "pair closure"))
    )


def peer_lost_message(run_dir: Path) -> str:
    """What the user has to know where another process is lost."""
    return (
        "Another process of this run is lost or does not answer; its own message, if there is "
        f"one, says why; {resume_advice(run_dir)}"
    )
