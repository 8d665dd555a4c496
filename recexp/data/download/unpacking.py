"""Wanted members of an archive, and nothing else: zip, tar (plain, gz, bz2, xz), single gz files.

Only members that are plain files at a plain path are looked at: none that is a link, and none whose
path is absolute or leads upwards. They are written under their own names into one folder.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any

from tqdm import tqdm

from recexp.data.download.block import amount, is_file_name
from recexp.data.raw.text import FREE, MAX_RATIO
from recexp.errors import RecexpError

CHUNK = 1 << 20  # bytes
# The first bytes of files, by the end of the name.
MAGIC = {
    ".zip": (b"PK\x03\x04", b"PK\x05\x06"),
    ".gz": (b"\x1f\x8b",),
    ".tgz": (b"\x1f\x8b",),
    ".bz2": (b"BZh",),
    ".xz": (b"\xfd7zXZ\x00",),
    ".7z": (b"7z\xbc\xaf\x27\x1c",),
    ".parquet": (b"PAR1",),
}
OPENERS: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.GzipFile,
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
}
TAR = re.compile(r"\.(tar(\.\w+)?|tgz|tbz2?|txz)$", re.IGNORECASE)
DAMAGED = (
    EOFError,
    zlib.error,
    gzip.BadGzipFile,
    lzma.LZMAError,
    zipfile.BadZipFile,
    tarfile.TarError,
    NotImplementedError,  # a method of compression that Python does not know
)


def suits_name(beginning: bytes, name: str) -> bool:
    """Can a file that begins so have this name? True where the name promises nothing."""
    known = MAGIC.get(Path(name).suffix.lower())
    return known is None or beginning.startswith(tuple(magic[: len(beginning)] for magic in known))


def check_archive(path: Path, name: str) -> str:
    """What is wrong with an archive by its own checksums; "" for nothing, and for other files."""
    try:
        if name.lower().endswith(".zip"):
            with zipfile.ZipFile(path) as archive:
                bad = archive.testzip()
            return f"its member {bad} is damaged" if bad else ""
        if name.lower().endswith((".gz", ".tgz")):
            with gzip.open(path) as content:
                while content.read(CHUNK):
                    pass
    except (*DAMAGED, RuntimeError) as error:
        return f"what it sent is damaged or cut off ({error})"
    return ""


def unpack(path: Path, wanted: Sequence[str], folder: Path, most_bytes: int | None) -> list[Path]:
    """Write the wanted members into the folder; returns their paths there, in the given order.

    wanted: each is the end of the path of exactly one member ("ratings.dat" is
        "ml-1m/ratings.dat"). Of a single packed file, the one name that it gets.
    most_bytes: that they may have together; None: 1 GiB, or 200 times the size of the archive.

    Raises:
        RecexpError: a member is missing, there twice, or no plain file; the archive is damaged, or
            holds more than ``most_bytes``.
        OSError: a file cannot be written.
    """
    budget = _Budget(path, most_bytes or max(FREE, MAX_RATIO * path.stat().st_size))
    with path.open("rb") as file:
        beginning = file.read(8)
    try:
        if beginning.startswith(MAGIC[".zip"]):
            return _unpack_zip(path, wanted, folder, budget)
        if beginning.startswith(MAGIC[".7z"]):
            raise RecexpError(
                f"{path} is a 7z archive, which Python cannot unpack: unpack it with a program "
                f"such as 7z, and put {', '.join(wanted)} into the folder of raw data."
            )
        opener = next((OPENERS[magic] for magic in OPENERS if beginning.startswith(magic)), None)
        # Content does not decide: zeros are a tar without members, too.
        if TAR.search(path.name):
            return _unpack_tar(path, opener or _plain, wanted, folder, budget)
        if opener is None or len(wanted) != 1:
            raise RecexpError(
                f"{path} is no archive with {', '.join(wanted)}: zip, tar and gz are read."
            )
        return [_unpack_single(path, opener, wanted[0], folder, budget)]
    except DAMAGED as error:
        raise RecexpError(f"{path} is damaged or cut off ({error}). Get it anew.") from None
    except RuntimeError as error:  # zipfile's, for members with a password
        raise RecexpError(f"{path} cannot be unpacked: {error}.") from None


class _Budget:
    """Counts unpacked bytes against a limit."""

    def __init__(self, path: Path, most_bytes: int) -> None:
        self.path = path
        self.left = most_bytes
        self.most = most_bytes

    def spend(self, n_bytes: int) -> None:
        """Raises RecexpError where the limit is passed."""
        self.left -= n_bytes
        if self.left < 0:
            raise RecexpError(
                f"{self.path} unpacks to more than {amount(self.most)}: hardly the data. If you "
                "trust it, unpack it by hand."
            )


def _unpack_zip(path: Path, wanted: Sequence[str], folder: Path, budget: _Budget) -> list[Path]:
    with zipfile.ZipFile(path) as archive:
        names = [info.filename for info in archive.infolist() if _is_plain_zip(info)]
        written = []
        for name in wanted:
            member = _only(path, name, [each for each in names if _is_end_of(name, each)])
            with archive.open(member) as content:
                target = folder / PurePosixPath(name).name
                _copy(content, target, budget, archive.getinfo(member).file_size)
            written.append(target)
    return written


def _is_plain_zip(info: zipfile.ZipInfo) -> bool:
    mode = info.external_attr >> 16
    is_file = not info.is_dir() and (stat.S_IFMT(mode) in (0, stat.S_IFREG))
    return is_file and _is_plain_path(info.filename)


def _unpack_tar(
    path: Path, opener: Callable[[Path], Any], wanted: Sequence[str], folder: Path, budget: _Budget
) -> list[Path]:
    """One pass over the archive: seeking back in a packed one would unpack it again."""
    found: dict[str, list[str]] = {name: [] for name in wanted}
    with opener(path) as unpacked, tarfile.open(fileobj=unpacked, mode="r|") as archive:
        for member in archive:
            if not (member.isreg() and _is_plain_path(member.name)):
                continue
            for name in wanted:
                if _is_end_of(name, member.name):
                    found[name].append(member.name)
                    _only(path, name, found[name])
                    content = archive.extractfile(member)
                    assert content is not None, "a regular file has content"
                    _copy(content, folder / PurePosixPath(name).name, budget, member.size)
        for _ in _chunks(unpacked):
            pass  # the checksum of a packed archive stands at its end
    for name in wanted:
        _only(path, name, found[name])
    return [folder / PurePosixPath(name).name for name in wanted]


def _unpack_single(
    path: Path, opener: Callable[[Path], Any], name: str, folder: Path, budget: _Budget
) -> Path:
    """A packed file that is no archive of several."""
    target = folder / PurePosixPath(name).name
    with opener(path) as content:
        _copy(content, target, budget, None)
    return target


def _plain(path: Path) -> IO[bytes]:
    return path.open("rb")


def _is_plain_path(name: str) -> bool:
    """A relative path that leads downwards, of plain names."""
    parts = PurePosixPath(name.removeprefix("./")).parts
    is_relative = not name.startswith("/") and "\\" not in name
    return is_relative and ".." not in parts and bool(parts) and is_file_name(parts[-1])


def _is_end_of(wanted: str, name: str) -> bool:
    return f"/{name}".endswith(f"/{wanted}")


def _only(path: Path, wanted: str, members: list[str]) -> str:
    """The one member that fits a wanted name."""
    if len(members) == 1:
        return members[0]
    if members:
        raise RecexpError(f"{path} holds {wanted} more than once: {', '.join(members[:3])}.")
    raise RecexpError(
        f"{path} holds no file {wanted}: links do not count, nor paths that are absolute or lead "
        "upwards."
    )


def _copy(content: IO[bytes], target: Path, budget: _Budget, size: int | None) -> None:
    """Write a member, never more than the budget allows, whatever size the archive declares."""
    if size is not None and size > budget.left:
        budget.spend(size)
    bar = tqdm(total=size, desc=target.name, unit="B", unit_scale=True, disable=None)
    with bar, target.open("xb") as out:
        for chunk in _chunks(content):
            budget.spend(len(chunk))
            out.write(chunk)
            bar.update(len(chunk))


def _chunks(content: IO[bytes]) -> Iterator[bytes]:
    while chunk := content.read(CHUNK):
        yield chunk
