"""Kinds of damage to files; a random one is applied to the bytes of a file."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable

from recexp.data.raw import packed

NUMBERS = [
    "-1",
    "+5",
    "0",
    "007",
    "1.5",
    "1.",
    ".5",
    "1e3",
    "1e39",
    "1e300",
    "1e999",
    "nan",
    "NaN",
    "inf",
    "-inf",
    "infinity",
    "null",
    "NULL",
    "None",
    "\\N",
    "0x10",
    "1_000",
    "１２",
    "٣",
    "-0",
    "-0.0",
    "-5",
    "0.0004",
    "1.0005",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775808",
    "-9223372036854775809",
    "1511544070000",
    "1511544070123456",
    "253402300799",
    "253402300799.9999",
    "253402300800",
    "true",
    "{}",
    "[]",
]
TEXTS = [
    "",
    " ",
    "é",
    "日本",
    "\u00a0",
    "\u2028",
    "\x85",
    "\x1c",
    "\x1f",
    "\0",
    "\ufeff",
    "a b",
    " a",
    "a ",
    "'",
    "a,b",
    "a\\",
    "::",
    "|",
    "\t",
]
QUOTES = [
    'a"b',
    '"a""b"',
    '"a',
    'a"',
    '"',
    '""',
    '"a"b',
    '"a,b"',
    '"a\nb"',
    '"a\rb"',
    "a\rb",
    '"""',
    '""a',
    '"a"b"c"',
    "{'a': 1}",
    "[1]",
]
DATES = [
    "2016-08-09",
    "2016-08-09 12:00:00",
    "2016-08-09T12:00:00Z",
    "2016-08-09 12:00:00+02:00",
    "2016-08-09 12:00:00.1239",
    "2016-02-30",
    "2016-8-9",
    "16-08-09",
    "2016-08-09 24:00:00",
    "2016-08-09 23:59:60",
    "9999-12-31",
    "10000-01-01",
    "+2016-08-09",
    "1969-12-31",
    "0000-00-00",
    "2016-08-09 12:00",
    "2016-08-0912:00:00",
    "2016-08-09 12:00:00 +0200",
    "2016-08-09  12:00:00",
    "2016-08-09 12:00:00.",
]
CELLS = [*NUMBERS, *TEXTS, *QUOTES, *DATES, "9" * 5000, "u" * 5000]
THINGS = [b"0x" + b"f" * 6000, b"9" * 5000, b'["", " ", "a"]', b'[["", " ", "a"]]']
THINGS += (  # in records and JSON
    rb"""None null True true 1 1.5 -1 [] [1] {} "" 'a\nb' "\ud800" '\x1f' 1e999 [['a',1]]"""
    rb""" (1,) b'x' 1j 'x''y' {1}"""
    rb""" "2016-08-09" f'{1}'"""
    rb""" __import__('os') [[""]] [["","a\nb"]] ["","a\nb"] [[[]]]"""
).split()
Mutation = Callable[[random.Random, bytes], bytes]


def _lines(change: Callable[[random.Random, list[bytes]], None]) -> Mutation:
    def mutation(rng: random.Random, content: bytes) -> bytes:
        lines = content.split(b"\n")
        change(rng, lines)
        return b"\n".join(lines)

    return mutation


def _separator(line: bytes) -> bytes:
    return max((b"::", b"\t", b";", b"|", b",", b" "), key=lambda s: (line.count(s) * len(s), s))


def _cell(rng: random.Random, lines: list[bytes]) -> None:
    at = rng.randrange(len(lines))
    separator = _separator(lines[at])
    cells = lines[at].split(separator)
    cells[rng.randrange(len(cells))] = rng.choice(CELLS).encode()
    lines[at] = separator.join(cells)


def _fields(rng: random.Random, lines: list[bytes]) -> None:
    at = rng.randrange(len(lines))
    separator = _separator(lines[at])
    cells = lines[at].split(separator)
    lines[at] = separator.join(
        rng.choice(
            [
                cells[:-1],
                [*cells, b""],
                [*cells, b"x"],
                cells[::-1],
                cells[1:],
                [b'"' + c + b'"' for c in cells],
            ]
        )
    )


def _quote(rng: random.Random, lines: list[bytes]) -> None:
    """Quotes in two places, as inch signs in titles."""
    for _ in range(rng.choice([1, 2, 2])):
        at = rng.randrange(len(lines))
        place = rng.randrange(len(lines[at]) + 1)
        lines[at] = lines[at][:place] + b'"' + lines[at][place:]


def _repeat(rng: random.Random, lines: list[bytes]) -> None:
    lines.insert(rng.randrange(len(lines)), rng.choice(lines))


def _remove(rng: random.Random, lines: list[bytes]) -> None:
    del lines[rng.randrange(len(lines))]


def _blank(rng: random.Random, lines: list[bytes]) -> None:
    lines.insert(
        rng.randrange(len(lines) + 1),
        rng.choice([b"", b"\r", b" ", b"\t ", b",,,,", b'""', b"\x1c", b"\xc2\xa0"]),
    )


def _shuffle(rng: random.Random, lines: list[bytes]) -> None:
    rng.shuffle(lines)


def _header_again(rng: random.Random, lines: list[bytes]) -> None:
    lines.insert(rng.randrange(len(lines) + 1), lines[0])


