"""The source of a user's own reader is part of what the data are."""

import importlib
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from recexp.data import readers
from recexp.data.cache import prepare, read_meta
from recexp.data.dataset import Dataset
from recexp.data.reader_code import BY_CODE_VERSION, source_checksums
from recexp.data.split import Split
from recexp.errors import RecexpError
from recexp.evaluation.protocol import Protocol

READER = """
from pathlib import Path
import polars as pl
from recexp.data.readers import Raw

def read(raw_dir, *, on_bad_rows="error"):
    path = Path(raw_dir) / "events.csv"
    frame = pl.read_csv(path).with_columns(behavior=pl.lit("view")){change}
    return Raw(frame.lazy(), [path])
"""
LATE = '.filter(pl.col("timestamp") > 100)'


class Code:
    """A folder of modules on Python's path."""

    def __init__(self, folder, monkeypatch):
        self.folder = folder
        monkeypatch.syspath_prepend(folder)

    def write(self, **modules):
        for name, text in modules.items():
            place = name.replace("__", "/").replace("//init/", "/__init__")
            path = self.folder / f"{place}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(dedent(text))
        importlib.invalidate_caches()
        mine = {path.stem for path in self.folder.rglob("*.py")} | {"mine"}
        for name in [name for name in sys.modules if name.partition(".")[0] in mine]:
            del sys.modules[name]

    def checksums(self, target):
        return source_checksums({"_target_": target, "_partial_": True})


@pytest.fixture
def code(tmp_path, monkeypatch):
    made = Code(tmp_path / "code", monkeypatch)
    yield made
    made.write()  # forgets the modules


def prepared(folder, target):
    """Fingerprint, protocol id and number of events of the data of this reader."""
    raw = folder / "raw"
    raw.mkdir(exist_ok=True)
    rows = [f"{u},{(u + n * n) % 15},{50 * u + n}" for u in range(20) for n in range(5)]
    (raw / "events.csv").write_text("\n".join(["user,item,timestamp", *rows]))
    source = {"_target_": target, "_partial_": True}
    data = Dataset("mine", str(raw), source, behaviors=["view"], explicit=["view"])
    meta = read_meta(prepare(data, Split(), folder / "cache"))
    return meta["fingerprint"], Protocol("p").id(meta), meta["interactions"]


def test_an_edited_reader_prepares_again_and_gives_another_protocol_id(tmp_path, code):
    code.write(own_reader=READER.format(change=""))
    first = prepared(tmp_path, "own_reader.read")
    assert prepared(tmp_path, "own_reader.read") == first
    code.write(own_reader=READER.format(change=LATE))
    edited = prepared(tmp_path, "own_reader.read")
    assert all(a != b for a, b in zip(first, edited, strict=True))
    code.write(own_reader=READER.format(change=""))
    assert prepared(tmp_path, "own_reader.read") == first


def test_so_does_an_edited_reader_that_was_added_to_recexp(tmp_path, code, monkeypatch):
    """It is the one place from which a command line may take a reader."""
    monkeypatch.setattr(readers, "__path__", [*readers.__path__, str(code.folder)])
    found = []
    for change in ("", LATE):
        code.write(own_reader=READER.format(change=change))
        sys.modules.pop("recexp.data.readers.own_reader", None)
        found.append(prepared(tmp_path, "recexp.data.readers.own_reader.read"))
    sys.modules.pop("recexp.data.readers.own_reader", None)
    assert all(a != b for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    "helper, statement",
    [
        ("mine__columns", "from mine.columns import x"),
        ("mine__columns", "from . import columns"),
        ("mine__columns", "from .columns import *"),
        ("mine__columns", "import mine.columns as c"),
        ("mine__parts__deep", "from .parts.deep import x"),
        ("mine__parts____init__", "from .parts.deep import x"),
        ("mine____init__", "pass"),
        ("beside", "import beside"),
        ("beside", "def f():\n    from beside import x"),
    ],
)
def test_what_the_reader_imports_counts(code, helper, statement):
    code.write(
        mine____init__="",
        mine__columns="x = 1",
        mine__parts____init__="",
        mine__parts__deep="x = 1",
        mine__unused="x = 1",
        beside="x = 1",
        mine__reader=f"{statement}\ndef read(): ...",
    )
    before = code.checksums("mine.reader.read")
    assert {"mine", "mine.reader"} <= before.keys() and "mine.unused" not in before
    code.write(mine__unused="x = 2")
    assert code.checksums("mine.reader.read") == before
    code.write(**{helper: "x = 2"})
    assert code.checksums("mine.reader.read") != before


def test_imports_in_a_circle_end(code):
    code.write(mine____init__="", mine__a="from mine import b", mine__b="from mine import a")
    assert code.checksums("mine.a.read").keys() == {"mine", "mine.a", "mine.b"}


def test_libraries_do_not_count(code):
    code.write(own_reader="import json, torch, polars.io, hydra, recexp.data.raw.folder")
    assert code.checksums("own_reader.read").keys() == {"own_reader"}


@pytest.mark.parametrize(
    "target", ["own_reader.read", "own_reader.Reader", "own_reader.Reader.from_file"]
)
def test_functions_classes_and_methods(code, target):
    code.write(own_reader="")
    assert code.checksums(target).keys() == {"own_reader"}


def test_partials_and_readers_within_options(code):
    """A partial lies in its module; one that YAML makes names its function as an option."""
    code.write(own_reader="from functools import partial\nread = partial(print, 1)", parsing="")
    assert code.checksums("own_reader.read").keys() == {"own_reader"}
    options = {
        "_target_": "recexp.data.readers.table.read",
        "parse": [{"_target_": "parsing.parse"}],
    }
    assert source_checksums(options).keys() == {"parsing"}
    wrapped = {
        "_target_": "functools.partial",
        "_args_": [{"_target_": "hydra.utils.get_method", "path": "own_reader.read"}],
    }
    assert source_checksums(wrapped).keys() == {"own_reader"}


def test_the_ends_of_lines_do_not_count(code):
    code.write(own_reader="a = 1\nb = 2\n")
    before = code.checksums("own_reader.read")
    (code.folder / "own_reader.py").write_bytes(b"a = 1\r\nb = 2\r\n")
    assert code.checksums("own_reader.read") == before


def test_a_reader_without_a_file_is_refused(code, monkeypatch):
    monkeypatch.setitem(sys.modules, "typed_in", type(sys)("typed_in"))
    with pytest.raises(
        RecexpError, match=r"_target_=typed_in\.read: the source of module typed_in"
    ):
        code.checksums("typed_in.read")
    with pytest.raises(RecexpError, match="there is no module nowhere_at_all"):
        code.checksums("nowhere_at_all.read")


def test_the_readers_of_recexp_go_by_the_code_version():
    folder = Path(readers.__file__).parent
    assert all((folder / f"{name}.py").is_file() for name in BY_CODE_VERSION)
    for name in BY_CODE_VERSION:
        assert source_checksums({"_target_": f"recexp.data.readers.{name}.read"}) == {}
    assert source_checksums({"_target_": "recexp.data.simulation.stand_in.read"}) == {}
