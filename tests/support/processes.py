"""Runs in sessions of their own, whose processes are watched from outside."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.support.running import arguments

KILLING = Path(__file__).parent / "killing"


def killing(place: str, rank: int, call: int = 0) -> dict[str, str]:
    """Environment in which the process ``rank`` gets SIGKILL before a call of a function.

    place: MODULE:FUNCTION. call: how many calls it may make before.
    """
    paths = [str(KILLING), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(paths), "KILL_AT": f"{place} {rank} {call}"}


class Run:
    """A run of several processes in a session of their own, once its first epoch is over."""

    def __init__(
        self, folder: Path, *overrides: str, training: bool = True, **environment: str
    ) -> None:
        self.folder = folder
        line = [
            sys.executable,
            "-m",
            "recexp",
            *arguments(folder, *overrides),
            f"hydra.run.dir={folder}",
        ]
        self.errors = (folder.parent / f"{folder.name}.err").open("w+")
        self.main = subprocess.Popen(
            line,
            stdout=subprocess.DEVNULL,
            stderr=self.errors,
            start_new_session=True,
            env=os.environ | environment,
            # a shell's background jobs ignore Ctrl-C
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        if training:
            self.wait_until(lambda: (folder / "checkpoints" / "last.ckpt").exists())
            time.sleep(random.random() / 2)  # any step

    def wait_until(self, there) -> None:
        deadline = time.monotonic() + 240
        while not there():
            assert self.main.poll() is None and time.monotonic() < deadline, self.said()
            time.sleep(0.02)

    def pids(self) -> list[int]:
        """All processes of the session that live, the first one first."""
        found = []
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                state, _, _, session = (
                    Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()[:4]
                )
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(session) == self.main.pid and state != "Z":
                found.append(int(entry))
        return sorted(found, key=lambda pid: (pid != self.main.pid, pid))

    def wait_until_one_died(self, rank: int) -> None:
        """Until the main process (rank 0) or one that it started is no longer alive.

        Processes that the system has not taken away yet (zombies) count as dead.
        """
        if rank == 0:
            self.main.wait(240)
            return
        self.wait_until(lambda: len(self.pids()) > 1)
        most = 0
        deadline = time.monotonic() + 240
        while (alive := len(self.pids())) >= most and self.main.poll() is None:
            assert time.monotonic() < deadline, self.said()
            most = max(most, alive)
            time.sleep(0.05)

    def ended(self) -> int:
        """The exit code, no process being left behind."""
        try:
            code = self.main.wait(240)
            deadline = time.monotonic() + 120
            while (left := self.pids()) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert not left, f"left behind: {left}\n{self.said()}"
            return code
        finally:
            for pid in self.pids():
                os.kill(pid, signal.SIGKILL)

    def said(self) -> str:
        self.errors.seek(0)
        return self.errors.read()
