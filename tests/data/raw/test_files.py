"""Several files, globs, JSON lines and packed texts are read as one table, strictly."""

import gzip
import json
import subprocess
import sys

import polars as pl
import pytest

from recexp.data.raw import packed
from recexp.data.raw.columns import Column
from recexp.data.raw.delimited import Format
from recexp.data.raw.folder import Folder
from recexp.errors import RecexpError

COLUMNS = [
    Column("user", "user"),
    Column("item", "item", "int"),
    Column("value", "value", "number", nullable=True),
]
ROWS = [("a", 1, 0.5), ("b, c", 2, None), ("é", 3, -4.0), ("a", -9, 1e30)]
needs_zstd = pytest.mark.skipif(packed.zstd is None, reason="backports.zstd is not installed")


def csv(rows, separator=","):
    frame = pl.DataFrame(rows, schema=["user", "item", "value"], orient="row")
    return frame.write_csv(separator=separator).encode()


def json_lines(rows):
    keys = ("value", "user", "item")
    records = [dict(zip(keys, (v, u, i), strict=True)) for u, i, v in rows]
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def zstd(content):
    return packed.zstd.compress(content)


def write(folder, **files):
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def read(folder, file, form=None, on_bad_rows="error"):
    opened = Folder(folder, "here", on_bad_rows)
    return opened.frame(file, COLUMNS, form or Format(header=True)).rows()


def test_every_format_gives_the_same_rows(tmp_path):
    """One row per file, in the order of the list, whatever the format of the file."""
    frame = pl.DataFrame(ROWS[3:], schema=["user", "item", "value"], orient="row")
    frame.select("item", "value", "user").write_parquet(tmp_path / "a.parquet")
    write(
        tmp_path,
        b__csv=csv(ROWS[:1]),
        d__csv__gz=gzip.compress(csv(ROWS[1:2])),
        c__jsonl__gz=gzip.compress(json_lines(ROWS[2:3])),
    )
    names = ["b.csv", "d.csv.gz", "c.jsonl.gz", "a.parquet"]
    assert read(tmp_path, names) == ROWS
    assert read(tmp_path, names[::-1]) == ROWS[::-1]


def test_matches_of_a_pattern_are_sorted_by_name(tmp_path):
    for number, row in zip((10, 2, 1, 3), ROWS, strict=True):
        write(tmp_path, **{f"part-{number}__csv": csv([row])})
    write(tmp_path, other__csv="nothing of ours")
    (tmp_path / "part-5.csv").mkdir()
    folder = Folder(tmp_path, "here")
    assert folder.names("part-*.csv") == [f"part-{n}.csv" for n in (1, 10, 2, 3)]
    assert read(tmp_path, "part-*.csv") == [ROWS[2], ROWS[0], ROWS[1], ROWS[3]]
    # Named twice, read once; a list keeps its order.
    assert folder.names(["part-3.csv", "part-*.csv"])[0] == "part-3.csv"
    assert read(tmp_path, ["part-3.csv", "part-[123].csv"]) == [ROWS[3], ROWS[2], ROWS[1]]
    # A file that has the characters of a pattern in its name.
    write(tmp_path, **{"part-[123]__csv": csv(ROWS)})
    assert read(tmp_path, "part-[123].csv") == ROWS


def test_a_folder_may_have_the_characters_of_a_pattern_in_its_name(tmp_path):
    folder = tmp_path / "[ab]*"
    (folder / "sub").mkdir(parents=True)
    write(folder / "sub", a__csv=csv(ROWS))
    assert read(folder, "*/a.csv") == ROWS
    assert read(tmp_path, str(tmp_path / "*" / "sub" / "*.csv")) == ROWS


