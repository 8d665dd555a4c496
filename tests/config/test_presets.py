"""Presets: applied only where named, valid for their pairs, weaker than the command line."""

from __future__ import annotations

import pytest
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf, open_dict

from recexp.config import CONF
from recexp.config.check import check_config
from recexp.config.presets import ANY, apply_preset, compose_config, with_quickstart
from recexp.errors import RecexpError

TABLES = {path.stem: OmegaConf.load(path) for path in sorted((CONF / "preset").glob("*.yaml"))}
NAMES = {g: {p.stem for p in (CONF / g).glob("*.yaml")} for g in ("model", "dataset")}
PAIRS = [
    (name, dataset, model)
    for name, table in TABLES.items()
    for dataset, models in table.get("entries", {}).items()
    for model in models
]
ITE = ("model=ite", "dataset=simulated_shop")


# Entries of one table are alike: one of each three is enough for CI.
EACH_PAIR = [
    pytest.param(*pair, id="-".join(pair), marks=[pytest.mark.slow] if n % 3 else [])
    for n, pair in enumerate(PAIRS)
]


@pytest.mark.parametrize(("name", "dataset", "model"), EACH_PAIR)
def test_an_entry_is_for_choices_that_exist_and_makes_a_valid_config(name, dataset, model):
    assert model == ANY or model in NAMES["model"]
    assert dataset == ANY or dataset in NAMES["dataset"]
    words = [f"preset={name}"]
    words += [f"model={'bert4rec' if model == ANY else model}"]
    words += [f"dataset={'ml_1m' if dataset == ANY else dataset}"]
    cfg = compose_config([*words, "protocol=full"])
    assert (cfg.preset, cfg.names.preset) == (name, name)
    with open_dict(cfg):
        del cfg["hydra"]
    check_config(cfg)


def test_a_table_has_the_name_of_its_file():
    assert {name: table.name for name, table in TABLES.items()} == {n: n for n in TABLES}


def test_nothing_is_applied_unasked():
    plain, tuned = compose_config(ITE), compose_config([*ITE, "preset=tuned"])
    assert (plain.preset, plain.optimizer.lr, plain.batch_counts) == ("none", 0.001, "instances")
    assert (tuned.preset, tuned.optimizer.lr, tuned.batch_counts) == ("tuned", 0.003, "positives")


def test_a_pair_without_an_entry_is_an_error_that_lists_the_entries():
    with pytest.raises(
        RecexpError,
        match=r"preset=tuned has no entry for model=sasrec dataset=ml_1m; it has "
        r"dataset=simulated_shop: bert_ite, bert_ite_si, ite; dataset=ml_1m: bert4rec, .*"
        r"preset=none",
    ):
        compose_config(["model=sasrec", "dataset=ml_1m", "preset=tuned"])


def test_an_unknown_preset_is_an_error_that_lists_the_presets():
    with pytest.raises(MissingConfigException, match=r"(?s)preset/tunde.*tuned"):
        compose_config(["preset=tunde"])


@pytest.mark.parametrize(
    ("words", "key", "expected"),
    [
        (["optimizer.lr=0.5"], "optimizer.lr", 0.5),
        (["trainer.max_epochs=3"], "trainer.max_epochs", 3),
        (["threads=null"], "threads", None),
        (["model.max_len=7"], "model.max_len", 7),
        (["optimizer=sgd"], "optimizer._target_", "torch.optim.SGD"),
        (["scheduler=none"], "scheduler", None),
        (["+trainer.limit_train_batches=2"], "trainer.limit_train_batches", 2),
        (["model.dropout=${model.attention_dropout}"], "model.dropout", 0.2),
        (["~callbacks.early_stopping"], "callbacks.early_stopping", None),
    ],
)
def test_the_command_line_wins_over_the_preset(words, key, expected):
    base = ["model=bert4rec", "dataset=amazon_beauty", "preset=paper_bert4rec"]
    assert OmegaConf.select(compose_config([*base, *words]), key) == expected


def test_values_over_the_preset_win_over_it_and_yield_to_the_command_line():
    table = ["experiment=bert4rec/table4_length", "model=bert4rec", "dataset=ml_1m"]
    assert compose_config(table).objective.max_masked is None
    assert compose_config([*table, "objective.max_masked=9"]).objective.max_masked == 9
    smoke = [*ITE, "preset=tuned", "scale=smoke"]
    assert compose_config(smoke).trainer.max_epochs == 2
    assert compose_config([*smoke, "trainer.max_epochs=1"]).trainer.max_epochs == 1


def test_a_preset_is_merged_once():
    cfg = compose_config([*ITE, "preset=tuned"])
    cfg.optimizer.lr = 0.5
    assert apply_preset(cfg).optimizer.lr == 0.5


def test_a_config_whose_preset_is_not_merged_is_refused():
    cfg = compose_config(ITE)
    with open_dict(cfg):
        del cfg["hydra"]
    cfg.preset = OmegaConf.create({"name": "tuned", "entries": {}})
    with pytest.raises(RecexpError, match="preset is not merged"):
        check_config(cfg)


def test_the_quickstart_runs_only_where_nothing_is_chosen():
    assert with_quickstart(["seed=1"]) == ["seed=1", "experiment=quickstart"]
    for word in ("model=ite", "dataset=ml_1m", "preset=none", "experiment=ite/fig5_factors"):
        assert with_quickstart([word]) == [word]
    cfg = compose_config(with_quickstart([]))
    assert (cfg.preset, cfg.model.n_layers) == ("tuned", 1) and "Unlike the ITE paper" in cfg.note


@pytest.mark.parametrize("word", ["model=[ite,mf]", "+experiment=[a,b]", "trainer=[cpu]"])
def test_a_list_of_choices_is_an_error_that_shows_the_sweep(word):
    group, _, choices = word.strip("+]").partition("=[")
    with pytest.raises(RecexpError, match=rf"has one {group}.*-m {group}={choices}$"):
        compose_config([*ITE, word])


def test_a_run_may_have_several_loggers():
    assert compose_config([*ITE, "logger=[csv,tensorboard]"]).logger.tensorboard
