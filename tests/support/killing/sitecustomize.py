"""Kills a process at a chosen call; Python imports it at start where its folder is on PYTHONPATH.

KILL_AT in the environment: "MODULE:FUNCTION RANK CALL", the CALLth call (from 0) of the function in
the process of that rank. The process gets SIGKILL before the call.
"""

import importlib
import os
import signal
from functools import reduce


def _kill_at(module: str, path: str, call: int) -> None:
    *outer, name = path.split(".")
    owner = reduce(getattr, outer, importlib.import_module(module))
    function, n_calls = getattr(owner, name), 0

    def counted(*arguments, **settings):
        nonlocal n_calls
        if n_calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        n_calls += 1
        return function(*arguments, **settings)

    setattr(owner, name, counted)


if "KILL_AT" in os.environ:
    _place, _rank, _call = os.environ["KILL_AT"].split()
    if os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == _rank:
        _kill_at(*_place.split(":"), int(_call))
