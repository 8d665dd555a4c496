"""W&B fails at the start, in the middle and at the end: the run goes on, with one warning.

The real client, against a port that nothing listens on and against a server that fails.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import wandb

from recexp.training.loggers import wandb_logger
from recexp.training.loggers.tracker import MAX_NAME, read_record, run_name, sortable
from recexp.training.loggers.with_wandb import RECORD, WandbTracker
from tests.support.running import arguments, run_here
from tests.support.wandb_records import read_runs
from tests.support.wandb_server import KEY, closed_port, server, wait_for

POP = ["model=pop", "protocol=full", "trainer.max_epochs=1"]
MF = ["model=bpr_mf", "model.n_factors=4", "protocol=full"]
AUTO = [*POP, "logger=auto"]
# Each takes 4 s, and the client meets them on the same path as those that always run.
OTHER_WAYS = [pytest.param(way, marks=pytest.mark.slow) for way in ("404", "500", "text")]
LONG = "[0-9a-f]{8}"  # at the end of a name that was cut
BOUND = 60  # seconds; far above the timeouts below, far below W&B's own


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path_factory):
    """A key, short timeouts, and no settings of the user's own."""
    home = str(tmp_path_factory.mktemp("home"))
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    places = {"HOME": home, "WANDB_CONFIG_DIR": home, "NETRC": f"{home}/netrc"}
    times = {"WANDB_INIT_TIMEOUT": "2", "WANDB_FINISH_TIMEOUT": "2"}
    for name, value in (places | times | {"WANDB_API_KEY": KEY}).items():
        monkeypatch.setenv(name, value)
    yield
    wandb.teardown()


def use(monkeypatch, url: str) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", url)


def warnings_of(caplog) -> list[str]:
    records = [r for r in caplog.records if r.name.startswith("recexp")]
    return [record.getMessage() for record in records if record.levelno >= logging.WARNING]


def clients(pid: int | None = None) -> list[int]:
    """W&B's processes that work for this process, or for the process ``pid``."""
    wanted = ["--pid", str(pid or os.getpid())]
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (folder / "cmdline").read_text().split("\0")
            if "wandb-core" in words[0] and any(words[i : i + 2] == wanted for i in range(9)):
                found.append(int(folder.name))
    return found


def logged_whole(run_dir: Path, result: dict) -> dict:
    """The only W&B run on disk, which must hold everything of the recexp run."""
    (run,) = read_runs(run_dir)
    tested = [row for row in run["history"] if "test/ndcg_at_10" in row]
    assert [row["test/ndcg_at_10"] for row in tested] == [result["metrics"]["test/ndcg@10"]]
    assert run["summary"]["val/ndcg_at_10"] == result["metrics"]["val/ndcg@10"]
    with (run_dir / "metrics.csv").open() as file:
        assert len(list(csv.DictReader(file))) == result["epochs"]
    assert (run_dir / "result.json").exists()
    return run


@pytest.mark.parametrize(
    "way", [pytest.param("closed port", marks=pytest.mark.slow), "401", "hang", *OTHER_WAYS]
)
def test_a_server_that_fails_at_the_start(tmp_path, monkeypatch, caplog, capfd, way):
    if way == "closed port":
        use(monkeypatch, f"http://127.0.0.1:{closed_port()}")
        started = time.monotonic()
        result = run_here(tmp_path / "run", *AUTO)
        took = time.monotonic() - started
    else:
        with server(way) as http:
            use(monkeypatch, http.url)
            started = time.monotonic()
            result = run_here(tmp_path / "run", *AUTO)
            took = time.monotonic() - started
            assert http.requests and not clients()
    run = logged_whole(tmp_path / "run", result)
    (said,) = warnings_of(caplog)
    assert "offline" in said and f"wandb sync {run['path'].parent}" in said
    assert "wandb" not in capfd.readouterr().err
    assert took < BOUND


