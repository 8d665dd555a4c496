"""Workers share the trials of a study, and lose and repeat none."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from recexp.errors import RecexpError
from recexp.search.options import Options
from recexp.search.space import read_space

pytest.importorskip("optuna", reason="needs the extra search")

from optuna.trial import TrialState

from recexp.search.storage import storage_file
from recexp.search.study import SharedStudy

PARAMS = {"lr": "tag(log,interval(1e-4,1e-2))", "n": "choice(16,32)"}
STORAGES = ("search.journal", "search.db")
VALUES = {
    "n_trials": 4,
    "sampler": "random",
    "pruner": "none",
    "min_epochs": 1,
    "seed": 0,
    "metric": None,
    "study": None,
    "preset": "preset/best.yaml",
}


@pytest.fixture
def worker(tmp_path):
    """worker(...) is a new worker on the storage of the test."""

    def start(params=PARAMS, about=None, storage="search.journal", **changed):
        space = read_space(params, [], OverridesParser.create())
        values = VALUES | {"storage": str(tmp_path / storage)} | changed
        return SharedStudy(Options.checked(values), "study", space, about or {"a": {"b": 1}})

    return start


def finish(worker, trial, value=0.5):
    worker.finish(trial, TrialState.COMPLETE, value)


@pytest.mark.parametrize("storage", STORAGES)
def test_workers_share_the_trials(worker, tmp_path, storage):
    first = worker(storage=storage)
    second = worker(storage=storage)
    trials = [one.claim(tmp_path) for one in (first, second, first, second)]
    assert [trial.number for trial in trials] == [0, 1, 2, 3]
    assert len({trial.folder for trial in trials}) == 4
    assert first.claim(tmp_path) is None and second.claim(tmp_path) is None
    for one, trial in zip((first, second, first, second), trials, strict=True):
        finish(one, trial, value=trial.number / 10)
    assert first.counts().finished == 4
    assert first.best() == second.best()
    assert first.best().number == 3 and first.best().folder == trials[3].folder


@pytest.mark.parametrize("storage", STORAGES)
def test_a_trial_of_a_dead_worker_goes_on_with_its_values(worker, tmp_path, storage):
    dead = worker(storage=storage)
    left = dead.claim(tmp_path)
    dead.report(left, 1, 0.1, may_end=True)
    alive = worker(storage=storage)
    assert alive.claim(tmp_path).number == 1, "the first one's worker lives"
    dead.leave()  # as the system does for a worker that is killed
    adopted = alive.claim(tmp_path)
    assert (adopted.number, adopted.values, adopted.folder) == (0, left.values, left.folder)
    assert adopted.n_reported == 1
    assert alive.counts().total == 2


def test_a_trial_that_was_to_end_is_not_trained_on(worker, tmp_path):
    dead = worker(pruner="asha")
    good, bad = dead.claim(tmp_path), dead.claim(tmp_path)
    assert not dead.report(good, 1, 0.9, may_end=True)
    assert not dead.report(bad, 1, 0.1, may_end=False)
    assert dead.report(bad, 2, 0.1, may_end=True)
    dead.leave()
    alive = worker(pruner="asha")
    assert [alive.claim(tmp_path).pruned for _ in range(2)] == [None, 2]


def test_a_trial_whose_worker_died_before_it_began_is_not_counted(worker, tmp_path):
    dead = worker()
    asked = dead._study.ask()
    alive = worker()
    trials = [alive.claim(tmp_path) for _ in range(5)]
    assert [trial and trial.number for trial in trials] == [1, 2, 3, 4, None]
    assert asked.number == 0 and alive.counts().total == 4


def drawn(worker, folder, n):
    values = []
    for _ in range(n):
        trial = worker.claim(folder)
        values.append(trial.values)
        finish(worker, trial, trial.values["lr"])
    return values


@pytest.mark.parametrize(
    "sampler", ["random", "tpe", pytest.param("cmaes", marks=pytest.mark.slow)]
)
def test_a_search_that_goes_on_draws_what_an_uninterrupted_one_draws(worker, tmp_path, sampler):
    whole = drawn(worker(storage="a.journal", n_trials=8, sampler=sampler), tmp_path, 8)
    parts = drawn(worker(storage="b.journal", n_trials=4, sampler=sampler), tmp_path, 4)
    parts += drawn(worker(storage="b.journal", n_trials=8, sampler=sampler), tmp_path, 4)
    assert parts == whole
    assert len({values["lr"] for values in whole}) == 8
    other = drawn(worker(storage="c.journal", n_trials=2, sampler=sampler, seed=1), tmp_path, 2)
    assert other != whole[:2]


def test_a_grid_is_tried_once_in_its_order_and_then_over(worker, tmp_path):
    params = {"lr": "range(0.1,0.35,0.1)", "n": "choice(a,b)"}
    one = worker(params, sampler="grid", n_trials=50)
    assert one.n_trials == 6
    values = drawn(one, tmp_path, 6)
    assert values == one.space.grid()
    assert one.claim(tmp_path) is None


def test_a_search_with_other_settings_is_refused_and_names_them(worker):
    worker()
    worker()
    with pytest.raises(RecexpError, match=r"other settings \(a.b\): .*hydra.sweeper.study"):
        worker(about={"a": {"b": 2}})


def test_a_file_that_is_no_study_is_one_sentence(worker, tmp_path):
    for name in STORAGES:
        (tmp_path / name).write_text("no study\n" * 100)
        with pytest.raises(RecexpError, match=r"search\.\w+ cannot be used"):
            worker(storage=name)
    (tmp_path / "folder.db").mkdir()
    with pytest.raises(RecexpError, match="is a directory"):
        worker(storage="folder.db")


@pytest.mark.parametrize(
    "text", ["postgresql://host/db", "search.txt", "sqlite:///", "redis://x.db"]
)
def test_a_storage_that_is_no_file_is_refused(text):
    with pytest.raises(RecexpError, match="must be a file that ends in"):
        storage_file(text)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("sampler", "bayes", "one of tpe, cmaes, random, grid"),
        ("pruner", "hyperband", "one of median, asha, none"),
        ("n_trials", 0, "at least 1"),
        ("seed", -1, "at least 0"),
    ],
)
def test_a_bad_option_is_named(worker, key, value, text):
    with pytest.raises(RecexpError, match=rf"hydra.sweeper.{key}=.*{text}"):
        worker(**{key: value})
