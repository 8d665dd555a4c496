"""Read what W&B's client wrote into an offline file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

HEADER = 7  # bytes, of the file and of every chunk
BLOCK = 32768  # bytes; a chunk never crosses the end of a block
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path: Path) -> Iterator[Record]:
    """Every record, in order; the file is a log as LevelDB writes it."""
    content = path.read_bytes()
    assert content.startswith(b":W&B")
    at, parts = HEADER, b""
    while at + HEADER <= len(content):
        left = BLOCK - at % BLOCK
        if left < HEADER:
            at += left
            continue
        size = int.from_bytes(content[at + 4 : at + 6], "little")
        kind = content[at + 6]
        parts += content[at + HEADER : at + HEADER + size]
        at += HEADER + size
        if kind in (FULL, LAST):
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def read_runs(run_dir: Path) -> list[dict[str, Any]]:
    """The W&B runs in a run directory, oldest first.

    Keys: run (the RunRecord), history (list of dicts), summary, config, artifacts (type -> file),
    n_system_metrics, path, exit_code.
    """
    return [_read(path) for path in sorted(run_dir.glob("wandb/*run-*/*.wandb"))]


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"path": path, "history": [], "summary": {}, "config": {}}
    found |= {"exit_code": None, "artifacts": {}, "n_system_metrics": 0}
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found["run"] = record.run
            found["config"] |= _items(record.run.config.update)
        elif kind == "history":
            found["history"].append(_items(record.history.item))
        elif kind == "summary":
            found["summary"] |= _items(record.summary.update)
        elif kind == "config":
            found["config"] |= _items(record.config.update)
        elif kind == "artifact":
            (content,) = record.artifact.manifest.contents
            found["artifacts"][record.artifact.type] = content.local_path
        elif kind == "stats":
            found["n_system_metrics"] += 1
        elif kind == "exit":
            found["exit_code"] = record.exit.exit_code
    return found


def _items(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
