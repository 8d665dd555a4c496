"""One bad run must not take a report down: it is named and left out, whatever its files hold."""

from __future__ import annotations

import json
import os
import re
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
import pytest

from recexp.report.__main__ import main as report
from recexp.report.collect import collect
from recexp.runs import loading
from tests.support.finished_runs import write_run

ROOT = Path(__file__).parents[2]
MEMORY = 3 << 30  # bytes that the report may address; the bombs unfold to more
RANKS = [0, 1, 2]
CURVE = [0.1, 0.2, 0.3]
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)


def written(name: str, content: str | bytes) -> Callable[[Path], None]:
    def write(run: Path) -> None:
        data = content if isinstance(content, bytes) else content.encode()
        (run / name).write_bytes(data)

    return write


def result(**changes: object) -> Callable[[Path], None]:
    def write(run: Path) -> None:
        path = run / "result.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return write


def sparse(name: str, size: int) -> Callable[[Path], None]:
    def write(run: Path) -> None:
        with (run / name).open("wb") as file:
            file.truncate(size)

    return write


def replaced(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    def write(run: Path) -> None:
        (run / name).unlink(missing_ok=True)
        make(run / name)

    return write


def bound_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        folder = os.open(path.parent, os.O_RDONLY)  # a path of a socket may have 107 bytes only
        server.bind(f"/proc/self/fd/{folder}/{path.name}")
        os.close(folder)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def loop(path: Path) -> None:
    path.symlink_to(path.name)


# Name -> what is done to a good run. Each must be left out, and named.
LEFT_OUT = {
    "metrics-binary": written("metrics.csv", bytes(range(256)) * 40),
    "metrics-nul": written("metrics.csv", b"epoch,step\n0\x00,1\n"),
    "metrics-without-epoch": written("metrics.csv", "step,val/ndcg@10\n1,0.5\n"),
    "metrics-text": written("metrics.csv", "epoch,step,val/ndcg@10\n0,1,many\n"),
    "metrics-nan": written("metrics.csv", "epoch,step,val/ndcg@10\n0,1,nan\n"),
    "metrics-infinite": written("metrics.csv", "epoch,step,train/seconds\n0,1,1e999\n"),
    "metrics-one-epoch-twice": written("metrics.csv", "epoch,val/ndcg@10\n0,.1\n0,.2\n"),
    "metrics-huge-cell": written("metrics.csv", "epoch\n" + "1" * 200_000 + "\n"),
    "metrics-huge": sparse("metrics.csv", 20 << 30),
    "config-list": written("config.yaml", "- 1\n- 2\n"),
    "config-number": written("config.yaml", "3\n"),
    "config-nothing": written("config.yaml", ""),
    "config-deep": written("config.yaml", "[" * 50_000),
    "config-deep-mapping": written(
        "config.yaml", "".join(" " * n + f"k{n}:\n" for n in range(100)) + " " * 100 + "v: 1\n"
    ),
    "config-bomb": written("config.yaml", BOMB),
    "config-merged-bomb": written("config.yaml", "a: &a {x: 1}\nb: {<<: *a}\n"),
    "config-tag": written("config.yaml", "a: !!python/name:os.system ''\n"),
    "config-binary": written("config.yaml", b"\xff\xfe\x00\x01" * 10),
    "config-large-number": written("config.yaml", f"model: {{n_factors: {'9' * 400}}}\n"),
    "config-huge": sparse("config.yaml", 20 << 30),
    "result-list": written("result.json", "[]"),
    "result-deep": written("result.json", "[" * 100_000),
    "result-deep-config": result(config=json.loads("[" * 60 + "]" * 60)),
    "result-large-number": written("result.json", '{"seed": ' + "9" * 4_000 + "}"),
    "result-larger-number": written("result.json", '{"seed": ' + "9" * 10_000 + "}"),
    "result-nan": result(best_epoch=float("nan")),
    "result-text-as-number": result(epochs="many"),
    "result-long-name": result(model="x" * 100_000),
    "result-refit": result(refit={"updates": "many"}),
    "result-config-text": result(config="n_factors"),
    "result-huge": sparse("result.json", 20 << 30),
    **{
        f"{kind}-for-{name}": replaced(name, make)
        for name in ("result.json", "config.yaml", "metrics.csv")
        for kind, make in {
            "pipe": os.mkfifo,
            "socket": bound_socket,
            "device": device,
            "folder": Path.mkdir,
            "loop": loop,
        }.items()
    },
}


def ranks_of(**columns: object) -> Callable[[Path], None]:
    def write(run: Path) -> None:
        good = pl.read_parquet(run / "ranks.parquet").to_dict(as_series=False)
        pl.DataFrame(good | columns).write_parquet(run / "ranks.parquet")

    return write


def unfolding(run: Path) -> None:
    """About 1 MB that unfold to 11 GB."""
    n = 280_000_000
    columns = [pl.zeros(n, dtype=pl.Int64, eager=True).alias("user")]
    frame = pl.DataFrame(columns).lazy()
    names = ("better", "tied", "candidates")
    frame = frame.with_columns([pl.lit(0).alias(name) for name in names], split=pl.lit("test"))
    frame.sink_parquet(run / "ranks.parquet")


# The run stays in the tables; only the tests over users cannot have it.
UNTESTED = {
    "ranks-binary": written("ranks.parquet", bytes(range(256)) * 40),
    "ranks-other-columns": lambda run: pl.DataFrame({"a": [1]}).write_parquet(
        run / "ranks.parquet"
    ),
    "ranks-text": ranks_of(better=["a", "b", "c"]),
    "ranks-below-zero": ranks_of(better=[-1, 0, 1]),
    "ranks-beyond-candidates": ranks_of(better=[1 << 40, 0, 1]),
    "ranks-of-endless-lists": ranks_of(candidates=[1 << 40] * 3),
    "ranks-huge": sparse("ranks.parquet", 20 << 30),
    **{
        f"ranks-{kind}": replaced("ranks.parquet", make)
        for kind, make in {
            "pipe": os.mkfifo,
            "socket": bound_socket,
            "device": device,
            "folder": Path.mkdir,
            "loop": loop,
        }.items()
    },
}


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


@pytest.fixture(scope="module")
def report_of_all(tmp_path_factory) -> subprocess.CompletedProcess:
    """The report on two good runs among all the bad ones, in a process with little memory."""
    folder = tmp_path_factory.mktemp("runs")
    for name, model in (("good", "item_knn"), ("better", "mf")):
        write_run(folder / name, model=model, better=RANKS, curve=CURVE)
    for n, (name, spoil) in enumerate((LEFT_OUT | UNTESTED).items()):
        write_run(folder / name, seed=n + 1, better=RANKS, curve=CURVE)
        spoil(folder / name)
    (folder / "link-to-itself").symlink_to(folder)
    os.makedirs(os.fsencode(folder) + b"/not-\xff-utf-8\x1b[31m")
    (folder / os.fsdecode(b"not-\xff-utf-8\x1b[31m") / "result.json").write_text("[]")
    out = tmp_path_factory.mktemp("page")
    command = [sys.executable, "-m", "recexp.report", str(folder), "--out", str(out)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"},
        preexec_fn=limited,
    )
    done.page = (out / "index.html").read_text() if done.returncode == 0 else ""
    return done


def test_the_good_runs_are_reported(report_of_all):
    assert report_of_all.returncode == 0, report_of_all.stderr[-3000:]
    assert "| item_knn |" in report_of_all.stdout and "| mf |" in report_of_all.stdout
    assert "Traceback" not in report_of_all.stderr


@pytest.mark.parametrize("name", LEFT_OUT)
def test_a_bad_run_is_named_and_left_out(report_of_all, name):
    start = re.compile(rf"left out: \S+/{re.escape(name)}(/result\.json)?: ")
    lines = [line for line in report_of_all.stdout.splitlines() if start.match(line)]
    assert len(lines) == 1
    assert len(lines[0]) < 1000 and f"/{name}" in report_of_all.page


@pytest.mark.parametrize("name", UNTESTED)
def test_a_run_with_bad_ranks_is_named_and_the_others_are_compared(report_of_all, name):
    assert f"/{name}" in report_of_all.page
    assert "item_knn" in report_of_all.page.split("Pairs of systems")[1].split("</table>")[0]


def test_a_name_that_is_no_text_is_shown_as_text(report_of_all):
    assert r"not-\udcff-utf-8\x1b[31m" in report_of_all.stdout
    assert "\x1b" not in report_of_all.stdout + report_of_all.page


@pytest.mark.slow  # makes 280 million rows
def test_a_small_file_that_unfolds_to_many_rows_is_not_unfolded(tmp_path):
    for name, model in (("a", "item_knn"), ("b", "mf"), ("bomb", "pop")):
        write_run(tmp_path / name, model=model, better=RANKS)
    unfolding(tmp_path / "bomb")
    command = [sys.executable, "-m", "recexp.report", str(tmp_path), "--out", str(tmp_path / "o")]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"},
        preexec_fn=limited,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "280,000,000 rows: no run writes so many" in (tmp_path / "o" / "index.html").read_text()


@contextmanager
def without_privileges() -> Iterator[None]:
    """Root may read everything, so the code runs as another user."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_folders_and_files_that_may_not_be_read_are_named():
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # the temporary folders of pytest are closed to others
        for run in ("good", "closed/run", "closed-file"):
            write_run(folder / run)
        (folder / "closed").chmod(0)
        (folder / "closed-file" / "result.json").chmod(0)
        with without_privileges():
            results, left_out = collect([folder])
        (folder / "closed").chmod(0o755)
    assert len(results) == 1 and len(left_out) == 2
    assert any("closed: cannot be searched (Permission denied)" in line for line in left_out)
    assert any("result.json cannot be read: Permission denied" in line for line in left_out)


def test_folders_in_each_other_beyond_the_recursion_limit_are_searched(tmp_path):
    write_run(tmp_path / "good")
    deep = "/".join("d" * 1_500)
    try:
        subprocess.run(["mkdir", "-p", deep], cwd=tmp_path, check=True)
        results, _ = collect([tmp_path])
    finally:
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)
    assert len(results) == 1


ODD = [None, True, 0, -1, 1e300, 10**18, "x", "1e999", "", [], [None], [[1]], {}, {"a": 1}]


def leaves(node: object, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The path of every key of nested mappings."""
    if not isinstance(node, dict):
        return [path]
    return [path, *(leaf for key, value in node.items() for leaf in leaves(value, (*path, key)))]


def set_at(node: dict, path: tuple[str, ...], value: object) -> None:
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value


def test_a_value_of_any_type_at_any_key_is_shown_or_left_out(tmp_path, capsys):
    """The result of a real run; a value at a time is replaced."""
    source = ROOT / "docs" / "results" / "ml_1m" / "full-nova-30epochs"
    content = json.loads((source / "result.json").read_text())
    write_run(tmp_path / "good", better=RANKS)
    for n, path in enumerate(leaves(content)[1:]):
        changed = json.loads(json.dumps(content))
        set_at(changed, path, ODD[n % len(ODD)])
        folder = tmp_path / str(n)
        folder.mkdir()
        (folder / "result.json").write_text(json.dumps(changed))
    report([str(tmp_path), "--out", str(tmp_path / "page"), "--format", "csv"])
    assert "pop" in capsys.readouterr().out


def test_the_limits_are_far_above_what_a_run_writes():
    largest = {"result.json": 0, "metrics.csv": 0, "ranks.parquet": 0}
    for name in largest:
        sizes = [path.stat().st_size for path in (ROOT / "docs" / "results").rglob(name)]
        largest[name] = max(sizes)
    assert 10 * largest["result.json"] < loading.MAX_RESULT_BYTES
    assert 10 * largest["metrics.csv"] < loading.MAX_EPOCHS_BYTES
    assert 10 * largest["ranks.parquet"] < loading.MAX_RANKS_BYTES


def test_a_run_that_fails_in_a_table_of_its_own_is_left_out(tmp_path, capsys, monkeypatch):
    """Which value fails where is not known beforehand, so the failure is made here."""
    write_run(tmp_path / "good")
    write_run(tmp_path / "bad", seed=1)

    def failing(results):
        if any(result["seed"] == 1 for result in results):
            raise TypeError("odd value")
        return []

    monkeypatch.setattr("recexp.report.__main__.budgets", failing)
    report([str(tmp_path)])
    printed = capsys.readouterr().out
    assert (
        f"left out: {tmp_path}/bad: a value is not one of a run (TypeError: odd value)" in printed
    )
    assert "| pop |" in printed