def _insert(rng: random.Random, content: bytes) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.randbytes(rng.choice([1, 1, 2, 9])) + content[at:]


def _delete(rng: random.Random, content: bytes) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] + content[at + rng.choice([1, 1, 3, 20]) :]


def _flip(rng: random.Random, content: bytes) -> bytes:
    if not content:
        return content
    at = rng.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]


def _cut(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _packed(rng: random.Random, content: bytes) -> bytes:
    half = rng.randrange(len(content) + 1)
    return rng.choice(
        [
            gzip.compress(content, mtime=0),
            gzip.compress(content[:half], mtime=0) + gzip.compress(content[half:], mtime=0),
        ]
    )


def _packed_zstd(rng: random.Random, content: bytes) -> bytes:
    """Whole, in two frames, cut or with a flipped bit, where Python can unpack it."""
    if packed.zstd is None:
        return content
    half = rng.randrange(len(content) + 1)
    frame = packed.zstd.compress(content)
    frames = packed.zstd.compress(content[:half]) + packed.zstd.compress(content[half:])
    return rng.choice([frame, frames, _cut(rng, frame), _flip(rng, frame), frame + b"junk"])


def _packed_and_cut(rng: random.Random, content: bytes) -> bytes:
    return _cut(rng, gzip.compress(content, mtime=0))


def _packed_and_flipped(rng: random.Random, content: bytes) -> bytes:
    return _flip(rng, gzip.compress(content, mtime=0))


def _packed_and_followed(rng: random.Random, content: bytes) -> bytes:
    return gzip.compress(content, mtime=0) + rng.choice([b"\0" * 9, b"junk", b"\x1f\x8b", b"\n"])


def _coded(rng: random.Random, content: bytes) -> bytes:
    text = content.decode("utf-8", "replace")
    return text.encode(
        rng.choice(
            [
                "utf-16",
                "utf-16-le",
                "utf-32",
                "cp1252",
                "latin-1",
                "utf-8-sig",
                "cp037",
                "shift-jis",
            ]
        ),
        "replace",
    )


def _line_ends(rng: random.Random, content: bytes) -> bytes:
    return content.replace(
        b"\n",
        rng.choice([b"\r\n", b"\r", b"\n\n", b"\r\r\n", b"\n\r", b"\xe2\x80\xa8", b"\0\n", b" \n"]),
    )


def _separators(rng: random.Random, content: bytes) -> bytes:
    old, new = rng.choice(
        [
            (b",", b";"),
            (b",", b"\t"),
            (b"\t", b" "),
            (b"::", b":"),
            (b" ", b"  "),
            (b",", b", "),
            (b" ", b"\t"),
            (b"::", b"\x1f"),
        ]
    )
    return content.replace(old, new)


def _brackets(rng: random.Random, content: bytes) -> bytes:
    """For records and JSON."""
    at = rng.randrange(len(content) + 1)
    bombs = [
        b"[" * 5000,
        b"{'a':" * 99,
        b"(" * 500,
        b"-" * 3000 + b"1",
        b"1+" * 3000 + b"1",
        b"0x" + b"f" * 6000,
    ]
    bomb = rng.choice([*bombs, b"NaN", b"Infinity", b"null", b"None"])
    return content[:at] + bomb + content[at:]


def _value(rng: random.Random, content: bytes) -> bytes:
    """For records and JSON: another kind of thing after a colon."""
    places = [n for n in range(len(content)) if content[n : n + 2] == b": "]
    if not places:
        return content
    at = rng.choice(places) + 2
    end = min(
        (n for n in (content.find(b, at) for b in (b",", b"}", b"]")) if n >= 0),
        default=len(content),
    )
    return content[:at] + rng.choice(THINGS) + content[end:]


def _noise(rng: random.Random, content: bytes) -> bytes:
    return rng.randbytes(rng.choice([1, 10, 300]))


def _nothing(rng: random.Random, content: bytes) -> bytes:
    return rng.choice(
        [
            b"",
            b"\n",
            b"\r\n\r\n",
            b"\xef\xbb\xbf",
            b" ",
            b"\0",
            gzip.compress(b"", mtime=0),
            gzip.compress(b"\n", mtime=0),
        ]
    )


def _bom(rng: random.Random, content: bytes) -> bytes:
    return (
        rng.choice([b"\xef\xbb\xbf", b"\xef\xbb\xbf\xef\xbb\xbf", b"\xff\xfe", b"\xef\xbb"])
        + content
    )


def _last(rng: random.Random, content: bytes) -> bytes:
    return content.rstrip(b"\n") + rng.choice([b"", b"\n\n", b"\r\n", b"\x1a", b"\r"])


MUTATIONS: list[Mutation] = [
    *[
        _lines(change)
        for change in (
            _cell,
            _cell,
            _cell,
            _cell,
            _fields,
            _quote,
            _repeat,
            _remove,
            _blank,
            _shuffle,
            _header_again,
        )
    ],
    *(
        _insert,
        _delete,
        _flip,
        _cut,
        _packed,
        _packed_zstd,
        _packed_and_cut,
        _packed_and_flipped,
        _packed_and_followed,
        _coded,
        _line_ends,
        _separators,
    ),
    *(_brackets, _value, _value, _noise, _nothing, _bom, _last),
]


def mutate(rng: random.Random, content: bytes) -> bytes:
    """One random mutation."""
    return rng.choice(MUTATIONS)(rng, content)
