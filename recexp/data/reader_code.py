"""The source of a user's own reader, as part of the fingerprint of the data that it reads.

Which modules count:

- The module that ``_target_`` names, and the packages that hold it.
- Every module that these import, and so on, wherever the import statement stands.
- Of those only code of one's own: not Python's library, not what is installed in site-packages
  (unless it belongs to the top-level package of the target), and not recexp, for which
  ``cache.CODE_VERSION`` stands. A reader that was added to ``recexp.data.readers`` is one's own.

Modules whose names are computed at run time (``importlib.import_module(name)``) are not found. The
source is read from the disk: a process that has imported an earlier version must be started anew.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from recexp.errors import RecexpError

READERS = "recexp.data.readers"
# The readers for which CODE_VERSION stands. A reader on this list may be edited without a change of
# fingerprints; one that is added need not be put here.
BY_CODE_VERSION = frozenset(
    {
        "amazon",
        "amazon_2018",
        "amazon_2023",
        "attribute_sequence",
        "diginetica",
        "feature_tables",
        "jdata_2017",
        "kuairec",
        "lastfm_1k",
        "movielens",
        "recbole",
        "recobell",
        "retailrocket",
        "sequence_file",
        "simulated_shop",
        "steam",
        "table",
        "taobao",
        "tmall",
        "yambda",
        "yoochoose",
    }
)
INSTALLED = ("site-packages", "dist-packages")


def source_checksums(source: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of the source of each module of one's own that the reader consists of, by name.

    Empty for a reader of recexp. source: ``Dataset.source``; a ``_target_`` within its options
    counts, too.

    Raises:
        RecexpError: the source of a reader cannot be found, so that a change would go unnoticed.
    """
    checksums: dict[str, str] = {}
    for target in _targets(source):
        module = _module_of(target)
        if _is_own(module, module):
            _add(module, module.partition(".")[0], checksums, target)
    return dict(sorted(checksums.items()))


def _targets(node: Any) -> Iterator[str]:
    """Every ``_target_`` at or below the node, and what ``hydra.utils.get_method`` is to get."""
    if isinstance(node, Mapping):
        target = node.get("_target_")
        if isinstance(target, str):
            is_getter = target.startswith("hydra.utils.get_")
            yield str(node.get("path", target)) if is_getter else target
        node = list(node.values())
    if isinstance(node, Sequence) and not isinstance(node, str):
        for value in node:
            yield from _targets(value)


def _module_of(target: str) -> str:
    """The module that a dotted name lies in: the longest part of the name that is a module."""
    if target.startswith("recexp.") and not _is_own(target, target):
        return target  # found by name: looking for its module would import polars
    parts = target.split(".")
    found = ""
    for n in range(1, len(parts) + 1):
        name = ".".join(parts[:n])
        if _spec(name) is None:
            break
        found = name
    if not found:
        raise RecexpError(
            f"dataset.source._target_={target}: there is no module {parts[0]}. Put the reader into "
            "a file that Python can import."
        )
    return found


def _add(name: str, package: str, checksums: dict[str, str], target: str) -> None:
    """Add the module, the packages that hold it, and the own modules that they import."""
    parts = name.split(".")
    waiting = [".".join(parts[:n]) for n in range(1, len(parts) + 1)]
    while waiting:
        name = waiting.pop()
        if name in checksums or not _is_own(name, package):
            continue
        spec = _spec(name)
        if spec is None:  # a name in a module, such as a function
            continue
        text = _source(name, spec)
        if text is None:
            raise RecexpError(
                f"dataset.source._target_={target}: the source of module {name} cannot be found, "
                "so a change of the reader would go unnoticed. Put it into a file."
            )
        checksums[name] = hashlib.sha256(text).hexdigest()
        is_package = spec.submodule_search_locations is not None
        waiting += _imports(text, name if is_package else name.rpartition(".")[0])


def _imports(text: bytes, package: str) -> Iterator[str]:
    """Names that may be modules, of all import statements, and of the packages that hold them."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):  # not Python, such as a compiled module
        return
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[:n]) for n in range(1, len(parts) + 1))


def _absolute(node: ast.ImportFrom, package: str) -> str:
    """The module of ``from ... import``, without leading dots."""
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    above = parts[: len(parts) + 1 - node.level]
    return ".".join([*above, *([node.module] if node.module else [])])


def _is_own(name: str, package: str) -> bool:
    """Does the module count? package: the target's, which counts wherever it is installed."""
    top = name.partition(".")[0]
    if top == "recexp":
        reader = name.removeprefix(f"{READERS}.").partition(".")[0]
        return name.startswith(f"{READERS}.") and reader not in BY_CODE_VERSION
    if top in sys.stdlib_module_names or top == "hydra":
        return False
    return top == package.partition(".")[0] or not _is_installed(top)


@cache
def _is_installed(top: str) -> bool:
    """Does the top-level module belong to Python or to an installed library?"""
    spec = _spec(top)
    if spec is None:
        return True
    places = [spec.origin] if spec.origin else [*(spec.submodule_search_locations or [])]
    library = sysconfig.get_path("stdlib")
    return all(
        place in ("built-in", "frozen")
        or place.startswith(library)
        or any(part in INSTALLED for part in Path(place).parts)
        for place in places
    )


def _spec(name: str) -> ModuleSpec | None:
    """Where the module is; None where there is none. Imports the packages that hold it."""
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        module = sys.modules.get(name)  # __main__ has no spec where a file was started
        return None if module is None else ModuleSpec(name, None, origin=_file(module))


def _file(module: Any) -> str | None:
    file = getattr(module, "__file__", None)
    return file if isinstance(file, str) else None


def _source(name: str, spec: ModuleSpec) -> bytes | None:
    """The module's source with line ends as "\\n", or its file where it is compiled.

    None where there is neither. A namespace package has an empty source.
    """
    if spec.origin is None and spec.submodule_search_locations is not None:
        return b""
    get_source = getattr(spec.loader, "get_source", None)
    try:
        text = get_source(name) if get_source is not None else None
        if text is not None:
            return str(text).encode()
        return Path(spec.origin).read_bytes() if spec.origin else None
    except (OSError, ImportError, UnicodeError):
        return None
