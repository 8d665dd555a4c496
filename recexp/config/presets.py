"""Presets: values for a pair of model and data set, merged into the composed config.

``conf/preset/<name>.yaml`` holds ``entries``: data set -> model -> values, ``"*"`` for any. Hydra
forbids overrides inside interpolated defaults, hence the merge in code. What wins over what, from
weak to strong: the composed config, the preset, ``over_preset`` (set by an experiment, a scale or
``debug``), the command line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.conf import HydraConf
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from recexp.config import CONF
from recexp.config.values import shown
from recexp.errors import RecexpError

ANY = "*"
# Groups of which several may be chosen, as in logger=[auto,csv]. Hydra lists no choice then.
SEVERAL = ("logger",)
PRESET_KEYS = {"name", "entries"}


def compose_config(overrides: Iterable[str] = ()) -> DictConfig:
    """The config of a command line with its preset merged, Hydra's own node included.

    Raises what Hydra raises for unknown choices and keys, and RecexpError where the preset has no
    entry for the pair of model and data set, or a list stands for one choice.
    """
    overrides = list(overrides)
    check_choices(overrides)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides, return_hydra_config=True)
    return apply_preset(cfg)


def check_choices(words: Iterable[str]) -> None:
    """Raise RecexpError for several choices where a run takes one, as in ``model=[ite,mf]``.

    Hydra would merge them.
    """
    for word in words:
        group, is_list, choices = word.lstrip("+").partition("=[")
        if is_list and group and group not in SEVERAL and (CONF / group).is_dir():
            raise RecexpError(
                f"{word}: a run has one {group}. A sweep over several: "
                f"-m {group}={choices.rstrip(']')}"
            )


def with_quickstart(words: Iterable[str]) -> list[str]:
    """The command line, with the default experiment where it chooses nothing to run.

    Hydra's own help composes none of our groups.
    """
    words = list(words)
    chosen = {word.lstrip("+~").partition("=")[0] for word in words}
    if chosen & {"model", "dataset", "preset", "experiment", "--hydra-help"}:
        return words
    return [*words, "experiment=quickstart"]


def apply_preset(cfg: DictConfig, hydra: HydraConf | None = None) -> DictConfig:
    """Merge the preset into the config in place; afterwards ``cfg.preset`` is its name.

    hydra: Hydra's own node, where the config does not contain it. A config whose preset is merged
    already stays as it is.
    """
    preset = cfg.get("preset")
    if not isinstance(preset, DictConfig):
        return cfg
    node: Any = cfg.hydra if hydra is None else hydra
    choices = node.runtime.choices
    command_line = OverridesParser.create().parse_overrides(list(node.overrides.task))
    groups = {*choices, *SEVERAL}
    chosen = {o.key_or_group for o in command_line if o.key_or_group in groups}
    values = _entry(preset, choices.model, choices.dataset)
    over = _mapping(cfg, "over_preset", "")
    with open_dict(cfg):
        cfg.pop("over_preset", None)
        for key, value in values.items():
            chooses_group = isinstance(value, DictConfig) and "_target_" in value
            if chooses_group and key in chosen:
                continue
            _set(cfg, str(key), value, merge=not chooses_group)
        for key, value in over.items():
            _set(cfg, str(key), value, merge=True)
        for override in command_line:
            if override.key_or_group not in groups and override.key_or_group != "over_preset":
                _override(cfg, override)
        cfg.preset = preset.name
    return cfg


def is_pending(cfg: DictConfig) -> bool:
    """Does the config have a preset, or values over it, that are not merged yet?"""
    preset = cfg.get("preset")
    has_entries = isinstance(preset, DictConfig) and "entries" in preset
    return has_entries or bool(cfg.get("over_preset"))


def _entry(preset: DictConfig, model: str, dataset: str) -> DictConfig:
    """The values for the pair: those for any model or data set first, the pair's own last."""
    if unknown := sorted(map(str, set(preset) - PRESET_KEYS)):
        raise RecexpError(f"Unknown key preset.{unknown[0]}: a preset knows name and entries.")
    if not isinstance(preset.get("name"), str):
        raise RecexpError(f"preset.name={preset.get('name')!r}: must be a text.")
    if "entries" not in preset:
        return OmegaConf.create({})
    table = _mapping(preset, "entries", "preset")
    for data in map(str, table):  # all, not only those of this pair
        models = _mapping(table, data, "preset.entries")
        for name in map(str, models):
            _mapping(models, name, f"preset.entries.{data}")
    found: list[tuple[str, str, DictConfig]] = []
    for data in (ANY, dataset):
        models = _mapping(table, data, "preset.entries")
        for name in (ANY, model):
            if name in models:
                found.append((name, data, _mapping(models, name, f"preset.entries.{data}")))
    if not found:
        entries = _listed(preset.entries or {})
        raise RecexpError(
            f"preset={preset.name} has no entry for model={model} dataset={dataset}; it has "
            f"{entries}. preset=none takes the values of the model's own YAML."
        )
    values = OmegaConf.create({})
    for name, data, entry in found:
        try:
            values.merge_with(OmegaConf.to_container(entry, resolve=False))
        except (OmegaConfBaseException, TypeError) as error:
            raise RecexpError(
                f"preset.entries.{data}.{name} does not fit the entries for any data set or "
                f"model: {_first_line(error)}."
            ) from error
    return values


def _mapping(parent: DictConfig, key: str, path: str) -> DictConfig:
    """The mapping at ``key``, an empty one where there is none; RecexpError for anything else."""
    name = f"{path}.{key}".lstrip(".")
    try:
        node = parent.get(key)
    except OmegaConfBaseException as error:
        raise RecexpError(f"{name}: {_first_line(error)}.") from error
    if node is None:
        return OmegaConf.create({})
    if not isinstance(node, DictConfig):
        raise RecexpError(f"{name}={shown(node)}: must be names with values.")
    return node


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _listed(entries: Mapping[Any, Any]) -> str:
    """The pairs of a table, as an error lists them."""
    lines = []
    for dataset, models in entries.items():
        place = "any data set" if dataset == ANY else f"dataset={dataset}"
        lines.append(f"{place}: {', '.join(sorted(map(str, models or ())))}")
    return "; ".join(lines)


def _set(cfg: DictConfig, key: str, value: Any, *, merge: bool) -> None:
    """Set or merge one top-level key, interpolations kept.

    Raises RecexpError where the value has not the form of what it changes.
    """
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value, resolve=False)
    _update(cfg, key, value, merge=merge)


def _update(cfg: DictConfig, key: str, value: Any, *, merge: bool = True) -> None:
    try:
        OmegaConf.update(cfg, key, value, merge=merge, force_add=True)
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise RecexpError(f"{key}={shown(value)} cannot be set: {_first_line(error)}.") from error


def _override(cfg: DictConfig, override: Override) -> None:
    """Repeat an override of the command line, which the preset may have undone."""
    key = override.key_or_group
    if not override.is_delete():
        _update(cfg, key, override.value())
        return
    parent, _, last = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    if isinstance(node, DictConfig) and last in node:
        del node[last]
