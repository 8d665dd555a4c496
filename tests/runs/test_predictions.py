"""Predictions of another program rank as a trained model with the same scores does."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from recexp.errors import RecexpError
from recexp.report.__main__ import main as report
from recexp.report.collect import collect
from recexp.report.comparison import compare
from recexp.report.ranks import per_user
from recexp.report.tables import systems
from recexp.runs.evaluate import evaluate, main
from recexp.runs.predictions import evaluate_predictions
from recexp.runs.result import RunResult
from recexp.runs.trained import load
from tests.support.running import arguments, run_here

SIZES = ("dataset.source.users=80", "dataset.source.items=90", "trainer.max_epochs=1")
SIZES += ("protocol.candidates.n=20",)
# Protocols that rank all items, all but the history, and drawn ones; pop has ties, sasrec reads
# histories.
PROTOCOLS = ("full", "full_unseen", "p1_uniform999", "p3_popular100", "global_time")
DEFAULT = [("pop", "full_unseen"), ("sasrec", "full_unseen"), ("bpr_mf", "p1_uniform999")]
CASES = [
    pytest.param(model, protocol, marks=[] if (model, protocol) in DEFAULT else [pytest.mark.slow])
    for model in ("pop", "bpr_mf", "sasrec")  # the scores of pop tie
    for protocol in PROTOCOLS
]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return tmp_path_factory.mktemp("shop")


def trained(shop, model, protocol="full_unseen"):
    folder = shop / f"{model}-{protocol}"
    if not (folder / "result.json").exists():
        run_here(folder, f"model={model}", f"protocol={protocol}", *SIZES)
    return load(folder, raw_dir=str(shop / "raw"), cache_dir=str(shop / "cache"))


def words(shop, protocol="full_unseen"):
    """The data and the protocol of the runs."""
    kept = ("dataset", "protocol", "cache_dir")
    every = arguments(shop / "run", *SIZES, f"protocol={protocol}")
    return [word for word in every if word.startswith(kept)]


def lists(one, k=None):
    """The lists of the run's test: user, item, rank, score."""
    return one.tested_lists(len(one.items) if k is None else k)


def save(frame, path):
    if path.suffix == ".csv":
        frame.write_csv(path)
    else:
        frame.write_parquet(path)
    return path


def predict(shop, tmp_path, frame, protocol="full_unseen", file="predictions.parquet", **options):
    path = save(frame, tmp_path / file)
    return evaluate_predictions(path, words(shop, protocol), **options)


def of_test(metrics):
    return {name: value for name, value in metrics.items() if name.startswith("test/")}


@pytest.mark.parametrize(("model", "protocol"), CASES)
def test_scores_of_all_candidates_rank_as_the_model_does(shop, tmp_path, model, protocol):
    one = trained(shop, model, protocol)
    frame = lists(one).drop("rank").sample(fraction=1, shuffle=True, seed=0)
    result = predict(shop, tmp_path, frame, protocol, out=tmp_path / "run", name="other")
    expected = json.loads((one.run_dir / "result.json").read_text())
    assert of_test(expected["metrics"]) == result["metrics"]
    for key in ("protocol_id", "protocol", "dataset", "data", "left_out", "audit"):
        assert expected[key] == result[key]
    ranks = pl.read_parquet(tmp_path / "run" / "ranks.parquet")
    assert ranks.equals(pl.read_parquet(one.run_dir / "ranks.parquet"))
    assert result["external"]["kind"] == "scores"
    assert result["external"]["exact_to"] is None


def test_scores_of_single_pairs_rank_as_the_model_does(shop, tmp_path):
    """All pairs of users and items: the protocol leaves out those of the history."""
    one = trained(shop, "bpr_mf")
    pairs = pl.DataFrame({"user": one.users}).join(pl.DataFrame({"item": one.items}), how="cross")
    result = predict(shop, tmp_path, one.score(pairs), out=tmp_path / "run")
    assert result["metrics"] == of_test(one.result.metrics)
    assert result["external"]["seen_items"] > 0
    assert result["external"]["other_users"] == len(one.items) * (
        len(one.users) - len(one._store.test)
    )


@pytest.mark.parametrize("protocol", ["full_unseen", "p3_popular100"])
@pytest.mark.parametrize("file", ["lists.parquet", "lists.csv"])
def test_lists_have_the_models_metrics_up_to_their_length(shop, tmp_path, protocol, file):
    one = trained(shop, "sasrec", protocol)
    frame = lists(one, k=10).drop("score")
    result = predict(shop, tmp_path, frame, protocol, file=file, out=tmp_path / "run")
    expected = of_test(one.result.metrics)
    unknown = expected.keys() - result["metrics"].keys()
    assert {"test/mrr"} <= unknown
    assert all(name.startswith("test/mrr") or "@20" in name for name in unknown)
    assert result["metrics"] == {name: expected[name] for name in result["metrics"]}
    assert "test/ndcg@10" in result["metrics"]
    assert result["external"]["exact_to"] == 10


