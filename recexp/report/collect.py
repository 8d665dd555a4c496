"""Results of many runs, read from their directories."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from recexp.types import RecexpError


def collect(folders: Iterable[str | Path]) -> tuple[list[dict[str, Any]], list[str]]:
    """Every ``result.json`` at or below the folders, with its ``folder``, and a line per run left out.

    Raises RecexpError where a folder does not exist or nothing at all is found.
    """
    results, left_out = [], []
    for folder in map(Path, folders):
        if not folder.exists():
            raise RecexpError(f"{folder} does not exist: name run directories, or a folder above them.")
        runs = {p.parent for name in ("config.yaml", "result.json") for p in folder.rglob(name) if p.parent.name != ".hydra"}
        for run in sorted(runs):
            try:
                results.append(json.loads((run / "result.json").read_text()) | {"folder": str(run)})
            except FileNotFoundError:
                left_out.append(f"{run}: no result.json (failed, or still running)")
            except ValueError as error:
                left_out.append(f"{run / 'result.json'}: not readable ({error})")
    if not results:
        raise RecexpError("No run with a result.json was found. " + "; ".join(left_out))
    return results, left_out
