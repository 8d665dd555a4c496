"""The papers' settings, and the differences of a run from them."""

from __future__ import annotations

import pytest

from recexp.report import recipe as module
from recexp.report.collect import collect, setting
from recexp.report.published import match, settings_apart
from recexp.report.recipe import agrees, all_settings, differences, recipe
from recexp.types import RecexpError
from tests.report_tests.runs import ML, paper_settings, write_run

# One setting of each kind that decides whether a figure was reproduced, and another value of it.
STATED = {
    "objective.loss_name": ("ce", "bce"),
    "objective.n_negatives": ("1", 500),
    "sampler._target_": ("uniform", "recexp.sampling.Popularity"),
    "optimizer._target_": ("adam", "torch.optim.SGD"),
    "optimizer.lr": ("1e-4", 1e-3),
    "scheduler._target_": ("linear_warmup", None),
    "batch_size": ("256", 64),
    "batch_counts": ("positives", "instances"),
    "model.num_layers": ("2", 3),
    "model.num_factors": ("64", 32),
    "model.num_heads": ("2", 4),
    "model.max_len": ("200", 50),
    "model.norm": ("post", "pre"),
    "model.dropout": ("0.2", 0.5),
    "trainer.max_steps": ("400000", 1440),
    "trainer.max_epochs": ("4", 9),
}
FAITHFUL = {
    "objective.loss_name": "ce", "objective.n_negatives": 1,
    "sampler._target_": "recexp.sampling.Uniform", "optimizer._target_": "torch.optim.Adam",
    "optimizer.lr": 0.0001, "scheduler._target_": "recexp.lightning.schedules.linear_warmup",
    "batch_size": 256, "batch_counts": "positives", "model.num_layers": 2, "model.num_factors": 64,
    "model.num_heads": 2, "model.max_len": 200, "model.norm": "post", "model.dropout": 0.2,
}  # fmt: skip


@pytest.fixture
def settings(tmp_path, monkeypatch):
    def written(*rows):
        monkeypatch.setattr(module, "FILE", paper_settings(tmp_path, *rows))

    return written


@pytest.fixture
def run(tmp_path):
    def made(config=None, **changes):
        model = changes.pop("model", "bert4rec")
        folder = tmp_path / "runs" / str(len(list(tmp_path.glob("runs/*"))))
        return collect([write_run(folder, model=model, config=config, **ML | changes)])[0][0]

    return made


def test_the_most_specific_row_counts(settings):
    settings(
        "bert4rec,*,*,*,model.max_len,200,s,yes",
        "bert4rec,,bert4rec,amazon_beauty,model.max_len,50,s,yes",
        "bert4rec,table4_length,*,,batch_size,128,s,yes",
        "nova,*,*,*,model.max_len,7,s,no",
    )
    here = recipe("bert4rec", "table2", ("bert4rec",), ("ml_1m",))
    assert {key: s.value for key, s in here.items()} == {"model.max_len": 200}
    beauty = recipe("bert4rec", "table4", ("bert4rec",), ("beauty_extract", "amazon_beauty"))
    assert {key: s.value for key, s in beauty.items()} == {"model.max_len": 50, "batch_size": 128}
    assert recipe("nova_bert", "table3", ("bert4rec",), ("ml_1m",))["model.max_len"].value == 7


@pytest.mark.parametrize(
    "row",
    [
        "bert4rec,*,*,*,model.max_len,200,s",
        "bert4rec,*,*,*,,200,s,yes",
        "bert4rec,*,*,*,k,1,s,maybe",
        "",
    ],
)
def test_a_damaged_row_is_named_by_its_line(tmp_path, row):
    path = paper_settings(tmp_path, "bert4rec,*,*,*,batch_size,256,s,yes", row)
    with pytest.raises(RecexpError, match="line 3"):
        all_settings(path)


def test_a_setting_with_two_values_is_refused(tmp_path):
    rows = ("nova,*,*,*,batch_size,1,s,yes", "nova_bert,*,*,*,batch_size,2,s,yes")
    with pytest.raises(RecexpError, match="twice"):
        all_settings(paper_settings(tmp_path, *rows))


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        (1e-4, "1e-4", True), (0.00011, "1e-4", False), ([0.9, 0.999], "[.9, .999]", True),
        ([0.9, 0.98], "[0.9, 0.999]", False), ("torch.optim.Adam", "adam", True),
        ("torch.optim.AdamW", "adam", False), ("none", "none", True), (None, "null", True),
        ("recexp.sampling.NoSampler", "none", True), (True, "true", True), (1, "true", False),
        ("recexp.sampling.SupportiveOnly", "supportive_only", True), (None, "5", False),
        (0.2, "0.1|0.2", True), (0.3, "0.1|0.2", False),
        ("x.GRU4RecAdagrad", "adagrad|GRU4RecAdagrad", True),
    ],
)  # fmt: skip
def test_values_agree_whatever_their_spelling(ours, theirs, same):
    assert agrees(ours, module.read_value(theirs)) is same


