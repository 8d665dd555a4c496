"""Strict reading: the result depends neither on the form of the text nor on the path through the
code.
"""

import gzip

import pytest

from recexp.data.raw.columns import Column
from recexp.data.raw.folder import Folder
from recexp.data.readers import movielens, sequence_file, table
from recexp.errors import RecexpError


@pytest.mark.parametrize(
    "change",
    [
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: text.rstrip(b"\n"),
        lambda text: text + b"\n\n",
        lambda text: text.replace(b"\n", b"\n\n"),
        gzip.compress,
        lambda text: b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n") + b"\r\n",
        lambda text: b"\r\n" + text,
    ],
    ids=[
        "bom",
        "crlf",
        "no last line end",
        "blank lines at the end",
        "blank lines",
        "gzip",
        "bom, crlf, blank line",
        "blank line first",
    ],
)
def test_the_form_of_the_text_changes_nothing(tmp_path, change):
    """Files as other programs save them. A blank line selects the slow path, which must give the
    same.
    """
    pairs = "".join(f"{n % 7} {n % 5}\n" for n in range(50))
    ratings = "".join(f"{n % 7}::{n % 5}::{1 + n % 5}::{978300760 + n}\n" for n in range(50))
    orders = 'user,item\n"a, b",x\n"c d","say ""y"""\n'
    films = "1::Ä (1995)::Drama\n".encode("latin-1")
    plain = {
        "s.txt": pairs.encode(),
        "ratings.dat": ratings.encode(),
        "movies.dat": films,
        "t.csv": orders.encode(),
    }

    def read():
        raws = [
            sequence_file.read(tmp_path, file="s.txt"),
            movielens.read_1m(tmp_path),
            table.read(tmp_path, file="t.csv", timestamp=None),
        ]
        return [raw.events.collect().rows() for raw in raws] + [
            raws[1].item_features["year"].frame.collect().rows()
        ]

    for name, content in plain.items():
        (tmp_path / name).write_bytes(content)
    expected = read()
    for name, content in plain.items():
        (tmp_path / name).write_bytes(change(content))
    assert read() == expected


TEXTS = [
    *(
        "5",
        "+5",
        "-5",
        "5.0",
        "1e3",
        "1_000",
        " 5",
        "5 ",
        "0x10",
        "007",
        ".5",
        "inf",
        "NaN",
        "true",
        "",
        "null",
        "--5",
        "5,5",
    ),
    *(
        "9223372036854775807",
        "9223372036854775808",
        "1e309",
        '"5"',
        "253402300800",
        'a"b',
        '"a""b"',
    ),
    *(
        "2020-01-02",
        "2020-1-2",
        "2020-01-02 03:04",
        "2020-01-02 03:04:05.123456789",
        "2020-01-02T03:04:05Z",
    ),
    *("2020-01-02 24:00:00", "1969-12-31"),
]


@pytest.mark.parametrize("kind", ["int", "number", "s", "ms", "iso", "id", "text"])
@pytest.mark.parametrize("nullable", [False, True])
def test_both_ways_of_reading_agree(tmp_path, kind, nullable):
    """A blank line selects the slow path: it must accept and refuse the same texts, and read the
    same from them.
    """
    columns = [Column("a", "a", "int"), Column("b", "b", kind, nullable=nullable)]

    def read(content):
        (tmp_path / "f.csv").write_text(content)
        try:
            return Folder(tmp_path, "here").delimited("f.csv", columns, header=True).rows()
        except RecexpError as error:
            return str(error).split(", column")[-1]

    outcomes = {text: (read(f"a,b\n1,{text}\n"), read(f"a,b\n1,{text}\n\n")) for text in TEXTS}
    assert all(fast == slow for fast, slow in outcomes.values()), outcomes
    assert {type(fast) for fast, _ in outcomes.values()} == {
        list,
        str,
    }  # some are read and some are refused
