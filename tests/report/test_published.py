"""The papers' figures, and which of them a run may be compared with."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from recexp.cli.sweeper import grid
from recexp.config import CONF
from recexp.config.presets import apply_preset
from recexp.errors import RecexpError
from recexp.report.collect import collect, n_updates
from recexp.report.papers.deviations import deviations
from recexp.report.papers.matching import curve, in_table, match
from recexp.report.papers.published import figures, paper_table, published, select
from tests.support.finished_runs import ML, set_papers, write_run

RR = {
    "dataset": "retailrocket",
    "protocol": "p1_uniform999",
    "data": {"users": 36751, "items": 83274, "interactions": 400000},
}


LATER = "d=128,L=2,h=1,items=3416"


@pytest.fixture
def run(tmp_path):
    def made(model, config=None, **changes):
        folder = write_run(
            tmp_path / str(len(list(tmp_path.iterdir()))), model=model, config=config, **changes
        )
        return collect([folder])[0][0]

    return made


def test_the_shipped_figures_are_those_of_the_papers():
    assert len(figures()) == 1216 and sum(f.paper == "ite" for f in figures()) == 720
    assert published("later", "gsasrec", "ml_1m", "gsasrec", LATER, "HR@10") == 0.3003
    assert published("bert4rec", "table2", "ml_1m", "sasrec", "best", "NDCG@10") == 0.4368
    assert published(
        "ite", "fig5", "retailrocket", "bert_ite_si", "K=64", "HR@10"
    ) == pytest.approx(0.6616, abs=1e-4)
    assert published("multi_feedback", "table4", "taobao", "mfpr", "mean of 10", "hr@10") == 0.2426
    assert published("bert4rec", "table2", "ml_1m", "sasrec", "best", "HR@99") is None
    assert all(
        0 < f.value < 1 for f in figures() if f.metric not in ("samples_per_s", "gflops", "size_mb")
    )
    ends = {
        (f.model, f.setting): f.value
        for f in select(paper="ite", table="fig10_11", metric="ndcg@10")
    }
    best = {
        (f.model, f.setting): f.value
        for f in select(paper="ite", table="fig5", dataset="retailrocket", metric="ndcg@10")
    }
    assert ends["bert4rec", "K=64,epoch=200"] == pytest.approx(
        best["bert4rec", "K=64"], abs=1e-3
    )  # the file's last line agrees with fig. 5


@pytest.mark.parametrize(
    ("row", "line"),
    [("bert4rec,table2,ml_1m,P3,pop,best,HR@1", 2), ("a,b,c,P1,m,s,HR@1,0.1x", 2), ("", 2)],
)
def test_a_damaged_row_is_named_by_its_line(tmp_path, row, line):
    path = tmp_path / "published.csv"
    path.write_text("paper,table,dataset,protocol,model,setting,metric,value\n" + row + "\n")
    with pytest.raises(RecexpError, match=f"line {line}"):
        figures(path)


def test_a_figure_printed_twice_is_refused(tmp_path):
    path = tmp_path / "published.csv"
    path.write_text(
        "paper,table,dataset,protocol,model,setting,metric,value\n" + "a,b,c,P1,m,s,HR@1,0.1\n" * 2
    )
    with pytest.raises(RecexpError, match="twice"):
        figures(path)


@pytest.mark.parametrize(
    ("model", "config", "setting"),
    [
        ("bert4rec", {}, "L=2,h=2"),
        ("bert4rec", {"model.positions": "none"}, "w/o PE"),
        ("bert4rec", {"model.ffn": False}, "w/o PFFN"),
        ("bert4rec", {"model.layer_norm": False}, "w/o LN"),
        ("bert4rec", {"model.residual": False}, "w/o residual"),
        ("bert4rec", {"model.dropout": 0.0, "model.attention_dropout": 0.0}, "w/o dropout"),
        ("bert4rec", {"model.n_layers": 3}, "L=3"),
        ("bert4rec", {"model.n_heads": 8}, "h=8"),
        ("bert4rec", {"model.max_len": 50}, "max_len=50"),
        ("bert4rec", {"model.n_factors": 256, "model.n_heads": 8}, "best"),
        ("sasrec", {}, "best"),
        ("bert4rec", {"model.n_factors": 32}, None),
        ("bert4rec", {"model.n_layers": 3, "model.ffn": False}, None),
        ("bert4rec", {"objective.mask_prob": 0.6}, None),
        ("bert4rec", {"objective.shuffle_targets": True}, None),
        ("item_knn", {}, None),
    ],
)
def test_bert4rec_settings_meet_their_row_and_no_other(run, model, config, setting):
    found = match(run(model, config, **ML)).get("ndcg@10")
    assert (found and found.setting) == setting


def test_protocol_and_data_decide_the_paper(run):
    assert (
        match(run("bert4rec", **ML | {"protocol": "full"}))["hr@10"].source
        == "nova_bert table3 (best)"
    )
    assert match(run("bert4rec", **ML | {"protocol": "full_unseen"})) == {}
    assert match(run("bert4rec", **ML | {"dataset": "simulated_shop"})) == {}
    assert match(run("bert4rec_vae", **RR))["ndcg@10"].value == published(
        "ite", "fig5", "retailrocket", "bert4rec", "K=64", "NDCG@10"
    )


def test_ite_settings(run):
    found = match(run("ite", {"model.n_factors": 64}, **RR))
    assert (found["hr@10"].table, found["hr@20"].table) == ("fig5", "fig12")
    in_fig12 = match(
        run("ite", {"model.n_factors": 64}, overrides=("experiment=ite/fig12_topk",), **RR)
    )
    assert in_fig12["hr@10"].value == published("ite", "fig12", "retailrocket", "ite", "", "HR@10")
    assert match(run("ite", {"model.n_factors": 16}, **RR)).keys() == {"hr@10", "ndcg@10"}
    assert match(run("ite", {"objective.weights": [2.0, 1.0]}, **RR)) == {}
    assert match(run("bert_ite_si", {"model.n_layers": 1}, **RR)) == {}
    epochs = curve(run("ite", {"model.n_factors": 64}, **RR), "hr@10")
    assert [e for e, _ in epochs] == list(range(20, 201, 20)) and epochs[-1][1] == pytest.approx(
        0.554, abs=1e-3
    )


def test_nova_and_multi_feedback_settings(run):
    nova = match(run("nova_bert", {"model.side": ["year", "genres"]}, **ML | {"protocol": "full"}))
    assert nova["hr@10"].setting == "side_info=item" and nova["hr@10"].value == 0.2743
    assert (
        match(run("nova_bert", {"model.fusion": "add"}, **ML | {"protocol": "full"}))["hr@10"].value
        == 0.2834
    )
    taobao = {"dataset": "taobao_31882", "protocol": "p2_uniform99"}
    assert (
        match(run("mf_mmlp", {"model.n_factors": 8, "objective.n_negatives": 2}, **taobao))[
            "hr@10"
        ].value
        == 0.2643
    )
    two = match(
        run(
            "mf_mmlp",
            {"model.n_factors": 32},
            overrides=("experiment=multi_feedback/table2_factors",),
            **taobao,
        )
    )
    assert two["hr@10"].source == "multi_feedback table2 (factors=32)"
    assert match(run("bpr_mf", **taobao))["hr@10"].setting == "mean of 10"


def test_deviations_are_told_and_a_faithful_run_has_none(run, tmp_path, monkeypatch):
    set_papers(
        monkeypatch,
        tmp_path,
        "bert4rec,*,*,*,trainer.max_steps,400000,paper: 4,true",
        "ite,*,*,*,trainer.max_epochs,200,paper: 4,true",
    )
    few = run("bert4rec", updates=100, **ML)
    told = " / ".join(deviations(few, match(few)["ndcg@10"]))
    assert (
        "updates 100 (paper 400,000)" in told
        and "trained on its items too" in told
        and "data:" not in told
    )
    faithful = run("bert4rec", selection="refit", updates=400_000, **ML)
    assert deviations(faithful, match(faithful)["ndcg@10"]) == []
    small = run("ite", **RR | {"data": {"users": 1272, "items": 29559, "interactions": 1}})
    told = " / ".join(deviations(small, match(small)["ndcg@10"]))
    assert (
        "1,272 users" in told
        and "36,751" in told
        and "epochs 4 (paper 200)" in told
        and "best test value" in told
    )


def test_updates_are_taken_from_the_table_where_the_result_has_none(run):
    assert n_updates(run("bert4rec", curve=[0.1, 0.2])) == 200  # of 100 steps an epoch
    assert n_updates(run("bert4rec", curve=[0.1, 0.2], updates=7)) == 7
    assert n_updates(run("bert4rec")) is None


def test_simulated_data_match_nothing(run):
    assert match(run("sasrec", **ML)) and curve(run("ite", **RR), "hr@10")
    for changes in ({"dataset": "simulated_ml_1m"}, {"data": ML["data"] | {"simulated": True}}):
        assert match(run("sasrec", **ML | changes)) == {}
    assert curve(run("ite", **RR | {"data": RR["data"] | {"simulated": True}}), "hr@10") == []


def test_a_literal_reading_of_a_protocol_is_matched_as_a_variant(run):
    literal = run("bpr_mf", dataset="taobao", protocol="p2_uniform99_later")
    figure = match(literal)["hr@10"]
    assert figure.source.startswith("multi_feedback table4") and "a variant" in " ".join(
        deviations(literal, figure)
    )
    purged = run(
        "bpr_mf", {"protocol.split.purge": "later"}, dataset="taobao", protocol="p2_uniform99"
    )
    assert "a variant" in " ".join(deviations(purged, figure))
    standard = run(
        "bpr_mf", {"protocol.split.purge": "pair"}, dataset="taobao", protocol="p2_uniform99"
    )
    assert "a variant" not in " ".join(deviations(standard, figure))


def test_the_best_row_takes_bert4rec_of_any_size_in_its_own_table_only(run):
    small = run("bert4rec", {"model.max_len": 100}, **ML)
    assert in_table(small, "bert4rec", "table2")["hr@10"].setting == "best"
    assert match(small)["hr@10"].setting == "max_len=100"
    assert in_table(run("bert4rec", {"model.ffn": False}, **ML), "bert4rec", "table2") == {}


@pytest.mark.parametrize("model", ["nmtr", "mtmf", "mfpr"])
def test_reconstructions_are_always_named(run, model):
    assert any(
        "reconstruction" in note for note in deviations(run(model, reconstruction=False), None)
    )
    assert not deviations(run("pop"), None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "without"),
    [
        ("ite/fig5_factors", 0),
        ("ite/fig12_top_k", 0),
        ("multi_feedback/table2_factors", 0),
        ("multi_feedback/table3_negatives", 0),
        ("multi_feedback/table4_systems", 0),
        ("bert4rec/table2_systems", 0),
        ("bert4rec/table3_masks", 0),
        ("bert4rec/table4_length", 0),
        ("bert4rec/table5_ablation", 0),
        ("nova/table3_fusion", 7 * 4),  # a private data set
        ("nova/table4_side_information", 0),
        ("nova/table5_size", 0),
    ],
)
def test_every_figure_of_a_table_meets_exactly_one_setting_of_its_experiment(name, without):
    """The jobs of the experiment at the paper's scale, composed as a sweep would, seeds aside."""
    sweeper = OmegaConf.to_container(
        OmegaConf.load(CONF / "experiment" / f"{name}.yaml").hydra.sweeper
    )
    jobs = grid(
        sweeper.get("params", {}),
        sweeper.get("rows", []),
        [f"experiment={name}", "seed=0"],
        OverridesParser.create(),
    )
    found = []
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        for job in jobs:
            cfg = OmegaConf.to_container(
                apply_preset(compose("config", job, return_hydra_config=True))
            )
            choices = cfg.pop("hydra")["runtime"]["choices"]
            result = {
                "model": choices["model"],
                "dataset": cfg["dataset"]["name"],
                "protocol": choices["protocol"],
                "sampler": choices["sampler"],
            }
            result |= {"overrides": job, "config": cfg}
            here = in_table(result, *paper_table(name))
            comparable = {metric: f for metric, f in here.items() if f.names_data}
            assert (
                comparable.items() <= match(result).items()
            )  # tables show the figures that the scorecard does
            found += here.values()
    wanted = select(paper=paper_table(name)[0], table=paper_table(name)[1])
    assert len(set(found)) == len(found) == len(wanted) - without and set(found) <= set(wanted)