@pytest.mark.parametrize("way", ["401", "close", *OTHER_WAYS])
def test_a_server_that_fails_in_the_middle(tmp_path, monkeypatch, caplog, capfd, way):
    with server("ok", then=way) as http:
        use(monkeypatch, http.url)
        started = time.monotonic()
        result = run_here(tmp_path / "run", *AUTO)
        took = time.monotonic() - started
        assert len(http.started_runs) >= 1 and not clients()
    run = logged_whole(tmp_path / "run", result)
    (said,) = warnings_of(caplog)
    assert "W&B failed" in said and f"wandb sync {run['path'].parent}" in said
    assert "wandb" not in capfd.readouterr().err
    assert took < BOUND


def test_a_server_that_works_gets_everything_without_a_warning(
    tmp_path, monkeypatch, caplog, capfd
):
    with server("ok") as http:
        use(monkeypatch, http.url)
        result = run_here(tmp_path / "run", *AUTO)
        sent = "".join(body for path, body in http.requests if path.endswith("file_stream"))
    logged_whole(tmp_path / "run", result)
    assert "test/ndcg_at_10" in sent
    assert not warnings_of(caplog) and "wandb" not in capfd.readouterr().err
    assert KEY not in sent


def test_a_client_that_is_killed_in_the_middle(tmp_path, monkeypatch, caplog):
    write = WandbTracker.log_metrics

    def kill_then_write(self, metrics, step=None):
        for client in clients():
            os.kill(client, signal.SIGKILL)
            wait_for(lambda: not clients())
        write(self, metrics, step)

    monkeypatch.setattr(WandbTracker, "log_metrics", kill_then_write)
    result = run_here(tmp_path / "run", *POP, "logger=wandb_offline")
    assert result["metrics"]["test/hr@10"] > 0
    (said,) = warnings_of(caplog)
    assert "W&B failed" in said and "metrics.csv" in said


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["tags=['',' ',3,3,null]"], {"tags": ["3"]}),
        pytest.param([f"tags=[{'x' * 100}]"], {"tags": ["x" * 64]}, marks=pytest.mark.slow),
        pytest.param(["tags=alone"], {"tags": ["alone"]}, marks=pytest.mark.slow),
        (["tags=null"], {"tags": []}),
        pytest.param(["tags=7"], {"tags": ["7"]}, marks=pytest.mark.slow),
        (["logger.wandb.project='a/b:c'"], {"project": "recexp"}),
        pytest.param(
            [f"logger.wandb.project={'x' * 200}"], {"project": "recexp"}, marks=pytest.mark.slow
        ),
        ([f"logger.wandb.name={'x' * 500}"], {"display_name": f"{'x' * 119} {LONG}"}),
        (["logger.wandb.entity='no/such team'"], {"entity": "no/such team"}),
    ],
    ids=str,
)
def test_a_value_that_wandb_refuses(tmp_path, caplog, words, kept):
    result = run_here(tmp_path / "run", *POP, "logger=wandb_offline", *words)
    run = logged_whole(tmp_path / "run", result)["run"]
    for field, value in kept.items():
        found = getattr(run, field)
        shown = list(found) if field == "tags" else re.sub(f"{LONG}$", LONG, found)
        assert shown == value
    assert len(warnings_of(caplog)) == ("project" in words[0])


@pytest.mark.parametrize(
    "key",
    [
        "",
        "é" * 40,
        *(pytest.param(key, marks=pytest.mark.slow) for key in ("Zq7", "x" * 39 + "!", KEY * 100)),
    ],
)
def test_a_key_that_is_none(tmp_path, monkeypatch, caplog, key):
    monkeypatch.setenv("WANDB_API_KEY", key)
    with server("401") as http:
        use(monkeypatch, http.url)
        result = run_here(tmp_path / "run", *POP, "logger=wandb")
    logged_whole(tmp_path / "run", result)
    (said,) = warnings_of(caplog)
    reason = said.split("Its records")[0]  # the path holds the name of the test
    assert "offline" in reason and (not key or key not in reason)


