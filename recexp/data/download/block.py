"""The block ``download`` in a data set's YAML: where its raw files come from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from string import Formatter
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from recexp.errors import RecexpError

URL = r"^https?://[^\s]+$"
UNITS = ("bytes", "KB", "MB", "GB", "TB")
WITHOUT_DATA = "Without its data, scale=smoke and dataset=simulated_shop run."


class License(BaseModel):
    """name: the license in a few words. url: its text, or the page that states the terms."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: str
    url: str = Field(pattern=URL)


class SourceFile(BaseModel):
    """One file that the publisher offers.

    name: of the file, in the folder of raw data. urls: its sources, tried in this order; empty
    where it can only be had by hand. md5, sha256: as the publisher states them. size: in bytes.
    unpack: where the file is an archive, the members that are wanted; a member is known by the end
    of its path, and lies under its own name in the folder of raw data. unpacked_size: most bytes
    that they may have.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    name: str
    urls: list[str] = []
    md5: str | None = Field(default=None, pattern=r"^[0-9a-f]{32}$")
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    size: int | None = Field(default=None, gt=0)
    unpack: list[str] = []
    unpacked_size: int | None = Field(default=None, gt=0)

    @field_validator("urls")
    @classmethod
    def _are_urls(cls, urls: list[str]) -> list[str]:
        if odd := [url for url in urls if not re.match(URL, url)]:
            raise ValueError(f"{odd[0]!r} is no http or https address")
        return urls

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if not is_file_name(name):
            raise ValueError(f"{name!r} is no name of a file")
        return name

    @property
    def results(self) -> list[str]:
        """The names of the files that it gives in the folder of raw data."""
        return [PurePosixPath(member).name for member in self.unpack] or [self.name]


class Download(BaseModel):
    """The whole block.

    name: of the YAML, which the command takes. page: where people find the data. account: the
    service that wants an account, or None. steps: what is to be done by hand beyond putting the
    files into the folder. files: the file without which nothing can be read comes first.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    name: str
    license: License
    page: str = Field(pattern=URL)
    account: str | None = None
    steps: str | None = None
    files: list[SourceFile] = Field(min_length=1)

    @property
    def results(self) -> list[str]:
        """The names of all files in the folder of raw data."""
        return [name for file in self.files for name in file.results]

    @property
    def is_automatic(self) -> bool:
        """Can the command get every file?"""
        return all(file.urls for file in self.files)


def is_file_name(name: str) -> bool:
    """Is it one plain name, in the folder itself and not hidden?"""
    return bool(re.fullmatch(r"[^/\\\x00-\x1f:]+", name)) and not name.startswith(".")


def read_block(dataset: Mapping[str, Any], place: str) -> Download | None:
    """The block of a data set's settings, None where it has none.

    ``{option}`` in the block stands for that option of the reader (``dataset.source``).

    Raises RecexpError for a faulty block; place: how the error names the settings.
    """
    block = dataset.get("download")
    if block is None:
        return None
    try:
        return Download.model_validate(_filled(block, dataset.get("source") or {}))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in ("download", *first["loc"]))
        raise RecexpError(f"{place}: {key}: {first['msg']}.") from None
    except (KeyError, IndexError, ValueError) as error:
        raise RecexpError(f"{place}: download: {error} is no option of the reader.") from None


def how_to_get(dataset: Mapping[str, Any], place: str) -> str:
    """What to do where raw files are missing, in a sentence or two; "" where there is no block."""
    block = read_block(dataset, place)
    if block is None:
        return ""
    raw_dir = str(dataset["raw_dir"])
    if not block.is_automatic:
        return f"{by_hand(block, raw_dir)} {WITHOUT_DATA}"
    words = ["python -m recexp.data.download", block.name]
    for option in sorted(_options(dataset["download"])):
        words.append(f"dataset.source.{option}={dataset['source'][option]}")
    words.append(f"dataset.raw_dir={raw_dir}")
    size = sum(file.size or 0 for file in block.files)
    shown = f" ({amount(size)})" if size else ""
    command = " ".join(words)
    return f"Get it by `{command}`{shown}, or set dataset.raw_dir to where it lies. {WITHOUT_DATA}"


def by_hand(block: Download, raw_dir: str) -> str:
    """Where people get the files that the command cannot, and where these go, in a sentence."""
    with_account = f", which wants an account at {block.account}" if block.account else ""
    archives = [file.name for file in block.files if file.unpack and not file.urls]
    whole = f" (or {', '.join(archives)} as it is, for the command)" if archives else ""
    steps = f" ({block.steps})" if block.steps else ""
    return (
        f"Get {block.name} from {block.page}{with_account}, and put {', '.join(block.results)}"
        f"{whole} into {raw_dir}{steps}, or set dataset.raw_dir."
    )


def amount(n_bytes: float) -> str:
    """A number of bytes in a unit that suits it."""
    for unit in UNITS:
        if n_bytes < 1000 or unit == UNITS[-1]:
            break
        n_bytes /= 1000
    return f"{n_bytes:.0f} {unit}" if unit == UNITS[0] or n_bytes >= 10 else f"{n_bytes:.1f} {unit}"


def _filled(node: Any, options: Mapping[str, Any]) -> Any:
    """The block with ``{option}`` replaced in all its texts."""
    if isinstance(node, str):
        return node.format_map({str(key): value for key, value in options.items()})
    if isinstance(node, Mapping):
        return {str(key): _filled(value, options) for key, value in node.items()}
    if isinstance(node, Sequence):
        return [_filled(value, options) for value in node]
    return node


def _options(node: Any) -> set[str]:
    """The options that texts of the block name."""
    if isinstance(node, str):
        return {name for _, name, _, _ in Formatter().parse(node) if name}
    if isinstance(node, Mapping):
        node = list(node.values())
    if isinstance(node, Sequence):
        return {name for value in node for name in _options(value)}
    return set()
