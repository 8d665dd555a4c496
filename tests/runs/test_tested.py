"""What a test leaves where the config asks for lists and groups, by every way to a result."""

from __future__ import annotations

import json
import math
from shutil import copytree

import numpy as np
import polars as pl
import pytest

from recexp.config.check import check_config
from recexp.errors import RecexpError
from recexp.evaluation import beyond
from recexp.evaluation.groups import by_popularity
from recexp.evaluation.kept import TopLists
from recexp.models.pop import Pop
from recexp.report.__main__ import main as report
from recexp.report.collect import collect
from recexp.report.comparison import compare, spread
from recexp.report.ranks import per_user
from recexp.runs.evaluate import evaluate
from recexp.runs.predictions import evaluate_predictions
from recexp.runs.run import run
from recexp.runs.trained import load
from tests.support.processes import Run
from tests.support.running import arguments, composed, run_here

SIZES = ("dataset.source.users=80", "dataset.source.items=90", "trainer.max_epochs=1")
SIZES += ("protocol.candidates.n=20", "model.n_factors=8", "eval_batch_size=16")
ASKED = ("evaluation.keep_top=20", "evaluation.groups=[popularity,activity,category]")
K = 20
SIZES_OF_POP = tuple(word for word in SIZES if not word.startswith("model."))


def slow(*protocols):
    return [pytest.param(protocol, marks=pytest.mark.slow) for protocol in protocols]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return tmp_path_factory.mktemp("shop")


@pytest.fixture(scope="module")
def asked(shop):
    """Makes runs that keep lists, each once."""

    def make(model="bpr_mf", protocol="full_unseen", seed=0):
        folder = shop / f"{model}-{protocol}-{seed}"
        if not (folder / "result.json").exists():
            sizes = SIZES if model == "bpr_mf" else SIZES_OF_POP
            words = (f"model={model}", f"protocol={protocol}", f"seed={seed}", *sizes)
            run_here(folder, *words, *ASKED)
        return folder

    return make


def read(folder):
    return json.loads((folder / "result.json").read_text())


def loaded(shop, folder):
    return load(folder, raw_dir=str(shop / "raw"), cache_dir=str(shop / "cache"))


def test_lists_and_groups_change_no_other_number_and_cost_no_scoring(shop, monkeypatch):
    n_scored = []
    score = Pop.score

    def counted(self, query, item_BC=None):
        n_scored.append(len(query))
        return score(self, query, item_BC)

    monkeypatch.setattr(Pop, "score", counted)
    words = ("model=pop", "protocol=full_unseen", *SIZES_OF_POP)
    plain = run_here(shop / "plain", *words)
    n_plain = list(n_scored)
    n_scored.clear()
    full = run_here(shop / "pop-full_unseen-0", *words, "seed=0", *ASKED)  # that of ``asked``
    assert n_scored == n_plain  # the same batches, each once
    assert plain["metrics"].items() <= full["metrics"].items()
    assert plain["protocol_id"] == full["protocol_id"]
    before = pl.read_parquet(shop / "plain" / "ranks.parquet")
    after = pl.read_parquet(shop / "pop-full_unseen-0" / "ranks.parquet")
    assert after.select(before.columns).equals(before)
    files = {path.name for path in (shop / "plain").iterdir()}
    assert files.isdisjoint({"lists.parquet", "list_values.parquet"})
    assert not {"list_metrics", "lists_sha256"} & plain.keys()


@pytest.mark.parametrize("protocol", ["full_unseen", "ratio", *slow("p3_popular100", "full")])
def test_kept_lists_are_those_that_were_ranked(shop, asked, protocol):
    folder = asked(protocol=protocol)
    one = loaded(shop, folder)
    kept = pl.read_parquet(folder / "lists.parquet")
    expected = one.tested_lists(K)
    assert kept.drop("score").equals(expected.drop("score"))
    assert np.allclose(kept["score"], expected["score"], atol=1e-6)
    # The place of a target in its list is its rank.
    ranks = pl.read_parquet(folder / "ranks.parquet")
    targets = one._store.test
    wanted = pl.DataFrame(
        {
            "user": one.users.gather(targets.user.numpy()),
            "item": one.items.gather(targets.item.numpy() - 1),
            "better": ranks["better"],
        }
    )
    found = wanted.join(kept, on=["user", "item"])
    assert (found["rank"] - 1 == found["better"]).all() and len(found) > 1
    assert len(found) == (ranks["better"] < K).sum()
    result = read(folder)
    assert result["list_candidates"] == ("popularity" if protocol == "p3_popular100" else "all")


