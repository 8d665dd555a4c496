"""Figures: the points, the axes, and the papers' curves beside them."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from recexp.errors import RecexpError
from recexp.models.bert4rec import BERT4Rec
from recexp.models.mf import MF
from recexp.models.sasrec import SASRec
from recexp.nn.attention import MultiHeadAttention, causal_mask
from recexp.report.attention import mean_weights, weights
from recexp.report.collect import collect
from recexp.report.figures import _set_ticks, epoch_curves, heat_maps, topk_curves
from recexp.report.papers.published import published
from recexp.report.sweep_figures import sweep_chart, swept
from recexp.report.tables import About
from recexp.testing import toy
from tests.support.finished_runs import write_run

RR = {
    "dataset": "retailrocket",
    "protocol": "p1_uniform999",
    "data": {"users": 36751, "items": 83274, "interactions": 400000},
}


def sweep_lines(results, key, metric):
    chart = sweep_chart(results, key, metric, About("shop", "full", "aaa"))
    return [] if chart is None else chart.lines


def test_a_sweep_is_a_line_per_system_with_the_published_one_dashed(tmp_path):
    for model, factor in (("ite", 1.0), ("nmtr", 0.5)):
        for k in (8, 16, 32, 64):
            for seed, change in enumerate((-0.01, 0.01)):
                write_run(
                    tmp_path / f"{model}{k}{seed}",
                    factor * k / 100 + change,
                    model=model,
                    seed=seed,
                    config={"model.n_factors": k},
                    **RR,
                )
    write_run(tmp_path / "pop", 0.02, model="pop", **RR)
    lines = sweep_lines(collect([tmp_path])[0], "model.n_factors", "ndcg@10")
    ours = {line.label: line for line in lines if not line.dashed}
    assert ours.keys() == {"ite", "nmtr"}
    assert ours["ite"].x == (8, 16, 32, 64) and ours["ite"].y == pytest.approx(
        (0.08, 0.16, 0.32, 0.64)
    )  # seeds averaged
    theirs = next(line for line in lines if line.dashed and line.label == "nmtr")
    assert theirs.y == tuple(
        published("ite", "fig5", "retailrocket", "nmtr", f"K={k}", "NDCG@10")
        for k in (8, 16, 32, 64)
    )


def test_a_grid_of_two_settings_gives_a_line_per_value_of_the_other(tmp_path):
    for k in (32, 64):
        for layers in (1, 2):
            write_run(
                tmp_path / f"{k}{layers}",
                k * layers / 1000,
                model="bert_ite",
                config={"model.n_factors": k, "model.n_layers": layers},
            )
    lines = sweep_lines(collect([tmp_path])[0], "model.n_layers", "ndcg@10")
    assert {line.label: line.y for line in lines} == {
        "bert_ite n_factors=32": (0.032, 0.064),
        "bert_ite n_factors=64": (0.064, 0.128),
    }


def test_the_first_weight_counts_and_one_value_is_no_sweep(tmp_path):
    for weight in (0.1, 2.0):
        write_run(
            tmp_path / f"{weight}",
            weight / 10,
            model="ite",
            config={"objective.weights": [weight, 1.0]},
        )
    results, _ = collect([tmp_path])
    assert sweep_lines(results, "objective.weights", "ndcg@10")[0].x == (0.1, 2.0)
    assert sweep_lines(results, "model.n_factors", "ndcg@10") == []
    assert swept(results[:1]) == []


def test_any_setting_that_runs_vary_has_a_chart_numbers_on_a_log_axis(tmp_path):
    for lr in (0.0001, 0.003, 0.01):
        for norm in ("pre", "post"):
            config = {"optimizer.lr": lr, "model.norm": norm}
            write_run(tmp_path / f"{lr}{norm}", 10 * lr + len(norm) / 100, config=config)
    results = collect([tmp_path])[0]
    found = {picture.title.split(":")[0]: picture for picture in swept(results, ["ndcg@10"])}
    assert found.keys() == {"ndcg@10 against optimizer.lr", "ndcg@10 against model.norm"}
    lines = sweep_lines(results, "optimizer.lr", "ndcg@10")
    assert {line.label for line in lines} == {"pop norm=pre", "pop norm=post"}
    assert lines[0].x == (0.0001, 0.003, 0.01)
    chart = sweep_chart(results, "optimizer.lr", "ndcg@10", About("shop", "full", "aaa"))
    assert axis_of(chart) == "log"
    names = sweep_chart(results, "model.norm", "ndcg@10", About("shop", "full", "aaa"))
    assert names.categories == ("post", "pre")
    assert (
        "lr=0.003 from 0.0700 at post to 0.0600 at pre" in found["ndcg@10 against model.norm"].alt
    )


def axis_of(chart):
    axes = Figure().subplots()
    _set_ticks(axes, sorted({x for line in chart.lines for x in line.x}), chart.ticks)
    return axes.get_xscale()


@pytest.mark.parametrize(
    ("xs", "scale"),
    [
        ((1e-5, 1e-3, 1e-1), "log"),
        ((8, 16, 32, 64), "log"),
        ((0.1, 0.2, 0.5), "linear"),
        ((0, 1e-6, 1e-3), "symlog"),
        ((-100, 1, 100), "linear"),
        (tuple(1.37**n for n in range(20)), "log"),
    ],
)
def test_the_axis_is_logarithmic_where_values_span_orders_of_magnitude(xs, scale):
    axes = Figure().subplots()
    _set_ticks(axes, xs, ticks=True)
    assert axes.get_xscale() == scale


def test_classes_are_categories_and_their_own_settings_go_with_them(tmp_path):
    losses = (
        {"_target_": "recexp.objectives.losses.BCE"},
        {"_target_": "recexp.objectives.losses.GBCE", "t": 0.5},
        {"_target_": "recexp.objectives.losses.GBCE", "t": 0.75},
    )
    for n, loss in enumerate(losses):
        write_run(tmp_path / str(n), n / 10, config={"objective.loss": loss})
    results = collect([tmp_path])[0]
    key = "objective.loss._target_"
    chart = sweep_chart(results, key, "ndcg@10", About("shop", "full", "aaa"))
    assert chart.categories == ("BCE", "GBCE t=0.5", "GBCE t=0.75")
    assert chart.x_label == "objective.loss"
    assert [line.y for line in chart.lines] == [(0.0, 0.1, 0.2)]


def test_of_many_lines_the_best_are_drawn_and_the_caption_says_so(tmp_path):
    for a in range(10):
        for b in (1, 2):
            config = {"model.a": f"v{a}", "model.b": b}
            write_run(tmp_path / f"{a}{b}", (a + b) / 100, config=config)
    chart = sweep_chart(collect([tmp_path])[0], "model.b", "ndcg@10", About("s", "f", "a"))
    assert len(chart.lines) == 8 and chart.note == "; the best 8 of 10 lines"
    assert min(line.y[-1] for line in chart.lines) == pytest.approx(0.04)


def test_epoch_curves_average_the_seeds_and_show_the_paper_on_test_axes_only(tmp_path):
    for seed, curve in enumerate(([0.1, 0.2, 0.4], [0.3, 0.4])):
        write_run(tmp_path / "val" / str(seed), model="ite", seed=seed, curve=curve, **RR)
    hr, ndcg = epoch_curves(collect([tmp_path])[0])
    assert (
        "ite from 0.2000 at 1 to 0.3000 at 2" in ndcg.alt
    )  # means over the epochs that both reached
    for picture in (
        hr,
        ndcg,
    ):  # the paper's curve is of the test set, this axis of validation values
        assert "(published)" not in picture.alt and "published" not in picture.svg
        assert picture.title.endswith("the paper's curves, of the test set, are not drawn here")
    peek = write_run(
        tmp_path / "peek", model="ite", curve=[0.1, 0.2], selection="test_peek (optimistic)", **RR
    )
    table = (peek / "metrics.csv").read_text().replace("val/", "test/")
    (peek / "metrics.csv").write_text(table)
    hr, _ = epoch_curves(collect([peek])[0])
    first, last = (
        published("ite", "fig10_11", "retailrocket", "ite", f"K=64,epoch={n}", "HR@10")
        for n in (20, 200)
    )
    assert f"ite (published) from {first:.4f} at 20 to {last:.4f} at 200" in hr.alt
    assert "not drawn" not in hr.title


def test_captions_call_simulated_data_so(tmp_path):
    write_run(
        tmp_path / "a",
        model="ite",
        curve=[0.1, 0.2],
        **RR | {"data": RR["data"] | {"simulated": True}},
    )
    pictures = epoch_curves(collect([tmp_path])[0])
    assert pictures
    for picture in pictures:
        assert "retailrocket (simulated)" in picture.title and "not drawn" not in picture.title


def test_topk_curves_need_three_depths(tmp_path):
    run = write_run(tmp_path / "a", model="ite", **RR)
    assert topk_curves(collect([run])[0]) == []
    metrics = {f"test/{m}@{k}": k / 100 for m in ("hr", "ndcg") for k in (5, 10, 20, 50)} | {
        "test/mrr": 0.1
    }
    write_run(tmp_path / "b", model="ite", metrics=metrics, **RR)
    hr, _ = topk_curves(collect([tmp_path / "b"])[0])
    assert "ite from 0.0500 at 5 to 0.5000 at 50" in hr.alt and "ite (published)" in hr.alt


def test_pictures_are_well_formed_whatever_a_setting_says(tmp_path):
    nasty = '<script>alert(1)</script> $\\frac{ "&'
    for k in (8, 16):
        write_run(
            tmp_path / str(k),
            k / 100,
            model=nasty,
            config={"model.n_factors": k},
            curve=[0.1, 0.2],
        )
    made = swept(collect([tmp_path])[0]) + epoch_curves(collect([tmp_path])[0])
    assert len(made) == 4  # two metrics against the width and per epoch
    for picture in made:
        ET.fromstring(picture.svg)
        assert (
            "<script" not in picture.svg
            and picture.png.startswith(b"\x89PNG")
            and "/" not in picture.name
        )
    assert len({p.name for p in made}) == len(made)


def test_weights_are_those_the_layer_uses():
    torch.manual_seed(0)
    layer = MultiHeadAttention(8, 2, output=False).eval()
    x, mask = torch.randn(3, 5, 8), torch.ones(3, 5, dtype=torch.bool)
    mask[0, :2] = False
    allowed = causal_mask(mask)
    w = weights(layer, x, x, allowed)
    value = layer.value(x).unflatten(-1, (2, -1)).transpose(1, 2)
    torch.testing.assert_close((w @ value).transpose(1, 2).flatten(-2), layer(x, x, x, allowed))
    assert (w.sum(-1) - 1).abs().max() < 1e-6 and not w[~allowed.expand_as(w)].any()


@pytest.mark.parametrize("users", [3, 40])
def test_mean_weights_over_users_and_positions(users):
    """A uniform layer (no query) attends to every event alike: 1 / (events + [MASK]); more users
    than a group change nothing.
    """
    model = BERT4Rec(toy.schema(), n_factors=8, n_layers=2, n_heads=2, max_len=6).train()
    for layer in model.layers:
        torch.nn.init.zeros_(layer.attention.query.weight)
        torch.nn.init.zeros_(layer.attention.query.bias)
    query = toy.query([0] * users, [[1, 2, 3]] * users)
    # Too short to fill the positions, so it must not count: its two weights would be 1/2.
    short = toy.query([1], [[4]])
    found = mean_weights(model, [query, short], last=4)
    assert found.shape == (2, 2, 4, 4)
    np.testing.assert_allclose(found, 0.25, rtol=1e-6)
    with pytest.raises(RecexpError, match="fills 5 positions"):
        mean_weights(model, [query], last=5)
    assert model.training and "encode" not in vars(model)


def test_causal_models_never_attend_ahead_and_models_without_attention_are_refused():
    model = SASRec(toy.schema(), n_factors=8, n_layers=1, n_heads=1, max_len=6)
    found = mean_weights(model, [toy.query([0, 1], [[1, 2, 3], [4, 5, 6]])], last=3)[0, 0]
    assert np.triu(found, 1).max() == 0 and found[2].sum() == pytest.approx(1)
    with pytest.raises(RecexpError, match="no self-attention"):
        mean_weights(MF(toy.schema(), n_factors=4), [], last=3)
    about = About("shop", "full", "aaa")
    picture = heat_maps(found[None, None], "sasrec", about)
    shared = heat_maps(found[None, None] / 8, "sasrec", about, limits=(0.0, 1.0))
    own = heat_maps(found[None, None] / 8, "sasrec", about)
    assert (
        ">0.75</text>" in shared.svg and ">0.75</text>" not in own.svg
    )  # the color scale's upper end
    assert "1 layer(s) by 1 head(s)" in picture.alt and "strongest" in picture.alt
