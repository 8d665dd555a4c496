"""Latency and throughput of ``python -m recexp.serve`` on the loopback of this machine.

    python tests/perf/serve_load.py RUN_DIR --ids CACHED_DATA [-- words of recexp.serve]

Every client sends its next request when it has the answer. Clients are threads of one process on
the same machine as the server, so they take a part of its processors. Users are those of the data,
drawn uniformly; histories are 50 items of the data, drawn uniformly.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl

CLIENTS = (1, 8, 64)
WARM_UP = 30  # requests
EVENTS = 50
KEPT = 4096  # different bodies


class Client(threading.Thread):
    """Sends requests over one connection until ``until``, and keeps their times in seconds."""

    def __init__(self, port: int, body: Callable[[], bytes], until: float) -> None:
        super().__init__()
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.body = body
        self.until = until
        self.times: list[float] = []

    def run(self) -> None:
        while time.perf_counter() < self.until:
            self.times.append(self.ask())
        self.connection.close()

    def ask(self) -> float:
        body = self.body()
        started = time.perf_counter()
        headers = {"content-type": "application/json"}
        self.connection.request("POST", "/recommend", body, headers)
        answer = self.connection.getresponse()
        content = answer.read()
        took = time.perf_counter() - started
        assert answer.status == 200, content
        return took


def measure(port: int, bodies: list[bytes], n_clients: int, seconds: float) -> dict[str, float]:
    """Milliseconds at the median and the 95th percentile, and requests per second."""
    generator = random.Random(n_clients)
    until = time.perf_counter() + seconds
    clients = [Client(port, lambda: generator.choice(bodies), until) for _ in range(n_clients)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    times = [one for client in clients for one in client.times]
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    return {"p50_ms": 1e3 * cuts[49], "p95_ms": 1e3 * cuts[94], "per_s": len(times) / seconds}


def known_users(users: list[int | str]) -> list[bytes]:
    generator = random.Random(0)
    return [json.dumps({"user": generator.choice(users)}).encode() for _ in range(KEPT)]


def histories(items: list[int | str]) -> list[bytes]:
    generator = random.Random(0)
    drawn = [generator.choices(items, k=EVENTS) for _ in range(KEPT)]
    return [json.dumps({"history": [{"item": item} for item in one]}).encode() for one in drawn]


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Before and after ``--``; argparse takes the words after it for positional ones."""
    if "--" not in arguments:
        return arguments, []
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--ids", type=Path, required=True, help="folder of the prepared data")
    parser.add_argument("--seconds", type=float, default=5)
    before, words = split(sys.argv[1:])
    options = parser.parse_args(before)
    users = pl.read_parquet(options.ids / "users.parquet")["user"].to_list()
    items = pl.read_parquet(options.ids / "items.parquet")["item"].to_list()
    line = [sys.executable, "-m", "recexp.serve", str(options.run_dir), "--port", "0"]
    server = subprocess.Popen([*line, *words], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline().rpartition(":")[2])
        print("| request | clients | p50, ms | p95, ms | requests/s |\n|---|---|---|---|---|")
        for name, bodies in (
            ("user of the data", known_users(users)),
            (f"history of {EVENTS} events", histories(items)),
        ):
            warm = Client(port, iter(bodies).__next__, 0)
            for _ in range(WARM_UP):
                warm.ask()
            for n_clients in CLIENTS:
                row = measure(port, bodies, n_clients, options.seconds)
                numbers = f"{row['p50_ms']:.1f} | {row['p95_ms']:.1f} | {row['per_s']:.0f}"
                print(f"| {name} | {n_clients} | {numbers} |", flush=True)
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
