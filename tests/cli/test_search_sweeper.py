"""Searches from the words of a command line on, with a program in place of the runs."""

from __future__ import annotations

import json
import os
import re
import signal
import sys

import pytest
import yaml
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from recexp.cli import job_processes, launcher, search_trials
from recexp.cli.main import register_plugins, with_sweeper
from recexp.config import CONF
from recexp.errors import RecexpError
from recexp.logs import show_logs
from recexp.report.searches import search_tables
from tests.config.test_experiments import composed

pytest.importorskip("optuna", reason="needs the extra search")

# Its validation values are those of the rate; below 0.3 it waits to be ended after an epoch.
JOB = """
import json, os, pathlib, signal, sys, time
folder, mode = pathlib.Path(sys.argv[1]), sys.argv[2]
value = float(next(word for word in sys.argv if word.startswith("optimizer.lr="))[13:])
def interrupted(*signal):
    (folder / "result.json").write_text(json.dumps({"interrupted": "SIGTERM", "metrics": {}}))
    sys.exit(143)
signal.signal(signal.SIGTERM, interrupted)
def write(name, text):
    (folder / "new").write_text(text)
    (folder / "new").rename(folder / name)
if mode == "fails":
    print("error: it cannot be")
    sys.exit(1)
epochs = 1 if mode == "waits" and value < 0.3 else 2
rows = "".join(f"{n},{10 * (n + 1)},{value}\\n" for n in range(epochs))
write("metrics.csv", "epoch,step,val/ndcg@10\\n" + rows)
once = pathlib.Path(folder.parent, "once")
if mode in ("is killed", "ends the search") and value == 0.5 and not once.exists():
    once.touch()
    if mode == "is killed":
        os.kill(os.getpid(), 9)
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(600)
if epochs == 1:
    time.sleep(600)
metrics = {"val/ndcg@10": value, "val/hr@10": 1 - value, "test/ndcg@10": 0}
write("result.json", json.dumps({"metrics": metrics, "updates": 20}))
"""
SPACE = "optimizer.lr=choice(0.5,0.1)"
GRID = "hydra.sweeper.sampler=grid"


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture
def search(tmp_path, monkeypatch):
    """search(*words) runs a search and returns what it found; ``search.mode`` is of the jobs.

    ``search.started``: directory and words of each job.
    """
    show_logs()
    register_plugins()
    popen = job_processes.subprocess.Popen
    monkeypatch.setattr(launcher, "POLL", 0.01)
    monkeypatch.setattr(launcher, "has_warm_parent", lambda: False)
    monkeypatch.setattr(search_trials, "CHECK", 0.0)

    def play(command, **how):
        folder = next(word[14:] for word in command if word.startswith("hydra.run.dir="))
        go.started.append((os.path.basename(folder), command[3:]))
        return popen([sys.executable, "-S", "-c", JOB, folder, go.mode, *command[3:]], **how)

    def go(*words):
        go.started.clear()
        GlobalHydra.instance().clear()
        line = [
            "model=bpr_mf",
            "trainer.max_epochs=2",
            "hydra/sweeper=optuna",
            "hydra.sweeper.pruner=none",
            "hydra.sweeper.storage=${hydra.sweep.dir}/search.journal",
            f"hydra.sweep.dir={tmp_path}/sweep",
        ]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            hydra = GlobalHydra.instance().hydra
            return hydra.multirun("config", None, [*line, *words], with_log_configuration=False)

    go.mode, go.started = "ends", []
    monkeypatch.setattr(job_processes.subprocess, "Popen", play)
    return go


def trials(tmp_path):
    """Of trial.json: state and value by directory."""
    found = {}
    for path in sorted((tmp_path / "sweep").glob("*/trial.json")):
        trial = json.loads(path.read_text())
        found[path.parent.name] = (trial["state"], trial["value"])
    return found


def test_the_best_is_found_and_can_be_used_by_name(search, tmp_path, capfd):
    found = search(SPACE, GRID, "batch_size=32", "hydra.launcher.jobs=2")
    assert found == {"trial": 0, "value": 0.5, "values": {"optimizer.lr": "0.5"}}
    assert trials(tmp_path) == {
        "0": ("finished", 0.5),
        "1": ("finished", 0.1),
    }
    said = capfd.readouterr().err
    assert "best val/ndcg@10 0.5000, trial 0 in" in said
    assert f"--config-dir {tmp_path}/sweep preset=best model=bpr_mf" in said
    preset = yaml.safe_load((tmp_path / "sweep" / "preset" / "best.yaml").read_text())
    expected = {"batch_size": 32, "optimizer": {"lr": 0.5}, "trainer": {"max_epochs": 2}}
    assert preset["entries"] == {"simulated_shop": {"bpr_mf": expected}}
    used = composed("model=bpr_mf", "preset=best", f"hydra.searchpath=[file://{tmp_path}/sweep]")
    assert (used.optimizer.lr, used.batch_size) == (0.5, 32)


