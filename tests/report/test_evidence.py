"""Which claims of the papers stand: on whose data, after how much training, of which systems."""

from __future__ import annotations

import pytest

from recexp.errors import RecexpError
from recexp.report.__main__ import main
from recexp.report.claim_tests import OTHER, OWN, claim_tests, claims_table
from recexp.report.collect import collect
from recexp.report.evidence import evidence
from recexp.report.papers.claims import claims
from recexp.report.papers.published import select
from tests.report.test_scorecard import records
from tests.support.finished_runs import write_run

N_USERS = 600
RISING = {"kind": "rising", "text": "still rising"}
CONVERGED = {"kind": "converged", "text": "converged"}
PAPERS_RETAILROCKET = {"users": 36_751, "items": 83_274, "interactions": 396_923}


def planted(folder, model, rank, *, convergence=CONVERGED, config=None, **more):
    """A run whose users rank their targets about ``rank``, under the ITE paper's protocol."""
    more = {"dataset": "ijcai15", "protocol": "p1_uniform999"} | more
    return write_run(
        folder / f"{model}-{more.get('seed', 0)}-{rank}",
        1 / (1 + rank),  # the better, the better on validation
        model=model,
        better=[rank + user % 3 for user in range(N_USERS)],
        convergence=convergence,
        config={"model.n_factors": 64} | (config or {}),
        **more,
    )


def found_tests(folder, paper="ite", table="fig5"):
    tests = claim_tests(claims(paper, table), collect([folder])[0])
    return {str(test.claim).replace(" n_factors=64", ""): test for test in tests}


@pytest.mark.parametrize(
    ("ahead", "behind", "verdict"),
    [
        (CONVERGED, CONVERGED, "held"),
        (RISING, CONVERGED, "held"),
        (CONVERGED, RISING, "open: ite not trained to the end"),
        (CONVERGED, {"kind": "unlearned", "text": ""}, "open: ite not trained to the end"),
        (CONVERGED, {"kind": "unknown", "text": ""}, "open: ite not trained to the end"),
    ],
)
def test_a_claim_is_open_while_more_training_could_change_it(tmp_path, ahead, behind, verdict):
    planted(tmp_path, "bert_ite", 1, convergence=ahead)
    planted(tmp_path, "ite", 12, convergence=behind)
    assert found_tests(tmp_path)["bert_ite > ite"].verdict == verdict


@pytest.mark.parametrize(
    ("other_seed", "verdict"), [(1, "held"), (18, "open: within the spread of seeds")]
)
def test_a_difference_within_the_spread_of_seeds_is_open(tmp_path, other_seed, verdict):
    """A second seed of the winner that is as bad as the loser."""
    planted(tmp_path, "bert_ite", 1)
    planted(tmp_path, "bert_ite", other_seed, seed=1)
    planted(tmp_path, "ite", 12)
    test = found_tests(tmp_path)["bert_ite > ite"]
    assert test.verdict == verdict and test.difference[0] > 0.4
    row = next(r for r in records(claims_table("x", [test.claim], collect([tmp_path])[0])))
    assert row["seeds"] == "2, 1" and row["verdict"] == verdict


def test_of_several_systems_the_best_one_with_ranks_is_tested(tmp_path):
    """Rank 0 is best on validation, but its run kept no ranks."""
    planted(tmp_path, "bert_ite", 0)
    planted(tmp_path, "bert_ite", 1, config={"model.n_layers": 1})
    planted(tmp_path, "bert_ite", 2, config={"model.n_layers": 2})
    planted(tmp_path, "ite", 12)
    (tmp_path / "bert_ite-0-0" / "ranks.parquet").unlink()
    test = found_tests(tmp_path)["bert_ite > ite"]
    assert test.verdict == "held" and test.left_label == "bert_ite n_layers=1"
    for rank in (1, 2):
        (tmp_path / f"bert_ite-0-{rank}" / "ranks.parquet").unlink()
    assert found_tests(tmp_path)["bert_ite > ite"].why.startswith("no ranks.parquet in")


@pytest.mark.parametrize(
    ("single", "shown"), [(2, "bert_ite n_layers=2"), (0, "bert_ite n_layers=1")]
)
def test_a_single_run_ahead_within_the_spread_of_seeds_does_not_stand_for_a_system(
    tmp_path, single, shown
):
    """Of one layer a run of rank ``single``, of two layers three runs of ranks 2 to 4."""
    planted(tmp_path, "bert_ite", single, config={"model.n_layers": 1})
    for seed, rank in enumerate((2, 3, 4), start=1):
        planted(tmp_path, "bert_ite", rank, seed=seed, config={"model.n_layers": 2})
    planted(tmp_path, "ite", 12)
    assert found_tests(tmp_path)["bert_ite > ite"].left_label == shown


def test_the_other_way_round_is_open_while_the_claimed_winner_was_rising(tmp_path):
    planted(tmp_path, "bert_ite", 12, convergence=RISING)
    planted(tmp_path, "ite", 1)
    assert (
        found_tests(tmp_path)["bert_ite > ite"].verdict == "open: bert_ite not trained to the end"
    )


