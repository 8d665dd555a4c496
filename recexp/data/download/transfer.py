"""A file over HTTP from the first of several sources that gives it whole.

What was received lies in ``NAME.part`` until its size and checksum, or without a checksum the
archive's own, are right; then it is renamed. Beside it ``NAME.part.json`` says where it came from:
the next attempt asks for the rest only (RFC 9110, section 14: ranges).
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from recexp.data.download.block import SourceFile, amount
from recexp.data.download.unpacking import check_archive, suits_name
from recexp.errors import RecexpError
from recexp.io import advice, from_system, read_object, reason, write_json

CHUNK = 1 << 16  # bytes read at once
SLOWEST = 100  # bytes per second; a slower source counts as one that does not answer
SOON_AGAIN = {408, 425, 429, 500, 502, 503, 504}  # codes after which the same request may succeed
USER_AGENT = "recexp"  # some hosts refuse that of urllib
PAGE = re.compile(rb"\s*(<!doctype html|<html|<head|<\?xml[^>]*>\s*<!doctype html)", re.IGNORECASE)


@dataclass(frozen=True)
class Patience:
    """timeout: seconds without an answer or without data. tries: in a row without progress, per
    source. wait: seconds before the second try, doubled before each further one.
    """

    timeout: float = 30.0
    tries: int = 4
    wait: float = 1.0


class SourceFault(Exception):
    """Why a source did not give the file. again: the same request may succeed."""

    def __init__(self, words: str, *, again: bool) -> None:
        super().__init__(words)
        self.again = again


class Unavailable(RecexpError):
    """No source gives the file."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from an encrypted connection to an open one."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        if req.type == "https" and not newurl.startswith("https:"):
            raise urllib.error.URLError(f"redirects to the unencrypted {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetch(file: SourceFile, folder: Path, patience: Patience) -> Path:
    """Download the file into the folder, under its name; returns its path.

    A file that is there under its name is complete. An unfinished one is continued.

    Raises:
        Unavailable: no source gives the file; the message names the fault of each.
        RecexpError: it cannot be written.
    """
    done = folder / file.name
    if done.exists():
        return done
    part = folder / f"{file.name}.part"
    faults = []
    for url in file.urls:
        try:
            _from_source(url, file, part, patience)
        except SourceFault as fault:
            faults.append(f"{urlsplit(url).netloc}: {fault}")
            continue
        os.replace(part, done)
        _record(part).unlink(missing_ok=True)
        return done
    raise Unavailable(f"{file.name} cannot be downloaded: {'; '.join(dict.fromkeys(faults))}.")


def _from_source(url: str, file: SourceFile, part: Path, patience: Patience) -> None:
    """Receive and verify the file, trying again after faults that may pass."""
    furthest = _size(part)
    n_tries = 0
    while True:
        is_resumed = _size(part) > 0
        try:
            if not _is_whole(file, part):
                _receive(url, file, part, patience.timeout)
            _verify(file, part, is_resumed)
            return
        except SourceFault as fault:
            # Only progress beyond all earlier attempts renews the patience.
            n_tries = 1 if _size(part) > furthest else n_tries + 1
            furthest = max(furthest, _size(part))
            if not fault.again or n_tries >= patience.tries:
                raise
            time.sleep(patience.wait * 2 ** (n_tries - 1))


def _is_whole(file: SourceFile, part: Path) -> bool:
    """Was everything received, by an attempt that ended before it was verified?"""
    size = _size(part)
    return size > 0 and size in (file.size, _read_record(part).get("total"))


def _receive(url: str, file: SourceFile, part: Path, timeout: float) -> None:
    """Receive the file from where ``part`` ends to its end."""
    headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}
    headers |= _range_headers(url, file, part)
    try:
        with _opener().open(
            urllib.request.Request(url, headers=headers), timeout=timeout
        ) as answer:
            start, total = _extent(answer, file, part)
            _check_answer(answer, file, total)
            _check_room(part, file, start, total)
            validator = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
            write_json(_record(part), {"url": url, "validator": validator, "total": total})
            _copy(answer, file, part, start, total, timeout)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:  # the part is longer than the file: it belongs to another version
                part.unlink(missing_ok=True)
            again = error.code in SOON_AGAIN or error.code == 416
            raise SourceFault(f"{error.code} {error.reason}", again=again) from None
    except (OSError, http.client.HTTPException) as error:
        raise SourceFault(_words(error, timeout), again=_may_pass(error)) from None