@pytest.mark.slow
def test_a_preset_holds_what_the_trials_had_from_a_preset_and_from_other_groups(search, tmp_path):
    """The model's own loss is BPR, its optimizer Adam."""
    search("loss=choice(top1)", "optimizer=adagrad", GRID, "optimizer.lr=0.5")
    preset = yaml.safe_load((tmp_path / "sweep" / "preset" / "best.yaml").read_text())
    values = preset["entries"]["simulated_shop"]["bpr_mf"]
    assert values["loss"]["_target_"].endswith("TOP1")
    assert values["optimizer"]["_target_"] == "torch.optim.Adagrad"
    assert values["optimizer"]["lr"] == 0.5


@pytest.mark.slow
def test_another_metric_can_be_searched_for(search):
    assert search(SPACE, GRID, "hydra.sweeper.metric=val/hr@10")["value"] == 0.9


def test_a_pruned_trial_is_no_failure_and_no_result(search, tmp_path):
    search.mode = "waits"
    search(SPACE, GRID, "hydra.sweeper.pruner=asha")
    assert trials(tmp_path) == {"0": ("finished", 0.5), "1": ("pruned", None)}
    result = json.loads((tmp_path / "sweep" / "1" / "result.json").read_text())
    assert result["stop_reason"] == "ended by the pruner after epoch 1"
    (table,) = search_tables([tmp_path])
    texts = " ".join(cell.text for cell in table.rows[0])
    assert texts == "bpr_mf 2 1 1 0 0 3 30 0.5000"


def test_a_trial_whose_process_was_killed_goes_on(search, tmp_path):
    search.mode = "is killed"
    search("optimizer.lr=choice(0.5)", GRID)
    assert [name for name, _ in search.started] == ["0", "0"]
    assert search.started[0] == search.started[1]
    assert trials(tmp_path) == {"0": ("finished", 0.5)}


def test_a_search_that_a_signal_ended_goes_on_and_repeats_no_trial(search, tmp_path):
    search.mode = "ends the search"
    with pytest.raises(SystemExit) as ended:
        search("optimizer.lr=choice(0.1,0.5)", GRID)
    assert ended.value.code == 128 + signal.SIGTERM
    assert trials(tmp_path) == {"0": ("finished", 0.1), "1": ("running", None)}
    found = search("optimizer.lr=choice(0.1,0.5)", GRID)
    assert [name for name, _ in search.started] == ["1"]
    assert found["trial"] == 1
    assert [state for state, _ in trials(tmp_path).values()] == ["finished"] * 2


def test_trials_that_only_fail_end_the_search(search, tmp_path, monkeypatch):
    search.mode = "fails"
    monkeypatch.setattr(search_trials, "MOST_FAILURES", 2)
    with pytest.raises(RecexpError, match=r"first 2 trials failed.*error: it cannot be"):
        search("optimizer.lr=choice(0.5,0.1)", GRID)
    assert [state for state, _ in trials(tmp_path).values()] == ["failed"] * 2


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "has no parameters"),
        (["optimizer.rate=1,2"], "cannot set optimizer.rate=1: .*rate"),
        (["optimizer.lr=choice(0.1,-1)"], r"would try optimizer.lr=-1: .*optimizer.lr"),
        ([SPACE, "hydra.sweeper.metric=val/ndcg@11"], "metric=val/ndcg@11: must be one of val/hr"),
        slow(["loss=choice(bpr,nosuch)"], "cannot set loss=nosuch: .*nosuch"),
        slow([SPACE, "hydra.sweeper.metric=test/hr@10"], "metric=test/hr@10: must be one of val/"),
        slow([SPACE, "hydra.sweeper.storage=mysql://a"], "storage=mysql://a: must be a file"),
        slow([SPACE, "hydra.sweeper.preset=best.yaml"], "preset=best.yaml: must be FOLDER/preset"),
        slow([SPACE, "hydra.sweeper.sampler=best"], "hydra.sweeper.sampler='best': must be one of"),
        slow([SPACE, "seed=0,1"], "seed cannot be searched"),
        slow([SPACE, "hydra/launcher=basic"], "needs hydra/launcher=processes"),
    ],
)
def test_what_is_wrong_is_one_sentence_before_the_first_trial(search, words, text):
    with pytest.raises(RecexpError, match=re.compile(text, re.DOTALL)) as refused:
        search(*words)
    assert not search.started
    assert "\n" not in str(refused.value)


def test_without_optuna_the_extra_is_named(search, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    for name in [name for name in sys.modules if name.startswith("recexp.search.s")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(RecexpError, match=r"needs optuna.*pip install 'recexp\[search\]'"):
        search(SPACE)


def test_a_search_space_chooses_the_sweeper():
    assert with_sweeper(["search=sasrec"]) == ["search=sasrec", "hydra/sweeper=optuna"]
    for words in (["model=pop"], ["search=null"], ["search=a", "hydra/sweeper=grid"]):
        assert with_sweeper(words) == words


def test_the_plugin_of_hydra_may_be_installed_too():
    """It stores a config of the same name, which Hydra would take for the schema of ours."""
    schema = {"_target_": "other.OptunaSweeper", "defaults": [{"sampler": "tpe"}]}
    ConfigStore.instance().store(
        group="hydra/sweeper", name="optuna", node=OmegaConf.create(schema)
    )
    register_plugins()
    cfg = composed("hydra/sweeper=optuna", return_hydra_config=True)
    assert cfg.hydra.sweeper._target_ == "hydra_plugins.recexp.OptunaSweeper"
