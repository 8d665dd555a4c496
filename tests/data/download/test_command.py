"""The command: from a YAML to files in their place, and what people read on the way."""

import hashlib
import os
import sys
import zipfile

import pytest
from omegaconf import OmegaConf

from recexp.config import CONF
from recexp.data.cache import prepare
from recexp.data.dataset import Dataset
from recexp.data.download import command
from recexp.data.download.block import read_block
from recexp.data.download.command import main
from recexp.errors import RecexpError
from tests.data.download.server import cut_off, in_turn, ranged, serving, status, whole
from tests.support.events import P3

FILES = {"ratings.dat": b"1::1::5::978300760\n" * 9, "movies.dat": b"1::A (1995)::X\n"}


@pytest.fixture(autouse=True)
def without_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture(scope="module")
def running():
    with serving() as server:
        yield server


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "made.zip"
    with zipfile.ZipFile(path, "w") as made:
        for name, content in {
            "ml/README": b"r",
            **{f"ml/{k}": v for k, v in FILES.items()},
        }.items():
            made.writestr(name, content)
    return path.read_bytes()


@pytest.fixture
def site(running, tmp_path, archive, monkeypatch):
    """A folder of YAMLs with one data set, whose archive the server has at /ml.zip."""
    running.answers.clear()
    running.seen.clear()
    running.answers["/ml.zip"] = whole(archive)
    monkeypatch.setattr(command, "Patience", lambda *_: command_patience())
    (tmp_path / "conf").mkdir()
    write_yaml(tmp_path, running, archive)
    return running


def command_patience():
    from recexp.data.download.transfer import Patience

    return Patience(timeout=2.0, tries=2, wait=0.0)


def write_yaml(tmp_path, server, archive, **changes):
    file = {
        "name": "ml.zip",
        "urls": [server.url("/gone.zip"), server.url("/ml.zip")],
        "md5": hashlib.md5(archive, usedforsecurity=False).hexdigest(),
        "size": len(archive),
        "unpack": list(FILES),
    }
    block = {
        "name": "ml",
        "license": {"name": "research only", "url": "https://example.org/terms"},
        "page": "https://example.org/ml",
        "files": [{**file, **changes}],
    }
    dataset = {"name": "ml", "raw_dir": str(tmp_path / "ml"), "source": {}, "download": block}
    OmegaConf.save(OmegaConf.create(dataset), tmp_path / "conf" / "ml.yaml")


def run(tmp_path, *words):
    return main(tmp_path / "conf", list(words))


