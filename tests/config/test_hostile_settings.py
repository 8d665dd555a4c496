"""Whatever stands in a YAML: it is accepted, or one sentence names the key. Never a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf, open_dict

from recexp.cli.main import _errors_explained
from recexp.config.check import check_config
from recexp.config.presets import apply_preset, compose_config
from recexp.errors import RecexpError
from tests.config.test_check import composed
from tests.support.running import SMALL
from tests.support.settings_walk import Case, cases, outcome

LONGEST = 2500  # characters of a message
ALL = cases()
FILES = sorted({case.file for case in ALL})
SAMPLED = ("config.yaml", "callbacks/default.yaml", "preset/tuned.yaml", *FILES[5::30])
TRAINED = (
    ("model/bpr_mf.yaml", "model.n_factors"),
    ("optimizer/adam.yaml", "optimizer.betas"),
    ("trainer/cpu.yaml", "trainer.gradient_clip_val"),
    # Several seconds each.
    pytest.param("model/bert_ite.yaml", "objective.weights", marks=pytest.mark.slow),
    pytest.param("sampler/popularity.yaml", "sampler.alpha", marks=pytest.mark.slow),
    pytest.param(
        "callbacks/default.yaml", "callbacks.early_stopping.patience", marks=pytest.mark.slow
    ),
)
ONE_STEP = (
    *SMALL,
    "+trainer.limit_train_batches=1",
    "trainer.max_epochs=1",
    "trainer.limit_val_batches=1",
    "+trainer.limit_test_batches=1",
)


def judge(case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Is the value accepted? Fails for a traceback, and for a message that names no key."""
    monkeypatch.chdir(folder)
    try:
        said = outcome(case, folder)
    except Exception as error:
        raise AssertionError(f"{case}: {type(error).__name__}: {error}") from error
    names = [str(part) for part in case.key if not isinstance(part, int)][-2:]
    # An interpolation is also found by what it refers to, an unknown key by itself.
    names += {"interpolation": ["'oops'"], "unknown_key": ["Unknown key ['a']"]}.get(case.name, [])
    # What these are read through is named instead.
    names += {"stand_in": ["dataset.source"], "run_dir": ["hydra.run.dir"]}.get(names[-1], [])
    if said:
        assert any(name in said for name in names), f"{case}: {said}"
        assert len(said) < LONGEST, f"{case}: {said}"
    return not said


@pytest.mark.parametrize("file", SAMPLED)
def test_a_sample_of_hostile_values_is_accepted_or_refused_by_name(file, tmp_path, monkeypatch):
    own = [case for case in ALL if case.file == file and case.key[0] != "hydra"]
    for case in own[:: max(1, len(own) // 25)]:
        judge(case, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_every_key_takes_hostile_values_or_refuses_them_by_name(file, tmp_path, monkeypatch):
    for case in ALL:
        # Hydra reads its own keys before any code of ours, and its messages do not name them.
        if case.file == file and case.key[0] != "hydra":
            judge(case, tmp_path, monkeypatch)


def train(case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of one step of what is accepted: it ends, or with one sentence."""
    monkeypatch.chdir(folder)
    small = (*ONE_STEP, f"dataset.raw_dir={folder.parent}/raw", f"cache_dir={folder.parent}/cache")
    try:
        outcome(case, folder, *small, train=True)
    except Exception as error:
        raise AssertionError(f"{case}: {type(error).__name__}: {error}") from error


@pytest.mark.parametrize(("file", "key"), TRAINED)
def test_what_is_accepted_trains_or_ends_with_one_sentence(file, key, tmp_path, monkeypatch):
    parts = tuple(key.split("."))
    own = [case for case in ALL if (case.file, case.key) == (file, parts)]
    assert own, f"{key} is no key of {file}"
    for case in own:
        if judge(case, tmp_path, monkeypatch):
            train(case, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("file", [file for file in FILES if file.startswith("model/")])
def test_accepted_values_of_a_model_train_or_end_with_one_sentence(file, tmp_path, monkeypatch):
    for case in ALL[::3]:
        if case.file == file and judge(case, tmp_path, monkeypatch):
            train(case, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("dataset.filters", [None], r"dataset\.filters=\[None\]: must be a list"),
        ("dataset.filters", [{"user_min": "abc"}], r"dataset\.filters\[0\]\.user_min='abc'"),
        ("dataset.filters", [{"users_min": 1}], r"dataset\.filters: unknown key \['users_min'\]"),
        ("dataset.window", {"start": "2016-01-01"}, r"dataset\.window=.*\{start, end\}"),
        ("dataset.window", {"start": "2016-02-01", "end": "2016-01-01"}, "must be before end"),
        ("dataset.value_behaviors", {"buy": "abc"}, r"dataset\.value_behaviors"),
        ("callbacks.checkpoint.monitor", "abc", r"callbacks\.checkpoint\.monitor='abc': must be"),
        ("callbacks.early_stopping.monitor", "test/mrr", r"early_stopping\.monitor='test/mrr'"),
        ("optimizer.betas", {}, r"optimizer\.betas"),
        ("optimizer._partial_", [None], r"optimizer\._partial_=\[None\]: must be true or false"),
        ("optimizer.weight_decay", 1e308, r"optimizer\.weight_decay=1e\+308: must be at most"),
        ("names.extra", "x", r"Unknown key names\.extra"),
        ("names", 0, r"names=0"),
    ],
)
def test_a_setting_that_ended_in_a_traceback_is_refused_by_name(key, value, text):
    cfg = composed("model=sasrec", "dataset=table")
    with open_dict(cfg):
        OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    with pytest.raises(RecexpError, match=text):
        check_config(cfg)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("preset.entrys", {}, r"Unknown key preset\.entrys"),
        ("preset.entries", "abc", r"preset\.entries='abc': must be names with values"),
        ("preset.entries.ml_1m", 3, r"preset\.entries\.ml_1m=3"),
        ("preset.entries.ml_1m.bert4rec", "x", r"preset\.entries\.ml_1m\.bert4rec='x'"),
        ("preset.entries.steam.sasrec", 3, r"preset\.entries\.steam\.sasrec=3"),
        ("over_preset", "abc", r"over_preset='abc'"),
    ],
)
def test_a_preset_of_another_form_is_refused_by_name(key, value, text, monkeypatch):
    from recexp.config import presets

    monkeypatch.setattr(presets, "apply_preset", lambda cfg: cfg)
    cfg = compose_config(["preset=paper_bert4rec", "model=bert4rec", "dataset=ml_1m"])
    with open_dict(cfg):
        OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    with pytest.raises(RecexpError, match=text):
        apply_preset(cfg)


@pytest.mark.parametrize("word", ["preset=tunde", "model=1.5", "debug=1.5", "debug=abc"])
def test_a_choice_that_is_none_ends_with_one_message(word):
    with pytest.raises(SystemExit) as ended, _errors_explained():
        check_config(composed("dataset=ml_1m", word))
    assert isinstance(ended.value.code, str) and "Traceback" not in ended.value.code