def test_partial_scores_tie_as_the_protocol_says(shop, tmp_path):
    """Popularity ties often; a list cut within a tie does not tell the rank of who is in it."""
    one = trained(shop, "pop")
    result = predict(shop, tmp_path, lists(one, k=30), partial=True)
    exact_to = result["external"]["exact_to"]
    assert exact_to <= 30
    expected = of_test(one.result.metrics)
    assert {name: expected[name] for name in result["metrics"]} == result["metrics"]
    assert len(result["metrics"]) > 4


def test_a_target_that_ties_with_the_end_of_its_list_has_no_known_rank(shop, tmp_path):
    one = trained(shop, "pop")
    store = one._store
    target = store.test.item.numpy()
    raw = one.users.gather(store.test.user.numpy())
    frame = lists(one)
    first = frame.filter(pl.col("rank") <= 12)
    wanted = pl.DataFrame({"user": raw, "item": one.items.gather(target - 1)})
    flat = pl.concat([first.drop("rank", "score"), wanted]).unique(["user", "item"])
    scored = flat.with_columns(score=pl.lit(1.0))
    with pytest.raises(RecexpError, match="too short"):
        predict(shop, tmp_path, scored, partial=True)


def test_the_items_that_a_protocol_removes_leave_their_places(shop, tmp_path):
    """Lists with items of the history rank as those without."""
    one = trained(shop, "bpr_mf")
    every = one.recommend(k=len(one.items), include_seen=True)
    expected = predict(shop, tmp_path, lists(one).drop("score"))
    got = predict(shop, tmp_path, every.drop("score"), file="every.parquet")
    assert got["metrics"] == expected["metrics"]
    assert expected["external"]["seen_items"] == 0 < got["external"]["seen_items"]


def test_what_the_data_do_not_have_is_counted(shop, tmp_path):
    one = trained(shop, "bpr_mf")
    frame = lists(one).drop("rank")
    user = frame["user"][0]
    strange = pl.DataFrame(
        {
            "user": [10**6, 10**6, user],
            "item": [frame["item"][0], 10**7, 10**7],
            "score": [1.0, 1.0, 99.0],
        },
        schema=frame.schema,
    )
    result = predict(shop, tmp_path, pl.concat([strange, frame]))
    assert result["external"]["unknown_users"] == 2
    assert result["external"]["unknown_items"] == 1
    assert result["metrics"] == of_test(one.result.metrics)


def test_missing_users_are_an_error_or_rank_last(shop, tmp_path):
    one = trained(shop, "bpr_mf")
    frame = lists(one).drop("rank")
    absent = frame["user"].unique(maintain_order=True)[:3]
    some = frame.filter(~pl.col("user").is_in(absent.implode()))
    with pytest.raises(RecexpError, match=f"3 of .* such as user {absent[0]}: .*--missing worst"):
        predict(shop, tmp_path, some)
    result = predict(shop, tmp_path, some, missing="worst", out=tmp_path / "run")
    assert result["external"]["missing_users"] == 3
    ranks = pl.read_parquet(tmp_path / "run" / "ranks.parquet")
    own = pl.read_parquet(one.run_dir / "ranks.parquet")
    number = [one.users.to_list().index(user) for user in absent]
    is_absent = ranks["user"].is_in(number)
    assert ranks.filter(~is_absent).equals(own.filter(~is_absent))
    last = ranks.filter(is_absent)
    assert (last["better"] == last["candidates"] - 1).all()


def test_short_lists_limit_the_cutoffs_or_rank_last(shop, tmp_path):
    one = trained(shop, "bpr_mf")
    frame = lists(one, k=40).drop("score")
    place = frame["user"].rank("dense")
    cut = frame.filter((place > 20) | (pl.col("rank") <= 5))
    result = predict(shop, tmp_path, cut)
    assert result["external"]["exact_to"] == 5
    assert "test/hr@5" in result["metrics"]
    assert "test/hr@10" not in result["metrics"]
    with_worst = predict(shop, tmp_path, cut, missing="worst")
    assert with_worst["external"]["exact_to"] == 40
    assert 0 < with_worst["external"]["short_lists"] <= 20
    assert with_worst["metrics"]["test/hr@20"] <= one.result.metrics["test/hr@20"]
    assert with_worst["metrics"]["test/hr@5"] == one.result.metrics["test/hr@5"]


