"""Hooks of mkdocs: pages made from the code, so that they cannot differ from it.

``reference/configuration.md`` lists every choice of every group of ``conf/`` with its keys;
``api/<module>.md`` has the signatures and docstrings of a module; the notebook becomes a page with
its outputs.
"""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

log = logging.getLogger("mkdocs.hooks.recexp")

# Groups whose files are whole configurations or plain texts; their keys belong to other groups.
NO_TARGETS = ("experiment", "hydra", "preset", "debug", "recipe", "tuned", "scale")
SKIPPED_MODULES = ("__main__",)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the generated pages to the navigation."""
    packages: dict[str, list[str]] = {}
    for module in _modules():
        package = module.split(".")[1] if module.count(".") else module
        packages.setdefault(package, []).append(f"api/{module}.md")
    config.nav.append({"API": [{name: pages} for name, pages in packages.items()]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Generate the reference of the configuration and a page per module."""
    files.append(File.generated(config, "reference/configuration.md", content=configuration_page()))
    notebook = ROOT / "docs" / "examples" / "first_ten_minutes.ipynb"
    page = notebook_page(json.loads(notebook.read_text()))
    files.append(File.generated(config, "examples/first_ten_minutes.md", content=page))
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
    """Scalar keys of ``conf/config.yaml`` with the comment beside each."""
    rows = ["| key | value | meaning |", "|---|---|---|"]
    pattern = re.compile(r"^(\w+): +([^#]+?)(?: +# *(.*))?$")
    for line in (ROOT / "conf" / "config.yaml").read_text().splitlines():
        found = pattern.match(line)
        if found and found[1] not in ("hydra", "defaults", "names"):
            rows.append(f"| `{found[1]}` | `{_cell(found[2])}` | {_cell(found[3] or '')} |")
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
    return lines


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
    set_here = {key: value for key, value in node.items() if not key.startswith("_")}
    parameters = _parameters(node["_target_"])
    ours = node["_target_"].startswith("recexp.")
    names = [name for name in parameters if ours or name in set_here]
    names += [name for name in set_here if name not in parameters]
    if not names:
        return ["No keys."]
    rows = ["| key | value | type | default |", "|---|---|---|---|"]
    for name in names:
        value = f"`{_cell(set_here[name])}`" if name in set_here else ""
        type_text, default = parameters.get(name, ("", ""))
        rows.append(f"| `{name}` | {value} | {type_text} | {default} |")
    return rows


def _parameters(target: str) -> dict[str, tuple[str, str]]:
    """Type and default of each keyword parameter, as text for a table."""
    callee = _import(target)
    if callee is None:
        return {}
    found = {}
    for name, parameter in inspect.signature(callee).parameters.items():
        if name in ("self", "schema", "raw_dir") or parameter.kind in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        ):
            continue
        empty = inspect.Parameter.empty
        annotation = "" if parameter.annotation is empty else parameter.annotation
        type_text = annotation if isinstance(annotation, str) else _type_name(annotation)
        default = "" if parameter.default is empty else f"`{_cell(parameter.default)}`"
        found[name] = (f"`{_cell(type_text)}`" if type_text else "", default)
    return found


def _import(target: str) -> Callable[..., Any] | None:
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        log.warning("cannot import %s: %s", target, error)
        return None


def _type_name(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def _cell(value: Any) -> str:
    """Text that cannot end a cell of a table or its code span."""
    text = {None: "null", True: "true", False: "false"}.get(value) if _is_plain(value) else None
    return (text or str(value)).replace("|", "\\|").replace("`", "'").replace("\n", " ")


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool)
