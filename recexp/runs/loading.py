"""Read the files of a run directory, which may come from another person.

Values are read; nothing is computed or executed. This module imports no torch; checkpoints are read
by ``recexp.training.checkpoints``.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from recexp.errors import RecexpError
from recexp.io import read_limited
from recexp.renamed import with_new_keys
from recexp.runs.result import RunResult

# The most that is read of a run. Its files are usually a hundredth of this.
MAX_RESULT_BYTES = 4 << 20
MAX_CONFIG_BYTES = 256 << 10
MAX_EPOCHS_BYTES = 8 << 20  # metrics.csv
MAX_RANKS_BYTES = 256 << 20
MAX_RANKS_ROWS = 10_000_000
MAX_CANDIDATES = 10_000_000  # of a user in ranks.parquet
MAX_DEPTH = 20  # of nested settings
MAX_WHOLE_NUMBER = 1 << 64  # seeds are below it
MAX_MEASUREMENT = 1e39  # of metrics.csv; float32 ends below it

READ_ERRORS = (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError)


def read_result(path: Path) -> RunResult:
    """``result.json`` of a finished run.

    Raises RecexpError where the file is missing or damaged, the run was interrupted, or a value
    is not what a run writes.
    """
    try:
        content = read_json(path)
    except FileNotFoundError:
        raise RecexpError(f"{path} is missing: only a finished run can be evaluated.") from None
    if isinstance(content, dict) and "interrupted" in content:
        raise RecexpError(f"{path.parent} was interrupted: only a finished run can be evaluated.")
    try:
        result = RunResult.parse(content)
        if result.data.fingerprint is None:
            raise RecexpError("its data have no fingerprint")
    except RecexpError as error:
        raise RecexpError(f"{path} is no run's result: {error}.") from None
    return result


def read_json(path: Path) -> Any:
    """A JSON file of a run.

    Raises FileNotFoundError, and RecexpError for a file that is damaged, too large or too deep.
    """
    content = read_limited(path, MAX_RESULT_BYTES)
    try:
        node = json.loads(content)
        _check_plain(node, "")
    except READ_ERRORS as error:
        raise RecexpError(f"{path} is damaged: {_one_line(error)}.") from error
    return node


def read_config(path: Path) -> DictConfig:
    """``config.yaml`` as a run writes it: plain values.

    Raises RecexpError for anything that would be computed while reading it (``${...}``, YAML tags).
    """
    try:
        cfg = OmegaConf.create(read_settings(path))
    except FileNotFoundError:
        raise RecexpError(f"{path} is missing: it says what was trained.") from None
    except OmegaConfBaseException as error:
        raise RecexpError(f"{path} cannot be read: {_one_line(error)}") from error
    for key, text in _strings(OmegaConf.to_container(cfg), ""):
        if "${" in text or text == "???":
            raise RecexpError(
                f"{path}: {key}={text} is to be computed; a run writes down plain values, so no "
                "run wrote this file. Nothing of it was used."
            )
    return cfg


def read_settings(path: Path) -> dict[str, Any]:
    """``config.yaml`` of a run as nested dicts, in today's spelling of keys.

    Raises FileNotFoundError, and RecexpError for a file that is damaged, too large, too deep or no
    mapping.
    """
    content = read_limited(path, MAX_CONFIG_BYTES)
    try:
        node = with_new_keys(plain_yaml(content))
    except READ_ERRORS as error:
        raise RecexpError(f"{path} cannot be read: {_one_line(error)}") from error
    if not isinstance(node, dict):
        raise RecexpError(f"{path} is not the config of a run.")
    return node


def plain_yaml(content: bytes | str) -> Any:
    """The value of a YAML document without tags and aliases.

    Aliases can unfold a small document to any size; no run writes them.

    Raises yaml.YAMLError, ValueError or RecursionError.
    """
    node = yaml.load(content, _PlainLoader)  # a SafeLoader
    _check_plain(node, "")
    return node


def read_epoch_table(path: Path) -> list[dict[str, float]]:
    """The rows of ``metrics.csv`` without empty cells.

    Raises FileNotFoundError, and RecexpError for a file that is damaged or too large.
    """
    content = read_limited(path, MAX_EPOCHS_BYTES)
    try:
        reader = csv.DictReader(io.StringIO(content.decode(), newline=""))
        rows = []
        for n, cells in enumerate(reader, 1):
            rows.append(_measurements(cells, n))
            if len(rows) > 1 and rows[-1]["epoch"] <= rows[-2]["epoch"]:
                raise ValueError(f"row {n}: epoch does not rise")
    except (ValueError, csv.Error) as error:
        raise RecexpError(f"{path} is damaged: {_one_line(error)}.") from error
    return rows


class _PlainLoader(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases are not allowed", mark)
        return super().compose_node(parent, index)


def _measurements(cells: dict[str, str], n: int) -> dict[str, float]:
    """Row n of ``metrics.csv`` as numbers. Raises ValueError."""
    row = {}
    for name, cell in cells.items():
        if not name or not cell:
            continue
        try:
            row[name] = float(cell)
        except (ValueError, TypeError):
            raise ValueError(f"row {n}, column {name[:40]!r}: {cell[:40]!r} is no number") from None
        if not abs(row[name]) < MAX_MEASUREMENT:
            raise ValueError(f"row {n}, column {name[:40]!r}: {cell[:40]!r} is no measurement")
    if row.get("epoch", -1) < 0:
        raise ValueError(f"row {n} has no epoch")
    return row


def _check_plain(node: Any, path: str, depth: int = 0) -> None:
    """Raise ValueError for values that a run does not write: too deep, too large, no plain type."""
    if depth > MAX_DEPTH:
        raise ValueError(f"{path[:40]}... is nested more than {MAX_DEPTH} times")
    if isinstance(node, dict):
        for key, value in node.items():
            if not isinstance(key, str | int | float | bool | None):
                raise ValueError(f"a key of {path[:40]} is no text")
            _check_plain(value, f"{path}.{key}".lstrip("."), depth + 1)
    elif isinstance(node, list):
        for i, value in enumerate(node):
            _check_plain(value, f"{path}[{i}]", depth + 1)
    elif not isinstance(node, str | int | float | bool | None):
        raise ValueError(f"{path[:40]} is no plain value")
    elif isinstance(node, int) and abs(node) > MAX_WHOLE_NUMBER:
        raise ValueError(f"{path[:40]} is no number of a run")


def _one_line(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return f"nested more than {MAX_DEPTH} times"
    return " ".join(str(error).split())


def _strings(node: Any, path: str) -> Iterator[tuple[str, str]]:
    """Every string at or below the node, keys included, with its dotted path."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _strings(str(key), f"{path}.<key>".lstrip("."))
            yield from _strings(value, f"{path}.{key}".lstrip("."))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _strings(value, f"{path}[{i}]")
    elif isinstance(node, str):
        yield path, node
