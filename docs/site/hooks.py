"""Hooks of mkdocs: pages made from the code, so that they cannot differ from it.

``reference/configuration.md`` lists every choice of every group of ``conf/`` with its keys;
``api/<module>.md`` has the signatures and docstrings of a module; notebooks become pages with
their outputs.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import logging
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

log = logging.getLogger("mkdocs.hooks.recexp")

# Groups whose files are whole configurations or plain texts; their keys belong to other groups.
NO_TARGETS = ("experiment", "hydra", "preset", "debug", "recipe", "tuned", "scale", "search")
SKIPPED_MODULES = ("__main__",)
# Parameters that code passes, not the configuration.
NOT_CONFIGURED = ("self", "schema")
GIVEN_TO_READERS = ("raw_dir", "on_bad_rows")
# Keys that a page of their own describes.
ELSEWHERE = {"download": "[Data sets](../guides/data_sets.md)"}
VARIADIC = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the generated pages to the navigation."""
    packages: dict[str, list[str]] = {}
    for module in _modules():
        package = module.split(".")[1] if module.count(".") else module
        packages.setdefault(package, []).append(f"api/{module}.md")
    assert config.nav is not None, "docs/site/mkdocs.yml has a nav"
    config.nav.append({"API": [{name: pages} for name, pages in packages.items()]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Generate the reference of the configuration and a page per module."""
    files.append(File.generated(config, "reference/configuration.md", content=configuration_page()))
    for notebook in sorted((ROOT / "docs" / "examples").glob("*.ipynb")):
        page = notebook_page(json.loads(notebook.read_text()))
        files.append(File.generated(config, f"examples/{notebook.stem}.md", content=page))
    for module in _modules():
        content = f"# {module}\n\n::: {module}\n    options:\n      show_root_heading: false\n"
        files.append(File.generated(config, f"api/{module}.md", content=content))
    return files


def notebook_page(notebook: dict[str, Any]) -> str:
    """A notebook as Markdown: texts, code and the plain text of the outputs."""
    parts = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(text)
            continue
        parts.append(f"```python\n{text}\n```")
        for output in cell["outputs"]:
            lines = output.get("text") or output.get("data", {}).get("text/plain", [])
            parts.append(f"```text\n{''.join(lines).strip()}\n```")
    return "\n\n".join(parts) + "\n"


def _modules() -> Iterator[str]:
    """Every importable module of the package, in alphabetical order."""
    for path in sorted((ROOT / "recexp").rglob("*.py")):
        folders = [p for p in path.parents if ROOT in p.parents]
        if not all((folder / "__init__.py").is_file() for folder in folders):
            continue  # the namespace package in which Hydra looks for plugins
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] in SKIPPED_MODULES:
            continue
        if parts[-1] == "__init__":
            parts = parts[:-1]
        yield ".".join(parts)


def configuration_page() -> str:
    """The whole reference: general keys, then one section per group."""
    lines = [
        "# Configuration",
        "",
        "Generated from `conf/` and the constructors that its files name. "
        "`value` is what the file sets, `default` what the constructor takes otherwise.",
        "",
        "## General keys",
        "",
        *_general_keys(),
    ]
    groups = sorted(path for path in (ROOT / "conf").iterdir() if path.is_dir())
    for group in groups:
        if group.name not in NO_TARGETS:
            lines += ["", f"## {group.name}", "", *_group(group)]
    return "\n".join(lines) + "\n"


def _general_keys() -> list[str]:
    """Keys of ``conf/config.yaml`` with the comment beside each, one level deep."""
    rows = ["| key | value | meaning |", "|---|---|---|"]
    pattern = re.compile(r"^(  )?(\w+):(?: +([^#\s][^#]*?))?(?: +# *(.*))?$")
    parent = ""
    for line in (ROOT / "conf" / "config.yaml").read_text().splitlines():
        found = pattern.match(line)
        if not found:
            continue
        is_nested, key, value, comment = found.groups()
        if not is_nested:
            parent = key
        if value is not None and parent not in ("hydra", "defaults", "names"):
            name = f"{parent}.{key}" if is_nested else key
            rows.append(f"| `{name}` | `{_cell(value)}` | {_cell(comment or '')} |")
    return rows


def _group(group: Path) -> list[str]:
    """One subsection per file of a group."""
    lines: list[str] = []
    for path in sorted(group.glob("*.yaml")):
        text = path.read_text()
        lines += [f"### {group.name}={path.stem}", ""]
        notes = [line[1:].strip() for line in text.splitlines() if line.startswith("#")]
        notes = [note for note in notes if not note.startswith(("@package", "python -m"))]
        if notes:
            lines += [" ".join(notes), ""]
        node = yaml.safe_load(text) or {}
        if isinstance(node, dict):
            for name, part in _targets(node, group.name):
                lines += [f"`{name}`: `{part['_target_']}`", "", *_keys(part), ""]
            lines += _other_settings(node, group.name)
    return lines


def _other_settings(node: dict[str, Any], group: str) -> list[str]:
    """What a file is based on, which other groups it chooses, and which other keys it sets."""
    bases = []
    chosen = []
    for choice in node.get("defaults", []):
        if isinstance(choice, str) and choice != "_self_":
            bases.append(f"`{group}={choice}`")
        elif isinstance(choice, dict):
            (name, value), *_ = choice.items()
            other = name.removeprefix("override ").removeprefix("/").partition("@")[0]
            chosen.append(f"`{other}={_cell(value)}`")
    settings = [
        f"`{key}: {_cell(value)}`"
        for key, value in _leaves(node, "")
        if key.partition(".")[0] != "defaults"
    ]
    if "_target_" in node:
        settings = []
    lines = []
    if bases:
        lines += ["Based on " + ", ".join(bases) + ".", ""]
    if chosen:
        lines += ["Chooses " + ", ".join(chosen) + ".", ""]
    if settings:
        lines += ["Sets " + ", ".join(settings) + ".", ""]
    return lines


def _leaves(node: dict[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values outside of mappings with a ``_target_``."""
    for key, value in node.items():
        name = f"{path}.{key}" if path else str(key)
        if isinstance(value, dict) and value:
            if "_target_" not in value:
                yield from _leaves(value, name)
        else:
            yield name, value


def _targets(node: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping with a ``_target_``, outermost first."""
    if "_target_" in node:
        yield path, node
    for key, value in node.items():
        if isinstance(value, dict):
            inner = path if key == path else f"{path}.{key}"
            yield from _targets(value, inner)


def _keys(node: dict[str, Any]) -> list[str]:
    """A row per parameter of the constructor; for libraries only those that the file sets."""
    no_keys = ("defaults", "_target_", "_partial_")
    set_here = {key: value for key, value in node.items() if key not in no_keys}
    parameters = _parameters(node["_target_"])
    if node.get("_partial_"):
        parameters = {k: v for k, v in parameters.items() if k not in GIVEN_TO_READERS}
    ours = node["_target_"].startswith("recexp.")
    names = [name for name in parameters if ours or name in set_here]
    names += [name for name in set_here if name not in parameters]
    if not names:
        return ["No keys."]
    rows = ["| key | value | type | default |", "|---|---|---|---|"]
    for name in names:
        value = ""
        if name in set_here:
            value = ELSEWHERE.get(name) or _value(set_here[name])
        type_text, default = parameters.get(name, ("", ""))
        rows.append(f"| `{name}` | {value} | {type_text} | {default} |")
    return rows


def _parameters(target: str) -> dict[str, tuple[str, str]]:
    """Type and default of each keyword parameter, as text for a table."""
    callee = _import(target)
    if callee is None:
        return {}
    hints = _hints(callee)
    found = {}
    for name, parameter in inspect.signature(callee).parameters.items():
        if name in NOT_CONFIGURED or parameter.kind in VARIADIC:
            continue
        has_default = parameter.default is not inspect.Parameter.empty
        default = f"`{_cell(parameter.default)}`" if has_default else ""
        type_text = _cell(_type_text(hints[name])) if name in hints else ""
        found[name] = (type_text, default)
    return found


def _hints(callee: Callable[..., Any]) -> dict[str, Any]:
    """Type hints of the parameters, ranges included; empty where they cannot be resolved."""
    is_plain_class = inspect.isclass(callee) and not dataclasses.is_dataclass(callee)
    try:
        return typing.get_type_hints(
            callee.__init__ if is_plain_class else callee, include_extras=True
        )
    except (NameError, TypeError):
        return {}


def _type_text(hint: Any) -> str:
    """A type in words: "int (≥ 1)", "post or pre", "float or null"."""
    origin = typing.get_origin(hint)
    if origin is Annotated:
        base, *notes = typing.get_args(hint)
        limits = [limit for note in notes for limit in _limits(note)]
        return f"{_type_text(base)} ({', '.join(limits)})" if limits else _type_text(base)
    if origin is typing.Literal:
        return " or ".join(_cell(word) for word in typing.get_args(hint))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_text(part) for part in typing.get_args(hint))
    if hint is type(None):
        return "null"
    arguments = [a for a in typing.get_args(hint) if a is not Ellipsis]
    if origin is not None and arguments and not callable(arguments[0]):
        return str(hint)
    if origin is not None and arguments:
        return f"{origin.__name__} of " + ", ".join(_type_text(a) for a in arguments)
    return getattr(hint, "__name__", str(hint))


def _limits(note: Any) -> Iterator[str]:
    """The bounds that a pydantic ``Field`` or an ``annotated_types`` constraint states."""
    for constraint in getattr(note, "metadata", [note]):
        for name, sign in BOUNDS.items():
            bound = getattr(constraint, name, None)
            if bound is not None:
                yield f"{sign} {bound}"


def _value(value: Any) -> str:
    """A value as code; a part with a constructor of its own has a table of its own."""
    if isinstance(value, dict) and "_target_" in value:
        return "below"
    return f"`{_cell(value)}`"


def _import(target: str) -> Callable[..., Any] | None:
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        log.warning("cannot import %s: %s", target, error)
        return None


def _cell(value: Any) -> str:
    """Text that cannot end a cell of a table or its code span."""
    text = {None: "null", True: "true", False: "false"}.get(value) if _is_plain(value) else None
    return (text or str(value)).replace("|", "\\|").replace("`", "'").replace("\n", " ")


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool)
