"""Every experiment composes its paper's settings: each value stands in ``papers/settings.csv``."""

from __future__ import annotations

from collections import defaultdict
from functools import cache

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from recexp.config import CONF
from recexp.config.check import check_config
from recexp.config.presets import apply_preset
from recexp.report.papers import settings
from recexp.report.papers.settings import composed_settings, paper_settings, same
from tests.config.test_experiments import GROUPS, JOBS, PARSER, different, jobs

PRESETS = sorted((CONF / "preset").glob("paper_*.yaml"))
PAPERS = ("ite", "multi_feedback", "bert4rec", "nova")
# The sweeps of these two take most of the time.
SLOW_PAPERS = ("bert4rec", "ite")
PAPER_PARAMETERS = [
    pytest.param(paper, marks=[pytest.mark.slow] if paper in SLOW_PAPERS else [])
    for paper in PAPERS
]


def composed(experiment, words):
    """The config and its choices of model and data set."""
    cfg = compose("config", [f"experiment={experiment}", *words], return_hydra_config=True)
    apply_preset(cfg)
    choices = cfg.hydra.runtime.choices
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    return cfg, choices.model, choices.dataset


@cache
def sweep(paper, every=False):
    """(experiment, job, model, dataset, settings) of the jobs.

    What is no choice of a group is set after composing, as the command line would. Unless every: a
    model for which no YAML depends on the data set is composed for an experiment's first data set
    and for those new to the paper.
    """
    found, seen, met = [], set(), set()
    names = [name for name in JOBS if name.startswith(f"{paper}/")]
    plans = [(name, jobs(name), different(name, seen)) for name in names]
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        for name, all_jobs, new in plans:
            bases = {}
            for job in all_jobs:
                groups = dict(o.split("=", 1) for o in job if is_choice(o))
                model, dataset = groups.get("model"), groups.get("dataset")
                elsewhere = any(m == model and d != dataset for m, d in bases)
                if not every and elsewhere and dataset in met and not own_values(model, dataset):
                    continue
                met.add(dataset)
                if (model, dataset) not in bases:
                    bases[model, dataset] = composed(name, filter(is_choice, job))
                base, *choices = bases[model, dataset]
                cfg = base.copy()
                values = [o for o in job if not is_choice(o)]
                for override in PARSER.parse_overrides(values):
                    OmegaConf.update(cfg, override.get_key_element(), override.value(), merge=False)
                if job in new:
                    check_config(cfg)
                found.append((name, tuple(job), *choices, composed_settings(cfg)))
    return found


def is_choice(override):
    """Of a group, such as model=sasrec."""
    return override.partition("=")[0] in GROUPS


@cache
def own_values(model, dataset):
    tables = [OmegaConf.load(path).get("entries", {}) for path in PRESETS]
    return any(model in (table.get(dataset) or {}) for table in tables)


def differences(experiment, model, dataset, found):
    """Settings that the table lacks or has otherwise."""
    table = paper_settings(experiment, model, dataset)
    agree = {k for k, v in found.items() if k in table and table[k].allows(v)}
    return {k: (v, table.get(k)) for k, v in found.items() if k not in agree}


@pytest.mark.parametrize("paper", PAPER_PARAMETERS)
def test_every_composed_value_is_the_papers_or_a_listed_choice(paper):
    for name, job, model, dataset, found in sweep(paper):
        assert not (wrong := differences(name, model, dataset, found)), (name, job, wrong)


@pytest.mark.slow
@pytest.mark.parametrize("paper", PAPERS)
def test_every_value_of_every_job_is_the_papers_or_a_listed_choice(paper):
    jobs_done = sweep(paper, every=True)
    assert len(jobs_done) == sum(n for name, n in JOBS.items() if name.startswith(f"{paper}/"))
    for name, job, model, dataset, found in jobs_done:
        assert not (wrong := differences(name, model, dataset, found)), (name, job, wrong)


@pytest.mark.parametrize("paper", PAPER_PARAMETERS)
def test_what_a_paper_varies_takes_all_its_values_and_nothing_in_the_table_is_unused(paper):
    met = defaultdict(list)
    for name, _, model, dataset, found in sweep(paper):
        table = paper_settings(name, model, dataset)
        for key in table.keys() & found.keys():
            met[table[key].line].append(found[key])
    for line, row in enumerate(settings._rows(), 2):
        if row["paper"] == paper:
            for text in row["value"].split("|"):
                assert any(same(settings.parse_value(text), value) for value in met[line]), (
                    line,
                    text,
                )


def test_what_differs_is_found():
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        name, changed = "bert4rec/table2_systems", ["optimizer.lr=0.001", "objective.copies=0"]
        cfg, model, dataset = composed(name, ["dataset=ml_1m", "model=bert4rec", *changed])
        wrong = differences(name, model, dataset, composed_settings(cfg))
        assert wrong.keys() == {"optimizer.lr", "objective.copies", "objective.last_prob"}
        assert wrong["optimizer.lr"][1].values == (1e-4,) and wrong["optimizer.lr"][1].stated
        cfg, model, dataset = composed(
            name, ("dataset=ml_1m", "model=nova_bert", "preset=paper_nova")
        )
        wrong = differences(name, model, dataset, composed_settings(cfg))
        assert {"model.fusion", "model.n_heads", "batch_size"} <= wrong.keys()


PRINTED = {
    ("bert4rec/table2_systems", "bert4rec", "amazon_beauty"): {
        "optimizer.lr": 1e-4,
        "optimizer.weight_decay": 0.01,
        "trainer.gradient_clip_val": 5.0,
        "batch_size": 256,
        "trainer.max_steps": 400_000,
        "model.max_len": 50,
        "objective.step": 0.1,
        "objective.mask_prob": 0.6,
        "objective.max_masked": 30,
    },
    ("bert4rec/table2_systems", "bert4rec", "steam"): {
        "trainer.max_steps": 800_000,
        "objective.mask_prob": 0.4,
        "model.dropout": 0.2,
    },
    ("bert4rec/table5_ablation", "bert4rec", "steam"): {
        "model.dropout": (0.1, 0.0),
        "model.n_factors": 64,
    },
    ("bert4rec/table2_systems", "sasrec", "ml_1m"): {
        "loss._target_": "recexp.objectives.losses.BCE",
        "objective.n_negatives": 1,
        "optimizer.betas": [0.9, 0.98],
        "batch_size": 128,
    },
    ("ite/fig5_factors", "nmtr", "recobell"): {
        "batch_size": 2048,
        "batch_counts": "instances",
        "objective.weights": [1.0, 1.0],
    },
    ("multi_feedback/table2_factors", "mf_mmlp", "taobao"): {
        "batch_size": 1,
        "objective.n_negatives": 3,
        "optimizer.lr": 0.001,
    },
    ("nova/table3_fusion", "nova_bert", "ml_20m"): {
        "model.side": ["year", "genres", "value", "time"],
        "scheduler.warmup": 0.05,
        "batch_size": 128,
    },
}


@pytest.mark.parametrize("place", PRINTED, ids="-".join)
def test_what_the_papers_print(place):
    """Some of the table's values again, by hand from the papers."""
    table = paper_settings(*place)
    for key, expected in PRINTED[place].items():
        assert table[key].stated
        values = expected if isinstance(expected, tuple) else (expected,)
        assert table[key].values == values, key


def test_sources_say_whose_a_value_is():
    for line, row in enumerate(settings._rows(), 2):
        owners = ("paper: ", "code: ") if row["stated"] == "true" else "ours: "
        assert row["source"].startswith(owners), (line, row)
