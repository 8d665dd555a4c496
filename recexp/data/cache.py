"""Raw files to arrays: read, validate, filter, index, split, and keep the result under a fingerprint.

A prepared data set is a folder of ``.npy`` arrays, id maps as parquet and ``meta.json``. It is written under a temporary name and renamed, so a
folder that exists is whole; every array's checksum stands in ``meta.json`` and is verified on opening. A small pointer file beside it maps settings
to the folder, so that a second run neither imports polars nor reads the raw files: it compares their sizes and times.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recexp.errors import RecexpError
from recexp.io import atomic_write, file_lock, reason

if TYPE_CHECKING:
    from recexp.data.split import Split

CODE_VERSION = 2  # raise it whenever preparation would write other arrays from the same raw files
# Raise it whenever meta.json gets other content for the same arrays: data prepared before are made
# again, and as their arrays are the same, fingerprints and protocol ids stay.
META_VERSION = 2


@dataclass
class Dataset:
    """A data set as its YAML describes it. ``source`` is the reader's config, instantiated only when raw files must be read.

    behaviours: raw behaviours, weak to strong; explicit: those that count as explicit feedback. value_behaviours: None, or behaviour -> least value,
    to read ratings as behaviours (they replace the source's). merge: "none" or "pairs" (one row per user and item: the strongest behaviour at its
    last explicit time; where protocol.split.purge=later holds out single events, only what lies between two of them is merged). window: None or
    {start, end} ISO dates, half-open. on_bad_rows: "error" or "drop".
    """

    name: str
    raw_dir: str
    source: Mapping[str, Any]
    behaviours: Sequence[str]
    explicit: Sequence[str]
    value_behaviours: Mapping[str, float] | None = None
    filters: Sequence[Mapping[str, Any]] = field(default_factory=list)
    iterate_filters: bool = False
    merge: str = "none"
    window: Mapping[str, str] | None = None
    on_bad_rows: str = "error"

    def __post_init__(self):
        if self.value_behaviours:
            by_value = sorted(self.value_behaviours, key=lambda name: self.value_behaviours[name])
            self.behaviours = by_value
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise RecexpError(
                f"dataset.name={self.name!r} names files: use letters, digits, dots, - and _ only."
            )
        if (
            not self.behaviours
            or len(set(self.behaviours)) != len(self.behaviours)
            or len(self.behaviours) > 31
        ):
            raise RecexpError(
                f"dataset.behaviours must be 1 to 31 distinct names, got {list(self.behaviours)}."
            )
        if unknown := set(self.explicit) - set(self.behaviours):
            raise RecexpError(
                f"dataset.explicit names {sorted(unknown)}, which is not among dataset.behaviours {list(self.behaviours)}."
            )
        for key, value, known in (
            ("merge", self.merge, ("none", "pairs")),
            ("on_bad_rows", self.on_bad_rows, ("error", "drop")),
        ):
            if value not in known:
                raise RecexpError(
                    f"dataset.{key}={value!r} is unknown; choose one of {', '.join(known)}."
                )


def prepare(dataset: Dataset, split: Split, cache_dir: str | Path) -> Path:
    """Folder of the prepared data, made if it is not there. Safe when several processes ask at once: one prepares, the others wait and read."""
    settings = _settings(dataset, split)
    cache = Path(cache_dir)
    pointer = cache / f"{dataset.name}-{_digest(settings | {'meta': META_VERSION})[:12]}.json"
    if folder := _cached(pointer, dataset.name):
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with file_lock(
            cache / f".{pointer.stem}.lock",
            f"{dataset.name}: another process is preparing it; waiting",
        ):
            return _cached(pointer, dataset.name) or _make(dataset, split, settings, pointer)
    except Exception as error:
        if not isinstance(error, OSError) and "(os error" not in str(
            error
        ):  # polars wraps the system's errors in its own
            raise
        raise RecexpError(
            f"{dataset.name} cannot be prepared in {cache}: {reason(error)}. cache_dir= must be a writable place with room, the raw files readable."
        ) from error


def _make(dataset: Dataset, split: Split, settings: dict[str, Any], pointer: Path) -> Path:
    """Prepare under a temporary name, then publish the folder and its pointer. Called by one process at a time per settings."""
    os.environ.setdefault(
        "_RJEM_MALLOC_CONF", "dirty_decay_ms:100,muzzy_decay_ms:0"
    )  # polars' allocator is to hold on to little
    from recexp.data.build import build  # imports polars: only where raw files are read

    cache, prefix, started = pointer.parent, f".{pointer.stem}-", time.perf_counter()
    for left_by_a_killed_process in cache.glob(f"{prefix}*"):
        shutil.rmtree(left_by_a_killed_process)
    temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=cache))
    try:
        files, meta = build(dataset, split, temporary)
        checksums = {str(f): _file_record(f) for f in files}
        # The place of the raw files is no part of the fingerprint: protocol ids agree between machines.
        said = settings | {
            "dataset": {k: v for k, v in settings["dataset"].items() if k != "raw_dir"}
        }
        hashes = {os.path.relpath(k, dataset.raw_dir): v["sha256"] for k, v in checksums.items()}
        identity = {"settings": said, "files": hashes}
        if meta["simulated"]:  # a copy that cannot be recognised is another data set
            identity["simulated"] = True
        fingerprint = _digest(identity)[:16]
        meta |= {"fingerprint": fingerprint, "settings": said, "files": hashes}
        meta["arrays"] = {f.name: checksum(f) for f in sorted(temporary.iterdir())}
        write_json(temporary / "meta.json", meta)
        folder = cache / f"{dataset.name}-{fingerprint}"
        with file_lock(
            cache / f".{folder.name}.lock"
        ):  # the same files in another place have another pointer, but the same folder
            if folder.exists() and not _same(folder, temporary):
                shutil.rmtree(folder)
            if not folder.exists():
                os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _trim()
    record = {"folder": folder.name, "meta": checksum(folder / "meta.json"), "files": checksums}
    write_json(pointer, record | {"beside": {str(p): _names(p) for p in {f.parent for f in files}}})
    for line in [*meta["report"], f"prepared in {time.perf_counter() - started:.1f} s: {folder}"]:
        print(f"[data] {line}", file=sys.stderr)
    return folder


def _trim() -> None:
    """What preparation has freed goes back to the system, a tenth of a gigabyte that training would carry along."""
    with contextlib.suppress(AttributeError, OSError):  # not the GNU library
        ctypes.CDLL(None).malloc_trim(0)


def read_meta(folder: Path) -> dict[str, Any]:
    """The folder's meta.json."""
    return json.loads((folder / "meta.json").read_text())


