"""Tables in the papers' rows and columns: a cell for every published figure and every run."""

from __future__ import annotations

import csv

import pytest
from omegaconf import OmegaConf

from recexp.config import CONF
from recexp.errors import RecexpError
from recexp.report.__main__ import main
from recexp.report.collect import collect
from recexp.report.papers.paper_tables import LAYOUTS, paper_tables
from recexp.report.papers.published import PAPERS, PROTOCOLS, paper_table, select
from tests.config.test_experiments import JOBS
from tests.support.finished_runs import write_run

ML = {"dataset": "ml_1m", "protocol": "p3_popular100"}
ML |= {"data": {"users": 6040, "items": 3416, "interactions": 999611}}
TAOBAO = {"dataset": "taobao", "protocol": "p2_uniform99"}
TAOBAO |= {"data": {"users": 19576, "items": 9, "interactions": 9}}
EXPERIMENTS = {paper_table(name): name for name in JOBS}
NAMES = [EXPERIMENTS[layout.paper, layout.table] for layout in LAYOUTS]


def lines(table):
    """{(row names..., "published" or "ours"): {column: text}}."""
    at = table.head.index("from") + 1
    return {
        tuple(c.text for c in row[:at]): dict(
            zip(table.head[at:], [c.text for c in row[at:]], strict=True)
        )
        for row in table.rows
    }


def test_every_table_of_a_papers_figures_has_a_layout():
    """Figures of repositories are no tables of papers."""
    printed = {(f.paper, f.table) for f in select() if f.paper in PAPERS}
    assert {(layout.paper, layout.table) for layout in LAYOUTS} == printed


@pytest.mark.parametrize("name", NAMES)
def test_every_published_figure_stands_in_one_cell_above_a_dash(name):
    paper, table = paper_table(name)
    shown, missing = [], 0
    for made in paper_tables([], name):
        for row, cells in zip(lines(made), made.rows, strict=True):
            values = [c for c in cells if c.value is not None]
            values = [c for c in values if not c.text.startswith(("+", "-"))]  # gains
            shown += [c.value for c in values] if row[-1] == "published" else []
            missing += len(values) if row[-1] == "ours" else 0
    assert sorted(shown) == sorted(f.value for f in select(paper=paper, table=table))
    assert not missing


@pytest.mark.parametrize("name", NAMES)
def test_every_published_metric_is_in_the_results_of_its_experiment(name):
    paper, table = paper_table(name)
    figures = select(paper=paper, table=table)
    protocol = OmegaConf.load(CONF / "protocol" / f"{PROTOCOLS[figures[0].protocol]}.yaml")
    own = OmegaConf.load(CONF / "experiment" / f"{name}.yaml").get("protocol", {})
    measured = OmegaConf.merge(protocol, own).ks
    depths = {int(f.metric.split("@")[1]) for f in figures if "@" in f.metric}
    assert depths <= set(measured)


def test_table_2_has_data_by_metric_rows_systems_and_the_gain_over_the_best(tmp_path):
    models = ("pop", "bpr_mf", "ncf", "fpmc", "gru4rec", "gru4rec_plus", "caser", "sasrec")
    for n, model in enumerate(models):
        write_run(tmp_path / model, 0.1 + n / 100, model=model, **ML)
    wide = {"model.n_factors": 256, "model.n_heads": 8}
    write_run(tmp_path / "b", 0.204, model="bert4rec", config=wide, **ML)
    (table,) = paper_tables(collect([tmp_path])[0], "bert4rec/table2_systems")
    assert table.head[:5] == ("data", "metric", "from", "POP", "BPR-MF")
    assert table.head[-2:] == ("BERT4Rec", "improvement, %")
    assert len(table.rows) == 2 * (4 * 6 + 3)
    found = lines(table)
    assert found["ML-1m", "NDCG@10", "published"]["SASRec"] == "0.4368"
    assert found["ML-1m", "NDCG@10", "published"]["improvement, %"] == "+10.30"
    ours = found["ML-1m", "NDCG@10", "ours"]
    assert (ours["POP"], ours["SASRec"], ours["BERT4Rec"]) == ("0.1000", "0.1700", "0.2040")
    assert ours["improvement, %"] == "+20.00"
    assert set(found["Steam", "MRR", "ours"].values()) == {"–"}
    assert found["average", "NDCG@10", "published"]["improvement, %"] == "+11.03"
    assert found["average", "NDCG@10", "ours"]["improvement, %"] == "–"


def test_no_gain_is_claimed_over_the_best_of_some_systems(tmp_path):
    write_run(tmp_path / "s", 0.1, model="sasrec", **ML)
    wide = {"model.n_factors": 256, "model.n_heads": 8}
    write_run(tmp_path / "b", 0.2, model="bert4rec", config=wide, **ML)
    (table,) = paper_tables(collect([tmp_path])[0], "bert4rec/table2_systems")
    assert lines(table)["ML-1m", "MRR", "ours"]["improvement, %"] == "–"


def test_table_4_is_a_mean_of_runs_with_its_standard_error(tmp_path):
    for seed, ndcg in enumerate((0.1, 0.2, 0.3, 0.4)):
        write_run(tmp_path / str(seed), ndcg, model="wmf", seed=seed, **TAOBAO)
    (table,) = paper_tables(collect([tmp_path])[0], "multi_feedback/table4_systems")
    assert table.head == ("metric", "from", "MFPR", "BPR-MF", "WMF", "NCF", "MF+M-MLP")
    found = lines(table)["NDCG@10", "ours"]
    assert found["WMF"] == "0.2500 ± 0.0645"  # s.d. .1291 over the root of 4
    assert found["NCF"] == "–"
    assert "± is the standard error over 4 runs" in table.notes
    assert any("4 runs; the paper averages 10" in note for note in table.notes)


