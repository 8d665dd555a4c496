"""Runs whose users have several targets: files, predictions, lists and reports agree."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
import torch

from recexp.data.store import Store
from recexp.errors import RecexpError
from recexp.evaluation.candidate_store import stored_candidates
from recexp.report.collect import collect
from recexp.report.comparison import compare
from recexp.report.ranks import per_user
from recexp.runs.composed import composed_data
from recexp.runs.predictions import evaluate_predictions
from recexp.runs.split_files import export_split
from recexp.runs.trained import Trained, load
from tests.support.running import arguments, run_here

SIZES = ("dataset.source.users=80", "dataset.source.items=90", "trainer.max_epochs=1")
ALL_ITEMS = ("protocol=global_time_all", "protocol.split.test_share=0.2")
DRAWN = ("protocol=ratio", "protocol.split.test_share=0.3", "protocol.candidates.kind=uniform")
DRAWN += ("protocol.candidates.n=20", "protocol.candidates.seen=ranked")
FOLDS = ("protocol=user_folds",)
CASES = {"all items": ALL_ITEMS, "drawn": DRAWN}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return tmp_path_factory.mktemp("shop")


def run_folder(shop, protocol: tuple[str, ...], model: str = "pop"):
    return shop / f"{model}-{protocol[0].removeprefix('protocol=')}"


def trained(shop, protocol: tuple[str, ...], model: str = "pop") -> Trained:
    folder = run_folder(shop, protocol, model)
    if not (folder / "result.json").exists():
        run_here(folder, f"model={model}", *SIZES, *protocol)
    return load(folder, raw_dir=str(shop / "raw"), cache_dir=str(shop / "cache"))


def words(shop, protocol: tuple[str, ...]) -> list[str]:
    kept = ("dataset", "protocol", "cache_dir")
    return [w for w in arguments(shop / "run", *SIZES, *protocol) if w.startswith(kept)]


def of_test(metrics) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name.startswith("test/")}


@pytest.mark.parametrize("case", CASES)
def test_predictions_rank_as_the_model_does(shop, tmp_path, case):
    one = trained(shop, CASES[case])
    assert one.result.metrics["test/targets"] > one.result.metrics["test/users"] > 5
    lists = one.tested_lists(len(one.items))
    lists.drop("rank").sample(fraction=1, shuffle=True, seed=0).write_parquet(
        tmp_path / "p.parquet"
    )
    result = evaluate_predictions(
        tmp_path / "p.parquet", words(shop, CASES[case]), out=tmp_path / "run"
    )
    assert of_test(one.result.metrics) == result["metrics"]
    ranks = pl.read_parquet(tmp_path / "run" / "ranks.parquet")
    assert ranks.equals(pl.read_parquet(one.run_dir / "ranks.parquet"))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("missing", ["error", "worst"])
def test_short_lists_have_the_metrics_that_they_decide(shop, tmp_path, case, missing):
    one = trained(shop, CASES[case], "bpr_mf")
    one.tested_lists(10).drop("score").write_parquet(tmp_path / "p.parquet")
    result = evaluate_predictions(tmp_path / "p.parquet", words(shop, CASES[case]), missing=missing)
    expected = of_test(one.result.metrics)
    found = result["metrics"]
    if missing == "error":
        assert result["external"]["exact_to"] == 10
        assert {"test/recall@10", "test/map@5", "test/targets", "test/users"} <= found.keys()
        assert not {"test/mrr", "test/auc", "test/recall@20"} & found.keys()
    same = {name for name in found if "@5" in name or "@10" in name or "users" in name}
    assert same
    assert {name: found[name] for name in same} == {name: expected[name] for name in same}


@pytest.mark.parametrize("case", CASES)
def test_ranks_are_those_of_plain_counts(shop, case):
    """Every target against its list: other targets of the user count, the history does not."""
    one = trained(shop, CASES[case])
    store = one._store
    drawn = stored_candidates(store, one._protocol, "test")
    targets = store.test
    rows = pl.read_parquet(one.run_dir / "ranks.parquet")
    count_V = torch.bincount(store.train.item.long(), minlength=store.schema.V)
    number = 0
    for n in range(targets.n_users):
        items = targets.item[targets.ptr[n] : targets.ptr[n + 1]].tolist()
        first = int(targets.ptr[n])
        ranked = set(range(1, store.schema.V)) if drawn is None else set(drawn[n].tolist())
        if drawn is None:
            ranked -= set(store.past.item[targets.start[first] : targets.end[first]].tolist())
        else:
            assert not ranked & set(items)
        ranked |= set(items)
        for item in items:
            row = rows.row(number, named=True)
            scores = count_V[list(ranked)]
            assert row["user"] == targets.user[first]
            assert row["better"] == int((scores > count_V[item]).sum())
            assert row["tied"] == int((scores == count_V[item]).sum()) - 1
            assert row["candidates"] == len(ranked)
            number += 1
    assert number == len(rows)


@pytest.mark.parametrize("case", CASES)
def test_reports_have_the_metrics_of_each_user(shop, case):
    one = trained(shop, CASES[case])
    for name, value in one.result.metrics.items():
        if (
            name.startswith("test/")
            and "/" not in name[5:]
            and name[5:] not in ("users", "targets")
        ):
            user, values = per_user(one.run_dir, name)
            assert values.mean() == pytest.approx(value, rel=1e-12), name
            assert len(user) == one.result.metrics["test/users"]
            assert (np.diff(user) > 0).all()
    with pytest.raises(RecexpError, match=r"metric 'gain@3' is unknown: choose hr@k, recall@k"):
        per_user(one.run_dir, "gain@3")


@pytest.mark.slow
def test_systems_are_compared_on_the_metrics_of_several_targets(shop):
    for model in ("pop", "bpr_mf"):
        trained(shop, ALL_ITEMS, model)
    runs, _ = collect([run_folder(shop, ALL_ITEMS, model) for model in ("pop", "bpr_mf")])
    for metric in ("recall@10", "map@10", "auc"):
        [pair] = compare(runs, metric=metric)
        means = sorted(run["metrics"][f"test/{metric}"] for run in runs)
        assert pair.difference == pytest.approx(means[1] - means[0], abs=1e-12)
        assert pair.users == runs[0]["metrics"]["test/users"]


@pytest.mark.parametrize("case", [pytest.param("all items", marks=pytest.mark.slow), "drawn"])
def test_exported_splits_hold_all_targets(shop, tmp_path, case):
    data = composed_data(words(shop, CASES[case]))
    export_split(data, tmp_path / "out")
    targets = data.store.test
    frame = pl.read_parquet(tmp_path / "out" / "test.parquet")
    assert frame["timestamp"].to_list() == targets.time.tolist()
    history = pl.read_parquet(tmp_path / "out" / "history_test.parquet")
    first = targets.ptr[:-1]
    assert len(history) == int((targets.end - targets.start)[first].sum())
    if case == "drawn":
        ranked = pl.read_parquet(tmp_path / "out" / "candidates_test.parquet")
        assert len(ranked) == len(targets) + 20 * targets.n_users
        marked = ranked.filter("is_target").select("user", "item")
        assert marked.equals(frame.select("user", "item"))


@pytest.mark.slow
def test_a_refit_tests_the_same_targets(shop):
    folder = shop / "refit"
    result = run_here(folder, "model=pop", "selection=refit", *SIZES, *ALL_ITEMS)
    first = pl.read_parquet(trained(shop, ALL_ITEMS).run_dir / "ranks.parquet")
    second = pl.read_parquet(folder / "ranks.parquet")
    assert result["protocol_id"] == trained(shop, ALL_ITEMS).result.protocol_id
    assert first["user"].equals(second["user"])
    assert first["better"].to_list() != second["better"].to_list()


def test_models_with_a_vector_per_user_are_refused_for_new_users(shop):
    with pytest.raises(RecexpError, match="scores by a vector of each trained user"):
        run_here(shop / "refused", "model=bpr_mf", *SIZES, *FOLDS)


@pytest.mark.slow
def test_models_that_read_histories_are_tested_on_new_users(shop):
    result = run_here(shop / "folds", "model=item_knn", *SIZES, *FOLDS)
    assert result["metrics"]["test/users"] > 5
    config = json.loads((shop / "folds" / "result.json").read_text())["config"]
    assert config["protocol"]["split"]["kind"] == "user_folds"


def test_a_history_is_scored_once_for_all_targets(shop):
    one = trained(shop, ALL_ITEMS)
    n_scored = []

    class Counting(type(one.model)):
        def score(self, query, item_BC=None):
            n_scored.append(len(query.user_B))
            return super().score(query, item_BC)

    store: Store = one._store
    one.model.__class__ = Counting
    users = torch.arange(store.test.n_users)
    better, *_ = one._protocol.ranks(store, store.test, users, None, one.model)
    assert sum(n_scored) == store.test.n_users < len(better) == len(store.test)