def test_names_of_experiments():
    assert paper_table("bert4rec/table5_ablation") == ("bert4rec", "table5")
    assert paper_table("ite/fig11_epochs") == ("ite", "fig10_11")
    assert paper_table("nova/table3") == ("nova_bert", "table3")
    assert paper_table("real/ml_1m_behaviors") == ("", "")


def test_a_figure_of_a_repository_is_of_one_size_on_one_version_of_the_data(run):
    config = {"model.n_factors": 128, "model.n_layers": 2, "model.n_heads": 1}
    data = {"users": 6040, "items": 3416}
    known = ML | {"protocol": "full_unseen", "data": data}
    found = match(run("gsasrec", config=config, **known))
    assert {metric: figure.value for metric, figure in found.items()} == {
        "hr@10": 0.3003,
        "ndcg@10": 0.1726,
    }
    assert found["hr@10"].source == f"later gsasrec ({LATER})"
    notes = deviations(run("gsasrec", config=config, **known), found["hr@10"])
    assert notes == ["the paper's settings are not on file"]
    assert match(run("gsasrec", config=config | {"model.n_factors": 64}, **known)) == {}
    assert match(run("gsasrec", config=config, **known | {"data": data | {"items": 3706}})) == {}
    assert match(run("gsasrec", config=config, **ML | {"data": data})) == {}  # another protocol


def test_a_system_without_sizes_has_a_figure_of_a_repository(run):
    beauty = {"dataset": "amazon_beauty_5core", "protocol": "full_unseen"}
    found = match(run("pop", data={"users": 22363, "items": 12101}, **beauty))
    assert found["ndcg@10"].value == 0.0068
    assert match(run("pop", data={"users": 22363, "items": 12100}, **beauty)) == {}
