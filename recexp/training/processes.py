"""Several processes of one run: none waits for one that is gone, none is left behind."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from pytorch_lightning.strategies import DDPStrategy

MAIN = "RECEXP_MAIN_PID"  # in the environment of processes that the first one started
GRACE = 5.0  # seconds a process has to end by itself


class WatchedDDP(DDPStrategy):
    """Lightning's DDP, whose processes look after each other: where one dies, the others end within seconds, with a message, even those that wait
    inside an exchange that will never come.

    timeout_s: how long an exchange may wait for a process that lives but does not answer. run_dir: where the message sends people. threads: of each
    process; Lightning's launcher shares out the cores instead, whatever was set before.
    """

    def __init__(
        self,
        timeout_s: float = 600,
        run_dir: str | Path = ".",
        threads: int | None = None,
        **settings,
    ) -> None:
        super().__init__(timeout=timedelta(seconds=timeout_s), **settings)
        self.run_dir, self.threads = Path(run_dir), threads
        os.environ.setdefault(MAIN, str(os.getpid()))

    def setup_environment(self) -> None:
        if self.threads:
            torch.set_num_threads(self.threads)
        children = getattr(self.launcher, "procs", [])
        mine = children[:]
        children.clear()  # so Lightning's observer has nothing to observe: it would end this process by SIGKILL, without a word
        started_by_another = (
            os.environ[MAIN] != str(os.getpid()) and os.environ.get("LOCAL_RANK", "0") != "0"
        )
        if mine or started_by_another:
            _Watch(
                self.run_dir, mine, int(os.environ[MAIN]) if started_by_another else None
            ).start()
        super().setup_environment()


class _Watch(threading.Thread):
    """Ends this process if one of its children fails or its parent is gone and it does not notice by itself."""

    def __init__(self, run_dir: Path, children: list[subprocess.Popen], parent: int | None) -> None:
        super().__init__(daemon=True, name="watch over the other processes")
        self.run_dir, self.children, self.parent = run_dir, children, parent
        if children:
            atexit.register(self._end_children)

    def run(self) -> None:
        while (code := self._lost()) is None:
            time.sleep(0.2)
        time.sleep(GRACE)  # where the main thread can, it ends better than this
        print(f"error: {gone(self.run_dir)}", file=sys.stderr, flush=True)
        for child in self.children:
            child.kill()
        os._exit(128 + abs(code) if code in (-signal.SIGTERM, -signal.SIGINT) else 1)

    def _lost(self) -> int | None:
        if self.parent is not None and os.getppid() != self.parent:
            return 1
        return next((code for child in self.children if (code := child.poll())), None)

    def _end_children(self) -> None:
        deadline = time.monotonic() + GRACE
        for child in self.children:
            try:
                child.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def lost_process(error: BaseException) -> bool:
    """Is this torch's way of saying that another process of the run is gone or does not answer?"""
    # gloo names its source file in most of its messages, but not in what ends an exchange that was given up.
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError)
        and any(word in str(error) for word in ("gloo", "pair closure"))
    )


def gone(run_dir: Path) -> str:
    """What a person should know where another process is lost."""
    last = run_dir / "checkpoints" / "last.ckpt"
    advice = (
        f"To go on: the same command with ckpt_path={last}"
        if last.exists()
        else "Nothing was saved yet: start again."
    )
    return f"Another process of this run is gone or does not answer; its own message, if it left one, says why. {advice}"
