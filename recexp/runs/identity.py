"""Which settings decide a run's numbers, and so which two runs are the same run.

The launcher uses it to decide whether a job of a sweep has to run again, the report to decide
which results belong to one system.

Decided where it is not obvious:

- ``threads`` and ``eval_batch_size`` say how fast a run computes, not what it computes.
- ``ckpt_path`` and ``resume`` are immaterial: a resumed run equals the uninterrupted one.
- ``evaluation`` says what is measured besides and kept, and changes no other number. A finished run
  is not repeated for it: ``python -m recexp.evaluate RUN_DIR PROTOCOL --keep-top 100`` adds it.
- ``plugins`` only allows own code; the ``_target_`` that names a class of it is material.
- ``store_on`` is material: negatives are drawn by the random generator of the device that holds
  the data, and the streams of a CPU and a GPU differ.
- ``dataset.download`` says where raw files come from; the files decide.
- ``experiment`` and ``preset`` only choose values. The composed config holds these values, so it
  decides; as words of a command line both are material, because they say which values were asked
  for.
- ``dataset.raw_dir`` is material before the data are read. A finished run has the fingerprint of
  its data; comparing results, use that and ``material(config, data_known=True)``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

# Where files lie, and names for a person or a logger. Patterns for dotted keys; a key also covers
# everything below it.
PLACES = (
    "cache_dir",
    "run_dir",
    "ckpt_path",
    "logger",
    "names",
    "group",
    "tags",
    "hydra",
    "*.dirpath",
    "*.save_dir",
    "*.run_dir",
    "*.default_root_dir",
)
RAW_FILES = ("*.raw_dir",)
IMMATERIAL = (
    *PLACES,
    "evaluation",
    "plugins",
    "resume",
    "threads",
    "*.threads",
    "eval_batch_size",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "dataset.download",
)

Config = Mapping[str, Any]


def is_material(key: str, immaterial: Iterable[str] = IMMATERIAL) -> bool:
    """Can the setting of this dotted key change a number of a run?"""
    parts = key.split(".")
    above = [".".join(parts[:n]) for n in range(1, len(parts) + 1)]
    return not any(fnmatchcase(name, pattern) for name in above for pattern in immaterial)


def without(config: Config, patterns: Sequence[str]) -> dict[str, Any]:
    """The config without the keys that a pattern matches; nested dicts stay nested."""
    kept: dict[str, Any] = _without(config, tuple(patterns), "")
    return kept


def material(config: Config, *, data_known: bool = False) -> dict[str, Any]:
    """The settings that can change a number of the run.

    data_known: leave out where the raw files lie, because the caller compares the fingerprints
    of the data.
    """
    return without(config, (*IMMATERIAL, *RAW_FILES) if data_known else IMMATERIAL)


def same_run(a: Config, b: Config, *, data_known: bool = False) -> bool:
    """Do runs of these two configs give the same numbers?"""
    return material(a, data_known=data_known) == material(b, data_known=data_known)


def differences(before: Config, now: Config) -> list[str]:
    """The dotted keys of material settings in which two configs differ."""
    return _differences(material(before), material(now), "")


def material_overrides(overrides: Iterable[str]) -> tuple[str, ...]:
    """The command line's overrides that can change a number, in their order."""
    return tuple(override for override in overrides if is_material(key_of(override)))


def key_of(override: str) -> str:
    """The key of an override, without prefix and package: "+a.b@c=1" -> "a.b", "a/b=c" -> "a"."""
    return re.split(r"[=@/]", override.lstrip("+~"), maxsplit=1)[0]


def _without(node: Any, patterns: tuple[str, ...], path: str) -> Any:
    if isinstance(node, Mapping):
        kept = {}
        for key, value in node.items():
            dotted = f"{path}.{key}" if path else str(key)
            if is_material(dotted, patterns):
                kept[key] = _without(value, patterns, dotted)
        return kept
    if isinstance(node, list):
        return [_without(value, patterns, path) for value in node]
    return node


def _differences(before: Any, now: Any, path: str) -> list[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        found = []
        for key in dict.fromkeys([*before, *now]):
            dotted = f"{path}.{key}" if path else str(key)
            found += _differences(before.get(key), now.get(key), dotted)
        return found
    return [] if before == now else [path]
