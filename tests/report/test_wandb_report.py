"""``python -m recexp.report --wandb``: what the report holds, without a network."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from recexp.report import wandb_report
from recexp.report.__main__ import main
from recexp.report.collect import collect
from recexp.training.loggers.with_wandb import RECORD
from tests.support.finished_runs import write_run

NEEDS = "wandb-workspaces is not installed (extra tracking)"


@pytest.fixture
def runs(tmp_path) -> Path:
    """Two models, one of them with a swept setting, under one protocol; one run under another."""
    folder = tmp_path / "runs"
    for name, model, factors in (("a", "bpr_mf", 8), ("b", "bpr_mf", 16), ("c", "pop", None)):
        words = (f"model={model}", *([f"model.n_factors={factors}"] if factors else []))
        config = {"model.n_factors": factors} if factors else None
        write_run(folder / name, model=model, overrides=words, config=config)
    write_run(folder / "d", protocol_id="bbb")
    write_run(folder / "e", model="ite", seed=1)  # not in W&B
    for name in "abcd":
        mode = "offline" if name == "d" else "online"
        (folder / name / RECORD).write_text(json.dumps({"id": f"id_{name}", "mode": mode}))
    return folder


@pytest.fixture
def no_key(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def refused(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as error:
        main([*words, "--wandb"])
    assert not capsys.readouterr().out  # before any table
    return str(error.value.code)


def test_without_the_package_one_sentence_says_what_to_install(runs, monkeypatch, capsys):
    monkeypatch.setattr(wandb_report, "find_spec", lambda name: None)
    text = refused(capsys, str(runs))
    assert text.startswith("error: --wandb needs the package wandb-workspaces: pip install")


def test_without_a_key_one_sentence_says_how_to_get_one(runs, no_key, monkeypatch, capsys):
    monkeypatch.setattr(wandb_report, "find_spec", lambda name: name)
    assert refused(capsys, str(runs)) == (
        "error: --wandb needs a key of W&B: set WANDB_API_KEY or run wandb login."
    )


def test_the_runs_of_wandb_and_their_swept_settings_are_found(runs):
    results, _ = collect([runs])
    found = wandb_report.logged_runs(results)
    assert {run.run_id: run.is_offline for run in found} == {
        "id_a": False,
        "id_b": False,
        "id_c": False,
        "id_d": True,
    }
    assert wandb_report.swept_keys([run.result for run in found]) == ["model.n_factors"]


def test_no_run_in_wandb_is_an_error(tmp_path, monkeypatch):
    write_run(tmp_path / "a")
    monkeypatch.setattr(wandb_report, "check_wandb", lambda: None)
    with pytest.raises(SystemExit, match=f"none of the runs has a {RECORD}"):
        main([str(tmp_path), "--wandb"])


def test_the_report_has_the_papers_figures(runs, monkeypatch, capsys):
    pytest.importorskip("wandb_workspaces", reason=NEEDS)
    from wandb_workspaces.reports.v2 import interface

    saved = []
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    answer = {"project": {"internalId": "1"}}
    monkeypatch.setattr(interface, "execute_graphql", lambda *arguments: answer)
    monkeypatch.setattr(interface, "_get_api", lambda: SimpleNamespace())
    monkeypatch.setattr(interface.Report, "save", lambda report: saved.append(report))
    monkeypatch.setattr(interface.Report, "url", "https://example.org/report")
    place = ["--wandb-project", "mine", "--wandb-entity", "team"]
    main([str(runs), "--wandb", "--metric", "mrr", *place])
    said = capsys.readouterr().err
    assert "written: https://example.org/report" in said
    assert "not in W&B: 1 of 5 results" in said and "logged offline: 1 runs" in said

    (report,) = saved
    content = report._to_model()
    assert (content.project.name, content.project.entity_name) == ("mine", "team")
    grids = [block for block in content.spec.blocks if block.type == "panel-grid"]
    headings = [block for block in content.spec.blocks if block.type == "heading"]
    texts = [heading.children[0].text for heading in headings]
    assert texts == ["shop, full (id aaa)", "shop, full (id bbb)"]
    first, second = (grid.metadata for grid in grids)
    (runset,) = first.run_sets
    (condition,) = runset.filters["filters"]
    assert condition["key"] == {"section": "run", "name": "name"}
    assert condition["value"] == ["id_a", "id_b", "id_c"]
    groups = [(key.section, key.name) for key in runset.grouping]
    assert groups == [("config", "names.value.model"), ("config", "model.value.n_factors")]
    assert second.run_sets[0].filters["filters"][0]["value"] == ["id_d"]

    panels = [panel.model_dump() for panel in first.panel_bank_section_config.panels]
    curves = [panel["config"] for panel in panels if panel["view_type"] == "Run History Line Plot"]
    assert {curve["x_axis"] for curve in curves} == {"epoch"}
    names = [name for curve in curves for name in curve["metrics"]]
    assert names == ["train/loss", "val/hr_at_10", "val/ndcg_at_10", "val/mrr"]
    bars = [panel["config"]["metrics"] for panel in panels if panel["view_type"] == "Bar Chart"]
    assert bars == [["test/hr_at_10"], ["test/ndcg_at_10"], ["test/mrr"]]
    points = [panel["config"] for panel in panels if panel["view_type"] == "Scatter Plot"]
    assert {point["x_axis"] for point in points} == {"config:model.value.n_factors"}
    assert points[0]["y_axis"] == "summary:test/hr_at_10"


def test_a_server_that_refuses_is_one_sentence(runs, monkeypatch):
    pytest.importorskip("wandb_workspaces", reason=NEEDS)
    from wandb_workspaces.reports.v2 import interface

    def fail(report):
        raise ValueError("no such project\nand more")

    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(interface.Report, "save", fail)
    with pytest.raises(SystemExit, match=r"W&B did not take the report \(no such project\)\.$"):
        main([str(runs), "--wandb", "--wandb-entity", "team"])