def test_no_key_is_no_warning_and_no_question(tmp_path, monkeypatch, caplog, capfd):
    monkeypatch.delenv("WANDB_API_KEY")
    result = run_here(tmp_path / "run", *AUTO)
    run = logged_whole(tmp_path / "run", result)
    assert run["path"].parent.name.startswith("offline-run")
    assert not warnings_of(caplog) and "wandb" not in capfd.readouterr().err


def test_a_folder_that_cannot_be_written_is_one_warning(tmp_path, caplog, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "wandb").write_text("a file where W&B needs a folder")
    (folder / ".wandb").write_text("and here")
    result = run_here(folder, *POP, "logger=wandb_offline")
    assert result["metrics"]["test/hr@10"] > 0 and (folder / "result.json").exists()
    (said,) = warnings_of(caplog)
    assert "records nothing" in said


def test_a_resumed_run_goes_on_with_its_wandb_run(tmp_path, monkeypatch):
    with server("ok") as http:
        use(monkeypatch, http.url)
        run_here(tmp_path / "a", *MF, "logger=wandb", "trainer.max_epochs=1")
        first = set(http.started_runs)
        last = tmp_path / "a" / "checkpoints" / "last.ckpt"
        more = ["logger=wandb", "trainer.max_epochs=2", f"ckpt_path={last}"]
        run_here(tmp_path / "b", *MF, *more)
        assert len(first) == 1 and set(http.started_runs) == first
        asked = [body for _, body in http.requests if "RunResumeStatus" in body]
        assert asked
        run_here(tmp_path / "a", *MF, "logger=wandb", "trainer.max_epochs=1")
        assert len(set(http.started_runs)) == 2  # not resumed: another run


def test_a_run_that_fell_back_to_offline_stays_offline(tmp_path, monkeypatch, caplog):
    with server("500") as http:
        use(monkeypatch, http.url)
        run_here(tmp_path / "a", *MF, "logger=wandb", "trainer.max_epochs=1")
    (before,) = read_runs(tmp_path / "a")
    last = tmp_path / "a" / "checkpoints" / "last.ckpt"
    with server("ok") as http:
        use(monkeypatch, http.url)
        more = ["logger=wandb", "trainer.max_epochs=2", f"ckpt_path={last}", "selection=refit"]
        run_here(tmp_path / "b", *MF, *more)
        assert not http.requests
    (after,) = read_runs(tmp_path / "b")
    assert after["run"].run_id == before["run"].run_id
    assert "earlier part" in warnings_of(caplog)[-1]


@pytest.mark.slow
def test_the_parts_of_a_run_that_was_resumed_offline_are_uploaded_as_one(tmp_path, monkeypatch):
    folder = tmp_path / "a"
    run_here(folder, *MF, "logger=wandb_offline", "trainer.max_epochs=2")
    time.sleep(1.1)  # W&B names folders by the second
    last = folder / "checkpoints" / "last.ckpt"
    more = ["logger=wandb_offline", "trainer.max_epochs=4", f"ckpt_path={last}"]
    run_here(folder, *MF, *more)
    parts = sorted(str(path) for path in folder.glob("wandb/offline-run-*"))
    with server("ok") as http:
        use(monkeypatch, http.url)
        line = [sys.executable, "-m", "wandb", "sync", *parts]
        subprocess.run(line, cwd=tmp_path, check=True, capture_output=True, timeout=120)
        ((_, sent),) = http.history.items()
    rows = [json.loads(row) for row in sent]
    assert [row["_step"] for row in rows] == list(range(len(rows)))
    assert [row["epoch"] for row in rows if "val/ndcg_at_10" in row] == [0, 1, 2, 3]