def placed(folder):
    """What looks like raw data: name -> content."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_the_files_are_in_their_place_and_nothing_else(site, tmp_path, capsys):
    assert run(tmp_path, "ml", "--accept-license") == 0
    folder = tmp_path / "ml"
    assert placed(folder) == FILES
    assert [path.name for path in (folder / ".download").iterdir()] == ["lock"]
    shown = capsys.readouterr().err
    assert "license: research only (https://example.org/terms)" in shown
    assert f"complete in {folder}: ratings.dat, movies.dat" in shown
    # Again: nothing to do, and no server is asked.
    n_asked = len(site.seen)
    assert run(tmp_path, "ml") == 0
    assert "all files are in" in capsys.readouterr().err and len(site.seen) == n_asked


def test_nothing_is_asked_for_before_the_terms_are_accepted(site, tmp_path, capsys, monkeypatch):
    assert run(tmp_path, "ml") == 1
    text = capsys.readouterr().err
    assert "license: research only" in text and "--accept-license accepts them" in text
    monkeypatch.setattr(sys, "stdin", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setattr("builtins.input", lambda question: "n")
    assert run(tmp_path, "ml") == 1
    assert site.seen == [] and not (tmp_path / "ml").exists()
    monkeypatch.setattr("builtins.input", lambda question: "y")
    assert run(tmp_path, "ml") == 0


def test_the_other_spelling_and_another_place_are_taken(site, tmp_path):
    place = tmp_path / "with space, and = sign"
    assert run(tmp_path, "dataset=ml", "--accept-licence", "--raw-dir", str(place)) == 0
    assert (place / "ratings.dat").read_bytes() == FILES["ratings.dat"]
    other = tmp_path / "other"
    assert run(tmp_path, "ml", f"dataset.raw_dir={other}", "--accept-license") == 0
    assert (other / "movies.dat").exists()


def test_a_failed_download_leaves_no_file_and_is_continued(site, tmp_path, archive, capsys):
    site.answers["/ml.zip"] = in_turn(cut_off(archive, 100), status(404))
    assert run(tmp_path, "ml", "--accept-license") == 1
    text = capsys.readouterr().err
    assert "404 Not Found" in text and "get ml.zip from https://example.org/ml and put it" in text
    assert not placed(tmp_path / "ml")
    site.answers["/ml.zip"] = ranged(archive)
    assert run(tmp_path, "ml", "--accept-license") == 0
    assert site.seen[-1] == ("/ml.zip", "bytes=100-")


def test_an_archive_without_a_wanted_file_leaves_no_file(site, tmp_path, archive, capsys):
    write_yaml(tmp_path, site, archive, unpack=["ratings.dat", "users.dat"])
    assert run(tmp_path, "ml", "--accept-license") == 1
    assert "holds no file users.dat" in capsys.readouterr().err
    assert not placed(tmp_path / "ml")
    assert not (tmp_path / "ml" / ".download" / "ml.zip").exists()


def test_a_full_disk_while_unpacking_is_one_sentence(site, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command, "unpack", full)
    assert run(tmp_path, "ml", "--accept-license") == 1
    text = capsys.readouterr().err
    assert "cannot be unpacked into" in text and "No space left on device. Make room" in text
    assert not placed(tmp_path / "ml")
    monkeypatch.undo()
    site.answers.clear()  # the archive is kept: the next command asks no server for it
    assert run(tmp_path, "ml", "--accept-license") == 0


def test_a_stop_between_files_leaves_out_the_one_that_is_read_first(site, tmp_path, monkeypatch):
    """The list begins with the file without which nothing can be read: it appears last."""
    replace = os.replace

    def stopping(source, target):
        if str(target) == str(tmp_path / "ml" / "ratings.dat"):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", stopping)
    assert run(tmp_path, "ml", "--accept-license") == 130
    monkeypatch.undo()
    assert list(placed(tmp_path / "ml")) == ["movies.dat"]
    assert run(tmp_path, "ml", "--accept-license") == 0
    assert (tmp_path / "ml" / "ratings.dat").exists()


def test_files_that_are_there_stay_unless_forced(site, tmp_path, capsys):
    (tmp_path / "ml").mkdir()
    (tmp_path / "ml" / "movies.dat").write_bytes(b"mine")
    assert run(tmp_path, "ml", "--accept-license") == 0
    assert "kept what was there: movies.dat" in capsys.readouterr().err
    assert (tmp_path / "ml" / "movies.dat").read_bytes() == b"mine"
    assert run(tmp_path, "ml", "--accept-license", "--force") == 0
    assert (tmp_path / "ml" / "movies.dat").read_bytes() == FILES["movies.dat"]


def test_an_archive_put_there_by_hand_is_unpacked_without_network(site, tmp_path, archive, capsys):
    (tmp_path / "ml").mkdir()
    given = tmp_path / "ml" / "ml.zip"
    given.write_bytes(archive[:-1])
    assert run(tmp_path, "ml") == 1
    assert "ml.zip is not the published file" in capsys.readouterr().err
    given.write_bytes(archive)
    assert run(tmp_path, "ml") == 0
    assert given.exists() and (tmp_path / "ml" / "ratings.dat").exists() and site.seen == []


def test_data_that_want_an_account_say_where_they_are(site, tmp_path, archive, capsys):
    write_yaml(tmp_path, site, archive, urls=[])
    assert run(tmp_path, "ml", "--accept-license") == 1
    place = tmp_path / "ml"
    assert (
        f"Get ml from https://example.org/ml, and put ratings.dat, movies.dat (or ml.zip as it is, "
        f"for the command) into {place}, or set dataset.raw_dir."
    ) in capsys.readouterr().err


def test_a_file_without_checksum_says_so(site, tmp_path, archive, capsys):
    write_yaml(tmp_path, site, archive, md5=None)
    assert run(tmp_path, "ml", "--accept-license") == 0
    text = capsys.readouterr().err
    assert "its publisher states no checksum" in text
    assert hashlib.sha256(archive).hexdigest() in text


def test_wrong_words_are_one_sentence(site, tmp_path, capsys):
    assert run(tmp_path, "mll") == 1
    assert "There is no data set mll. Did you mean ml?" in capsys.readouterr().err
    assert run(tmp_path, "ml", "raw_dir=x") == 1
    assert "raw_dir=x: settings are of the form dataset.raw_dir=DIR" in capsys.readouterr().err
    (tmp_path / "conf" / "own.yaml").write_text("raw_dir: data/own\nsource: {}\n")
    assert run(tmp_path, "own") == 1
    assert "own reads your own files in data/own" in capsys.readouterr().err
    assert run(tmp_path) == 0
    assert "ml    " in capsys.readouterr().out
    (tmp_path / "ml").write_text("")
    assert run(tmp_path, "ml", "--accept-license") == 1
    assert "Not a directory" in capsys.readouterr().err


def test_options_of_the_reader_stand_in_names_and_addresses():
    block = {
        "name": "a",
        "license": {"name": "l", "url": "https://e.org"},
        "page": "https://e.org",
        "files": [{"name": "ratings_{name}.csv", "urls": ["https://e.org/{name}.csv"]}],
    }
    found = read_block({"source": {"name": "Books"}, "download": block}, "a.yaml")
    assert found.files[0].name == "ratings_Books.csv"
    assert found.files[0].urls == ["https://e.org/Books.csv"]
    with pytest.raises(RecexpError, match=r"a\.yaml: download: 'name' is no option"):
        read_block({"source": {}, "download": block}, "a.yaml")
    for bad in ("../x", "a/b", ".hidden", ""):
        block["files"][0] = {"name": bad}
        with pytest.raises(RecexpError, match="no name of a file"):
            read_block({"source": {}, "download": block}, "a.yaml")
    block["files"][0] = {"name": "a", "urls": ["file:///etc/passwd"]}
    with pytest.raises(RecexpError, match="no http or https address"):
        read_block({"source": {}, "download": block}, "a.yaml")


BLOCKS = {path.stem: path for path in sorted((CONF / "dataset").glob("*.yaml"))}
FORMATS = {"table", "given", "sequence_file", "attribute_sequence", "recbole"}
NOT_PUBLISHED = {"simulated_shop", "ijcai15", "taobao_31882"}


@pytest.mark.parametrize("name", sorted(BLOCKS.keys() - FORMATS - NOT_PUBLISHED))
def test_every_data_set_says_where_it_comes_from(name):
    wanted = command.find(CONF / "dataset", name)
    assert wanted.block.name == name  # the name that the command takes


def missing(tmp_path, name, **changes):
    """The error for a data set of conf whose files are not there."""
    config = dict(OmegaConf.load(BLOCKS[name])) | {"raw_dir": str(tmp_path / "raw"), **changes}
    del config["_target_"]
    with pytest.raises(RecexpError) as caught:
        prepare(Dataset(**config), P3, tmp_path / "cache")
    return str(caught.value)


def test_missing_files_say_how_to_get_them_and_what_runs_without(tmp_path):
    raw = tmp_path / "raw"
    text = missing(tmp_path, "retailrocket")
    assert text.startswith(f"{raw}/events.csv is missing (there is no folder {raw}). Get ")
    assert "from https://www.kaggle.com/datasets/retailrocket/ecommerce-dataset" in text
    assert "account at Kaggle" in text
    assert text.endswith("scale=smoke and dataset=simulated_shop run.")
    text = missing(tmp_path, "ml_1m")
    command_line = f"python -m recexp.data.download ml_1m dataset.raw_dir={raw}"
    assert f"Get it by `{command_line}` (5.9 MB)" in text
    # Without a block the reader's own advice stands.
    assert "Get it from GroupLens" in missing(tmp_path, "ml_1m", download=None)


def test_the_block_is_in_no_fingerprint(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    lines = [f"{user}\t{item}\t5\t{item}\n" for user in range(6) for item in range(1, 7)]
    (raw / "u.data").write_text("".join(lines))
    (raw / "u.item").write_text("".join(f"{i}|A (1995)|||" + "|0" * 19 + "\n" for i in range(1, 7)))
    config = dict(OmegaConf.load(BLOCKS["ml_100k"])) | {"raw_dir": str(raw)}
    del config["_target_"]
    folders = []
    for block in (config["download"], None):
        data = Dataset(**(config | {"download": block}))
        folders.append(prepare(data, P3, tmp_path / "cache"))
    assert folders[0] == folders[1]
    assert len(list((tmp_path / "cache").glob("ml_100k-*.json"))) == 1