@pytest.mark.parametrize(
    "pack", [gzip.compress, pytest.param(zstd, marks=needs_zstd)], ids=["gzip", "zstd"]
)
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_packed_text_is_read_and_its_damage_named(tmp_path, pack, form):
    content = {"csv": csv, "jsonl": json_lines}[form](ROWS * 500)
    half = len(content) // 2
    whole = pack(content)
    for good in (whole, pack(content[:half]) + pack(content[half:])):
        write(tmp_path, **{f"a__{form}": good})  # the name need not say that it is packed
        assert read(tmp_path, f"a.{form}") == ROWS * 500
    for bad in (whole[: len(whole) // 2], whole[:-3], whole + b"junk", whole[:30] + whole[40:]):
        write(tmp_path, **{f"a__{form}": bad})
        for policy in ("error", "drop"):
            with pytest.raises(RecexpError, match=rf"a\.{form} is cut off or damaged after line"):
                read(tmp_path, f"a.{form}", on_bad_rows=policy)


@needs_zstd
def test_zstd_may_begin_with_a_skippable_frame(tmp_path):
    """As pzstd writes it. polars finds no row in such a file."""
    frame = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
    write(tmp_path, a__csv__zst=frame + zstd(csv(ROWS)) + frame)
    assert read(tmp_path, "a.csv.zst") == ROWS


def test_zstd_that_python_cannot_unpack_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "zstd", None)
    write(tmp_path, a__csv__zst=packed.ZSTD + b"anything")
    with pytest.raises(RecexpError, match=r"a\.csv\.zst is packed with zstd.*backports\.zstd"):
        read(tmp_path, "a.csv.zst")
    write(tmp_path, a__csv=b"PK\x03\x04 anything")
    with pytest.raises(RecexpError, match=r"a\.csv is a zip archive. Unpack it first"):
        read(tmp_path, "a.csv")


def test_a_python_without_zstd_imports_the_readers():
    script = (
        "import sys; sys.modules['compression.zstd'] = sys.modules['backports.zstd'] = None;"
        "from recexp.data.raw import packed; print(packed.zstd, len(packed.DAMAGED))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == ["None", "3"], done.stderr


@pytest.mark.parametrize(
    "line, fault",
    [
        ('{"user": "a", "item": 1', "is neither JSON nor a Python literal"),
        ('["a", 1]', "is not a record of keys and values"),
        ('{"user": "a", "item": 1.5}', "column 'item': '1.5' is not a whole number"),
        ('{"user": 1.5, "item": 1}', "has something at 'user' that is neither a text nor a whole"),
        ('{"user": ["a"], "item": 1}', "has something at 'user' that is neither a text nor a whol"),
        ('{"user": null, "item": 1}', "column 'user': is missing"),
        ('{"item": 1}', "column 'user': is missing"),
        ('{"user": "a", "item": 1, "value": NaN}', "column 'value': 'nan' is not a number"),
    ],
)
def test_a_bad_json_line_is_named_or_left_out(tmp_path, line, fault):
    good = json_lines(ROWS).decode()
    write(tmp_path, a__jsonl=good, b__jsonl=f"{good}\n{line}\n{good}")
    with pytest.raises(RecexpError) as error:
        read(tmp_path, "*.jsonl")
    assert "b.jsonl, line 6" in str(error.value) and fault in str(error.value)
    folder = Folder(tmp_path, "here", "drop")
    assert folder.frame("*.jsonl", COLUMNS).rows() == ROWS * 3
    assert [n for n, _ in folder.dropped.values()] == [1]


def test_files_of_different_columns_are_refused(tmp_path):
    write(tmp_path, a__csv="user,item,value\na,1,\n", b__csv="item,user\n1,a\n")
    with pytest.raises(RecexpError, match=r"b\.csv, line 1: column 'value' is not in the header"):
        read(tmp_path, ["a.csv", "b.csv"])
    # Other orders and more columns are no matter: columns are found by name.
    write(tmp_path, b__csv="item,note,value,user\n2,x,,b\n")
    assert read(tmp_path, ["a.csv", "b.csv"]) == [("a", 1, None), ("b", 2, None)]


def test_files_without_headers_must_have_as_many_columns(tmp_path):
    columns = [Column("user", 0), Column("item", 1, "int")]
    plain = Format(header=False, separator="\t")
    write(tmp_path, a__tsv="a\t1\nb\t2\n", b__tsv="c\t3\n", c__tsv="x\tc\t3\n", d__jsonl="{}\n")
    folder = Folder(tmp_path, "here")
    assert folder.frame("[ab].tsv", columns, plain).rows() == [("a", 1), ("b", 2), ("c", 3)]
    with pytest.raises(RecexpError, match=r"c\.tsv has 3 columns and .*a\.tsv 2: without headers"):
        folder.frame("*.tsv", columns, plain)
    with pytest.raises(RecexpError, match=r"d\.jsonl names its columns; header=false is for text"):
        folder.frame(["a.tsv", "d.jsonl"], columns, plain)
    with pytest.raises(RecexpError, match=r"line 1: there are 2 columns; column 3 \(time\) is mis"):
        folder.frame("a.tsv", [*columns, Column("time", 2, "s")], plain)


def test_an_empty_one_of_several_files_is_allowed(tmp_path):
    """Programs that write in parallel leave parts without rows. A file of no bytes is damaged."""
    empty = csv([])
    write(tmp_path, a__csv=empty, b__csv=csv(ROWS), c__csv=empty)
    assert read(tmp_path, "*.csv") == ROWS
    with pytest.raises(RecexpError, match=r"in 2 files, holds no usable row"):
        read(tmp_path, ["a.csv", "c.csv"])
    with pytest.raises(RecexpError, match=r"a\.csv holds no usable row"):
        read(tmp_path, ["a.csv"])
    write(tmp_path, c__csv="")
    with pytest.raises(RecexpError, match=r"c\.csv is empty"):
        read(tmp_path, "*.csv")


def test_a_bad_row_of_several_files_is_counted_under_its_file(tmp_path):
    write(tmp_path, a__csv=csv(ROWS), b__csv=csv(ROWS) + b"x,1.5,\n")
    with pytest.raises(RecexpError, match=r"b\.csv, line 6, column 'item': '1.5' is not a whole"):
        read(tmp_path, "*.csv")
    folder = Folder(tmp_path, "here", "drop")
    assert folder.frame("*.csv", COLUMNS).rows() == ROWS * 2
    assert folder.dropped == {
        "b.csv: column 'item' is not a whole number": (1, ["b.csv:6 column 'item' '1.5'"])
    }


@pytest.mark.parametrize(
    "file, words",
    [
        ("*.csv", r"No file of .* matches '\*\.csv'.*Get the files from here"),
        ([], "No file is named"),
        ([""], "'' is no name of a file"),
        ([7], "7 is no name of a file"),
        ("none.csv", r"none\.csv is missing"),
    ],
)
def test_nothing_to_read_is_said(tmp_path, file, words):
    with pytest.raises(RecexpError, match=words):
        read(tmp_path, file)


def test_files_know_what_was_looked_for(tmp_path):
    write(tmp_path, a__csv=csv(ROWS), b__csv=csv(ROWS))
    folder = Folder(tmp_path, "here")
    assert not folder.has("items.csv")
    folder.frame("*.csv", COLUMNS)
    assert folder.files == [tmp_path / "a.csv", tmp_path / "b.csv"]
    assert folder.files.exists == {str(tmp_path / "items.csv"): False}
    assert [*folder.files.matches.values()] == [[str(tmp_path / n) for n in ("a.csv", "b.csv")]]
