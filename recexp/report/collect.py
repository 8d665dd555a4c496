"""Results of many runs, read from their directories."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from recexp.types import RecexpError


def collect(folders: Iterable[str | Path]) -> tuple[list[dict[str, Any]], list[str]]:
    """Every ``result.json`` at or below the folders, with its ``folder`` and the ``overrides`` that made it, and a line per run left out.

    Raises RecexpError where a folder does not exist or nothing at all is found.
    """
    results, left_out = [], []
    for folder in map(Path, folders):
        if not folder.exists():
            raise RecexpError(f"{folder} does not exist: name run directories, or a folder above them.")
        for config in sorted(folder.rglob("config.yaml")):
            if config.parent.name == ".hydra":
                continue
            path = config.parent / "result.json"
            try:
                results.append(json.loads(path.read_text()) | {"folder": str(config.parent), "overrides": _overrides(config.parent)})
            except FileNotFoundError:
                left_out.append(f"{config.parent}: no result.json (failed, or still running)")
            except ValueError as error:
                left_out.append(f"{path}: not readable ({error})")
    if not results:
        raise RecexpError("No run with a result.json was found. " + "; ".join(left_out))
    return results, left_out


def _overrides(folder: Path) -> list[str]:
    """What stood on the command line, without what only says where things lie."""
    path = folder / ".hydra" / "overrides.yaml"
    places = ("hydra.", "cache_dir", "dataset.raw_dir", "logger", "threads", "group", "ckpt_path")
    lines = [line[2:].strip("'\"") for line in path.read_text().splitlines() if line.startswith("- ")] if path.exists() else []
    return [line for line in lines if not line.startswith(places)]