@pytest.mark.parametrize("content", ["", "[]", "3", '{"id": "../../x"}', '{"id": 3, "mode": []}'])
def test_a_damaged_record_starts_a_new_wandb_run(tmp_path, content):
    (tmp_path / RECORD).write_text(content)
    last = tmp_path / "checkpoints" / "last.ckpt"
    wandb_logger("offline", save_dir=str(tmp_path), resumed_from=str(last)).finish()
    (run,) = read_runs(tmp_path)
    expected = {"id": run["run"].run_id, "mode": "offline"}
    assert json.loads((tmp_path / RECORD).read_text()) == expected
    assert read_record(RECORD, tmp_path, str(last)) == expected


def test_a_wandb_run_of_the_users_own_goes_on(tmp_path):
    quiet = wandb.Settings(silent=True, console="off")
    own = wandb.init(dir=str(tmp_path), project="own", mode="offline", settings=quiet)
    result = run_here(tmp_path / "run", *POP, "logger=wandb_offline")
    own.log({"mine": 1})
    own.finish()
    wandb.teardown()  # only now everything is on disk
    logged_whole(tmp_path / "run", result)
    (found,) = read_runs(tmp_path)
    names = {name for row in found["history"] for name in row if not name.startswith("_")}
    assert names == {"mine"}


def test_a_failing_run_ends_its_wandb_run_and_processes(tmp_path, monkeypatch):
    def fail(*arguments):
        raise ZeroDivisionError("as told")

    monkeypatch.setattr("recexp.training.module.RecModule.on_test_epoch_end", fail)
    with pytest.raises(ZeroDivisionError):
        run_here(tmp_path / "run", *POP, "logger=wandb_offline")
    (run,) = read_runs(tmp_path / "run")
    assert run["exit_code"] == 1 and not clients()
    assert run["summary"]["stop_reason"] == "failed: ZeroDivisionError"
    assert run["summary"]["best_epoch"] == 0 and run["summary"]["val/ndcg_at_10"] > 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.slow  # a run in a process of its own
def test_no_process_outlives_a_run_that_a_signal_ends(tmp_path, signum):
    words = [*MF, "logger=wandb_offline", "trainer.max_epochs=10000"]
    line = arguments(tmp_path / "run", *words, f"hydra.run.dir={tmp_path / 'run'}")
    run = subprocess.Popen(
        [sys.executable, "-m", "recexp", *line],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        metrics = tmp_path / "run" / "metrics.csv"
        assert wait_for(lambda: metrics.exists() or run.poll() is not None, 300)
        assert clients(run.pid)
        run.send_signal(signum)
        run.wait(60)
        assert wait_for(lambda: not clients(run.pid))
        if signum == signal.SIGTERM:
            (logged,) = read_runs(tmp_path / "run")
            assert logged["summary"]["stop_reason"] == "interrupted by SIGTERM"
    finally:
        run.kill()
        run.wait()


def test_the_name_says_what_the_overrides_vary():
    words = ["seed=3", "lr=1", "batch_size=128", "+model.n_factors=8", "hydra.run.dir=x", "group=g"]
    words += [
        "hydra/launcher=x",
        "logger=[auto,mlflow]",
        "dataset.raw_dir=x",
        "lr=2",
        "~callbacks.x",
    ]
    name = run_name("mf shop seed=3", words)
    assert name == "mf shop seed=3 lr=2 batch_size=128 +model.n_factors=8 ~callbacks.x"


def test_names_that_are_too_long_still_differ():
    common = [f"objective.parameter_{i}=0.{i}" for i in range(5)]
    assert run_name("mf", [*common, "model.n=8"]).endswith(" parameter_4=0.4 n=8")
    names = {run_name("mf", [*common, "x" * 99 + f"={n}"]) for n in (8, 16)}
    assert len(names) == 2 and {len(name) for name in names} == {MAX_NAME}


def test_names_of_metrics_have_letters_digits_and_separators_only():
    assert sortable("val/ndcg@10") == "val/ndcg_at_10"
    assert sortable("test/hr@5/Sci-Fi & Fantasy") == "test/hr_at_5/Sci_Fi___Fantasy"
    assert sortable("test/hr@5/音") != sortable("test/hr@5/楽")
