"""Tables: seeds joined, marks, published figures beside ours, four formats."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from recexp.report.__main__ import main
from recexp.report.collect import collect
from recexp.report.columns import Layout
from recexp.report.formats import as_csv, as_markdown, as_terminal
from recexp.report.latex import as_latex
from recexp.report.tables import _table, systems, tables
from tests.support.finished_runs import ML, write_run


def column(table, head, row=0):
    return table.rows[row][table.head.index(head)]


def test_seeds_are_joined_and_other_settings_are_not(tmp_path):
    for seed, ndcg in enumerate((0.1, 0.2, 0.3)):
        write_run(
            tmp_path / f"a{seed}",
            ndcg,
            seed=seed,
            overrides=(f"seed={seed}", "model.n_layers=1", "cache_dir=c"),
        )
    write_run(tmp_path / "b", 0.5, overrides=("model.n_layers=2", "cache_dir=c"))
    results, _ = collect([tmp_path])
    found = systems(results)
    assert [(s.label, len(s.runs)) for s in found] == [
        ("pop n_layers=2", 1),
        ("pop n_layers=1", 3),
    ]
    table = tables(results)[0]
    assert column(table, "test/ndcg@10", 1).text == "0.2000 ± 0.1000"  # known: mean .2, s.d. .1
    assert column(table, "seed", 1).text == "0, 1, 2"


def test_seeds_are_joined_whatever_words_chose_their_settings(tmp_path):
    """The second run's word sets what is the default."""
    write_run(tmp_path / "a", 0.1, config={"model.n_layers": 2})
    words = ("seed=1", "model.n_layers=2")
    write_run(tmp_path / "b", 0.3, seed=1, overrides=words, config={"model.n_layers": 2})
    (system,) = systems(collect([tmp_path])[0])
    assert [run["seed"] for run in system.runs] == [0, 1]


def test_seeds_are_joined_where_one_ran_before_the_model_had_a_setting(tmp_path):
    """What an older run could not say has today's default; another value is another system."""
    for seed, name in enumerate(("old", "new", "other")):
        config = {"model.positions": "right"} if name == "other" else None
        folder = write_run(tmp_path / name, 0.1, model="bert_ite", seed=seed, config=config)
        if name == "old":
            stored = OmegaConf.load(folder / "config.yaml")
            assert stored.model.pop("positions") == "none"
            OmegaConf.save(stored, folder / "config.yaml")
    found = systems(collect([tmp_path])[0])
    assert sorted([run["seed"] for run in system.runs] for system in found) == [[0, 1], [2]]


def test_the_same_seed_twice_is_no_second_sample(tmp_path):
    for name in "ab":
        write_run(tmp_path / name, 0.2)
    found = systems(collect([tmp_path])[0])
    assert [len(s.runs) for s in found] == [1, 1] and len({s.label for s in found}) == 2


def test_configs_that_differ_where_no_override_does_stay_apart(tmp_path):
    write_run(tmp_path / "a", config={"trainer.max_epochs": 5})
    write_run(tmp_path / "b", config={"trainer.max_epochs": 9}, seed=1)
    assert {s.label for s in systems(collect([tmp_path])[0])} == {
        "pop trainer.max_epochs=5",
        "pop trainer.max_epochs=9",
    }


def test_a_budget_is_named_where_nothing_else_tells_systems_apart(tmp_path):
    for name, overrides in {
        "a": ("model.n_layers=1", "trainer.max_epochs=5"),
        "b": ("model.n_layers=2", "trainer.max_epochs=9", "+trainer.max_time=00:01:00:00"),
        "c": ("model.n_layers=2", "trainer.max_epochs=20"),
    }.items():
        write_run(tmp_path / name, overrides=overrides)
    assert {s.label for s in systems(collect([tmp_path])[0])} == {
        "pop n_layers=1",
        "pop n_layers=2 trainer.max_epochs=9 trainer.max_time=00:01:00:00",
        "pop n_layers=2 trainer.max_epochs=20",
    }


def test_times_of_several_machines_are_noted(tmp_path):
    for model, device in {"pop": "x86_64", "ite": "NVIDIA H200", "mf": "x86_64"}.items():
        write_run(tmp_path / model, model=model, hardware={"device": device, "cpus": 2})
    results = collect([tmp_path])[0]
    note = "times are of several machines: ite on NVIDIA H200; the others on x86_64"
    assert note in tables(results)[0].notes
    alike = [result for result in results if result["model"] != "ite"]
    assert not any("machines" in text for text in tables(alike)[0].notes)