@pytest.mark.parametrize("protocol", ["ratio", *slow("full_unseen")])
def test_metrics_are_means_of_what_the_files_say_of_each_user(asked, protocol):
    """Also with several targets per user, of which a group has some."""
    folder = asked(protocol=protocol)
    metrics = read(folder)["metrics"]
    names = [name.removeprefix("test/") for name in metrics if name.startswith("test/")]
    groups = {name.split("/", 1)[1] for name in names if "/" in name}
    assert {"popular", "tail", "light", "heavy", "new"} <= groups
    assert any(name.startswith("category=") for name in groups)
    assert ("targets/tail" in names) == (protocol == "ratio")
    n_tested = 0
    for name in names:
        base, _, group = name.partition("/")
        if base == "users":
            n_users = len(per_user(folder, f"hr@10/{group}" if group else "hr@10")[0])
            assert metrics[f"test/{name}"] == n_users
        elif base.partition("@")[0] in ("coverage", "gini"):
            with pytest.raises(RecexpError, match="no value per user"):
                per_user(folder, name)
        elif base != "targets":
            value_U = per_user(folder, f"test/{name}")[1]
            mean = math.fsum(value_U[~np.isnan(value_U)]) / (~np.isnan(value_U)).sum()
            assert metrics[f"test/{name}"] == pytest.approx(mean, abs=1e-12), name
            n_tested += 1
    assert n_tested > 50
    # Metrics of lists of a group, too, which result.json does not have.
    assert 0 < len(per_user(folder, "novelty@10/tail")[0]) < len(per_user(folder, "novelty@10")[0])
    with pytest.raises(RecexpError, match="does not tell the group 'elderly'"):
        per_user(folder, "ndcg@10/elderly")


def test_with_several_targets_only_those_of_the_group_count(shop, asked):
    """Hits of tail targets, from the lists and the targets themselves."""
    folder = asked(protocol="ratio")
    one = loaded(shop, folder)
    targets = one._store.test
    rows = pl.DataFrame(
        {
            "user": one.users.gather(targets.user.numpy()),
            "item": one.items.gather(targets.item.numpy() - 1),
            "tail": by_popularity(one._store, targets)["tail"].numpy(),
        }
    )
    kept = pl.read_parquet(folder / "lists.parquet").filter(pl.col("rank") <= 10)
    found = rows.filter("tail").join(kept, on=["user", "item"], how="left")
    hit = found.group_by("user").agg((pl.col("rank").is_not_null()).any().alias("hit"))
    metrics = read(folder)["metrics"]
    assert metrics["test/users/tail"] == len(hit) < targets.n_users
    assert metrics["test/targets/tail"] == rows["tail"].sum() > len(hit)
    assert metrics["test/hr@10/tail"] == pytest.approx(hit["hit"].mean())
    share = found.group_by("user").agg(pl.col("rank").is_not_null().mean().alias("recall"))
    assert metrics["test/recall@10/tail"] == pytest.approx(share["recall"].mean())


def test_differences_in_lists_and_groups_are_tested(shop, asked):
    results, _ = collect([asked(), asked("pop")])
    for metric in ("novelty@10", "diversity.category@10", "ndcg@10/heavy"):
        (pair,) = compare(results, metric=metric)
        means = {name: [] for name in (pair.left, pair.right)}
        users = {}
        for one in results:
            user_U, value_U = per_user(one["folder"], metric)
            users[one["model"]] = dict(zip(user_U.tolist(), value_U.tolist(), strict=True))
        both = [u for u in users["pop"] if not math.isnan(users["pop"][u])]
        both = [u for u in both if not math.isnan(users["bpr_mf"][u])]
        means = {m: math.fsum(users[m][u] for u in both) / len(both) for m in users}
        assert pair.users == len(both)
        assert pair.difference == pytest.approx(abs(means["pop"] - means["bpr_mf"]), abs=1e-12)
        assert spread([results[0]], metric).se_users >= 0