def _opener() -> urllib.request.OpenerDirector:
    """HTTP and HTTPS only: no redirect leads to a local file."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        _Redirects(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _range_headers(url: str, file: SourceFile, part: Path) -> dict[str, str]:
    """Ask for the rest only, where it can be told that the rest belongs to what is there.

    A checksum tells, also between sources. Without one, the source must say that its file is the
    one of the first attempt (If-Range).
    """
    size = _size(part)
    record = _read_record(part)
    if size == 0 or (file.size is not None and size > file.size):
        return {}
    validator = record.get("validator") if record.get("url") == url else None
    if isinstance(validator, str) and not validator.startswith("W/"):
        return {"Range": f"bytes={size}-", "If-Range": validator}
    if file.md5 or file.sha256:
        return {"Range": f"bytes={size}-"}
    return {}


def _extent(answer: Any, file: SourceFile, part: Path) -> tuple[int, int | None]:
    """Where the data of the answer begin, and the size of the whole file (None: not said)."""
    if answer.status == 206:
        found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", answer.headers.get("Content-Range", ""))
        if found is None or int(found[1]) != _size(part):
            part.unlink(missing_ok=True)
            raise SourceFault("sends another part of the file than it was asked for", again=True)
        return int(found[1]), None if found[3] == "*" else int(found[3])
    length = answer.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _check_answer(answer: Any, file: SourceFile, total: int | None) -> None:
    """Raise SourceFault for an answer that cannot be the file."""
    if answer.status not in (200, 206):
        raise SourceFault(f"answers {answer.status} {answer.reason}", again=False)
    if file.size is not None and total is not None and total != file.size:
        raise SourceFault(f"offers {total:,} bytes where {file.size:,} are expected", again=False)
    packed = answer.headers.get("Content-Encoding", "identity")
    if packed != "identity" and not file.name.endswith((".gz", ".tgz")):
        raise SourceFault(f"sends it packed ({packed}) although not asked to", again=False)


def _check_room(part: Path, file: SourceFile, start: int, total: int | None) -> None:
    wanted = (total or file.size or 0) - start
    free = shutil.disk_usage(part.parent).free
    if wanted > free:
        raise RecexpError(
            f"{part.parent} has {amount(free)} free, and {file.name} takes {amount(wanted)} more: "
            "make room there, or choose another place with dataset.raw_dir."
        )


def _copy(
    answer: Any, file: SourceFile, part: Path, start: int, total: int | None, timeout: float
) -> None:
    """Append the data of the answer to ``part``, which is cut to ``start`` before."""
    watched_from = time.monotonic()
    n_watched = 0
    size = start
    bar = tqdm(total=total, initial=start, desc=file.name, unit="B", unit_scale=True, disable=None)
    with bar, _open(part, start) as out:
        while chunk := answer.read1(CHUNK):
            if size == 0:
                _check_beginning(chunk, file)
            _write(out, chunk, part)
            size += len(chunk)
            bar.update(len(chunk))
            n_watched += len(chunk)
            if (passed := time.monotonic() - watched_from) > timeout:
                if n_watched < SLOWEST * passed:
                    raise SourceFault(f"sends fewer than {SLOWEST} bytes a second", again=True)
                watched_from += passed
                n_watched = 0
            if file.size is not None and size > file.size:
                break  # the size is judged after the last byte
    if total is not None and size < total:
        raise SourceFault(f"the connection ended after {size:,} of {total:,} bytes", again=True)


def _check_beginning(chunk: bytes, file: SourceFile) -> None:
    if PAGE.match(chunk) and not file.name.endswith((".html", ".xml")):
        raise SourceFault(
            "sends a web page instead of the file (a login or a notice?)", again=False
        )
    if not suits_name(chunk, file.name):
        raise SourceFault(f"sends something that is no {file.name.rpartition('.')[2]}", again=False)


def _verify(file: SourceFile, part: Path, is_resumed: bool) -> None:
    """Raise SourceFault, and remove the part, unless it is the file.

    A part that was continued may be made of two versions: then the whole file is asked for.
    """
    fault = _fault(file, part)
    if fault:
        part.unlink()
        raise SourceFault(fault, again=is_resumed)


def _fault(file: SourceFile, part: Path) -> str:
    """What is wrong with the file; "" for nothing. Without a checksum, archives have their own."""
    size = _size(part)
    if file.size is not None and size != file.size:
        return f"sent {size:,} bytes where {file.size:,} are expected"
    for name in ("sha256", "md5"):
        expected = getattr(file, name)
        if expected is not None:
            found = digest(part, name)
            return "" if found == expected else f"its {name} is {found}, expected {expected}"
    if size == 0:
        return "sent nothing"
    return check_archive(part, file.name)


def digest(path: Path, name: str) -> str:
    """The checksum of a file in hexadecimal digits. name: "md5" or "sha256"."""
    with path.open("rb") as content:
        return hashlib.file_digest(
            content, lambda: hashlib.new(name, usedforsecurity=False)
        ).hexdigest()


def _open(part: Path, start: int) -> Any:
    try:
        out = part.open("r+b" if start else "wb")
        out.seek(start)
        out.truncate()
    except OSError as error:
        raise _unwritable(part, error) from error
    return out


def _write(out: Any, chunk: bytes, part: Path) -> None:
    try:
        out.write(chunk)
        out.flush()
    except OSError as error:
        raise _unwritable(part, error) from error


def _unwritable(part: Path, error: OSError) -> RecexpError:
    return RecexpError(
        f"{part} cannot be written: {reason(error)}. {advice(error)}. The same command "
        "continues what is there."
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _record(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_record(part: Path) -> Mapping[str, Any]:
    """What is known of the part; nothing where that is missing or damaged."""
    try:
        return read_object(_record(part))
    except (FileNotFoundError, RecexpError):
        return {}


def _words(error: Exception, timeout: float) -> str:
    """What a failed connection means."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return f"no answer within {timeout:g} seconds"
    if isinstance(cause, socket.gaierror):
        return "the name of the host is not known (is there a network?)"
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted ({cause.verify_message})"
    if isinstance(cause, http.client.IncompleteRead):
        return "the connection ended before the file did"
    if isinstance(cause, http.client.RemoteDisconnected):
        return "closed the connection without an answer"
    if isinstance(cause, OSError) and from_system(cause):
        return reason(cause)
    return str(cause) or type(cause).__name__


def _may_pass(error: Exception) -> bool:
    """Is it a fault that may be gone at the next try?"""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, ssl.SSLCertVerificationError | socket.gaierror | str):
        return False
    return not isinstance(cause, ConnectionRefusedError)