def test_best_and_second_best_in_every_format(tmp_path):
    for n, (model, ndcg) in enumerate((("pop", 0.1), ("ite", 0.3), ("mf", 0.2))):
        write_run(tmp_path / str(n), ndcg, model=model)
    table = tables(collect([tmp_path])[0])[0]
    text = as_markdown(table)
    assert (
        "**0.3000**" in text
        and "<u>0.2000</u>" in text
        and "**0.1000**" not in text
        and "<u>0.1000" not in text
    )
    assert r"\textbf{0.3000}" in as_latex([table]) and r"\underline{0.2000}" in as_latex([table])
    assert "*0.3000" in as_terminal(table) and "_0.2000" in as_terminal(table)
    records = list(csv.DictReader(io.StringIO(as_csv([table]))))
    assert {(r["model"], r["mark"]) for r in records if r["column"] == "test/ndcg@10"} == {
        ("ite", "best"),
        ("mf", "second"),
        ("pop", ""),
    }
    assert (
        next(
            float(r["value"])
            for r in records
            if r["model"] == "mf" and r["column"] == "test/ndcg@10"
        )
        == 0.2
    )


def test_the_published_figure_stands_beside_ours(tmp_path):
    write_run(tmp_path / "sasrec", 0.4368 * 1.1, model="sasrec", **ML)
    write_run(tmp_path / "knn", 0.3, model="item_knn", **ML)
    table = tables(collect([tmp_path])[0])[0]
    at = table.head.index("test/ndcg@10")
    assert table.head[at + 1 : at + 3] == ("published", "Δ %")
    assert [c.text for c in table.rows[0][at + 1 : at + 3]] == ["0.4368", "+10.0"]
    assert [c.text for c in table.rows[1][at + 1 : at + 3]] == ["–", "–"]
    records = list(csv.DictReader(io.StringIO(as_csv([table]))))
    assert {"test/ndcg@10 published", "test/hr@10 Δ %"} <= {r["column"] for r in records}


def test_without_published_figures_the_columns_are_as_ever(tmp_path):
    write_run(tmp_path / "a")
    assert tables(collect([tmp_path])[0])[0].head == (
        "model",
        "test/hr@10",
        "test/ndcg@10",
        "test/mrr",
        "val/ndcg@10",
        "best epoch",
        "stopped by",
        "seed",
        "rows/s",
        "s",
        "commit",
        "settings",
    )


def test_published_figures_on_other_data_are_marked(tmp_path):
    rr = {
        "dataset": "retailrocket",
        "protocol": "p1_uniform999",
        "data": {"users": 1272, "items": 29559, "interactions": 75164},
    }
    write_run(tmp_path / "a", 0.05, model="ite", **rr)
    table = tables(collect([tmp_path])[0])[0]
    assert table.rows[0][table.head.index("test/ndcg@10") + 1].text.endswith("*")
    assert any("1,272 users" in note and "36,751" in note for note in table.notes)


def test_two_protocol_ids_in_one_table_are_refused(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", protocol_id="bbb")
    results, _ = collect([tmp_path])
    with pytest.raises(ValueError, match="protocol ids"):
        _table(results, "test/ndcg@10", Layout())
    assert len(tables(results)) == 2


def test_hostile_settings_stay_inside_their_cell(tmp_path):
    nasty = "model.name=<script>alert(1)</script>|`x`\x1b[31m&_#%"
    write_run(tmp_path / "a", overrides=(nasty,))
    table = tables(collect([tmp_path])[0])[0]
    row = next(line for line in as_markdown(table).splitlines() if "script" in line)
    assert row.count("|") - row.count("\\|") == len(table.head) + 1 and row.count("`") == 2
    assert "\x1b" not in as_terminal(table)
    latex = as_latex([replace(table, details=())])
    for escaped in (r"\&", r"\_", r"\#", r"\%"):
        assert escaped in latex
    assert "<script" not in latex


def test_runs_left_out_say_why(tmp_path):
    write_run(tmp_path / "good")
    write_run(tmp_path / "cut", curve=[0.1, 0.2])
    (tmp_path / "cut" / "result.json").unlink()
    write_run(tmp_path / "torn")
    (tmp_path / "torn" / "result.json").write_text('{"model": ')
    write_run(tmp_path / "lacking")
    result = json.loads((tmp_path / "lacking" / "result.json").read_text())
    (tmp_path / "lacking" / "result.json").write_text(
        json.dumps({k: v for k, v in result.items() if k not in ("metrics", "seed")})
    )
    results, left_out = collect([tmp_path])
    assert [r["folder"] for r in results] == [str(tmp_path / "good")]
    cut, lacking, torn = sorted(left_out)
    assert (
        "2 epochs done" in cut
        and "seed, metrics" in lacking.replace("metrics, seed", "seed, metrics")
        and "not readable" in torn
    )


def test_a_run_without_metrics_is_left_out_by_name(tmp_path):
    write_run(tmp_path / "good")
    write_run(tmp_path / "signal", interrupted="SIGTERM", metrics={})
    write_run(tmp_path / "empty", stop_reason="max_time reached", metrics={})
    results, (empty, signal) = collect([tmp_path])
    assert [r["folder"] for r in results] == [str(tmp_path / "good")]
    assert str(tmp_path / "signal") in signal and "SIGTERM ended it after 4 epochs" in signal
    assert str(tmp_path / "empty") in empty and "max_time reached" in empty


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        ("early stopping: no better validation", "patience"),
        ("max_epochs reached", "epochs"),
        ("max_steps reached", "steps"),
        ("max_time reached", "time"),
        ("SIGUSR1 after 3 epochs", "SIGUSR1 after 3 epochs"),
    ],
)
def test_what_ended_a_run_is_said(tmp_path, reason, shown):
    write_run(tmp_path / "a", stop_reason=reason)
    assert column(tables(collect([tmp_path])[0])[0], "stopped by").text == shown