def test_reports_show_lists_and_groups(shop, asked, capsys):
    report([str(asked()), str(asked("pop")), "--metric", "novelty@10"])
    text = capsys.readouterr().out
    assert "### Lists: " in text
    assert f"| {read(asked())['metrics']['test/coverage@10']:.4f} | " in text
    (line,) = [line for line in text.splitlines() if line.startswith("| tail |")]
    for folder in (asked(), asked("pop")):
        assert f"| {per_user(folder, 'novelty@10/tail')[1].mean():.4f} (" in line


@pytest.mark.slow  # figures
def test_the_page_of_a_report_averages_lists_over_seeds(shop, asked, tmp_path):
    words = [str(asked()), str(asked(seed=1)), "--metric", "novelty@10"]
    report([*words, "--out", str(tmp_path / "page")])
    metrics = [read(asked(seed=seed))["metrics"] for seed in (0, 1)]
    mean = sum(m["test/coverage@10"] for m in metrics) / 2
    page = (tmp_path / "page" / "index.html").read_text()
    assert f"{mean:.4f} ± " in page
    assert "diversity.category@10" in page and 'id="groups"' in page


def test_a_finished_run_is_evaluated_with_lists(shop, asked, monkeypatch):
    monkeypatch.chdir(shop)
    folder = asked()
    places = {"raw_dir": str(shop / "raw"), "cache_dir": str(shop / "cache")}
    groups = ["popularity", "activity", "category"]
    again = evaluate(folder, "full_unseen", keep_top=K, groups=groups, **places)
    of_test = {k: v for k, v in read(folder)["metrics"].items() if k.startswith("test/")}
    assert again["metrics"] == of_test
    for name in ("lists.parquet", "list_values.parquet", "ranks.parquet"):
        frame = pl.read_parquet(folder / "full_unseen" / name)
        assert frame.equals(pl.read_parquet(folder / name))
    without = evaluate(folder, "full_unseen", **places)  # its own options count
    assert not {"list_metrics", "lists_sha256", "list_values_sha256"} & without.keys()
    assert not any("novelty" in name for name in without["metrics"])
    with pytest.raises(RecexpError, match="keep_top=0"):
        evaluate(folder, "full_unseen", keep_top=0, **places)


@pytest.mark.parametrize("protocol", ["full_unseen", *slow("p3_popular100", "ratio")])
def test_predictions_with_the_same_scores_have_the_same_lists(shop, asked, tmp_path, protocol):
    folder = asked(protocol=protocol)
    one = loaded(shop, folder)
    one.tested_lists(len(one.items)).drop("rank").write_parquet(tmp_path / "scores.parquet")
    every = arguments(shop / "run", *SIZES, f"protocol={protocol}")
    words = [w for w in every if w.startswith(("dataset", "protocol", "cache_dir"))]
    result = evaluate_predictions(
        tmp_path / "scores.parquet", [*words, *ASKED], out=tmp_path / "run"
    )
    expected = {k: v for k, v in read(folder)["metrics"].items() if k.startswith("test/")}
    assert result["metrics"] == expected
    for name in ("lists.parquet", "list_values.parquet"):
        frame = pl.read_parquet(tmp_path / "run" / name)
        assert frame.equals(pl.read_parquet(folder / name)), name


def test_short_lists_of_another_program_are_measured_to_their_length(shop, asked, tmp_path):
    folder = asked()
    one = loaded(shop, folder)
    one.tested_lists(7).drop("score").write_csv(tmp_path / "lists.csv")
    every = arguments(shop / "run", *SIZES, "protocol=full_unseen")
    words = [w for w in every if w.startswith(("dataset", "protocol", "cache_dir"))]
    result = evaluate_predictions(tmp_path / "lists.csv", [*words, *ASKED], out=tmp_path / "run")
    expected = read(folder)["metrics"]
    assert result["metrics"] == {name: expected[name] for name in result["metrics"]}
    assert {"test/gini@5", "test/hr@5/tail"} <= result["metrics"].keys()
    assert not any("@10" in name or "mrr" in name for name in result["metrics"])
    assert pl.read_parquet(tmp_path / "run" / "lists.parquet")["rank"].max() == 7