def test_tables_of_settings_have_the_papers_two_sides(tmp_path):
    for factors, ndcg in ((4, 0.11), (8, 0.12)):
        config = {"model.n_factors": factors, "objective.n_negatives": 2}
        write_run(tmp_path / f"{factors}", ndcg, model="mf_mmlp", config=config, **TAOBAO)
    (table,) = paper_tables(collect([tmp_path])[0], "multi_feedback/table3_negatives")
    assert table.head[2:5] == tuple(f"HR@10 factors={d}" for d in (4, 8, 16))
    found = lines(table)
    assert found["ng=2", "ours"]["NDCG@10 factors=8"] == "0.1200"
    assert found["ng=2", "ours"]["HR@10 factors=4"] == "0.2200"
    assert set(found["ng=1", "ours"].values()) == {"–"}
    assert found["ng=4", "published"]["HR@10 factors=4"] == "0.2759"


def test_runs_on_other_or_simulated_data_are_marked(tmp_path):
    small = ML | {"data": {"users": 100, "items": 90, "interactions": 1000}}
    write_run(tmp_path / "small", 0.1, model="pop", **small)
    write_run(tmp_path / "shop", 0.2, model="ncf", **ML | {"dataset": "simulated_ml_1m"})
    declared = ML | {"data": ML["data"] | {"simulated": True}}
    write_run(tmp_path / "file", 0.3, model="caser", protocol_id="ccc", **declared)
    made = paper_tables(collect([tmp_path])[0], "bert4rec/table2_systems")
    found = [lines(table)["ML-1m", "MRR", "ours"] for table in made]
    texts = [[t for t in row.values() if t != "–"] for row in found]
    assert texts[0] == ["0.1000 *"]  # what was measured on real data comes first
    assert sorted(texts[1] + texts[2]) == ["0.2000 †", "0.3000 †"]
    assert any(note.startswith("†") for note in made[1].notes)
    assert not any(note.startswith("†") for note in made[0].notes)


def test_of_several_systems_for_one_cell_the_one_chosen_on_validation_counts(tmp_path):
    write_run(tmp_path / "a", 0.2, model="sasrec", **ML)
    other = write_run(tmp_path / "b", 0.3, model="sasrec", config={"model.dropout": 0.9}, **ML)
    text = (other / "result.json").read_text()
    assert '"val/ndcg@10": 0.3' in text
    (other / "result.json").write_text(text.replace('"val/ndcg@10": 0.3', '"val/ndcg@10": 0.1'))
    (table,) = paper_tables(collect([tmp_path])[0], "bert4rec/table2_systems")
    assert lines(table)["ML-1m", "NDCG@10", "ours"]["SASRec"] == "0.2000"


def test_figures_of_epochs_are_read_from_the_test_set_per_epoch(tmp_path):
    shop = {"users": 36751, "items": 83274, "interactions": 400000}
    run = write_run(
        tmp_path / "a",
        model="ite",
        dataset="retailrocket",
        protocol="p1_uniform999",
        data=shop,
        selection="test_peek",
    )
    with (run / "metrics.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["epoch", "step", "val/hr@10", "test/hr@10"])
        rows.writerows([n, n, 0.9, n / 100] for n in range(45))
    made = paper_tables(collect([tmp_path])[0], "ite/fig10_epochs")
    table = next(t for t in made if t.title.endswith("HR@10 · K=64"))
    found = lines(table)
    assert [found[e, "ours"]["ITE"] for e in ("20", "40", "60")] == ["0.1900", "0.3900", "–"]
    assert found["200", "published"]["BERT-ITE-Si"] == "0.6514"


def test_table_5_of_nova_compares_operations_that_count_alike(tmp_path):
    write_run(
        tmp_path / "a",
        model="nova_bert",
        dataset="ml_1m",
        gflops=0.96,
        gops=0.4836,
        parameters=10_650_000,
        config={"model.fusion": "add"},
    )
    (table,) = paper_tables(collect([tmp_path])[0], "nova/table5_size")
    found = lines(table)["NOVA, add", "ours"]
    assert {k: v.split(" ")[0] for k, v in found.items()} == {
        "FLOPs × 10⁹": "0.4836",
        "size, MB": "42.6",
    }


def test_the_command_and_the_page(tmp_path, capsys):
    overrides = ("experiment=bert4rec/table2_systems", "model=sasrec")
    write_run(tmp_path / "runs" / "a", 0.43, model="sasrec", overrides=overrides, **ML)
    main([str(tmp_path / "runs"), "--paper-table", "bert4rec/table2_systems"])
    assert "| ML-1m | NDCG@10 | ours | – |" in capsys.readouterr().out
    main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")])
    page = (tmp_path / "out" / "index.html").read_text()
    assert "As the papers print it" in page and "arXiv:1904.06690, Table 2" in page
    with pytest.raises(SystemExit, match="No paper prints numbers"):
        main([str(tmp_path / "runs"), "--paper-table", "ite/fig6_side_information"])
    with pytest.raises(RecexpError, match="real/taobao"):
        paper_tables([], "real/taobao_31882")