@pytest.mark.parametrize(
    ("dataset", "data", "expected"),
    [
        ("retailrocket", PAPERS_RETAILROCKET, OWN),
        ("retailrocket", {"users": 2_174, "items": 29_905, "interactions": 97_381}, OTHER),
        ("ijcai15", {"users": 22_438, "items": 35_229, "interactions": 359_103}, OTHER),
    ],
)
def test_a_test_says_whose_data_it_used(tmp_path, dataset, data, expected):
    for model, rank in (("bert_ite", 1), ("ite", 12)):
        planted(tmp_path, model, rank, dataset=dataset, data=data)
    listed = claims("ite", "fig5")
    tests = [t for t in claim_tests(listed, collect([tmp_path])[0]) if t.comparison]
    same = [t for t in tests if (str(t.claim), t.claim.metric) == (str(tests[0].claim), "hr@10")]
    assert len(same) == 1
    assert {OWN: True, OTHER: False}[expected] is tests[0].own_data


def test_a_claim_of_a_curve_without_stored_figures_is_about_its_papers_data(tmp_path):
    """BERT4Rec's Figure 3, of which ``published.csv`` has no point."""
    sizes = {"users": 6_040, "items": 3_416, "interactions": 999_611}
    about = {"dataset": "ml_1m", "protocol": "p3_popular100", "data": sizes}
    planted(tmp_path, "bert4rec", 1, **about)
    planted(tmp_path, "caser", 12, **about)
    assert not select(paper="bert4rec", table="fig3")
    test = found_tests(tmp_path, "bert4rec", "fig3")["bert4rec > caser"]
    assert test.own_data
    assert test.verdict == "held"


def test_a_run_with_another_sampler_than_the_papers_is_another_system(tmp_path):
    """Uniform negatives are better here, but the claim is about supportive-only ones."""
    about = {"dataset": "taobao_31882", "protocol": "p2_uniform99"}
    own = "recexp.objectives.samplers.SupportiveOnly"
    other = "recexp.objectives.samplers.Uniform"
    for seed, (sampler, rank) in enumerate([(own, 9), (other, 1)]):
        config = {"model.n_factors": 4, "sampler._target_": sampler}
        planted(tmp_path, "mf_mmlp", rank, seed=seed, config=config, **about)
    planted(tmp_path, "ncf", 4, **about)
    tests = found_tests(tmp_path, "multi_feedback", "table4")
    test = tests["mf_mmlp n_factors=4 n_negatives=3 n_layers=2 > ncf"]
    assert test.verdict == "not held: the other way round"


@pytest.mark.parametrize("option", [("user_dropout", 1.0), ("positions", "right")])
def test_a_run_with_parts_that_the_paper_does_not_have_is_another_system(tmp_path, option):
    key, value = option
    planted(tmp_path, "bert_ite", 1, config={f"model.{key}": value})
    planted(tmp_path, "bert_ite", 12)
    planted(tmp_path, "ite", 4)
    assert found_tests(tmp_path)["bert_ite > ite"].verdict == "not held: the other way round"


def test_the_overview_counts_the_verdicts(tmp_path, capsys):
    planted(tmp_path, "bert_ite", 1)
    planted(tmp_path, "ite", 12)
    planted(tmp_path, "nmtr", 3)
    main([str(tmp_path), "--claims", "--format", "markdown"])
    printed = capsys.readouterr().out
    sums, overview, tested = evidence(collect([tmp_path])[0])
    row = next(r for r in records(overview) if (r["paper"], r["table"]) == ("ite", "fig5"))
    # ite > nmtr is contradicted; of the claims of both data sets of the paper each counts once
    assert row["held, other data"] == "1" and row["not held, other data"] == "1"
    assert row["held, the paper's data"] == "–"
    of_ite = [r for r in records(overview) if r["paper"] == "ite"]
    for key in set(row) - {"paper", "table"}:
        numbers = [int(r[key]) for r in of_ite if r[key] != "–"]
        assert records(sums)[0][key] == (str(sum(numbers)) if numbers else "–")
    total = records(sums)[-1]
    assert int(total["claims"]) > 200 and int(total["not tested"]) < int(total["claims"])
    assert {r["verdict"] for r in records(tested)} == {"held", "not held: the other way round"}
    assert "### Claims of the papers" in printed and "### Tested claims of ite" in printed


def test_all_scorecards_are_those_of_the_experiments_with_runs(tmp_path, capsys):
    planted(tmp_path, "bert_ite", 1)
    planted(tmp_path, "ite", 12)
    main([str(tmp_path), "--scorecard", "all", "--format", "markdown"])
    printed = capsys.readouterr().out
    assert "### Claims of ite/fig5_factors" in printed and "multi_feedback" not in printed
    write_run(tmp_path / "other", protocol="global_time")
    with pytest.raises(SystemExit, match="No run here is one of an experiment"):
        main([str(tmp_path / "other"), "--scorecard", "all"])
    with pytest.raises(SystemExit):  # no experiment's folder to read
        main(["--scorecard", "all"])
    assert "name at least one RUN_DIR" in capsys.readouterr().err


def test_runs_on_simulated_data_are_no_evidence(tmp_path):
    for model, rank in (("bert_ite", 1), ("ite", 12)):
        planted(tmp_path, model, rank, dataset="simulated_shop")
    with pytest.raises(RecexpError, match="No claim can be tested"):
        evidence(collect([tmp_path])[0])