def test_a_damaged_file_of_values_is_named(asked, tmp_path):
    folder = tmp_path / "damaged"
    copytree(asked(), folder)
    path = folder / "list_values.parquet"
    frame = pl.read_parquet(path)
    frame.with_columns(pl.col("novelty@10") + 1).write_parquet(path)
    with pytest.raises(RecexpError, match=r"list_values\.parquet is damaged"):
        per_user(folder, "novelty@10")
    path.unlink()
    with pytest.raises(RecexpError, match=r"list_values\.parquet is missing"):
        per_user(folder, "novelty@10")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("evaluation.keep_top=0", "evaluation.keep_top=0"),
        ("evaluation.keep_top=1001", "evaluation.keep_top=1001"),
        ("evaluation.keep_top=ten", "evaluation.keep_top='ten'"),
        ("+evaluation.keep=10", "Unknown key evaluation.keep; known are keep_top, groups"),
        ("evaluation.groups=popularity", "evaluation.groups='popularity'"),
    ],
)
def test_wrong_settings_are_refused_before_any_work(shop, word, message):
    with pytest.raises(RecexpError, match=message):
        check_config(composed(shop / "wrong", "model=pop", word))


def test_what_the_data_do_not_allow_is_refused_before_training(shop, monkeypatch):
    words = ("model=pop", *SIZES_OF_POP)
    with pytest.raises(RecexpError, match=r"'brand' is unknown; choose from .*category"):
        run(composed(shop / "wrong", *words, "evaluation.groups=[brand]"))
    monkeypatch.setattr(beyond, "MAX_ENTRIES", 400)
    with pytest.raises(RecexpError, match=r"keep_top=100 would keep .* Set it to [1-9]\d* or less"):
        run(composed(shop / "wrong", *words, "evaluation.keep_top=100"))
    assert not (shop / "wrong" / "result.json").exists()


def test_lists_of_processes_are_joined_by_user():
    parts = []
    for rank in range(3):
        number_Q = np.arange(rank, 8, 3)
        item_QK = np.stack([number_Q + 1, number_Q + 2], axis=1).astype(np.int32)
        parts.append(TopLists(number_Q, item_QK, item_QK.astype(np.float32)))
    nothing = TopLists(np.zeros(0, np.int64), np.zeros((0, 2), np.int32), np.zeros((0, 2), "f4"))
    joined = TopLists.joined([*parts, nothing])
    assert joined.number_Q.tolist() == list(range(8))
    assert joined.item_QK.tolist() == [[n + 1, n + 2] for n in range(8)]
    assert joined.score_QK.tolist() == joined.item_QK.tolist()


@pytest.mark.slow  # runs of up to three processes
def test_any_number_of_processes_keeps_the_same_lists(tmp_path):
    """lr=1e-30: factors as they were drawn. Batches of 7 leave remainders everywhere."""
    words = ("model=bpr_mf", "optimizer.lr=1e-30", *SIZES[:-1], "eval_batch_size=7", *ASKED)
    folders = []
    for n in (1, 2, 3):
        folder = tmp_path / str(n)
        done = Run(folder, "trainer=ddp_cpu2", f"trainer.devices={n}", *words, training=False)
        done.main.wait(240)
        assert done.ended() == 0, done.said()
        folders.append(folder)
    for folder in folders[1:]:
        assert read(folder)["metrics"] == read(folders[0])["metrics"]
        for name in ("list_values.parquet", "ranks.parquet"):
            frame = pl.read_parquet(folder / name)
            assert frame.equals(pl.read_parquet(folders[0] / name)), name
        # The last digits of a score depend on which users share its batch.
        kept, expected = (pl.read_parquet(f / "lists.parquet") for f in (folder, folders[0]))
        assert kept.drop("score").equals(expected.drop("score"))
        assert np.allclose(kept["score"], expected["score"], rtol=1e-5, atol=1e-8)
