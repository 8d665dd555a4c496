"""Raw files to arrays: read, validate, filter, index, split, and keep the result under a fingerprint.

A prepared data set is a folder of ``.npy`` arrays, id maps as parquet and ``meta.json``. It is written under a temporary name and renamed, so a
folder that exists is whole; every array's checksum stands in ``meta.json`` and is verified on opening. A small pointer file beside it maps settings
to the folder, so that a second run neither imports polars nor reads the raw files: it compares their sizes and times.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recexp.types import RecexpError

if TYPE_CHECKING:
    from recexp.data.split import Split

CODE_VERSION = 1  # raise it whenever preparation would write other arrays from the same raw files


@dataclass
class Dataset:
    """A data set as its YAML describes it. ``source`` is the reader's config, instantiated only when raw files must be read.

    behaviours: raw behaviours, weak to strong; explicit: those that count as explicit feedback. value_behaviours: None, or behaviour -> least value,
    to read ratings as behaviours (they replace the source's). merge: "none" or "pairs" (one row per user and item: the strongest behaviour at its
    last time). window: None or {start, end} ISO dates, half-open. on_bad_rows: "error" or "drop".
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
        if not self.behaviours or len(set(self.behaviours)) != len(self.behaviours) or len(self.behaviours) > 31:
            raise RecexpError(f"dataset.behaviours must be 1 to 31 distinct names, got {list(self.behaviours)}.")
        if unknown := set(self.explicit) - set(self.behaviours):
            raise RecexpError(f"dataset.explicit names {sorted(unknown)}, which is not among dataset.behaviours {list(self.behaviours)}.")
        for key, value, known in (("merge", self.merge, ("none", "pairs")), ("on_bad_rows", self.on_bad_rows, ("error", "drop"))):
            if value not in known:
                raise RecexpError(f"dataset.{key}={value!r} is unknown; choose one of {', '.join(known)}.")


def prepare(dataset: Dataset, split: Split, cache_dir: str | Path) -> Path:
    """Folder of the prepared data, made if it is not there. Safe when several processes ask at once: one prepares, the others wait and read."""
    settings = _settings(dataset, split)
    cache = Path(cache_dir)
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecexpError(f"Cannot create the cache folder {cache}: {error.strerror}. Point cache_dir= to a writable place.") from error
    pointer = cache / f"{dataset.name}-{_digest(settings)[:12]}.json"
    if folder := _cached(pointer, dataset.name):
        return folder
    with _lock(pointer.with_suffix(".lock"), dataset.name):
        if folder := _cached(pointer, dataset.name):
            return folder
        from recexp.data.build import build  # imports polars: only where raw files are read

        started = time.perf_counter()
        temporary = Path(tempfile.mkdtemp(prefix=f".{dataset.name}-", dir=cache))
        try:
            files, meta = build(dataset, split, temporary)
            checksums = {str(f): _file_record(f) for f in files}
            fingerprint = _digest({"settings": settings, "files": {Path(k).name: v["sha256"] for k, v in checksums.items()}})[:16]
            meta |= {"fingerprint": fingerprint, "settings": settings, "files": checksums, "seconds": round(time.perf_counter() - started, 2)}
            meta["arrays"] = {f.name: _sha256(f) for f in sorted(temporary.glob("*.npy"))}
            write_json(temporary / "meta.json", meta)
            folder = cache / f"{dataset.name}-{fingerprint}"
            if folder.exists():  # stale or damaged: same fingerprint, but it did not verify
                shutil.rmtree(folder)
            os.rename(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        write_json(pointer, {"folder": folder.name, "files": checksums})
    for line in meta["report"]:
        print(f"[data] {line}", file=sys.stderr)
    return folder


def read_meta(folder: Path) -> dict[str, Any]:
    """The folder's meta.json."""
    return json.loads((folder / "meta.json").read_text())


def verify(folder: Path) -> None:
    """Compare every array with its checksum. Raises RecexpError naming the first damaged file."""
    for name, expected in read_meta(folder)["arrays"].items():
        path = folder / name
        if not path.exists() or _sha256(path) != expected:
            raise RecexpError(f"Prepared file {path} is missing or damaged (its checksum does not match meta.json).")


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that the file is always whole: a temporary name, then a rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=1, default=str) + "\n")
    os.replace(temporary, path)


def _settings(dataset: Dataset, split: Split) -> dict[str, Any]:
    plain = {k: v for k, v in asdict(dataset).items() if k != "raw_dir"} | {"raw_dir": str(Path(dataset.raw_dir).resolve())}
    return json.loads(json.dumps({"dataset": _plain(plain), "split": asdict(split), "code": CODE_VERSION}, default=str))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(v) for v in value]
    return value


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _file_record(path: Path) -> dict[str, Any]:
    stat = path.stat()
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": _sha256(path)}


def _unchanged(path: Path, record: Mapping[str, Any]) -> bool:
    try:
        stat = path.stat()
    except OSError:
        return False
    if stat.st_size != record["size"]:
        return False
    return stat.st_mtime_ns == record["mtime_ns"] or _sha256(path) == record["sha256"]


def _cached(pointer: Path, name: str) -> Path | None:
    """The folder the pointer names, if its raw files are unchanged and every array verifies; None where it must be made (again)."""
    try:
        record = json.loads(pointer.read_text())
        folder = pointer.parent / record["folder"]
        if not all(_unchanged(Path(f), r) for f, r in record["files"].items()):
            print(f"[data] {name}: raw files changed since they were prepared; preparing again", file=sys.stderr)
            return None
        verify(folder)
        return folder
    except FileNotFoundError:
        return None
    except (RecexpError, ValueError, KeyError) as error:
        print(f"[data] {name}: prepared data unusable ({error}); preparing again", file=sys.stderr)
        return None


@contextmanager
def _lock(path: Path, name: str):
    """One process at a time; the lock goes with the process, so a killed one leaves nothing behind that blocks."""
    import fcntl

    with path.open("w") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print(f"[data] {name}: another process is preparing it; waiting", file=sys.stderr)
            fcntl.flock(f, fcntl.LOCK_EX)
        yield
