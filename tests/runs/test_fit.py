"""``recexp.fit`` on frames, files and data sets of ``conf``."""

from __future__ import annotations

import random

import polars as pl
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

import recexp
from recexp.errors import RecexpError

SMALL = {"model.n_factors": 8, "trainer.max_epochs": 2, "batch_size": 64, "threads": 1}


def events(n_users=60, n_items=40, n_each=8):
    """Users who walk through neighboring items, so that there is something to learn."""
    chance = random.Random(0)
    rows = []
    for user in range(n_users):
        item = chance.randrange(n_items)
        for step in range(n_each):
            rows.append((f"u{user}", item % n_items, 1_700_000_000 + 60 * step))
            item += chance.choice([1, 1, 2])
    return pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("fit")


def fit(place, model="bpr_mf", data=None, **how):
    how.setdefault("settings", SMALL)
    return recexp.fit(model, data, cache_dir=place / "cache", progress=False, **how)


@pytest.fixture(scope="module")
def fitted(place):
    return fit(place, data=events(), run_dir=place / "first run, [1]")


def test_a_frame_is_trained_tested_and_used(fitted):
    assert fitted.result.protocol == "full_unseen"
    assert 0 <= fitted.metrics["test/ndcg@10"] <= 1
    assert fitted.result.config["model"]["n_factors"] == 8
    lists = fitted.recommend(["u3"], k=4)
    assert lists["user"].to_list() == ["u3"] * 4
    assert (fitted.run_dir / "result.json").exists()


def test_a_fitted_run_loads_again(place, fitted):
    again = recexp.load(fitted.run_dir, cache_dir=str(place / "cache"))
    assert again.recommend().equals(fitted.recommend())


def test_a_fitted_model_is_tested_again_on_the_same_data(fitted):
    """Its data lie in places that only the call of fit knows."""
    again = fitted.evaluate("full_unseen")
    assert again["metrics"]["test/mrr"] == fitted.metrics["test/mrr"]


def test_frames_that_differ_in_the_meaning_of_a_column_are_two_data_sets(place):
    frame = events()
    times = fit(place, "pop", frame, settings={}, run_dir=place / "as-times")
    values = frame.rename({"timestamp": "value"})
    ratings = fit(place, "pop", values, settings={}, run_dir=place / "as-values")
    assert times.result.data.fingerprint != ratings.result.data.fingerprint
    assert times._dataset.raw_dir != ratings._dataset.raw_dir


def test_two_fits_in_one_process_are_independent(place, fitted):
    """Another model in between changes nothing, and no global state of Hydra is left."""
    fit(place, "pop", events(n_users=30), settings={}, run_dir=place / "between")
    assert not GlobalHydra.instance().is_initialized()
    assert HydraConfig.instance().cfg is None or "between" not in str(HydraConfig.instance().cfg)
    again = fit(place, data=events(), run_dir=place / "again")
    assert again.metrics == fitted.metrics


def test_files_and_renamed_columns_give_the_same_run(place, fitted):
    renamed = events().rename({"user": "who", "item": "what", "timestamp": "when"})
    renamed.write_csv(place / "events.csv")
    columns = {"user": "who", "item": "what", "timestamp": "when"}
    from_file = fit(place, data=place / "events.csv", columns=columns, run_dir=place / "file")
    assert from_file.metrics == fitted.metrics


def test_times_may_be_datetimes(place, fitted):
    as_times = events().with_columns(pl.from_epoch("timestamp", time_unit="s"))
    assert fit(place, data=as_times, run_dir=place / "times").metrics == fitted.metrics


def test_rows_without_times_are_in_the_order_of_time(place, fitted):
    ordered = fit(place, data=events().drop("timestamp"), run_dir=place / "ordered")
    assert ordered.metrics == fitted.metrics


def test_several_behaviors(place):
    kinds = pl.Series(["view", "view", "buy"] * 160)
    frame = events().with_columns(behavior=kinds)
    with pytest.raises(RecexpError, match="behaviors buy, view: order them from weak to strong"):
        fit(place, data=frame)
    order = ["view", "buy"]
    one = fit(place, "pop", frame, behaviors=order, settings={}, run_dir=place / "behaviors")
    assert one.result.config["dataset"]["explicit"] == ["buy"]


def test_a_data_set_of_conf_is_named(place):
    settings = {"dataset.source.users": 80, "dataset.raw_dir": str(place / "raw")}
    one = fit(place, "pop", dataset="simulated_shop", settings=settings, run_dir=place / "shop")
    assert one.result.dataset == "simulated_shop"


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ({}, "either data"),
        ({"data": events(), "dataset": "ml_1m"}, "either data"),
        ({"data": events().drop("user")}, "no column 'user' for user"),
        ({"data": events(), "columns": {"user": "who"}}, "no column 'who' for user"),
        ({"data": events(), "columns": {"person": "user"}}, "'person'"),
        ({"data": "nowhere.csv"}, "nowhere.csv does not exist"),
        ({"data": events(), "settings": {"model.n_factors": 0}}, "n_factors"),
        ({"data": events(), "settings": {"model.no_such_key": 0}}, "model.no_such_key"),
    ],
)
def test_wrong_calls_are_one_clear_error(place, how, text):
    with pytest.raises(RecexpError, match=text):
        fit(place, run_dir=place / "wrong", **how)