def verify(folder: Path) -> None:
    """Compare every array and id map with its checksum. Raises RecexpError naming the first damaged file."""
    for name, expected in read_meta(folder)["arrays"].items():
        path = folder / name
        if not path.exists() or checksum(path) != expected:
            raise RecexpError(
                f"Prepared file {path} is missing or damaged (its checksum does not match meta.json)."
            )


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that the file is always whole (``io.atomic_write``)."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, default=str) + "\n")


def _settings(dataset: Dataset, split: Split) -> dict[str, Any]:
    plain = {k: v for k, v in asdict(dataset).items() if k != "raw_dir"} | {
        "raw_dir": str(Path(dataset.raw_dir).resolve())
    }
    settings = {"dataset": _plain(plain), "split": split.said(), "code": CODE_VERSION}
    return json.loads(json.dumps(settings, default=str))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(v) for v in value]
    return value


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _file_record(path: Path) -> dict[str, Any]:
    stat = path.stat()
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": checksum(path)}


def _unchanged(path: Path, record: Mapping[str, Any]) -> bool:
    try:
        stat = path.stat()
    except OSError:
        return False
    if stat.st_size != record["size"]:
        return False
    return stat.st_mtime_ns == record["mtime_ns"] or checksum(path) == record["sha256"]


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_file())


def _cached(pointer: Path, name: str) -> Path | None:
    """The folder the pointer names, if its raw files are unchanged and every array verifies; None where it must be made (again)."""
    try:
        record = json.loads(pointer.read_text())
        folder = pointer.parent / record["folder"]
        unchanged = all(_unchanged(Path(f), r) for f, r in record["files"].items())
        # An optional file (item features) may have been added.
        if not unchanged or any(_names(Path(p)) != names for p, names in record["beside"].items()):
            print(
                f"[data] {name}: raw files changed since they were prepared; preparing again",
                file=sys.stderr,
            )
            return None
        if checksum(folder / "meta.json") != record["meta"]:
            raise RecexpError(f"{folder / 'meta.json'} is damaged")
        verify(folder)
        return folder
    except FileNotFoundError:
        return None
    except (RecexpError, OSError, ValueError, KeyError) as error:
        print(f"[data] {name}: prepared data unusable ({error}); preparing again", file=sys.stderr)
        return None


def _same(folder: Path, new: Path) -> bool:
    """Does the folder hold, undamaged, what was prepared anew?"""
    try:
        verify(folder)
        return checksum(folder / "meta.json") == checksum(new / "meta.json")
    except (RecexpError, OSError, ValueError, KeyError):
        return False
