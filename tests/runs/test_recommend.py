"""``python -m recexp.recommend`` as users call it."""

from __future__ import annotations

import subprocess
import sys

import polars as pl
import pytest

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


def recommend(run_dir, *words):
    places = ["--raw-dir", run_dir.parent / "raw", "--cache-dir", run_dir.parent / "cache"]
    line = [sys.executable, "-m", "recexp.recommend", *map(str, [run_dir, *places, *words])]
    return subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)


def test_lists_of_all_users_go_to_a_file(run_dir, tmp_path):
    expected = loaded(run_dir).recommend(k=4)
    for name in ("lists.csv", "lists.parquet"):
        done = recommend(run_dir, "-k", 4, "--all-users", "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
        assert f"{len(expected):,} rows written" in done.stdout
    assert pl.read_parquet(tmp_path / "lists.parquet").equals(expected)
    csv = pl.read_csv(tmp_path / "lists.csv")
    assert (
        csv.select("user", "item", "rank").rows() == expected.select("user", "item", "rank").rows()
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lists.csv", "lists.parquet"]


def test_users_candidates_and_histories_come_from_files(run_dir, tmp_path):
    one = loaded(run_dir)
    (tmp_path / "users.csv").write_text("user\n" + "\n".join(map(str, one.users[3:6])) + "\n")
    (tmp_path / "items.csv").write_text("item\n" + "\n".join(map(str, one.items[:50])) + "\n")
    done = recommend(
        run_dir,
        "--users",
        tmp_path / "users.csv",
        "--candidates",
        tmp_path / "items.csv",
        "--out",
        tmp_path / "lists.parquet",
    )
    assert done.returncode == 0, done.stderr
    expected = one.recommend(one.users[3:6], candidates=one.items[:50])
    assert pl.read_parquet(tmp_path / "lists.parquet").equals(expected)
    (tmp_path / "events.csv").write_text(f"user,item,behavior\nnew,{one.items[0]},view\n")
    done = recommend(run_dir, "-k", 3, "--histories", tmp_path / "events.csv")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("new") == 3


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--out", "lists.txt"], "must end in .parquet or .csv"),
        (["--users", "nowhere.csv"], "nowhere.csv does not exist"),
        (["-k", "0"], "k=0"),
        (["--as-tested", "--include-seen"], "leave out the other choices"),
    ],
)
def test_wrong_command_lines_are_one_sentence(run_dir, words, text):
    done = recommend(run_dir, *words)
    assert done.returncode == 1
    assert text in done.stderr
    assert "Traceback" not in done.stderr