def test_a_resumed_run_shows_the_whole_time_and_its_parts(tmp_path):
    parts = [{"wall_time_s": 100.0, "epochs": 3}, {"wall_time_s": 23.0, "epochs": 1}]
    write_run(tmp_path / "a", wall_time_s=123.0, parts=parts)
    write_run(tmp_path / "b", model="ite", wall_time_s=50.0, parts=parts[:1])
    table = tables(collect([tmp_path])[0])[0]
    assert {row[0].text: column(table, "s", n).text for n, row in enumerate(table.rows)} == {
        "pop": "123 in 2 parts",
        "ite": "50",
    }


def test_the_config_in_the_result_is_preferred(tmp_path):
    run = write_run(tmp_path / "a", config={"model.depth": 1})
    told = json.loads((run / "result.json").read_text())
    assert [(r["config"]["model"], r["recorded"]) for r in collect([run])[0]] == [
        ({"depth": 1}, True)
    ]
    (run / "result.json").write_text(json.dumps(told | {"config": {"model": {"depth": 2}}}))
    assert [r["config"] for r in collect([run])[0]] == [{"model": {"depth": 2}}]
    (run / "result.json").write_text(json.dumps(told))
    (run / "config.yaml").unlink()
    assert not collect([run])[0][0]["recorded"]


def test_simulated_data_are_called_so_in_titles(tmp_path):
    data = {"users": 10, "items": 20, "interactions": 30, "simulated": True}
    write_run(tmp_path / "a", data=data)
    write_run(tmp_path / "b", dataset="simulated_shop", protocol_id="bbb")
    write_run(tmp_path / "c", protocol_id="ccc")
    titles = [t.title for t in tables(collect([tmp_path])[0])]
    assert titles == [
        "shop (simulated), full (id aaa)",
        "simulated_shop (simulated), full (id bbb)",
        "shop, full (id ccc)",
    ]


def test_an_evaluation_under_another_protocol_has_a_table_of_its_own(tmp_path):
    run = write_run(tmp_path / "a", 0.4, model="sasrec", **ML)
    result = json.loads((run / "result.json").read_text())
    (run / "full_unseen").mkdir()
    more = {
        "protocol": "full_unseen",
        "protocol_id": "bbb",
        "evaluated": {},
        "metrics": {"test/ndcg@10": 0.1, "test/mrr": 0.1},
        "selection": "val, by p3_popular100",
    }
    (run / "full_unseen" / "result.json").write_text(json.dumps(result | more))
    results, left_out = collect([tmp_path, run])
    assert len(results) == 2 and not left_out
    assert results[1]["config"] == results[0]["config"]
    first, second = tables(results)
    assert (
        column(first, "test/ndcg@10").text == "0.4000"
        and column(second, "test/ndcg@10").text == "0.1000"
    )
    assert [t.rows[0][0].text for t in (first, second)] == [
        "sasrec",
        "sasrec (trained and selected under p3_popular100)",
    ]


def test_the_recorded_results_still_make_tables():
    results, left_out = collect([Path(__file__).parents[2] / "docs" / "results"])
    found = tables(results)
    assert not left_out and len(found) == len({(r["dataset"], r["protocol_id"]) for r in results})
    seeds = [row[t.head.index("seed")].text for t in found for row in t.rows]
    assert sum(len(s.split(", ")) for s in seeds) == len(results)  # no run is lost
    assert any("published" in t.head for t in found)


def test_the_command_prints_markdown_and_what_it_left_out(tmp_path, capsys):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b")
    (tmp_path / "b" / "result.json").unlink()
    main([str(tmp_path)])
    shown = capsys.readouterr()
    assert (
        shown.out.startswith("### shop, full (id aaa)")
        and f"left out: {tmp_path / 'b'}" in shown.out
    )
    main([str(tmp_path), "--format", "csv"])  # nothing but records on stdout
    shown = capsys.readouterr()
    assert (
        all(len(record) == 7 for record in csv.reader(io.StringIO(shown.out)) if record)
        and "left out" in shown.err
    )
