"""The whole program: the files of a run, repeated and resumed runs, protocols and sweeps."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path

import polars as pl
import pytest
import torch
import torch.nn.functional as F
import yaml
from hydra import compose, initialize_config_dir
from hydra.types import RunMode

from recexp.config import CONF
from recexp.errors import RecexpError
from recexp.evaluation.metrics import expected_ndcg
from recexp.models.bert4rec import BERT4Rec
from recexp.models.nova import SideBERT
from recexp.runs import run as run_module
from recexp.runs.costs import scoring_flops, scoring_operations
from recexp.testing import worlds
from tests.support.running import command, composed, run_here

MODEL = ["model=bert_ite_si", "model.n_layers=1", "model.n_factors=8", "model.max_len=5"]
TIMES = ("seconds", "examples_per_s")


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("shop")


@pytest.fixture(scope="module")
def first(shop) -> tuple[Path, dict]:
    return shop / "first", run_here(shop / "first", *MODEL)


def rows(folder: Path) -> list[dict]:
    with (folder / "metrics.csv").open() as f:
        return [
            {k: v for k, v in row.items() if not k.endswith(TIMES)} for row in csv.DictReader(f)
        ]


def test_a_run_leaves_everything_behind(first):
    folder, result = first
    assert json.loads((folder / "result.json").read_text())["metrics"] == result["metrics"]
    for name in (
        "metrics.csv",
        "ranks.parquet",
        "config.yaml",
        "curves.png",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
    ):
        assert (folder / name).stat().st_size > 0, name
    for key in (
        "model",
        "dataset",
        "protocol",
        "protocol_id",
        "objective",
        "sampler",
        "seed",
        "best_epoch",
        "epochs",
        "stop_reason",
        "wall_time_s",
        "examples_per_s",
        "parameters",
        "gflops",
        "gops",
        "peak_memory_mb",
        "git",
        "versions",
        "hardware",
        "data",
        "selection",
    ):
        assert result[key] is not None, key
    assert (result["model"], result["dataset"], result["objective"]) == (
        "bert_ite_si",
        "simulated_shop",
        "pointwise",
    )
    assert len(rows(folder)) == result["epochs"] == 2
    assert result["data"]["simulated"] is True
    left = {k: n for k, n in result["left_out"].items() if k.startswith(("removed", "not tested"))}
    tested = int(result["metrics"]["test/users"])
    assert sum(left.values()) + tested == 150


def test_a_result_holds_its_settings_and_no_places(first):
    folder, result = first
    config, written = result["config"], yaml.safe_load((folder / "config.yaml").read_text())
    for group in (
        "model",
        "objective",
        "optimizer",
        "protocol",
        "sampler",
        "scheduler",
        "trainer",
        "batch_size",
    ):
        assert config[group] == written[group], group
    assert len(json.dumps(config)) < 20_000
    assert str(folder) not in json.dumps(config) and "raw_dir" not in json.dumps(config)


def store_of_one_history(length: int, n_items: int = 150):
    """One user with a history of that length and a held-out item; items have side features."""
    rows = [(0, 1 + n % n_items, 1) for n in range(length)]
    return worlds.store(rows, 1, n_items, n_values=5, side=True, held_out=[1])


def test_scoring_costs_its_matrix_products_and_its_element_wise_operations():
    """By hand: a product of 1 x 8 and 8 x 100, then a norm, a product, two sums and a softmax."""

    class Net(torch.nn.Module):
        history = 2

        def score(self, query, item_BC):
            x = torch.ones(len(query), 8) @ torch.ones(8, item_BC.shape[1])
            x = F.layer_norm(x, x.shape[-1:])
            x = F.gelu(x * 2 + 1).masked_fill(x > 9, 0.0)
            return x.softmax(-1) + x.sum(-1, keepdim=True)

    costs = scoring_operations(Net(), store_of_one_history(2), "before_target")
    assert costs.products == 8 * 100
    assert costs.others == (7 + 1 + 1 + 1 + 4 + 1 + 1) * 100
    assert scoring_flops(Net(), store_of_one_history(2), "before_target") == 2 * 800 + 1600


def test_side_information_tells_the_cost_of_bert4rec_invasive_and_nova_apart():
    """Liu et al. 2021 (NOVA-BERT), arXiv:2103.03578, Table 5: BERT4Rec < invasive-add < NOVA-add.

    N = 50 positions of width h, L = 3 layers, 100 items and one [MASK] to score. The products are
    the same. Invasive adds m - 1 sides of an item to the input (BERT4Rec: one token type), NOVA all
    m in every layer, and norms them.
    """
    N, h, L = 50, 64, 3
    store = store_of_one_history(N)
    schema = store.schema
    size = {"n_factors": h, "n_layers": L, "n_heads": 4, "max_len": N}
    models = {
        "bert4rec": BERT4Rec(schema, **size),
        "invasive": SideBERT(schema, fusion="add", invasive=True, **size),
        "nova": SideBERT(schema, fusion="add", **size),
    }
    costs = {k: scoring_operations(m, store, "before_target") for k, m in models.items()}
    products = {c.products for c in costs.values()}
    assert products == {L * N * 12 * h * h + L * 2 * N * N * h + h * h}
    assert costs["bert4rec"].flops < costs["invasive"].flops < costs["nova"].flops
    m = 1 + len(models["nova"].side)  # the position is a side
    apart = costs["nova"].others - costs["invasive"].others
    assert apart == ((L - 1) * m + 7 * m) * N * h


def test_epochs_without_validation_have_no_metrics_and_are_never_the_best(shop):
    result = run_here(
        shop / "rarely", *MODEL, "trainer.max_epochs=3", "trainer.check_val_every_n_epoch=2"
    )
    assert [bool(row["val/ndcg@10"]) for row in rows(shop / "rarely")] == [False, True, False]
    assert (result["best_epoch"], result["epochs"]) == (1, 3)


def test_curves_of_simulated_data_say_so(shop, first, monkeypatch):
    titles = []
    monkeypatch.setattr(run_module, "save_curves", lambda path, rows, title: titles.append(title))
    run_here(shop / "titled", "model=pop")
    assert titles == ["pop on simulated_shop (simulated), p1_uniform999"]


def test_the_metrics_are_those_of_the_ranks_on_disk(first):
    folder, result = first
    ranks = pl.read_parquet(folder / "ranks.parquet")
    assert ranks["user"].is_unique().all()
    assert set(ranks["candidates"]) == {51}
    ndcg = expected_ndcg(
        torch.from_numpy(ranks["better"].to_numpy()), torch.from_numpy(ranks["tied"].to_numpy()), 10
    )
    assert result["metrics"]["test/ndcg@10"] == pytest.approx(float(ndcg.mean()), abs=1e-12)


def test_the_reported_validation_is_the_best_epochs(first):
    folder, result = first
    best = max(rows(folder), key=lambda r: float(r["val/ndcg@10"]))
    assert result["best_epoch"] == int(best["epoch"])
    assert result["metrics"]["val/ndcg@10"] == float(best["val/ndcg@10"])


def test_same_seed_same_metrics_other_seed_others(shop, first):
    again = run_here(shop / "again", *MODEL)
    assert again["metrics"] == first[1]["metrics"]
    assert rows(shop / "again") == rows(first[0])
    assert run_here(shop / "other", *MODEL, "seed=1")["metrics"] != first[1]["metrics"]


def test_a_resumed_run_equals_an_uninterrupted_one(shop, first):
    run_here(shop / "parts", *MODEL, "trainer.max_epochs=1")
    resumed = run_here(
        shop / "parts", *MODEL, f"ckpt_path={shop / 'parts' / 'checkpoints' / 'last.ckpt'}"
    )
    assert rows(shop / "parts") == rows(first[0])
    assert resumed["metrics"] == first[1]["metrics"]


def test_checkpoints_hold_nothing_but_tensors_and_plain_values(first):
    for name in ("best", "last"):
        torch.load(first[0] / "checkpoints" / f"{name}.ckpt", weights_only=True)


def test_peeking_is_labeled_and_refit_keeps_the_protocol(shop, first):
    peek = run_here(shop / "peek", *MODEL, "selection=test_peek")
    assert "TEST" in peek["selection"]
    assert peek["metrics"]["test/ndcg@10"] == max(
        float(r["test/ndcg@10"]) for r in rows(shop / "peek")
    )
    refit = run_here(shop / "refit", *MODEL, "selection=refit")
    assert refit["protocol_id"] == peek["protocol_id"] == first[1]["protocol_id"]
    assert refit["best_epoch"] == first[1]["best_epoch"]
    assert refit["metrics"]["test/ndcg@10"] != first[1]["metrics"]["test/ndcg@10"]


def test_another_protocol_has_another_id(shop, first):
    other = run_here(shop / "exclude", "model=pop", "protocol.candidates.exclude=explicit_only")
    assert other["protocol_id"] != first[1]["protocol_id"]


@pytest.mark.parametrize(
    "protocol",
    [
        "p2_uniform99",
        "p2_uniform99_later",
        "p3_popular100",
        "p5_sasrec100",
        "full",
        "full_unseen",
        "global_time",
    ],
)
def test_every_protocol_runs(shop, protocol):
    few = ["protocol.candidates.n=20"] if "100" in protocol or "99" in protocol else []
    result = run_here(shop / protocol, "model=item_knn", f"protocol={protocol}", *few)
    assert 0 < result["metrics"]["test/ndcg@10"] < 1


@pytest.mark.slow  # tests/cli/test_launcher.py has quick jobs
def test_a_sweep_outlives_a_failing_job_and_says_which(shop):
    """Each job is the whole program: its error is one line, and its preset is that of its model."""
    sweep = shop / "sweep"
    jobs = ["-m", "model=pop,ite,bert_ite", "preset=tuned", "trainer.max_epochs=1"]
    done = command(sweep, *jobs, f"hydra.sweep.dir={sweep}")
    assert done.returncode == 1
    failed = [line for line in done.stderr.splitlines() if "FAILED" in line]
    assert len(failed) == 1 and "FAILED job 0" in failed[0] and "preset=tuned" in failed[0]
    printed = (sweep / "0" / "log.txt").read_text()
    assert printed.startswith("error: ") and "Traceback" not in printed
    assert not (sweep / "0" / "result.json").exists()
    results = [json.loads((sweep / name / "result.json").read_text()) for name in "12"]
    assert [r["model"] for r in results] == ["ite", "bert_ite"]
    assert [r["preset"] for r in results] == ["tuned", "tuned"]
    assert [r["config"]["optimizer"]["lr"] for r in results] == [0.003, 0.003]


@pytest.mark.parametrize("content", [None, b"no checkpoint"])
def test_a_checkpoint_to_go_on_from_is_read_before_any_work(tmp_path, content):
    path = tmp_path / "last.ckpt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecexpError, match=r"last\.ckpt"):
        run_here(tmp_path / "run", "model=bpr_mf", f"ckpt_path={path}")
    assert not (tmp_path / "cache").exists()


def test_the_readmes_model_works_as_printed(shop, tmp_path, monkeypatch):
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    code = re.search(r"`recexp/models/history_mean.py`\n\n```python\n(.*?)```", readme, re.S).group(
        1
    )
    config = re.search(r"`conf/model/history_mean.yaml`\n\n```yaml\n(.*?)```", readme, re.S).group(
        1
    )
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "history_mean.yaml").write_text(config)
    (tmp_path / "history_mean.py").write_text(code)
    import recexp.models

    monkeypatch.setattr(recexp.models, "__path__", [*recexp.models.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "recexp.models.history_mean", raising=False)
    result = run_here(
        shop / "readme", "model=history_mean", "trainer.max_epochs=5", searchpath=tmp_path
    )
    assert result["metrics"]["test/hr@10"] > 10 / 51


def test_a_config_says_what_it_computed(shop):
    cfg = composed(shop / "x", "model=pop", "selection=test_peek")
    assert cfg.callbacks.checkpoint.monitor == "test/ndcg@10"


def test_the_recorded_overrides_repeat_one_run_of_an_experiment(tmp_path):
    """Without more, the experiment's name would start its sweep."""
    words = ["experiment=ite/fig5_factors", "dataset=simulated_shop", "model=pop", "logger=none"]
    recorded = list(composed(tmp_path / "run", *words).names.overrides)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        repeated = compose("config", recorded, return_hydra_config=True)
        named = compose("config", words, return_hydra_config=True)
    assert repeated.hydra.mode == RunMode.RUN
    assert named.hydra.mode == RunMode.MULTIRUN
    assert "model=pop" in recorded


@pytest.mark.parametrize("model", ["gru4rec", "sasrec", "caser"])
def test_users_with_too_few_events_to_train_on_are_one_error(tmp_path, model):
    """One training event of each user, and one for validation and test each."""
    rows = [f"{user},{(user + time) % 8},{time}" for user in range(20) for time in range(3)]
    (tmp_path / "events.csv").write_text("\n".join(["user,item,timestamp", *rows]))
    words = [
        "dataset=table",
        f"dataset.raw_dir={tmp_path}",
        "dataset.source.file=events.csv",
        "dataset.filters=[]",
        "dataset.source.user=user",
        "dataset.source.item=item",
        "protocol=full_unseen",
        f"model={model}",
        "logger=none",
    ]
    with pytest.raises(RecexpError, match="finds nothing to train on"):
        run_here(tmp_path / "run", *words, small=())