def test_lists_shorter_than_every_cutoff_are_refused(shop, tmp_path):
    one = trained(shop, "bpr_mf", "p1_uniform999")
    with pytest.raises(RecexpError, match="shortest has 3 items, and the smallest cut-off is 5"):
        predict(shop, tmp_path, lists(one, k=3).drop("score"), "p1_uniform999")


def test_a_faulty_file_is_refused_by_row(shop, tmp_path):
    one = trained(shop, "bpr_mf")
    frame = lists(one)
    scores = frame.drop("rank")
    ranks = frame.drop("score")
    at_row_3 = pl.int_range(pl.len()) == 2
    for bad in (float("nan"), float("inf"), None, 1e300):
        scored = pl.when(at_row_3).then(pl.lit(bad, pl.Float64)).otherwise(pl.col("score"))
        with pytest.raises(RecexpError, match="score of row 3 is"):
            predict(shop, tmp_path, scores.with_columns(score=scored))
    with pytest.raises(RecexpError, match=r"rows 1 and 2 are the same user and item \(1 such"):
        predict(shop, tmp_path, pl.concat([scores[:1], scores]))
    with pytest.raises(RecexpError, match="rows 1 and 2 have the same user and the same rank"):
        clash = pl.when(pl.int_range(pl.len()) == 1).then(1).otherwise(pl.col("rank"))
        predict(shop, tmp_path, ranks.with_columns(rank=clash.cast(pl.Int32)))
    with pytest.raises(RecexpError, match=r"scores of 4 of \d+ candidates .*--partial"):
        predict(shop, tmp_path, scores.group_by("user", maintain_order=True).head(4))
    with pytest.raises(RecexpError, match="no column score or rank; it has user, item"):
        predict(shop, tmp_path, scores.drop("score"))
    with pytest.raises(RecexpError, match="score, which --partial reads"):
        predict(shop, tmp_path, ranks, partial=True)
    with pytest.raises(RecexpError, match="does not exist"):
        evaluate_predictions(tmp_path / "none.csv", words(shop))
    with pytest.raises(RecexpError, match="is no regular file"):
        evaluate_predictions(tmp_path, words(shop))
    (tmp_path / "text.parquet").write_text("user,item,score\n")
    with pytest.raises(RecexpError, match="cannot be read as parquet"):
        evaluate_predictions(tmp_path / "text.parquet", words(shop))


def test_files_and_blocks_of_any_size_give_the_same_ranks(shop, tmp_path, monkeypatch):
    one = trained(shop, "pop")
    frame = lists(one).drop("rank")
    monkeypatch.setattr("recexp.runs.predictions.ROWS_AT_ONCE", 97)
    monkeypatch.setattr("recexp.evaluation.listed.KEYS_AT_ONCE", 7)
    assert predict(shop, tmp_path, frame)["metrics"] == of_test(one.result.metrics)


def test_ids_in_a_csv_file_are_those_of_the_data(shop, tmp_path):
    one = trained(shop, "bpr_mf")
    frame = lists(one).drop("rank")
    result = predict(shop, tmp_path, frame, file="scores.csv")
    assert result["metrics"] == of_test(one.result.metrics)


def test_a_report_puts_the_predictions_beside_our_runs(shop, tmp_path, capsys):
    one = trained(shop, "bpr_mf")
    predict(shop, tmp_path, lists(one).drop("rank"), out=tmp_path / "same", name="same")
    other = lists(trained(shop, "pop"), k=10).drop("score")
    predict(shop, tmp_path, other, out=tmp_path / "top", name="top")
    folders = [str(one.run_dir), str(tmp_path / "same"), str(tmp_path / "top")]
    results, left_out = collect(folders)
    assert not left_out
    assert len(systems(results)) == 3
    pair = compare([r for r in results if r["model"] != "top"])[0]
    assert (pair.difference, pair.p) == (0, 1)
    assert len(compare(results)) == 3
    report([*folders, "--out", str(tmp_path / "page")])
    text = capsys.readouterr().out
    assert "same (predictions of another program)" in text
    assert "top (predictions of another program)" in text
    assert "left out" not in text
    page = (tmp_path / "page" / "tables.md").read_text()
    assert "Pairs of systems" in page
    assert "not tested" not in page
    for metric in ("mrr", "hr@20"):
        with pytest.raises(RecexpError, match="known to rank 10 only"):
            per_user(tmp_path / "top", metric)
    assert per_user(tmp_path / "top", "test/ndcg@10")[1].mean() == pytest.approx(
        results[2]["metrics"]["test/ndcg@10"]
    )


