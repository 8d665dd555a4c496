"""The papers' settings, and the differences of a run from them."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from recexp.report.collect import collect, setting
from recexp.report.papers.deviations import settings_apart
from recexp.report.papers.matching import match
from recexp.report.papers.recipe import WORDS, agrees, differences, recipe
from recexp.report.papers.settings import parse_value
from tests.support.finished_runs import ML, set_papers, write_run
from tests.support.running import composed

# One setting of each kind that decides whether a figure was reproduced, and another value of it.
STATED = {
    "loss._target_": ("recexp.objectives.losses.CE", "recexp.objectives.losses.BCE"),
    "objective.n_negatives": ("1", 500),
    "sampler._target_": (
        "recexp.objectives.samplers.Uniform",
        "recexp.objectives.samplers.Popularity",
    ),
    "optimizer._target_": ("torch.optim.Adam", "torch.optim.SGD"),
    "optimizer.lr": ("1e-4", 1e-3),
    "scheduler._target_": ("recexp.training.schedules.linear_warmup", None),
    "batch_size": ("256", 64),
    "batch_counts": ("positives", "instances"),
    "model.n_layers": ("2", 3),
    "model.n_factors": ("64", 32),
    "model.n_heads": ("2", 4),
    "model.max_len": ("200", 50),
    "model.norm": ("post", "pre"),
    "model.dropout": ("0.2", 0.5),
    "trainer.max_steps": ("400000", 1440),
    "trainer.max_epochs": ("4", 9),
}
FAITHFUL = {key: parse_value(value) for key, (value, _) in STATED.items() if "trainer" not in key}


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """Write rows ``key,value`` of BERT4Rec on ML-1M that its paper states, or whole rows."""

    def written(*rows):
        whole = (r if r.count(",") > 3 else f"bert4rec,*,*,*,{r},paper: 4,true" for r in rows)
        set_papers(monkeypatch, tmp_path, *whole)
        return recipe("bert4rec", "table2", "bert4rec", "ml_1m")

    return written


@pytest.fixture
def run(tmp_path):
    def made(config=None, **changes):
        model = changes.pop("model", "bert4rec")
        folder = tmp_path / "runs" / str(len(list(tmp_path.glob("runs/*"))))
        return collect([write_run(folder, model=model, config=config, **ML | changes)])[0][0]

    return made


def told(found):
    return [d.text for d in found]


def test_a_table_has_the_settings_of_its_experiment(settings):
    settings(
        "model.max_len,200",
        "bert4rec,table4_length,*,*,batch_size,128,paper: 4,true",
        "nova,table3_fusion,*,*,model.max_len,7,ours,false",
        "ite,fig10_epochs,*,*,selection,test_peek,paper: 4,true",
    )
    four = recipe("bert4rec", "table4", "bert4rec", "ml_1m")
    assert {key: s.values for key, s in four.items()} == {
        "model.max_len": (200,),
        "batch_size": (128,),
    }
    assert recipe("nova_bert", "table3", "bert4rec", "ml_1m")["model.max_len"].values == (7,)
    assert recipe("ite", "fig10_11", "ite", "retailrocket")["selection"].values == ("test_peek",)


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        (1e-4, 0.0001, True),
        (0.00011, 0.0001, False),
        ([0.9, 0.999], [0.9, 0.999], True),
        ([0.9, 0.98], [0.9, 0.999], False),
        ("torch.optim.Adam", "torch.optim.AdamW", False),
        ("supportive_only", "recexp.objectives.samplers.SupportiveOnly", True),
        (None, None, True),
        (True, True, True),
        (1, True, False),
        (None, 5, False),
        (2, 2.0, True),
    ],
)
def test_values_agree_whatever_their_spelling(ours, theirs, same):
    assert agrees(ours, theirs) is same


def test_a_run_with_all_of_the_papers_settings_differs_in_nothing(run, settings):
    settings(*(f"{key},{value}" for key, (value, _) in STATED.items()))
    result = run(FAITHFUL, updates=400_100)
    assert settings_apart(result, match(result)["ndcg@10"]) == []


@pytest.mark.parametrize("key", STATED)
def test_every_kind_of_setting_is_compared(run, settings, key):
    wanted = settings(*(f"{k},{value}" for k, (value, _) in STATED.items()))
    spent = {"updates": 400_000}
    spent |= {"updates": 1440} if key == "trainer.max_steps" else {}
    spent |= {"epochs": 9} if key == "trainer.max_epochs" else {}
    other = {} if key.startswith("trainer") else {key: STATED[key][1]}
    (found,) = differences(run(FAITHFUL | other, **spent), wanted)
    assert found.key == key and found.text.startswith(WORDS.get(key, key.split(".")[-1]))


def test_a_composed_config_counts_with_its_constructors_defaults(run, settings, tmp_path):
    """``norm`` and ``gelu`` stand in no YAML of BERT4Rec; softmax has no negatives to count."""
    wanted = settings(
        "model.norm,post", "model.tied,true", "objective.n_negatives,7", "model.dropout,0.9"
    )
    config = OmegaConf.to_container(composed(tmp_path, "model=bert4rec"), resolve=True)
    assert "norm" not in config["model"] and "tied" not in config["model"]
    result = run() | {"config": config}
    assert told(differences(result, wanted)) == ["dropout 0.2 (paper 0.9)"]


def test_a_result_names_no_code_to_be_looked_up(run, settings, monkeypatch, tmp_path):
    wanted = settings("model.max_len,200")
    config = OmegaConf.to_container(composed(tmp_path, "model=bert4rec"), resolve=True)
    config["objective"]["_target_"] = "os.system"
    monkeypatch.setattr(
        "recexp.report.papers.settings.resolve_name", lambda name: pytest.fail(name)
    )
    assert told(differences(run() | {"config": config}, wanted)) == []


def test_an_open_choice_counts_only_where_it_defines_the_system(run, settings):
    wanted = settings(
        "bert4rec,*,*,*,model.dropout,0.2,ours,false",
        "bert4rec,*,*,*,sampler._target_,recexp.objectives.samplers.Uniform,ours,false",
    )
    result = run(
        {"model.dropout": 0.7, "sampler._target_": "recexp.objectives.samplers.Popularity"}
    )
    assert told(differences(result, wanted)) == ["sampler Popularity (paper silent, here Uniform)"]


def test_any_value_that_the_experiment_varies_agrees(run, settings):
    wanted = settings("model.max_len,10|50|100")
    assert differences(run({"model.max_len": 50}), wanted) == []
    assert told(differences(run({"model.max_len": 20}), wanted)) == [
        "length 20 (paper 10 or 50 or 100)"
    ]


def test_a_batch_is_what_one_update_sees(run, settings):
    wanted = settings("batch_size,256")
    config = {"batch_size": 64, "trainer.accumulate_grad_batches": 2, "trainer.devices": 2}
    assert differences(run(config), wanted) == []
    config["trainer.devices"] = 1
    assert told(differences(run(config), wanted)) == ["batch 128 (paper 256)"]


def test_what_was_not_recorded_is_no_agreement(run, settings):
    """Of an old result without config only the command line is known, not the defaults of today."""
    wanted = settings("batch_size,256", "model.n_layers,2", "model.dropout,0.1")
    result = run(overrides=("batch_size=256", "model.dropout=.5")) | {"recorded": False}
    assert setting(result, "model.n_layers") == 2
    assert told(differences(result, wanted)) == [
        "dropout 0.5 (paper 0.1)",
        "its other settings are not on record",
    ]


def test_a_system_without_settings_on_file_is_not_faithful_unless_it_has_none(run, settings):
    assert told(differences(run(), settings())) == ["the paper's settings are not on file"]
    assert differences(run(model="pop", objective="none"), settings()) == []
    assert differences(run(model="pop", objective="none"), settings("optimizer.lr,1")) == []


def test_how_a_short_training_ended_is_said(run, settings):
    wanted = settings("trainer.max_steps,400000")
    result = run(updates=1440, stop_reason="early stopping: no better validation")
    assert told(differences(result, wanted)) == [
        "updates 1,440 (paper 400,000, early stopping: no better validation)"
    ]


def test_where_the_paper_leaves_the_length_open_training_must_have_ended(run, settings):
    rising = {"convergence": {"kind": "rising", "text": ""}}
    assert told(differences(run(**rising), settings("model.n_layers,2"))) == [
        "still rising when it ended"
    ]
    assert (
        differences(run(**rising), settings("trainer.max_epochs,4")) == []
    )  # as long as the paper's
    ended = {"convergence": {"kind": "converged", "text": ""}}
    assert differences(run(**ended), settings("model.n_layers,2")) == []


def test_the_budget_is_that_of_the_model_tested(run, settings):
    """After a second training with the validation items the first one's length says nothing."""
    wanted = settings("trainer.max_steps,400000", "trainer.max_epochs,9")
    result = run(updates=400_000, epochs=9, refit={"updates": 120_000, "epochs": 3})
    assert told(differences(result, wanted)) == [
        "updates 120,000 (paper 400,000)",
        "epochs 3 (paper 9)",
    ]