def test_a_run_with_all_of_the_papers_settings_differs_in_nothing(run, settings):
    settings(*(f"bert4rec,*,*,*,{key},{value},s,yes" for key, (value, _) in STATED.items()))
    result = run(FAITHFUL, updates=400_100)
    assert settings_apart(result, match(result)["ndcg@10"]) == []


@pytest.mark.parametrize("key", STATED)
def test_every_kind_of_setting_is_compared(run, settings, key):
    settings(*(f"bert4rec,*,*,*,{k},{value},s,yes" for k, (value, _) in STATED.items()))
    wanted = recipe("bert4rec", "table2", ("bert4rec",), ("ml_1m",))
    changes = {"updates": 1440} if key == "trainer.max_steps" else {"updates": 400_000}
    changes |= {"epochs": 9} if key == "trainer.max_epochs" else {}
    config = FAITHFUL | ({key: STATED[key][1]} if not key.startswith("trainer") else {})
    (found,) = differences(run(config, **changes), wanted)
    assert found.key == key and found.text.startswith(module.WORDS.get(key, key.split(".")[-1]))


def test_an_open_choice_counts_only_where_it_defines_the_system(run, settings):
    settings(
        "bert4rec,*,*,*,model.dropout,0.2,s,no", "bert4rec,*,*,*,sampler._target_,uniform,s,no"
    )  # fmt: skip
    wanted = recipe("bert4rec", "table2", ("bert4rec",), ("ml_1m",))
    result = run({"model.dropout": 0.7, "sampler._target_": "recexp.sampling.Popularity"})
    assert [d.text for d in differences(result, wanted)] == [
        "sampler Popularity (paper silent, here uniform)"
    ]


def test_a_batch_is_what_one_update_sees(run, settings):
    settings("bert4rec,*,*,*,batch_size,256,s,yes")
    wanted = recipe("bert4rec", "table2", ("bert4rec",), ("ml_1m",))
    config = {"batch_size": 64, "trainer.accumulate_grad_batches": 2, "trainer.devices": 2}
    assert differences(run(config), wanted) == []
    assert (
        differences(run(config | {"trainer.devices": 1}), wanted)[0].text == "batch 128 (paper 256)"
    )


def test_what_was_not_recorded_is_no_agreement(run, settings):
    """Of an old result without config only the command line is known, not the defaults of today."""
    settings("bert4rec,*,*,*,batch_size,256,s,yes", "bert4rec,*,*,*,model.num_layers,2,s,yes")
    wanted = recipe("bert4rec", "table2", ("bert4rec",), ("ml_1m",))
    result = run(overrides=("batch_size=256",)) | {"recorded": False}
    assert setting(result, "model.num_layers") == 2
    (found,) = differences(result, wanted)
    assert found.text == "not on record: layers" and not found.known


def test_a_system_without_settings_on_file_is_not_faithful_unless_it_has_none(run, settings):
    settings("nova,*,*,*,batch_size,1,s,yes")
    assert "not on file" in differences(run(), {})[0].text
    assert differences(run(model="pop", objective="none"), {}) == []
    settings("bert4rec,*,*,*,optimizer.lr,1,s,yes")
    wanted = recipe("bert4rec", "table2", ("pop",), ("ml_1m",))
    assert differences(run(model="pop", objective="none"), wanted) == []


def test_what_a_figure_varies_is_no_difference(run, settings):
    settings("bert4rec,*,*,*,model.num_layers,2,s,yes", "bert4rec,*,*,*,model.max_len,200,s,yes")
    result = run({"model.num_layers": 3})
    figure = match(result)["ndcg@10"]
    assert figure.setting == "L=3" and settings_apart(result, figure) == []


def test_how_a_short_training_ended_is_said(run, settings):
    settings("bert4rec,*,*,*,trainer.max_steps,400000,s,yes")
    wanted = recipe("bert4rec", "table2", ("bert4rec",), ("ml_1m",))
    (found,) = differences(
        run(updates=1440, stop_reason="early stopping: no better validation"), wanted
    )
    assert found.text == "updates 1,440 (paper 400,000, early stopping: no better validation)"


def test_the_budget_is_that_of_the_model_tested(run, settings):
    """After a second training with the validation items the first one's length says nothing."""
    settings(
        "bert4rec,*,*,*,trainer.max_steps,400000,s,yes", "bert4rec,*,*,*,trainer.max_epochs,9,s,yes"
    )
    wanted = recipe("bert4rec", "table2", ("bert4rec",), ("ml_1m",))
    result = run(updates=400_000, epochs=9, refit={"updates": 120_000, "epochs": 3})
    assert [d.text for d in differences(result, wanted)] == [
        "updates 120,000 (paper 400,000)", "epochs 3 (paper 9)",
    ]  # fmt: skip


def test_the_shipped_file_can_be_read():
    shipped = all_settings(module.FILE)
    assert {s.paper for s in shipped} == {"bert4rec", "ite", "multi_feedback", "nova_bert"}
    assert all(s.source for s in shipped)
