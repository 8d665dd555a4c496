"""The command: licence, download, unpacking, and the files in their place.

Everything happens in the folder ``.download`` within the folder of raw data. A file appears under
its own name when all files are complete, and the one without which nothing can be read comes last:
what is incomplete never looks like the data set.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from recexp.data.download.block import Download, SourceFile, amount, by_hand, read_block
from recexp.data.download.transfer import Patience, Unavailable, digest, fetch
from recexp.data.download.unpacking import unpack
from recexp.errors import RecexpError
from recexp.io import advice, file_lock, new_folder, reason, remove
from recexp.version import add_version

WORK = ".download"
LOCK = "lock"


@dataclass(frozen=True)
class Wanted:
    """A data set to get: its block, and the folder of its raw data."""

    block: Download
    raw_dir: Path


def main(conf: Path, arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status. conf: the folder of data sets' YAMLs."""
    options = parser().parse_args(arguments)
    words = [word.removeprefix("dataset=") for word in options.words]
    names = [word for word in words if "=" not in word]
    overrides = [word for word in words if "=" in word]
    try:
        if options.list or not names:
            print(_listed(conf))
            return 0
        if len(names) > 1 and (overrides or options.raw_dir):
            raise RecexpError("Settings are for one data set: name one at a time.")
        for name in names:
            wanted = find(conf, name, overrides)
            if options.raw_dir:
                wanted = replace(wanted, raw_dir=Path(options.raw_dir))
            get(wanted, options.accept, options.force, Patience(options.timeout))
    except RecexpError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {reason(error)}. {advice(error)}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command continues where it was", file=sys.stderr)
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    """The options of ``python -m recexp.data.download``."""
    made = argparse.ArgumentParser(
        prog="python -m recexp.data.download",
        description="Download the raw files of data sets from their publishers.",
    )
    add_version(made)
    add = made.add_argument
    add(
        "words",
        nargs="*",
        metavar="NAME|dataset.KEY=VALUE",
        help="a data set of conf/dataset, or the path of a YAML; settings as of python -m recexp",
    )
    add("--list", action="store_true", help="list the data sets, their sizes and licenses")
    add("--raw-dir", metavar="DIR", help="where to, if not where the YAML looks for raw files")
    add(
        "--accept-license",
        "--accept-licence",
        dest="accept",
        action="store_true",
        help="you have read the terms that are shown, and accept them",
    )
    add("--force", action="store_true", help="replace files that are there")
    add("--timeout", type=float, default=30.0, metavar="SECONDS", help="without an answer (30)")
    return made