def test_reports_do_not_mix_protocols_or_published_figures(shop, tmp_path):
    one = trained(shop, "sasrec", "p3_popular100")
    frame = lists(one).drop("rank")
    predict(shop, tmp_path, frame, "p3_popular100", out=tmp_path / "a", name="sasrec")
    results, _ = collect([tmp_path / "a", trained(shop, "sasrec").run_dir])
    assert compare(results) == []
    real = results[0] | {"dataset": "ml_1m", "data": results[0]["data"] | {"simulated": False}}
    assert systems([real])[0].figures == {}
    assert systems([{k: v for k, v in real.items() if k != "external"}])[0].figures != {}


def test_seeds_of_another_program_are_one_system(shop, tmp_path):
    frame = lists(trained(shop, "bpr_mf")).drop("rank")
    for seed in (0, 1):
        predict(shop, tmp_path, frame, out=tmp_path / f"{seed}", name="other", seed=seed)
    results, _ = collect([tmp_path / "0", tmp_path / "1"])
    (system,) = systems(results)
    assert len(system.runs) == 2


def test_no_model_is_in_the_directory(shop, tmp_path):
    one = trained(shop, "bpr_mf")
    predict(shop, tmp_path, lists(one).drop("rank"), out=tmp_path / "run")
    with pytest.raises(RecexpError, match="holds no model: it is the result of another program"):
        load(tmp_path / "run")
    with pytest.raises(RecexpError, match="holds no model"):
        evaluate(tmp_path / "run", "full")
    with pytest.raises(RecexpError, match="exists already"):
        predict(shop, tmp_path, lists(one).drop("rank"), out=tmp_path / "run")


def test_the_validation_split_is_only_shown(shop, tmp_path, capsys):
    one = trained(shop, "bpr_mf")
    pairs = pl.DataFrame({"user": one.users}).join(pl.DataFrame({"item": one.items}), how="cross")
    path = save(one.score(pairs), tmp_path / "all.parquet")
    main(["--predictions", str(path), *words(shop), "--split", "val"])
    shown = dict(line.split() for line in capsys.readouterr().out.splitlines())
    for name in ("val/hr@10", "val/mrr"):
        assert float(shown[name]) == pytest.approx(one.result.metrics[name], abs=1e-6)
    with pytest.raises(RecexpError, match="takes the result of the test split"):
        evaluate_predictions(path, words(shop), split="val", out=tmp_path / "run")


def test_the_command_writes_and_shows_the_result(shop, tmp_path, capsys):
    one = trained(shop, "bpr_mf")
    path = save(lists(one).drop("rank"), tmp_path / "scores.parquet")
    line = ["--predictions", str(path), *words(shop), "--name", "other"]
    with pytest.raises(SystemExit, match="needs --out"):
        main(line)
    main([*line, "--out", str(tmp_path / "run")])
    shown = capsys.readouterr().out
    assert "scores of scores.parquet" in shown
    content = json.loads((tmp_path / "run" / "result.json").read_text())
    assert content["model"] == "other"
    assert not any("raw_dir" in word or "cache_dir" in word for word in content["overrides"])
    for bad in (
        ["only-a-run"],
        [*line, "--out", str(tmp_path / "x"), "--raw-dir", "raw"],
        [str(one.run_dir), "full", "--missing", "worst"],
    ):
        with pytest.raises(SystemExit, match="2"):
            main(bad)
    assert "--missing is an option of --predictions only" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="protocol"):
        main(["--predictions", str(path), "protocol=p9", "--out", str(tmp_path / "x")])


def test_results_without_the_new_key_are_read_as_before(shop):
    content = json.loads((trained(shop, "bpr_mf").run_dir / "result.json").read_text())
    assert "external" not in content
    assert RunResult.parse(content).external is None
    del content["metrics"]["test/mrr"]
    with pytest.raises(RecexpError, match="lack test/mrr"):
        RunResult.parse(content)


def test_scores_compare_in_float32_as_those_of_a_model(shop, tmp_path):
    one = trained(shop, "bpr_mf")
    frame = lists(one).drop("rank")
    flat = frame.with_columns(score=1 + 1e-12 * np.arange(len(frame)))
    result = predict(shop, tmp_path, flat, out=tmp_path / "run")
    ranks = pl.read_parquet(tmp_path / "run" / "ranks.parquet")
    assert (ranks["tied"] == ranks["candidates"] - 1).all()
    assert result["metrics"]["test/hr@10"] == pytest.approx((10 / ranks["candidates"]).mean())
