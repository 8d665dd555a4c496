"""``python -m recexp.recommend`` as users call it."""

from __future__ import annotations

import subprocess
import sys

import polars as pl
import pytest

from recexp.runs.recommend import main
from recexp.runs.trained import load
from tests.support.running import run_here


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop") / "run"
    run_here(folder, "model=sasrec", "protocol=full_unseen", "trainer.max_epochs=1")
    return folder


def loaded(run_dir):
    shop = run_dir.parent
    return load(run_dir, raw_dir=str(shop / "raw"), cache_dir=str(shop / "cache"))


def words_of(run_dir, *words):
    places = ["--raw-dir", run_dir.parent / "raw", "--cache-dir", run_dir.parent / "cache"]
    return [str(word) for word in (run_dir, *places, *words)]


@pytest.fixture
def recommend(run_dir, monkeypatch):
    """The command with its words, in this process."""

    def call(*words):
        monkeypatch.setattr("sys.argv", ["recommend", *words_of(run_dir, *words)])
        main()

    return call


def test_the_command_writes_a_file_as_a_program_of_its_own(run_dir, tmp_path):
    line = [sys.executable, "-m", "recexp.recommend"]
    line += words_of(run_dir, "-k", 4, "--all-users", "--out", tmp_path / "lists.csv")
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    expected = loaded(run_dir).recommend(k=4).select("user", "item", "rank")
    assert f"{len(expected):,} rows written" in done.stdout
    assert (
        pl.read_csv(tmp_path / "lists.csv").select("user", "item", "rank").rows() == expected.rows()
    )


def test_lists_of_all_users_go_to_one_file(run_dir, tmp_path, recommend):
    recommend("-k", 4, "--all-users", "--out", tmp_path / "lists.parquet")
    assert pl.read_parquet(tmp_path / "lists.parquet").equals(loaded(run_dir).recommend(k=4))
    assert [path.name for path in tmp_path.iterdir()] == ["lists.parquet"]


def test_users_and_candidates_come_from_files(run_dir, tmp_path, recommend):
    one = loaded(run_dir)
    (tmp_path / "users.csv").write_text("user\n" + "\n".join(map(str, one.users[3:6])) + "\n")
    (tmp_path / "items.csv").write_text("item\n" + "\n".join(map(str, one.items[:50])) + "\n")
    files = ["--users", tmp_path / "users.csv", "--candidates", tmp_path / "items.csv"]
    recommend(*files, "--out", tmp_path / "lists.parquet")
    expected = one.recommend(one.users[3:6], candidates=one.items[:50])
    assert pl.read_parquet(tmp_path / "lists.parquet").equals(expected)


def test_histories_come_from_a_file(run_dir, tmp_path, recommend, capsys):
    item = loaded(run_dir).items[0]
    (tmp_path / "events.csv").write_text(f"user,item,behavior\nnew,{item},view\n")
    recommend("-k", 3, "--histories", tmp_path / "events.csv")
    assert capsys.readouterr().out.count("new") == 3


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--out", "lists.txt"], r"must end in \.parquet or \.csv"),
        (["--users", "nowhere.csv"], r"nowhere\.csv does not exist"),
        (["-k", "0"], "k=0"),
        (["--as-tested", "--include-seen"], "leave out the other choices"),
    ],
)
def test_wrong_command_lines_are_one_sentence(recommend, words, text):
    with pytest.raises(SystemExit, match=rf"^error: .*{text}"):
        recommend(*words)
