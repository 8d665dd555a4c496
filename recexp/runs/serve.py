"""``python -m recexp.serve RUN_DIR``: recommendations over HTTP, in JSON.

This module needs no web framework; ``recexp.runs.server`` does.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from recexp.errors import RecexpError
from recexp.logs import show_logs
from recexp.runs.accelerators import add_accelerator
from recexp.runs.command_line import add_run, loaded

NEEDED = ("fastapi", "uvicorn")  # the extra "serve"


@dataclass(frozen=True)
class Limits:
    """What a request may ask for at most.

    k: length of a list. events: of a history. candidates: of a request. batch: requests of a batch.
    body: bytes of a request.
    """

    k: int = 1000
    events: int = 1000
    candidates: int = 10_000
    batch: int = 256
    body: int = 1 << 20


def serve(options: argparse.Namespace) -> None:
    """Do what the command line says, until the process is stopped."""
    try:
        import uvicorn

        from recexp.runs.server import create_app
    except ModuleNotFoundError as error:
        if error.name not in NEEDED:
            raise
        raise RecexpError(
            f"recexp.serve needs {error.name}, which is not installed: "
            "pip install 'recexp[serve]', or pip install fastapi uvicorn."
        ) from None
    limits = _limits(options)
    for name in ("threads", "workers", "max_connections"):
        _check_positive(name, getattr(options, name))
    with _listening(options.host, options.port) as listener:
        trained = loaded(options, options.accelerator)
        app = create_app(trained, limits, n_workers=options.workers)
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            limit_concurrency=options.max_connections,
            ws="none",
        )
        listener.listen(2048)
        host, port = listener.getsockname()[:2]
        place = f"[{host}]" if ":" in host else host
        print(f"{trained!r} answers on http://{place}:{port}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])


def _limits(options: argparse.Namespace) -> Limits:
    values = {name: getattr(options, f"max_{name}") for name in Limits.__dataclass_fields__}
    for name, value in values.items():
        _check_positive(f"max_{name}", value)
    return Limits(**values)


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise RecexpError(f"--{name.replace('_', '-')} {value}: must be at least 1.")


def _listening(host: str, port: int) -> socket.socket:
    """A socket bound to the address; connections are refused until it listens."""
    if not 0 <= port < 2**16:  # getaddrinfo would take the remainder
        raise RecexpError(f"--port {port}: must lie between 0 and 65535.")
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, number)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise RecexpError(f"--host {host} --port {port} cannot be used: {error}.") from None
    return listener


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``python -m recexp.serve``."""
    options = parser().parse_args(arguments)
    show_logs()
    try:
        serve(options)
    except RecexpError as error:
        sys.exit(f"error: {error}")


def parser() -> argparse.ArgumentParser:
    """The options of ``python -m recexp.serve``."""
    default = Limits()
    made = argparse.ArgumentParser(
        prog="python -m recexp.serve",
        description="Recommendations of a finished run's model over HTTP: GET /health, "
        "POST /recommend, POST /recommend/batch.",
    )
    add_run(made)
    add_accelerator(made)
    add = made.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    add("--port", type=int, default=8000, help="0: any free one (default: 8000)")
    add("--max-k", type=int, default=default.k, help=f"(default: {default.k})")
    add("--max-events", type=int, default=default.events, help="of a history (default: 1000)")
    add("--max-candidates", type=int, default=default.candidates, help="(default: 10000)")
    add("--max-batch", type=int, default=default.batch, help="requests (default: 256)")
    add("--max-body", type=int, default=default.body, help="bytes (default: 1 MiB)")
    add(
        "--max-connections",
        type=int,
        default=1024,
        help="open connections and waiting requests; more are answered with 503 (default: 1024)",
    )
    add("--workers", type=int, default=os.cpu_count() or 1, help="requests computed at a time")
    add("--threads", type=int, default=1, help="torch threads of each (default: 1)")
    return made
