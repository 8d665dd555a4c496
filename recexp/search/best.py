"""The best values of a search as a preset, which later runs choose by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from recexp.errors import RecexpError
from recexp.io import atomic_write, file_lock
from recexp.runs.identity import is_material

# Decide what is measured, or are no setting of training; a preset leaves them to the user.
LEFT_TO_USER = (
    "dataset",
    "protocol",
    "selection",
    "seed",
    "evaluation",
    "preset",
    "note",
    "init_from",
    "store_on",
)
HEAD = """\
# python -m recexp --config-dir FOLDER preset={name} model=... dataset=...
# Written by hydra/sweeper=optuna; FOLDER is the one that holds preset/{name}.yaml
"""


def preset_values(plain: Mapping[str, Any], best: Mapping[str, Any]) -> dict[str, Any]:
    """What a preset has to set so that the config ``plain`` becomes ``best``.

    Both are unresolved. A node with another ``_target_`` is taken whole.
    """
    values = {}
    for key, value in best.items():
        if key in LEFT_TO_USER or not is_material(key):
            continue
        changed = _changed(plain.get(key), value, key)
        if changed is not None:
            values[key] = changed
    return values


def _changed(plain: Any, best: Any, path: str) -> Any:
    """The part of ``best`` that differs; None where nothing does."""
    if plain == best:
        return None
    if not (isinstance(plain, Mapping) and isinstance(best, Mapping)):
        return best
    if plain.get("_target_") != best.get("_target_"):
        return dict(best)
    parts = {}
    for key, value in best.items():
        dotted = f"{path}.{key}"
        changed = _changed(plain.get(key), value, dotted) if is_material(dotted) else None
        if changed is not None:
            parts[key] = changed
    return parts or None


def check_preset_path(text: str) -> Path:
    """Where the preset goes; RecexpError unless Hydra would find it there."""
    path = Path(text).absolute()
    if path.parent.name != "preset" or path.suffix != ".yaml" or not path.stem.isidentifier():
        raise RecexpError(
            f"hydra.sweeper.preset={text}: must be FOLDER/preset/NAME.yaml; --config-dir FOLDER "
            "preset=NAME then chooses it."
        )
    return path


def write_preset(path: Path, dataset: str, model: str, values: Mapping[str, Any]) -> None:
    """Enter the values into the preset's table; entries of other pairs stay.

    Raises RecexpError where the file there is no preset.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(path.with_name(f".{path.name}.lock")):
        entries = _entries(path)
        entries.setdefault(dataset, {})[model] = dict(values)
        content = yaml.safe_dump({"name": path.stem, "entries": entries}, sort_keys=False)
        with atomic_write(path) as temporary:
            temporary.write_text(HEAD.format(name=path.stem) + content, encoding="utf-8")


def _entries(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, yaml.YAMLError) as error:
        raise RecexpError(f"{path} is no preset: {str(error).splitlines()[0]}.") from error
    entries = content.get("entries") if isinstance(content, dict) else None
    if not isinstance(entries, dict) or not all(isinstance(e, dict) for e in entries.values()):
        raise RecexpError(f"{path} is no preset: it has no entries by data set and model.")
    return entries
