"""A finished run as material: what was trained, the tested checkpoint, and the data.

The run may come from another person. Its files say what was trained; they choose no place to read
data from or to write to, run no code, and are held to bounds of memory.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from recexp.config import CONF
from recexp.config.build import build
from recexp.config.check import check_config
from recexp.data.cache import prepare, prepared_folder, verify
from recexp.data.split import Split
from recexp.data.store import Store
from recexp.errors import RecexpError
from recexp.io import checksum
from recexp.runs.loading import read_config, read_result
from recexp.runs.result import RunResult
from recexp.training.checkpoints import read_checkpoint

SIMULATIONS = ("recexp.data.readers.simulated_shop.read", "recexp.data.simulation.stand_in.read")
NEEDED_META = ("fingerprint", "settings", "simulated", "left_out")
# A run of another person simulates no more than this: a minute of work.
MAX_SIMULATED = {"users": 1_000_000, "items": 1_000_000, "categories": 100_000}
MAX_SIMULATED_EVENTS = 20_000_000
MAX_USERS_AT_ONCE = 4096
MAX_EVENTS_AT_ONCE = 1 << 21  # of the histories of the users ranked at once
SHOWN = 200  # characters of a run's value that an error shows


@dataclass(frozen=True)
class FinishedRun:
    """folder: the run directory. cfg: its config, with the user's places of data in it.

    checkpoint: the file with the tested weights. places: what the user can add to the command line
    where the data are not found.
    """

    folder: Path
    result: RunResult
    cfg: DictConfig
    checkpoint: Path
    places: str


def open_run(
    run_dir: str | Path,
    *,
    raw_dir: str | None = None,
    cache_dir: str | None = None,
    plugins: Sequence[str] = (),
) -> FinishedRun:
    """Read a finished run.

    raw_dir, cache_dir: where raw and prepared data lie; the defaults are those of ``conf``, never
    those of the run. plugins: packages of the user's whose code the run may name.

    Raises RecexpError where the run is unfinished, or one of its files is missing, damaged, or not
    what a run writes.
    """
    folder = Path(run_dir)
    result = read_result(_inside(folder, "result.json"))
    if result.external is not None:
        raise RecexpError(
            f"{folder} holds no model: it is the result of another program's predictions "
            f"({result.external.file}). Evaluate them under another protocol by --predictions."
        )
    cfg = read_config(_inside(folder, "config.yaml"))
    cfg.plugins = list(plugins)  # never those of the run
    check_config(cfg)  # before anything of it is built
    checkpoint = _tested_checkpoint(folder, result)
    places = _places(cfg)
    cfg.dataset.download = None  # addresses of another person's run are not advice
    cfg.dataset.raw_dir = raw_dir or _default_raw_dir(cfg)
    cfg.cache_dir = cache_dir or OmegaConf.load(CONF / "config.yaml").cache_dir
    _bound(cfg)
    return FinishedRun(folder, result, cfg, checkpoint, places)


def open_data(run: FinishedRun, split: Split) -> Store:
    """The data that the run was trained on, from the user's cache, else from their raw files.

    Raises RecexpError where neither has them.
    """
    cfg = run.cfg
    fingerprint = str(run.result.data.fingerprint)
    folder = _prepared_folder(run, fingerprint)
    store = _open_prepared(folder, split)
    if store is None:
        if not cfg.dataset.raw_dir:
            raise RecexpError(
                f"The prepared data {folder} are missing or damaged, and conf/dataset does not say "
                f"where the raw files of {cfg.dataset.name!r} lie. {run.places}"
            )
        _check_simulation(cfg)
        try:
            dataset = build(cfg.dataset, _recursive_=False)
            store = Store.open(prepare(dataset, split, cfg.cache_dir))
        except RecexpError as error:
            raise RecexpError(f"{error} {run.places}") from error
    if store.meta["fingerprint"] != fingerprint:
        raise RecexpError(
            f"The data at {cfg.dataset.raw_dir} are not those that {run.folder} was trained on: "
            f"their fingerprints differ. {run.places}"
        )
    return store


def training_data(run: FinishedRun, store: Store, split: Split) -> Store:
    """The data that the tested weights were trained on.

    store: of ``open_data``. After a refit, validation targets are among the training data, which
    some models read when they score. Results of earlier versions do not name those data; then it is
    ``store``.
    """
    refit = run.result.refit
    if not run.result.selection.startswith("refit") or refit is None or refit.fingerprint is None:
        return store
    cfg = run.cfg
    merged = replace(split, merge_val=True)
    folder = _prepared_folder(run, refit.fingerprint)
    opened = _open_prepared(folder, merged)
    if opened is not None:
        return opened
    try:
        return Store.open(prepare(build(cfg.dataset, _recursive_=False), merged, cfg.cache_dir))
    except RecexpError as error:
        raise RecexpError(f"{error} {run.places}") from error


def _prepared_folder(run: FinishedRun, fingerprint: str) -> Path:
    """Where the user's cache has the data. Raises RecexpError for what is no fingerprint."""
    if not re.fullmatch(r"[0-9a-f]{16}", fingerprint):
        raise RecexpError(f"{run.folder}/result.json: no run writes the fingerprint it names.")
    return prepared_folder(run.cfg.cache_dir, run.cfg.dataset.name, fingerprint)


def check_size(run: FinishedRun, store: Store) -> None:
    """Raise RecexpError where the model is larger than the checkpoint, before it takes memory."""
    with torch.device("meta"):
        model = build(run.cfg.model, schema=store.schema)
    state = read_checkpoint(run.checkpoint)["state_dict"]
    n_saved = sum(value.numel() for value in state.values() if isinstance(value, torch.Tensor))
    n_wanted = sum(parameter.numel() for parameter in model.parameters())
    if n_wanted > n_saved:
        raise RecexpError(
            f"{run.checkpoint} does not fit this model and data: it holds {n_saved:,} numbers, and "
            f"the model of config.yaml has {n_wanted:,} parameters."
        )


