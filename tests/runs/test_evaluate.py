"""A finished run under another protocol has the metrics of a run that used it from the start."""

from __future__ import annotations

import json

import pytest

from recexp.errors import RecexpError
from recexp.runs.evaluate import evaluate
from tests.support.running import run_here

MODEL = [
    "model=bpr_mf",
    "model.n_factors=8",
    "protocol.candidates.n=100",
    "dataset.source.items=500",
]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return tmp_path_factory.mktemp("shop")


@pytest.fixture(autouse=True)
def working_directory(shop, monkeypatch):
    """That of the runs, whose data lie in the default cache."""
    monkeypatch.chdir(shop)


@pytest.fixture(scope="module")
def trained(shop):
    run_here(shop / "full", *MODEL, "protocol=full")
    return shop / "full"


def test_another_protocol_gives_the_metrics_of_a_run_under_it(shop, trained):
    # One epoch and the same seed: both select it, so the models are equal.
    for name in ("full", "p3_popular100"):
        run_here(shop / f"one-{name}", *MODEL, f"protocol={name}", "trainer.max_epochs=1")
    expected = json.loads((shop / "one-p3_popular100" / "result.json").read_text())
    got = evaluate(shop / "one-full", "p3_popular100")
    assert {k: v for k, v in expected["metrics"].items() if k.startswith("test/")} == got["metrics"]
    assert (
        got["protocol_id"]
        == expected["protocol_id"]
        != json.loads((shop / "one-full" / "result.json").read_text())["protocol_id"]
    )
    assert got["selection"] == "val, by full"
    assert (
        json.loads((shop / "one-full" / "p3_popular100" / "result.json").read_text())["metrics"]
        == got["metrics"]
    )


def test_the_runs_own_targets_ranked_in_full(shop):
    """What a run whose protocol had these candidates from the start would have got."""
    words = [*MODEL, "protocol=p1_uniform999", "trainer.max_epochs=1"]
    run_here(shop / "own", *words)
    expected = run_here(
        shop / "own-full",
        *words,
        "protocol.candidates.kind=all",
        "protocol.candidates.seen=removed",
        "protocol.ks=[1,5,10,20]",
    )
    got = evaluate(shop / "own", "full_unseen", own_split=True)
    assert got["metrics"] == {k: v for k, v in expected["metrics"].items() if k.startswith("test/")}
    assert got["protocol"] == "full_unseen of p1_uniform999's targets"
    assert (shop / "own" / "full_unseen-own-split" / "ranks.parquet").is_file()


def test_what_cannot_be_evaluated_is_refused(shop, trained, tmp_path):
    with pytest.raises(RecexpError, match="no protocol 'p9'"):
        evaluate(trained, "p9")
    with pytest.raises(RecexpError, match="another split"):
        evaluate(trained, "p1_uniform999")
    with pytest.raises(RecexpError, match="only a finished run"):
        evaluate(tmp_path, "full")
    result = json.loads((trained / "result.json").read_text())
    (trained / "result.json").write_text(json.dumps(result | {"data": {"fingerprint": "0" * 16}}))
    with pytest.raises(RecexpError, match="fingerprints differ"):
        evaluate(trained, "full_unseen")
