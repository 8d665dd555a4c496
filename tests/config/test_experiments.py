"""Every published table and figure composes, expands to the paper's grid, and runs at smoke scale.

A killed sweep resumes where it stopped.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf, open_dict

from recexp.cli.sweeper import grid
from recexp.config import CONF
from recexp.config.check import check_config
from recexp.config.presets import compose_config
from recexp.errors import RecexpError

# Counted in the papers: what is varied, times what it is varied over.
JOBS = {
    "ite/fig5_factors": 2 * 6 * 4,  # data sets, systems, K
    "ite/fig6_side_information": 2 * 6 * 4,
    "ite/fig7_layers": 2 * 2 * 2 * 2,  # data sets, systems, K, layers
    "ite/fig8_length": 2 * 2 * 4,
    "ite/fig9_implicit_weight": 2 * 4 * 4,
    "ite/fig10_epochs": 6 * 4,
    "ite/fig12_top_k": 2 * 6,
    "multi_feedback/table2_factors": 5,
    "multi_feedback/table3_negatives": 4 * 3,  # negatives, factors
    "multi_feedback/table4_systems": 7 * 10,  # systems, seeds
    "multi_feedback/fig3_layers": 4,
    "bert4rec/table2_systems": 9 * 4 + 2 * 4,  # and two variants beyond the paper
    "bert4rec/table3_masks": 3 * 2,
    "bert4rec/table4_length": 5 + 5,
    "bert4rec/table5_ablation": 12 * 4,  # rows, data sets
    "bert4rec/fig2_attention": 1,
    "bert4rec/fig3_dimension": 5 * 5 * 4,  # systems, widths, data sets
    "bert4rec/fig4_mask_proportion": 9 * 4,
    "nova/table3_fusion": 7 * 2,  # systems, data sets that are public
    "nova/table4_side_information": 4,
    "nova/table5_size": 3,
    "nova/fig5_attention": 4,  # NOVA with and without side information, BERT4Rec, invasive
}
PARSER = OverridesParser.create()
GROUPS = {path.name for path in CONF.iterdir() if path.is_dir()}


def composed(*overrides, return_hydra_config=False):
    cfg = compose_config(overrides)
    if not return_hydra_config:
        with open_dict(cfg):
            del cfg["hydra"]
    return cfg


@cache
def sweep_of(name):
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return compose("config", [f"experiment={name}"], return_hydra_config=True).hydra


def jobs(name, *command_line):
    sweeper = OmegaConf.to_container(sweep_of(name).sweeper)
    return grid(sweeper["params"], sweeper["rows"], command_line, PARSER)


def different(name, seen=None):
    """The last job, and the jobs that have a choice of a group or a set of keys not in ``seen``
    yet.
    """
    seen, chosen = set() if seen is None else seen, []
    for job in jobs(name):
        pairs = [override.partition("=")[::2] for override in job]
        new = {(key, value) for key, value in pairs if key in GROUPS} | {
            tuple(key for key, _ in pairs)
        }
        new |= {
            (key, value)
            for key, value in pairs
            if value in ("False", "none") or key == "model.fusion"
        }
        if new - seen:
            chosen.append(job)
        seen |= new
    return chosen + [job for job in jobs(name)[-1:] if job not in chosen]


def test_a_sweep_over_experiments_with_grids_is_refused():
    """It would run one point of each grid."""
    with pytest.raises(RecexpError, match="Start one command per experiment"):
        grid({}, [], ["experiment=ite/fig5_factors,ite/fig7_layers"], PARSER)
    assert len(grid({}, [], ["experiment=real/ijcai15,real/taobao_31882"], PARSER)) == 2


def test_there_is_a_yaml_for_every_table_and_figure_and_no_other():
    names = {
        path.relative_to(CONF / "experiment").with_suffix("").as_posix()
        for path in (CONF / "experiment").glob("*/*.yaml")
    }
    assert {
        name for name in names if not name.startswith("real/") and not name.endswith("/common")
    } == set(JOBS)


@pytest.mark.parametrize("name", JOBS)
def test_an_experiment_expands_to_the_papers_grid_under_its_own_name(name):
    assert len(jobs(name)) == len(set(map(tuple, jobs(name)))) == JOBS[name]
    hydra = sweep_of(name)
    assert hydra.mode.name == "MULTIRUN"
    assert hydra.sweep.dir == f"multirun_outputs/{name}/paper"
    head = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert re.fullmatch(rf"# python -m recexp experiment={name}( .*)?", head[1]), (
        "after the package line stands the run line"
    )


@pytest.mark.parametrize("name", JOBS)
def test_an_experiment_composes_at_smoke_scale_on_data_that_say_they_are_simulated(name):
    cfg = composed(f"experiment={name}", "scale=smoke", *jobs(name)[-1])
    check_config(cfg)
    assert OmegaConf.to_container(cfg.dataset)["source"] == "${stand_in}"
    assert cfg.stand_in._target_ == "recexp.data.simulation.stand_in.read"
    assert (
        OmegaConf.to_container(cfg.dataset)["name"] == "simulated_${hydra:runtime.choices.dataset}"
    )
    assert cfg.trainer.max_epochs <= 2


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_every_job_composes_at_both_scales(name):
    for job in jobs(name):
        for scale in ("paper", "smoke"):
            check_config(composed(f"experiment={name}", f"scale={scale}", *job))


def test_what_the_papers_say_of_a_data_set_reaches_the_job():
    def job(*overrides):
        return composed("experiment=bert4rec/table5_ablation", "model=bert4rec", *overrides)

    beauty, films = job("dataset=amazon_beauty"), job("dataset=ml_1m")
    assert (beauty.model.max_len, beauty.objective.mask_prob, beauty.model.n_factors) == (
        50,
        0.6,
        64,
    )
    assert (films.model.max_len, films.objective.mask_prob) == (200, 0.2)
    assert job("dataset=amazon_beauty", "model.max_len=7").model.max_len == 7
    wide = composed("experiment=bert4rec/table2_systems", "model=bert4rec", "dataset=ml_1m")
    assert (wide.model.n_factors, wide.model.n_heads, wide.model.dropout, wide.selection) == (
        256,
        8,
        0.5,
        "refit",
    )
    assert (wide.optimizer.lr, wide.trainer.max_steps, wide.objective.copies) == (1e-4, 400_000, 10)
    choices = ["model=bert4rec", "dataset=ml_1m", "optimizer=sgd", "scheduler=none"]
    other = composed("experiment=bert4rec/table2_systems", *choices)
    assert (other.optimizer._target_, other.scheduler) == ("torch.optim.SGD", None)
    assert (other.model.n_factors, other.objective.copies) == (256, 10)
    nova = composed("experiment=nova/table3_fusion", "model=bert4rec")
    assert (
        nova.model.n_factors,
        nova.model.n_layers,
        nova.dataset.filters,
        nova.optimizer.lr,
    ) == (512, 3, [], 1e-4)


def test_figure_5_of_nova_shows_every_system_that_the_paper_may_compare():
    found = set()
    for job in jobs("nova/fig5_attention"):
        said = dict(override.split("=", 1) for override in job)
        without = said["model"] == "bert4rec" or said.get("model.side") == "[]"
        found.add((said["model"], "without" if without else "with"))
    nova = {("nova_bert", "with"), ("nova_bert", "without")}
    assert found == nova | {("bert4rec", "without"), ("invasive_bert", "with")}


def test_a_shortened_experiment_still_validates():
    def every(*overrides):
        return composed("experiment=ite/fig5_factors", *overrides).trainer.check_val_every_n_epoch

    assert (every(), every("trainer.max_epochs=4"), every("trainer.check_val_every_n_epoch=3")) == (
        10,
        4,
        3,
    )


ROWS = [{"dataset": "a", "model.max_len": "10,20"}, {"dataset": "b", "model.max_len": "20,30"}]


@pytest.mark.parametrize(
    ("params", "rows", "command_line", "expected"),
    [
        ({"model": "x,y"}, [], [], ["model=x", "model=y"]),
        ({"model": "x,y"}, [], ["model=z"], ["model=z"]),
        ({"model": "x,y", "seed": "0,1"}, [], ["model=y"], ["model=y seed=0", "model=y seed=1"]),
        (
            {},
            ROWS,
            [],
            [
                "dataset=a model.max_len=10",
                "dataset=a model.max_len=20",
                "dataset=b model.max_len=20",
                "dataset=b model.max_len=30",
            ],
        ),
        ({}, ROWS, ["dataset=b"], ["dataset=b model.max_len=20", "dataset=b model.max_len=30"]),
        ({}, ROWS, ["model.max_len=10"], ["dataset=a model.max_len=10"]),
        (
            {},
            ROWS,
            ["dataset=c"],
            [
                "dataset=c model.max_len=10",
                "dataset=c model.max_len=20",
                "dataset=c model.max_len=30",
            ],
        ),
        (
            {"seed": "0,1"},
            [{}, {"model.ffn": False}],
            [],
            ["seed=0", "seed=1", "seed=0 model.ffn=False", "seed=1 model.ffn=False"],
        ),
        (
            {},
            [{"objective.levels": [1, 2]}, {"callbacks": None}],
            [],
            ["objective.levels=[1,2]", "callbacks=null"],
        ),
        ({"seed": "range(0,3)"}, [], [], ["seed=0", "seed=1", "seed=2"]),
    ],
)
def test_rows_and_params_make_a_grid_in_which_the_command_line_wins(
    params, rows, command_line, expected
):
    assert [" ".join(job) for job in grid(params, rows, command_line, PARSER)] == expected


def smoke(folder, name, *overrides):
    """The config of one job at smoke scale. Jobs share the caches in ``folder``."""
    words = [
        f"experiment={name}",
        "scale=smoke",
        *overrides,
        f"dataset.raw_dir={folder}/raw",
        f"cache_dir={folder}/cache",
    ]
    cfg = composed(*words, f"run_dir={folder}/run", return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


@pytest.mark.parametrize(
    ("dataset", "behaviors", "features", "values"),
    [
        ("retailrocket", ["view", "addtocart", "transaction"], ["category"], []),
        ("recobell", ["view", "order"], ["category"], []),
        ("taobao", ["pv", "fav", "cart", "buy"], ["category"], []),
        ("ml_1m", ["rating"], ["genres", "year"], [1, 2, 3, 4, 5]),
        ("steam", ["review"], ["category"], []),
    ],
)
def test_a_stand_in_has_the_form_of_the_data_it_stands_for(
    tmp_path_factory, dataset, behaviors, features, values
):
    import numpy as np

    from recexp.config.build import build
    from recexp.data.cache import prepare
    from recexp.data.store import Store

    folder = tmp_path_factory.getbasetemp() / "stand_in"
    cfg = smoke(folder, "ite/fig5_factors", f"dataset={dataset}", "protocol=full")
    store = Store.open(
        prepare(build(cfg.dataset, _recursive_=False), build(cfg.protocol).split, cfg.cache_dir)
    )
    assert store.meta["dataset"] == f"simulated_{dataset}"
    assert list(store.schema.behaviors) == behaviors
    assert sorted(store.schema.item_features) == features
    assert store.meta["levels"] == values
    counts = np.bincount(store.train.behavior.numpy(), minlength=len(behaviors) + 1)
    assert (counts[1:] > 20).all(), "every behavior occurs"


def test_more_behaviors_than_a_shop_has_are_refused(tmp_path):
    from recexp.data.simulation import stand_in

    with pytest.raises(RecexpError, match="1 to 4 behaviors"):
        stand_in.read(tmp_path, behaviors=list("abcde"))


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_every_experiment_runs_at_smoke_scale(tmp_path_factory, name):
    from recexp.runs.run import run

    for job in different(name):
        folder = tmp_path_factory.getbasetemp() / "smoke"
        cfg = smoke(folder, name, *job)
        cfg.run_dir = str(folder / name / " ".join(job))
        result = run(cfg)
        assert result["dataset"].startswith("simulated_")
        assert 0 < result["metrics"]["test/ndcg@10"] < 1, job


LINE = [
    "experiment=ite/fig5_factors",
    "scale=smoke",
    "model=mtmf,nmtr",
    "dataset=retailrocket",
    "model.n_factors=8",
    "trainer.max_epochs=1",
]


def started(folder, *words):
    places = [
        f"dataset.raw_dir={folder}/raw",
        f"cache_dir={folder}/cache",
        f"hydra.sweep.dir={folder}/sweep",
    ]
    # in its own session, so that a kill of the group ends the sweep and its job
    line = [sys.executable, "-m", "recexp", *LINE, *words, *places]
    return subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def wait_for(path: Path, process):
    while not path.exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)


@pytest.mark.slow  # tests/cli/test_launcher.py tests which jobs run again, with stand-ins for jobs
def test_a_killed_experiment_started_again_finishes_only_what_was_missing(tmp_path):
    sweep = tmp_path / "sweep"
    first = started(tmp_path)
    wait_for(sweep / "1" / "job.json", first)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    finished = (sweep / "0" / "result.json").read_bytes()
    assert not (sweep / "1" / "result.json").exists()

    again = started(tmp_path, "threads=1")  # which changes no number
    said, _ = again.communicate(timeout=300)
    assert again.returncode == 0, said
    assert "job 0 has its result already" in said and "job 1 started" in said
    assert (sweep / "0" / "result.json").read_bytes() == finished
    second = json.loads((sweep / "1" / "result.json").read_text())
    assert (second["model"], second["dataset"]) == ("nmtr", "simulated_retailrocket")
    assert "group: ite/fig5_factors" in (sweep / "1" / "config.yaml").read_text()
