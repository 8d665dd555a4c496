"""A signal at any moment of a run ends it with the right code, true words and whole files."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from recexp.config.overrides import override
from recexp.training.checkpoints import verify_checkpoint
from tests.support.running import arguments

WORDS = (
    "model=bpr_mf",
    "model.n_factors=4",
    "protocol.ks=[10]",
    "+trainer.enable_progress_bar=false",
)
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}

# Moments: module and function at whose call (or, with "!", return) the signal comes.
BEFORE = {
    "import of torch": "import torch",
    "import of hydra": "import hydra.core.plugins",
    "import of the run": "import recexp.runs.run",
    "composition": "hydra._internal.config_loader_impl ConfigLoaderImpl.load_configuration",
    "check": "recexp.runs.run check_config",
    "claim": "recexp.runs.directory lock_directory",
    "preparation": "recexp.data.cache _publish",
    "preparation published": "recexp.data.cache _write_pointer",
    "assembly": "recexp.runs.run assemble",
    "clearing": "recexp.runs.run clear",
    "config": "recexp.runs.run save_config",
    "trainer": "recexp.runs.run build_trainer",
}
DURING = {
    "candidates": "recexp.training.module stored_candidates",
    "setup": "recexp.training.module RecModule.configure_optimizers",
    "first batch": "recexp.training.module RecModule.training_step",
    "validation": "recexp.training.module RecModule.validation_step",
    "metrics of an epoch": "recexp.training.callbacks EpochTable._write",
    "checkpoint": "recexp.training.checkpoints AtomicCheckpointIO.save_checkpoint",
    "after fit": "recexp.runs.run stop_reason",
    "best weights": "recexp.runs.run _load_best",
    "test": "recexp.training.module RecModule.test_step",
    "end of test": "recexp.training.module RecModule.on_test_epoch_end",
    "after test": "recexp.runs.run Tested",
}
AFTER = {
    "ranks": "recexp.runs.run save_ranks",
    "result": "recexp.runs.run save_result",
    "result written": "recexp.runs.run save_result!",
    "curves": "recexp.runs.run save_curves",
    "curves file": "matplotlib.figure Figure.savefig",
    "table": "recexp.runs.run show_table",
}
LAST = {"end of the program": "exit"}
PREPARING = ("preparation", "preparation published", "candidates")
MOMENTS = BEFORE | DURING | AFTER | LAST
QUICK = {
    ("import of torch", signal.SIGINT),
    ("preparation", signal.SIGTERM),
    ("first batch", signal.SIGHUP),
    ("test", signal.SIGTERM),
    ("result", signal.SIGINT),
    ("curves", signal.SIGTERM),
}

# Starts runs in which a signal comes at a moment. Each line of its input is [moment, signal, words,
# file for stderr]; it answers with the exit code. Runs are forked after the imports, which take
# most of the time of a run; a moment of an import takes a process without them ("fresh").
SENDER = """
import functools, importlib, json, os, signal, sys
from importlib.util import find_spec

def send():
    global number
    if number:
        sent, number = number, 0
        os.kill(os.getpid(), sent)

def patch(module, path, late):
    owner = module
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    original = getattr(owner, name)
    @functools.wraps(original, updated=())
    def wrapper(*arguments, **settings):
        late or send()
        value = original(*arguments, **settings)
        late and send()
        return value
    setattr(owner, name, wrapper)

class AtImport:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == moment.split()[1]:
            send()

def arm():
    if moment == "exit":
        import atexit
        atexit.register(send)
    elif moment.startswith("import "):
        sys.meta_path.insert(0, AtImport)
    else:
        module, path = moment.split()
        patch(importlib.import_module(module), path.rstrip("!"), path.endswith("!"))

if sys.argv[1] == "fresh":
    moment, number, sys.argv = sys.argv[2], int(sys.argv[3]), ["recexp", *sys.argv[4:]]
    arm()
