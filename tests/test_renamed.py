"""Keys of earlier versions: command lines, stored runs and fingerprints."""

from __future__ import annotations

import json

import pytest
from omegaconf import OmegaConf

from recexp.config.check import check_config
from recexp.renamed import RENAMED, warn_of_renamed, with_first_keys, with_new_keys, with_new_words
from recexp.runs.identity import differences
from recexp.runs.loading import read_config
from recexp.runs.outputs import kept_config
from tests.support.running import command, composed


@pytest.mark.parametrize(
    ("earlier", "now"),
    [
        ("model.num_factors=8", "model.n_factors=8"),
        ("+model.num_inner=8", "+model.n_inner=8"),
        ("dataset.behaviours=[a,b]", "dataset.behaviors=[a,b]"),
        ("dataset.value_behaviours={low: 0}", "dataset.value_behaviors={low: 0}"),
        ("+preset.model={num_heads: 2, num_layers: 1}", "+preset.model={n_heads: 2, n_layers: 1}"),
        # values, and keys that only contain an earlier one, stay
        ("dataset.source.behavior=behaviours", "dataset.source.behavior=behaviours"),
        ("model.my_num_factors=8", "model.my_num_factors=8"),
        ("trainer.num_nodes=2", "trainer.num_nodes=2"),
        ("--help", "--help"),
        # the loss was a word and parameters of the objective
        ("objective.loss_name=gbce", "loss=gbce"),
        ("objective.loss_name=bce,gbce", "loss=bce,gbce"),
        ("++objective.loss_name=gbce", "loss=gbce"),
        ("objective.t=0.5", "loss.t=0.5"),
        ("++objective.bpreg=0.5", "++loss.bpreg=0.5"),
        ("objective.log_q=true", "loss.log_q=true"),
        ("objective.targets=3", "objective.targets=3"),
        ("note=objective.t=3", "note=objective.t=3"),
    ],
)
def test_overrides_of_earlier_versions_are_translated(earlier, now):
    assert with_new_words([earlier]) == [now]


def test_a_loss_that_was_dropped_is_the_objective_s_own():
    words = ["objective=pairwise", "~objective.loss_name", "~objective.t", "seed=1"]
    assert with_new_words(words) == ["objective=pairwise", "loss=bpr", "seed=1"]
    assert with_new_words(["~objective.loss_name"]) == []


EARLIER_LOSSES = [
    (["model=bert4rec"], {"loss_name": "ce", "log_q": False, "t": 0.75, "bpreg": 1.0}),
    (["model=sasrec", "loss=gbce", "loss.t=0.5"], {"loss_name": "gbce", "t": 0.5, "bpreg": 1.0}),
    (
        ["model=sasrec", "loss=sampled_softmax", "loss.log_q=true", "objective.shared=batch"],
        {"loss_name": "sampled_softmax", "log_q": True, "t": 0.75},
    ),
    (["model=gru4rec"], {"loss_name": "top1", "bpreg": 1.0}),
    (["model=gru4rec_plus", "loss.bpreg=0.5"], {"loss_name": "bpr_max", "bpreg": 0.5}),
    (["model=mtmf", "loss=mse"], {"loss_name": "mse"}),
    (["model=bpr_mf"], {}),
]


@pytest.mark.parametrize(("words", "loss"), EARLIER_LOSSES, ids=lambda x: " ".join(x))
def test_a_run_of_an_earlier_version_has_the_config_of_the_same_run_today(tmp_path, words, loss):
    now = kept_config(composed(tmp_path, *words))
    earlier = json.loads(json.dumps(now))
    del earlier["loss"], earlier["objective"]["loss"]
    earlier["objective"] |= loss
    assert differences(with_new_keys(earlier), now) == []
    assert with_new_keys(now) == now


@pytest.mark.parametrize("model", ["sasrec", "bpr_mf", "pop"])
def test_a_job_of_an_earlier_sweep_is_the_same_job_today(tmp_path, model):
    """job.json holds interpolations as they are."""
    cfg = composed(tmp_path, f"model={model}")
    now = OmegaConf.to_container(cfg)
    earlier = json.loads(json.dumps(now, default=str))
    del earlier["loss"]
    if earlier["objective"].pop("loss", None):
        earlier["objective"] |= {"loss_name": "bce", "t": 0.75} if model == "sasrec" else {}
    assert differences(with_new_keys(earlier), json.loads(json.dumps(now, default=str))) == []


def test_a_stored_config_with_an_earlier_loss_is_accepted(tmp_path):
    cfg = composed(tmp_path, "model=sasrec")
    earlier = OmegaConf.to_container(cfg, resolve=True)
    del earlier["loss"], earlier["objective"]["loss"]
    earlier["objective"] |= {"loss_name": "gbce", "t": 0.25, "bpreg": 1.0, "log_q": False}
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(earlier))
    read = read_config(path)
    check_config(read)
    assert read.objective.loss == {"_target_": "recexp.objectives.losses.GBCE", "t": 0.25}


def test_a_stored_config_without_a_later_parameter_of_its_model_is_the_same_run(tmp_path):
    cfg = composed(tmp_path, "model=wmf")
    now = json.loads(json.dumps(OmegaConf.to_container(cfg, resolve=True), default=str))
    earlier = json.loads(json.dumps(now))
    del earlier["model"]["solver"], earlier["model"]["cg_steps"]
    assert differences(with_new_keys(earlier), now) == []
    other = now | {"model": now["model"] | {"solver": "cg"}}
    assert with_new_keys(other) == other


def test_keys_are_translated_at_any_depth_and_back():
    earlier = {"model": {"num_factors": 8}, "dataset": [{"behaviours": ["behaviours"]}]}
    now = {"model": {"n_factors": 8}, "dataset": [{"behaviors": ["behaviours"]}]}
    assert with_new_keys(earlier) == now
    assert with_first_keys(now) == earlier


def test_no_key_of_an_earlier_version_is_a_key_of_today():
    assert not set(RENAMED) & set(RENAMED.values())


def test_one_warning_names_the_renamed_keys(caplog):
    warn_of_renamed(["model.num_factors=8", "model.num_heads=2", "seed=1"])
    assert [record.getMessage() for record in caplog.records] == [
        "renamed settings: num_factors is now n_factors, num_heads is now n_heads"
    ]
    caplog.clear()
    warn_of_renamed(["objective.loss_name=gbce", "objective.t=0.5", "~objective.bpreg"])
    assert [record.getMessage() for record in caplog.records] == [
        "renamed settings: objective.loss_name is now loss, objective.t is now loss.t, "
        "objective.bpreg is now loss.bpreg"
    ]
    caplog.clear()
    warn_of_renamed(["model.n_factors=8", "--help"])
    assert not caplog.records


@pytest.mark.slow  # a run in a process of its own
def test_a_command_of_an_earlier_version_runs(tmp_path):
    folder = tmp_path / "run"
    words = ["model=sasrec", "model.num_factors=4", "objective.loss_name=gbce", "objective.t=0.5"]
    done = command(folder, *words, "model.max_len=5", f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    assert "num_factors is now n_factors" in done.stderr + done.stdout
    result = json.loads((folder / "result.json").read_text())
    assert result["config"]["model"]["n_factors"] == 4
    assert result["loss"] == "gbce" and result["config"]["loss"]["t"] == 0.5


def test_the_config_of_an_earlier_run_is_read_in_today_s_spelling(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("model: {num_factors: 8}\ndataset: {behaviours: [view]}\n")
    cfg = read_config(path)
    assert cfg.model.n_factors == 8
    assert list(cfg.dataset.behaviors) == ["view"]