def find(conf: Path, name: str, overrides: Sequence[str] = ()) -> Wanted:
    """The data set of this name or YAML. RecexpError where there is none, or no block in it."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else conf / f"{name}.yaml"
    if not path.is_file():
        known = [each.stem for each in sorted(conf.glob("*.yaml"))]
        close = difflib.get_close_matches(name, known, 1)
        guess = f" Did you mean {close[0]}?" if close else ""
        raise RecexpError(f"There is no data set {name}.{guess} --list shows all.")
    dataset = _settings(path, overrides)
    block = read_block(dataset, str(path))
    if block is None:
        raise RecexpError(
            f"{path} has no block download: {name} reads your own files in {dataset['raw_dir']}."
        )
    return Wanted(block, Path(dataset["raw_dir"]))


def get(
    wanted: Wanted, accepted: bool, force: bool = False, patience: Patience | None = None
) -> None:
    """Download what is missing, unpack it, and put it into the folder of raw data.

    Files that are there stay as they are, unless ``force``.

    Raises:
        RecexpError: the terms are not accepted, a file cannot be had or written.
        OSError: the folder of raw data cannot be written.
    """
    block = wanted.block
    raw_dir = wanted.raw_dir
    if not force and len(_present(block, raw_dir)) == len(block.results):
        _say(block, f"all files are in {raw_dir}; --force downloads them again")
        return
    by_hand_only = [
        file for file in block.files if not file.urls and not (raw_dir / file.name).exists()
    ]
    if by_hand_only:
        raise RecexpError(by_hand(block, str(raw_dir)))
    if any(not (file.unpack and (raw_dir / file.name).is_file()) for file in block.files):
        _accept(block, accepted)
    work = raw_dir / WORK
    work.mkdir(parents=True, exist_ok=True)
    waiting = f"{block.name}: another process downloads it; waiting"
    with file_lock(work / LOCK, waiting):
        kept = [] if force else _present(block, raw_dir)
        new = _collect(block, raw_dir, work, kept, patience or Patience())
        for path in reversed(new):
            os.replace(path, raw_dir / path.name)
        for left in work.iterdir():
            if left.name != LOCK:  # another process may wait for it
                remove(left)
    if kept:
        _say(block, f"kept what was there: {', '.join(kept)}")
    if new:
        _say(block, f"complete in {raw_dir}: {', '.join(path.name for path in new)}")


def _present(block: Download, raw_dir: Path) -> list[str]:
    return [name for name in block.results if (raw_dir / name).exists()]


def _collect(
    block: Download, raw_dir: Path, work: Path, kept: Sequence[str], patience: Patience
) -> list[Path]:
    """Complete new files in a folder of their own, in the order of the block."""
    for left in work.glob("new-*"):
        remove(left)
    stage = new_folder(work, "new-")
    new = []
    for file in block.files:
        if set(file.results) <= set(kept):
            continue
        path = _archive_or_file(block, file, raw_dir, work, patience)
        if file.unpack:
            wanted = [name for name in file.unpack if Path(name).name not in kept]
            new += _unpacked(path, wanted, stage, file, is_ours=path.parent == work)
        else:
            os.replace(path, stage / file.name)
            new.append(stage / file.name)
    return new


def _archive_or_file(
    block: Download, file: SourceFile, raw_dir: Path, work: Path, patience: Patience
) -> Path:
    """The file as its publisher offers it: put there by the user, or downloaded."""
    given = raw_dir / file.name
    if file.unpack and given.is_file():
        _say(block, f"takes {given}, which is there")
        for name in ("sha256", "md5"):
            expected = getattr(file, name)
            if expected is not None and digest(given, name) != expected:
                raise RecexpError(
                    f"{given} is not the published file: its {name} is not {expected}. Remove it, "
                    "and it is downloaded anew."
                )
        return given
    if not (work / file.name).exists():
        size = f" ({amount(file.size)})" if file.size else ""
        _say(block, f"gets {file.name}{size}")
    try:
        path = fetch(file, work, patience)
    except Unavailable as error:
        raise RecexpError(
            f"{error} What was received is kept: try again later, or get {file.name} from "
            f"{block.page} and put it into {raw_dir}."
        ) from None
    if not (file.md5 or file.sha256):
        _say(
            block,
            f"{file.name}: its publisher states no checksum; it has "
            f"{amount(path.stat().st_size)} and sha256 {digest(path, 'sha256')}",
        )
    return path


def _unpacked(
    path: Path, wanted: Sequence[str], stage: Path, file: SourceFile, is_ours: bool
) -> list[Path]:
    """The wanted members, unpacked. An archive of ours that is faulty is removed."""
    try:
        return unpack(path, wanted, stage, file.unpacked_size)
    except RecexpError:
        if is_ours:
            path.unlink(missing_ok=True)
        raise
    except OSError as error:
        raise RecexpError(
            f"{path} cannot be unpacked into {stage}: {reason(error)}. {advice(error)}."
        ) from error


def _accept(block: Download, accepted: bool) -> None:
    """Show the terms; raise RecexpError unless they are accepted."""
    size = sum(file.size or 0 for file in block.files)
    shown = f", {amount(size)}" if size else ""
    _say(block, f"{block.page}{shown}")
    _say(block, f"license: {block.license.name} ({block.license.url})")
    if accepted:
        return
    if sys.stdin is not None and sys.stdin.isatty():
        try:
            answer = input("Do you accept these terms? [y/N] ")
        except EOFError:
            answer = ""
        if answer.strip().lower() in ("y", "yes"):
            return
    raise RecexpError(
        f"The terms of {block.name} are not accepted, and nothing was downloaded. "
        "--accept-license accepts them."
    )


def _settings(path: Path, overrides: Sequence[str] = ()) -> Mapping[str, Any]:
    """The data set's YAML with the overrides ``dataset.KEY=VALUE``."""
    try:
        whole = OmegaConf.create({"dataset": OmegaConf.load(path)})
        whole.merge_with_dotlist(list(overrides))
        settings: Any = OmegaConf.to_container(whole, resolve=True)
    except (OmegaConfBaseException, OSError, ValueError, AttributeError) as error:
        raise RecexpError(f"{path}: {str(error).splitlines()[0]}") from None
    if set(settings) != {"dataset"} or not isinstance(settings["dataset"], dict):
        odd = next((word for word in overrides if not word.startswith("dataset.")), path)
        raise RecexpError(f"{odd}: settings are of the form dataset.raw_dir=DIR.")
    return settings["dataset"]


def _listed(conf: Path) -> str:
    """A line per data set with a block: name, size, how it is had, license."""
    rows = [("name", "download", "how", "license")]
    for path in sorted(conf.glob("*.yaml")):
        block = read_block(_settings(path), str(path))
        if block is None:
            continue
        size = sum(file.size or 0 for file in block.files)
        how = "command" if block.is_automatic else f"by hand: {block.account or block.page}"
        rows.append((block.name, amount(size) if size else "", how, block.license.name))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        lines.append("  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)))
    return "\n".join(line.rstrip() for line in lines)


def _say(block: Download, text: str) -> None:
    print(f"[data] {block.name}: {text}", file=sys.stderr)