def _inside(run_dir: Path, file: str) -> Path:
    """A file of the run. Raises RecexpError where its name or a link leads out of the directory."""
    path = run_dir / file
    try:
        is_inside = path.resolve().is_relative_to(run_dir.resolve())
    except (OSError, ValueError, RuntimeError) as error:  # such as links in a circle
        raise RecexpError(f"{path} cannot be read: {error}") from error
    if not is_inside:
        raise RecexpError(
            f"{path} leads out of the run's directory, and only files inside it are read: put a "
            "copy there."
        )
    return path


def _tested_checkpoint(run_dir: Path, result: RunResult) -> Path:
    """The checkpoint whose weights gave the result.

    Raises RecexpError where the file is not the one that the result names.
    """
    named = result.checkpoint
    if named is None:  # a run of an earlier version
        is_refit = result.selection.startswith("refit")
        return _inside(run_dir, f"checkpoints/{'refit' if is_refit else 'best'}.ckpt")
    path = _inside(run_dir, named.file)
    if path.exists() and not path.is_file():
        raise RecexpError(f"{path} is not a regular file.")
    if not path.is_file():
        raise RecexpError(f"{path} is missing: the result in {run_dir} was made with it.")
    if checksum(path) != named.sha256:
        raise RecexpError(
            f"The checkpoint {path} is damaged, or is not the one that the result in {run_dir} was "
            "made with: its checksum differs. Get that file, or run again."
        )
    return path


def _default_raw_dir(cfg: DictConfig) -> str:
    """Where ``conf/dataset`` looks for the raw files of the run's data set.

    The data set is known by its name, else by its reader; "" where neither is known. Of several
    data sets of one reader, the one that is named like it counts.
    """
    reader = str(cfg.dataset.source.get("_target_"))
    if reader in SIMULATIONS:
        reader = SIMULATIONS[0]
    by_name: dict[str, str] = {}
    by_reader: dict[str, str] = {}
    of_reader = CONF / "dataset" / f"{reader.split('.')[-2]}.yaml" if "." in reader else None
    paths = sorted((CONF / "dataset").glob("*.yaml"))
    for path in sorted(paths, key=lambda path: path != of_reader):
        known = OmegaConf.load(path)
        by_name[known.name] = known.raw_dir
        by_reader.setdefault(known.source._target_, known.raw_dir)
    return by_name.get(cfg.dataset.name) or by_reader.get(reader, "")


def _places(cfg: DictConfig) -> str:
    """What to add to the command line, for the error of data that are not found."""
    raw_dir = _as_text(cfg.dataset.raw_dir)
    cache_dir = _as_text(cfg.cache_dir)
    return (
        f"The run had --raw-dir {raw_dir} --cache-dir {cache_dir}: add one of them, or the place "
        "where the data lie here."
    )


def _as_text(value: Any) -> str:
    """A value of the run as a word of a command line, without control characters."""
    text = str(value)
    text = text if text.isprintable() else ascii(text)
    return shlex.quote(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")


def _bound(cfg: DictConfig) -> None:
    """Make the config harmless: no files besides the raw ones, and bounded memory.

    Raises RecexpError for a reader that would read outside of the folder of raw files.
    """
    if cfg.get("init_from"):
        cfg.init_from = None
    if cfg.model.get("pretrained"):
        cfg.model.pretrained = None  # where training started from; all weights come later
    for key, text in _texts(OmegaConf.to_container(cfg.dataset.source), "dataset.source"):
        path = PurePath(text)
        if ".." in path.parts or (path.is_absolute() and len(text) > 1):
            raise RecexpError(
                f"{key}={_as_text(text)} leads out of the folder of raw files. Put the file there, "
                "name it in config.yaml, and choose the folder with --raw-dir."
            )
    lengths = [node.get("max_len") for node in (cfg.model, cfg.objective)]
    longest = max([int(length) for length in lengths if length] or [1])
    at_once = min(cfg.eval_batch_size, MAX_USERS_AT_ONCE, MAX_EVENTS_AT_ONCE // longest)
    cfg.eval_batch_size = max(1, at_once)


def _texts(node: Any, path: str) -> Iterator[tuple[str, str]]:
    """Every text at or below the node with its dotted path, names of classes left out."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key != "_target_":
                yield from _texts(value, f"{path}.{key}")
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _texts(value, f"{path}[{i}]")
    elif isinstance(node, str):
        yield path, node


def _open_prepared(folder: Path, split: Split) -> Store | None:
    """The prepared data of a folder; None where they are missing, damaged or of an old version.

    Also None where they are split otherwise: the config is not of the run then.
    """
    try:
        verify(folder)
        store = Store.open(folder)
    except (RecexpError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if not all(key in store.meta for key in NEEDED_META):
        return None
    wanted = json.loads(json.dumps(split.identity(), default=str))
    return store if store.meta["settings"].get("split") == wanted else None


def _check_simulation(cfg: DictConfig) -> None:
    """Raise RecexpError where a simulated data set would be too large."""
    source = cfg.dataset.source
    if source.get("_target_") not in SIMULATIONS:
        return
    events = 1.0
    for key in ("users", "sessions", "session_length"):
        events *= float(source.get(key) or 1)
    too_large = [key for key, most in MAX_SIMULATED.items() if int(source.get(key) or 0) > most]
    if too_large or events > MAX_SIMULATED_EVENTS:
        raise RecexpError(
            f"The run's simulated data are too large to be made for an evaluation ({events:,.0f} "
            "events). Where you have them prepared, add --cache-dir DIR."
        )