else:
    import hydra.core.plugins, matplotlib.figure, recexp.cli.main, recexp.runs.run
    for line in sys.stdin:
        moment, number, words, errors = json.loads(line)
        child = os.fork()
        if not child:
            break
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    else:
        sys.exit()
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(0, 1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    arm()
    sys.argv = ["recexp", *words]
from recexp.__main__ import main
main()
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("signals")


def default_signals() -> None:
    """As at a terminal: a background job ignores Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class Server:
    """Forks runs from a process that has imported everything."""

    def __init__(self, errors: Path) -> None:
        self.errors = errors
        self.process = subprocess.Popen(
            [sys.executable, "-c", SENDER, "serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=default_signals,
        )

    def run(self, moment: str, signum: int, words: list[str]) -> tuple[int, str]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.errors.unlink(missing_ok=True)
        case = [MOMENTS[moment], int(signum), words, str(self.errors)]
        self.process.stdin.write(f"{json.dumps(case)}\n")
        self.process.stdin.flush()
        code = int(self.process.stdout.readline())
        return code, self.errors.read_text()


@pytest.fixture(scope="module")
def server(shop):
    server = Server(shop / "errors")
    yield server
    server.process.stdin.close()
    assert server.process.wait(60) == 0


def start(server: Server, folder: Path, moment: str, signum: int) -> tuple[int, str]:
    """Exit code and stderr of a run that gets the signal at the moment."""
    words = [*arguments(folder, *WORDS), f"hydra.run.dir={folder}"]
    if moment in PREPARING:
        words.append(f"cache_dir={folder}/cache")
    if not moment.startswith("import"):
        return server.run(moment, signum, words)
    line = [sys.executable, "-c", SENDER, "fresh", MOMENTS[moment], str(int(signum)), *words]
    done = subprocess.run(
        line,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        preexec_fn=default_signals,
    )
    return done.returncode, done.stderr


def left_over(folder: Path) -> list[Path]:
    """Temporary files below the folder."""
    return [
        path
        for path in folder.rglob(".*")
        if path.name not in (".hydra", ".run.lock") and path.suffix != ".lock"
    ]


def cases() -> list:
    found = []
    for moment in MOMENTS:
        for signum in CODES:
            marks = () if (moment, signum) in QUICK else (pytest.mark.slow,)
            found.append(pytest.param(moment, signum, id=f"{moment}-{signum.name}", marks=marks))
    return found


@pytest.mark.parametrize(("moment", "signum"), cases())
def test_a_signal_at_any_moment_ends_the_run_with_the_truth(shop, server, moment, signum):
    folder = shop / f"{moment.replace(' ', '-')}-{int(signum)}"
    code, said = start(server, folder, moment, signum)
    assert code == CODES[signum], said
    assert "Traceback" not in said and said.count(signum.name) == 1, said
    assert not left_over(folder), said
    result = folder / "result.json"
    if moment in BEFORE:
        assert not result.exists()
        assert f"{signum.name} ended the " in said
    elif moment in DURING:
        content = json.loads(result.read_text())
        assert content["interrupted"] == signum.name and content["metrics"] == {}
        assert "checkpoint" not in content
        assert f"{signum.name} ended the run in {folder}; " in said
        last = folder / "checkpoints" / "last.ckpt"
        assert ("ckpt_path=" in said) == last.exists()
        if last.exists():
            verify_checkpoint(last)
    else:
        assert f"{signum.name} came " in said
        assert "interrupted" not in json.loads(result.read_text())
        assert (folder / "ranks.parquet").exists()


@pytest.mark.slow  # several whole runs in processes of their own
def test_a_second_ctrl_c_ends_the_run_at_once(shop):
    """Training does not look at the first one while a batch takes long."""
    folder = shop / "twice"
    slow = (
        "import recexp.training.module as m, os, time\n"
        "def step(self, row, index):\n"
        "    os.write(1, b'training\\n'); time.sleep(600) \n"
        "m.RecModule.training_step = step\n"
        "import sys; sys.argv[0] = 'recexp'\n"
        "from recexp.__main__ import main; main()"
    )
    line = [sys.executable, "-c", slow, *arguments(folder, *WORDS), f"hydra.run.dir={folder}"]
    process = subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, preexec_fn=default_signals
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"training\n"
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)  # noted only
    process.send_signal(signal.SIGINT)
    assert process.wait(30) in (-signal.SIGINT, 130)


@pytest.mark.slow  # two whole runs in processes of their own
def test_the_advice_works_when_pasted_into_a_shell(shop, server):
    """A folder with characters that the shell or Hydra read as their own."""
    folder = shop / "a b, [c] {d} 'e' \"f\" g=h $x"
    words = [*arguments(shop / "x", *WORDS), override("hydra.run.dir", folder)]
    code, said = server.run("test", signal.SIGTERM, words)
    assert code == 143, said
    advice = said.strip().splitlines()[-1].rpartition("the same command with ")[2]
    words = words[:-1]
    line = f"{shlex.join([sys.executable, '-m', 'recexp', *words])} {advice}"
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((folder / "result.json").read_text())
    assert [part["epochs"] for part in result["parts"]] == [2, 0]


@pytest.mark.slow  # two whole runs; the handlers are set in one place
def test_signals_that_a_process_was_started_to_ignore_stay_ignored(shop):
    folder = shop / "nohup"
    words = [*arguments(folder, *WORDS), f"hydra.run.dir={folder}"]
    line = [sys.executable, "-c", SENDER, "fresh", MOMENTS["test"], str(int(signal.SIGHUP)), *words]
    done = subprocess.run(
        line,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    assert done.returncode == 0, done.stderr
    assert "interrupted" not in json.loads((folder / "result.json").read_text())
