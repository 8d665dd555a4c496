"""The cache of prepared data: fingerprint, publish, verify.

Prepared data are a folder of ``.npy`` arrays, id maps as parquet files and ``meta.json``. The
folder is written under a temporary name and renamed: under its final name it is complete.
``meta.json`` holds the checksum of every file, and ``prepare`` verifies them. A small pointer file
beside the folder maps the settings to it: a second run compares the sizes and times of the raw
files and neither reads them nor imports polars.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from recexp.data.raw.lookups import RawFiles, matching
from recexp.data.reader_code import source_checksums
from recexp.errors import RecexpError
from recexp.io import (
    checksum,
    file_lock,
    from_system,
    new_folder,
    read_object,
    reason,
    remove,
    write_json,
)
from recexp.renamed import with_first_keys

if TYPE_CHECKING:
    from recexp.data.dataset import Dataset
    from recexp.data.split import Split

# Raise it whenever preparation would write other arrays from the same raw files. Readers that are
# not listed in ``reader_code`` are in the fingerprint with their source.
CODE_VERSION = 2
# Raise it whenever meta.json gets other content for the same arrays: cached data are then prepared
# again, into a folder of that version, while fingerprints and protocol ids stay. Programs of two
# versions can share a cache: each reads and replaces folders of its own version only.
META_VERSION = 5

# Options that were added to ``Dataset``, and to a reader (its path): absent from settings at these
# defaults, so that older fingerprints stay.
_ADDED: dict[str, Any] = {"keep_behaviors": None, "sessions": None, "behavior_names": None}
_ADDED_TO_READERS: dict[str, dict[str, Any]] = {
    "recexp.data.readers.table.read": {"header": True},
}
# Fingerprints name a reader by the module path it first had, so that moving a module changes no
# fingerprint and no protocol id. Current path -> path in fingerprints.
_READER_PATHS = {
    "recexp.data.readers.": "recexp.data.sources.",
    "recexp.data.simulation.stand_in.": "recexp.data.sources.stand_in.",
}


class _RawFile(BaseModel):
    """A raw file as it was when it was read."""

    model_config = ConfigDict(strict=True)

    size: int
    mtime_ns: int
    sha256: str


class _Pointer(BaseModel):
    """The content of a pointer file.

    folder: name of the prepared folder beside it. meta: checksum of its ``meta.json``. files: the
    raw files by path. exists, matches: what else decided that these were read, see ``RawFiles``.
    beside: the names of all files in the folders of the raw files, where the reader does not tell.
    """

    model_config = ConfigDict(strict=True)

    folder: str
    meta: str
    files: dict[str, _RawFile]
    exists: dict[str, bool]
    matches: dict[str, list[str]]
    beside: dict[str, list[str]]


def prepare(dataset: Dataset, split: Split, cache_dir: str | Path) -> Path:
    """Return the folder of the prepared data; prepare them first where they are not cached.

    Processes that ask for the same data at once are safe: one prepares, the others wait and read.

    Raises:
        RecexpError: the raw files are missing or faulty, or the cache cannot be written.
    """
    settings = _settings(dataset, split)
    cache = Path(cache_dir)
    pointer = cache / f"{dataset.name}-{_digest(settings | {'meta': META_VERSION})[:12]}.json"
    folder, _ = _cached(pointer)
    if folder is not None:
        return folder
    waiting = f"{dataset.name}: another process is preparing it; waiting"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with file_lock(cache / f".{pointer.stem}.lock", waiting):
            folder, why_not = _cached(pointer)
            if folder is not None:
                return folder
            if why_not:
                print(f"[data] {dataset.name}: {why_not}; preparing again", file=sys.stderr)
            return _make(dataset, split, settings, pointer)
    except Exception as error:
        if not from_system(error):
            raise
        raise RecexpError(
            f"{dataset.name} cannot be prepared in {cache}: {reason(error)}. "
            "cache_dir= must be a writable place with room, the raw files readable."
        ) from error


def prepared_folder(cache_dir: str | Path, name: str, fingerprint: str) -> Path:
    """Where this version of the code keeps prepared data; they may not be there."""
    return Path(cache_dir) / f"{name}-v{META_VERSION}-{fingerprint}"


def read_meta(folder: Path) -> dict[str, Any]:
    """The content of the folder's ``meta.json``.

    Raises:
        RecexpError: it is missing or damaged.
    """
    path = folder / "meta.json"
    try:
        meta = read_object(path)
    except FileNotFoundError:
        raise RecexpError(f"{path} is missing: {folder} holds no prepared data") from None
    arrays = meta.get("arrays")
    if not isinstance(arrays, dict):
        raise RecexpError(f"{path} is damaged: it lists no checksums of arrays")
    return meta


def verify(folder: Path) -> None:
    """Compare every file of a prepared folder with its checksum.

    Raises:
        RecexpError: a file is missing or damaged; the message names the first one.
    """
    for name, expected in read_meta(folder)["arrays"].items():
        path = folder / name
        if not path.is_file() or checksum(path) != expected:
            raise RecexpError(
                f"Prepared file {path} is missing or damaged "
                "(its checksum does not match meta.json)"
            )


def _make(dataset: Dataset, split: Split, settings: dict[str, Any], pointer: Path) -> Path:
    """Prepare under a temporary name, then publish the folder and its pointer.

    Only the process that holds the lock of ``settings`` may call it.
    """
    # Must be set before polars is imported: its allocator is to return freed memory soon.
    os.environ.setdefault("_RJEM_MALLOC_CONF", "dirty_decay_ms:100,muzzy_decay_ms:0")
    from recexp.data.build import build  # imports polars: only where raw files are read

    cache = pointer.parent
    prefix = f".{pointer.stem}-"
    started = time.perf_counter()
    for left_by_a_killed_process in cache.glob(f"{prefix}*"):
        remove(left_by_a_killed_process)
    temporary = new_folder(cache, prefix)
    try:
        files, meta = build(dataset, split, temporary)
        records = {str(file): _file_record(file) for file in files}
        meta |= _identity(dataset, settings, records, meta)
        meta["arrays"] = {file.name: checksum(file) for file in sorted(temporary.iterdir())}
        write_json(temporary / "meta.json", meta)
        folder = prepared_folder(cache, dataset.name, meta["fingerprint"])
        _publish(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _return_freed_memory()
    _write_pointer(pointer, folder, records, files)
    seconds = time.perf_counter() - started
    for line in [*meta["report"], f"prepared in {seconds:.1f} s: {folder}"]:
        print(f"[data] {line}", file=sys.stderr)
    return folder


def _identity(
    dataset: Dataset,
    settings: dict[str, Any],
    records: Mapping[str, Mapping[str, Any]],
    meta: Mapping[str, Any],
) -> dict[str, Any]:
    """The entries of ``meta.json`` that say what the data are: fingerprint, settings, files."""
    # The place of the raw files is not part of it, so that protocol ids agree between machines. Of
    # missing_ids the effect counts: there is none for most data, whose fingerprints are older.
    of_dataset = {
        k: v for k, v in settings["dataset"].items() if k not in ("raw_dir", "missing_ids")
    }
    source = of_dataset["source"]
    decided = {k: v for k, v in meta["decided"].items() if source.get(k) == "auto"}
    of_dataset["source"] = source | decided
    placeless = settings | {"dataset": of_dataset}
    hashes = {os.path.relpath(k, dataset.raw_dir): r["sha256"] for k, r in records.items()}
    identity: dict[str, Any] = {"settings": placeless, "files": hashes}
    if meta["ids"]:
        identity["ids"] = meta["ids"]
    if meta["simulated"]:  # a copy that cannot be recognized as simulated is another data set
        identity["simulated"] = True
    return {"fingerprint": _digest(identity)[:16], "settings": placeless, "files": hashes}


def _publish(temporary: Path, folder: Path) -> None:
    """Rename ``temporary`` to ``folder`` unless that holds the same data already."""
    # The same raw files in another place have another pointer and lock, but the same folder.
    with file_lock(folder.parent / f".{folder.name}.lock"):
        if not _same(folder, temporary):
            remove(folder)
            os.rename(temporary, folder)


def _same(folder: Path, new: Path) -> bool:
    """Does the folder hold, undamaged, what was prepared into ``new``?"""
    try:
        verify(folder)
        return checksum(folder / "meta.json") == checksum(new / "meta.json")
    except (RecexpError, OSError, ValueError):
        return False


def _return_freed_memory() -> None:
    """Give memory that preparation freed, about 100 MB, back to the operating system."""
    with contextlib.suppress(AttributeError, OSError):  # C libraries other than GNU's
        ctypes.CDLL(None).malloc_trim(0)


def _write_pointer(
    pointer: Path, folder: Path, records: Mapping[str, Mapping[str, Any]], files: list[Path]
) -> None:
    """Write the file by which ``_cached`` finds the folder and notices changed raw files."""
    looked_for = files if isinstance(files, RawFiles) else RawFiles()
    beside: set[Path] = set()
    if files is not looked_for:
        beside = {file.parent for file in files}
    record = {
        "folder": folder.name,
        "meta": checksum(folder / "meta.json"),
        "files": records,
        "exists": looked_for.exists,
        "matches": looked_for.matches,
        "beside": {str(parent): _file_names(parent) for parent in beside},
    }
    if not pointer.is_file():
        remove(pointer)  # a folder in its place
    write_json(pointer, record)


def _cached(pointer: Path) -> tuple[Path | None, str]:
    """The folder that the pointer names, or None where the data must be prepared.

    The folder counts if the raw files are unchanged and every prepared file verifies. Where it does
    not although there is a pointer, the second entry says why.
    """
    try:
        record = _read_pointer(pointer)
        folder = pointer.parent / record.folder
        if not _raw_files_unchanged(record):
            return None, "raw files changed since they were prepared"
        read_meta(folder)
        if checksum(folder / "meta.json") != record.meta:
            raise RecexpError(f"{folder / 'meta.json'} is damaged")
        verify(folder)
        return folder, ""
    except FileNotFoundError:
        return None, ""
    except (RecexpError, OSError, ValueError) as error:
        return None, f"prepared data unusable ({error})"


def _read_pointer(path: Path) -> _Pointer:
    """Raises FileNotFoundError without a pointer, RecexpError where it is damaged."""
    content = read_object(path)
    try:
        record = _Pointer.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise RecexpError(f"{path} is damaged: {key}: {first['msg']}") from None
    if not record.folder or Path(record.folder).name != record.folder:
        raise RecexpError(f"{path} is damaged: it names no folder beside it")
    return record


def _raw_files_unchanged(record: _Pointer) -> bool:
    """Are the raw files of a pointer the same, and would the same files be read again?"""
    if not all(_unchanged(Path(file), known) for file, known in record.files.items()):
        return False
    if not all(Path(file).is_file() == known for file, known in record.exists.items()):
        return False
    if not all(matching(pattern) == files for pattern, files in record.matches.items()):
        return False
    # A new file beside them may be an optional one, such as item features.
    return all(_file_names(Path(folder)) == names for folder, names in record.beside.items())


def _file_record(path: Path) -> dict[str, Any]:
    stat = path.stat()
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": checksum(path)}


def _unchanged(path: Path, record: _RawFile) -> bool:
    """Is the file as recorded? Its checksum is computed only if its time differs."""
    try:
        stat = path.stat()
    except OSError:
        return False
    if stat.st_size != record.size:
        return False
    return stat.st_mtime_ns == record.mtime_ns or checksum(path) == record.sha256


def _file_names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_file())


def _settings(dataset: Dataset, split: Split) -> dict[str, Any]:
    """All settings that decide about the arrays, as plain JSON values."""
    of_dataset = asdict(dataset)
    del of_dataset["download"]
    of_dataset["raw_dir"] = str(Path(dataset.raw_dir).resolve())
    of_dataset = _without(of_dataset, _ADDED)
    of_dataset["source"] = dict(dataset.source)
    if isinstance(target := dataset.source.get("_target_"), str):
        source = _without(dataset.source, _ADDED_TO_READERS.get(target, {}))
        of_dataset["source"] = source | {"_target_": _original_path(target)}
    settings = {
        "dataset": with_first_keys(_plain(of_dataset)),
        "split": split.identity(),
        "code": CODE_VERSION,
    }
    if reader := source_checksums(dataset.source):  # absent for the readers of recexp
        settings["reader"] = reader
    plain: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return plain


def _without(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without those that have these defaults."""
    absent = [key for key, default in defaults.items() if settings.get(key) == default]
    return {key: value for key, value in settings.items() if key not in absent}


def _original_path(target: str) -> str:
    """The reader's name in fingerprints (``_READER_PATHS``)."""
    for current, original in _READER_PATHS.items():
        if target.startswith(current):
            return original + target.removeprefix(current)
    return target


def _plain(value: Any) -> Any:
    """Mappings and sequences of any type, such as OmegaConf's, as dicts and lists."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(v) for v in value]
    return value


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
