"""Verdicts on planted curves, and comparisons of equal and unequal budgets."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from recexp.report.collect import collect
from recexp.report.convergence import ledger, verdict
from tests.support.finished_runs import write_run

EARLY = "early stopping: no better validation"
EPOCH = np.arange(40)


def table(folder: Path, rows: list[dict]) -> Path:
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(
            file, fieldnames=list(dict.fromkeys(k for row in rows for k in row))
        )
        writer.writeheader()
        writer.writerows(rows)
    return folder


def judged(folder: Path, curve=None, *, rows=None, threshold=0.01, **changes):
    write_run(folder, curve=None if curve is None else [float(v) for v in curve], **changes)
    if rows:
        table(folder, rows)
    (result,), _ = collect([folder])
    return verdict(result, folder, threshold=threshold)


def saturating(speed, epochs=40):
    return 0.3 * (1 - np.exp(-speed * (1 + np.arange(epochs))))


@pytest.mark.parametrize(
    ("name", "curve", "kind"),
    [
        ("line", 0.1 + 0.002 * EPOCH, "rising"),
        ("slow start", 0.02 * 1.05**EPOCH, "rising"),
        ("far from its end", saturating(0.03), "rising"),
        ("two epochs", [0.1, 0.2], "rising"),
        ("saturated", saturating(0.4), "converged"),
        ("over-fitting", saturating(0.4) - 0.002 * EPOCH, "overfitted"),
        ("over-fitting at once", 0.3 - 0.002 * EPOCH, "overfitted"),
        ("a little below its best", saturating(0.4) - 0.0002 * EPOCH, "converged"),
        ("recovering from a dip", np.where((EPOCH > 19) & (EPOCH < 30), 0.2, 0.3), "converged"),
        ("one lucky epoch near the end", np.where(EPOCH == 38, 0.31, 0.3), "converged"),
        ("one lucky epoch near the start", np.where(EPOCH == 8, 0.33, 0.3), "converged"),
        ("constant", np.full(40, 0.3), "converged"),
        ("nothing learned", np.zeros(40), "unlearned"),
        ("one epoch", [0.1], "one_pass"),
    ],
)
def test_planted_curves(tmp_path, name, curve, kind):
    assert judged(tmp_path / "run", curve).kind == kind


def test_the_gain_of_a_slow_rise_has_a_figure(tmp_path):
    text = judged(tmp_path / "run", 0.3 + 0.00015 * np.arange(200)).text
    assert text.endswith("val/ndcg@10 gained 0.045% of its 0.3298 an epoch over the last 50")


def curve_of(values, loss, steps_per_epoch=100):
    """Rows of metrics.csv."""
    return [
        {
            "epoch": n,
            "step": steps_per_epoch * (n + 1),
            "lr": 1,
            "train/loss": loss[n],
            "val/ndcg@10": v,
        }
        for n, v in enumerate(values)
    ]


@pytest.mark.parametrize("stop_reason", [EARLY, "max_epochs reached", "max_steps reached"])
@pytest.mark.parametrize(
    ("last", "kind"), [(0.69, "unlearned"), (0.6, "unlearned"), (0.4, "converged")]
)
def test_a_training_loss_near_a_constants_means_that_nothing_was_learned(
    tmp_path, stop_reason, last, kind
):
    """Whatever the validation curve: the loss of BPR for equal scores is log 2 = .693."""
    rows = curve_of([0.05] * 40, np.linspace(0.7, last, 40))
    found = judged(tmp_path / "run", rows=rows, stop_reason=stop_reason, constant_loss=0.6931)
    assert found.kind == kind
    assert ("0.6931" in found.text and f"{last:.4f}" in found.text) == (kind == "unlearned")
    assert (
        judged(tmp_path / "old", rows=rows, stop_reason=stop_reason).kind == "converged"
    )  # 4,000 steps


@pytest.mark.parametrize(("share", "kind"), [(0.05, "converged"), (0.15, "unlearned")])
def test_what_was_learned_is_measured_by_the_objectives_share(tmp_path, share, kind):
    rows = curve_of([0.05] * 40, np.linspace(1.0, 0.88, 40))
    facts = {"stop_reason": EARLY, "constant_loss": 1.0, "learned_share": share}
    assert judged(tmp_path / "run", rows=rows, **facts).kind == kind


@pytest.mark.parametrize(("of_items", "kind"), [(7.9, "unlearned"), (5.0, "converged")])
def test_only_the_part_of_the_loss_that_is_about_scores_is_compared(tmp_path, of_items, kind):
    """The rest may be larger than the loss of equal scores, or small."""
    rows = curve_of([0.05] * 40, np.full(40, 9.0))
    rows = [row | {"train/item_loss": of_items} for row in rows]
    found = judged(tmp_path / "run", rows=rows, stop_reason=EARLY, constant_loss=8.0)
    assert found.kind == kind


@pytest.mark.parametrize(
    ("steps_per_epoch", "loss", "kind"),
    [
        (10, np.linspace(8, 5, 12), "unknown"),  # patience after 50 steps says nothing
        (500, np.linspace(8, 5, 12), "converged"),
        (
            10,
            np.r_[np.linspace(8, 5, 6), np.full(6, 5.0)],
            "converged",
        ),  # no loss is left
    ],
)
@pytest.mark.parametrize("stop_reason", [EARLY, "max_epochs reached"])
def test_a_plateau_takes_steps(tmp_path, steps_per_epoch, loss, kind, stop_reason):
    values = [0.02, 0.03, 0.04, 0.049, 0.0495, 0.05, 0.0497, 0.0498, 0.0496, 0.0499, 0.0495, 0.0498]
    rows = curve_of(values, loss, steps_per_epoch)
    found = judged(tmp_path / "run", rows=rows, stop_reason=stop_reason)
    assert found.kind == kind
    assert ("by patience" in found.text) == (stop_reason == EARLY)


def test_patience_with_its_floor_ends_a_rise(tmp_path):
    """Best in epoch 34 of 40 and far above the quarter before, then five validations without a
    gain.
    """
    values = np.r_[0.1 + 0.002 * np.arange(35), np.full(5, 0.16)]
    for steps, kind in ((100, "rising"), (500, "converged")):
        rows = curve_of(values, 1 / (1 + EPOCH), steps)
        assert judged(tmp_path / f"{steps}", rows=rows, stop_reason=EARLY).kind == kind


def test_over_fitting_needs_a_falling_training_loss(tmp_path):
    values = saturating(0.4) - 0.002 * EPOCH
    for name, loss, kind in (
        ("fits", 1 / (1 + EPOCH), "overfitted"),
        ("diverges", 0.5 + 0.1 * EPOCH, "unknown"),
    ):
        assert judged(tmp_path / name, rows=curve_of(values, loss)).kind == kind


@pytest.mark.parametrize(
    ("last_loss", "kind"), [(8.2, "unknown"), (6.0, "overfitted"), (9.0, "unlearned")]
)
def test_a_fall_from_a_best_before_learning_may_be_a_slow_start(tmp_path, last_loss, kind):
    """BERT4Rec on few users: popular items first, a plateau, then a long rise."""
    values = np.where(EPOCH < 4, 0.03, 0.015)
    rows = curve_of(values, np.linspace(10.2, last_loss, 40))
    found = judged(tmp_path / "run", rows=rows, stop_reason=EARLY, constant_loss=10.3)
    assert found.kind == kind
    assert kind != "unknown" or "may rise again" in found.text
    # Where the best came after learning, a fall is a fall.
    rows = curve_of(values, np.linspace(8.6, last_loss - 1.0, 40))
    found = judged(tmp_path / "late", rows=rows, stop_reason=EARLY, constant_loss=10.3)
    assert found.kind == "overfitted"


def test_what_the_run_found_itself_is_believed(tmp_path):
    own = {"kind": "unlearned", "text": "stopped before it learned"}
    found = judged(tmp_path / "own", 0.1 + 0.002 * EPOCH, convergence=own)
    assert (found.kind, found.text) == ("unlearned", "stopped before it learned")
    for name, other in (("kind", {"kind": "splendid", "text": "x"}), ("text", {"kind": "rising"})):
        assert judged(tmp_path / name, saturating(0.4), convergence=other).kind == "converged"


@pytest.mark.parametrize("noise", [0.005, 0.01])
def test_noise_neither_makes_a_plateau_rise_nor_hides_a_rise(tmp_path, noise):
    generator = np.random.default_rng(0)
    kinds = {"converged": [], "rising": []}
    for trial in range(20):
        for kind, curve in (("converged", saturating(0.4)), ("rising", 0.1 + 0.002 * EPOCH)):
            noisy = curve * (1 + noise * generator.normal(size=40))
            kinds[kind].append(judged(tmp_path / f"{kind}{trial}", noisy).kind)
    assert kinds["converged"].count("converged") >= 19 and kinds["rising"].count("rising") == 20


def test_the_text_says_by_how_much_and_the_threshold_decides(tmp_path):
    line = 0.1 + 0.002 * EPOCH  # ends at 0.178: 1.1 % of it each epoch, 11 % in a quarter
    found = judged(tmp_path / "a", line)
    assert (
        found.kind == "rising"
        and "1.1% of its 0.1780 an epoch over the last 10" in found.text
        and "val/ndcg@10" in found.text
    )
    assert judged(tmp_path / "b", line, threshold=0.105).kind == "rising"
    assert judged(tmp_path / "c", line, threshold=0.12).kind == "converged"


@pytest.mark.parametrize("every", [2, 5, 10, 20])
def test_validation_in_some_epochs_only(tmp_path, every):
    for kind, curve in (("rising", 0.1 + 0.002 * EPOCH), ("converged", saturating(0.5))):
        rows = [
            {
                "epoch": n,
                "step": n,
                "lr": 1,
                "val/ndcg@10": curve[n] if n % every == every - 1 else "",
            }
            for n in EPOCH
        ]
        found = judged(tmp_path / kind, rows=rows)
        assert found.kind == kind
        assert "40 epochs" in found.text and ("1.1%" in found.text) == (
            kind == "rising"
        )  # per epoch, not per validation


def test_the_metric_judged_is_the_one_that_chose_the_epoch(tmp_path):
    rows = [
        {
            "epoch": n,
            "val/ndcg@10": 0.3,
            "test/ndcg@10": 0.1 + 0.002 * n,
            "val/hr@10": 0.1 + 0.001 * n,
        }
        for n in EPOCH
    ]
    assert judged(tmp_path / "val", rows=rows).kind == "converged"
    assert (
        judged(
            tmp_path / "peek",
            rows=rows,
            selection="test_peek (epoch chosen on the TEST set: optimistic)",
        ).kind
        == "rising"
    )
    found = judged(tmp_path / "hr", rows=rows, config={"callbacks.checkpoint.monitor": "val/hr@10"})
    assert found.kind == "rising" and "val/hr@10" in found.text


def test_what_cannot_be_known_is_said(tmp_path):
    assert judged(tmp_path / "no table").kind == "unknown"
    rows = [{"epoch": n, "lr": 1, "val/ndcg@10": 0.1 if n == 3 else ""} for n in range(4)]
    found = judged(tmp_path / "validated once", rows=rows)
    assert found.kind == "unknown" and "1 of 4" in found.text
    assert (
        judged(
            tmp_path / "one epoch by gradient", rows=[{"epoch": 0, "lr": 0.1, "val/ndcg@10": 0.1}]
        ).kind
        == "unknown"
    )


def test_an_evaluation_elsewhere_is_judged_by_its_training(tmp_path):
    curve = [float(v) for v in 0.1 + 0.002 * EPOCH]
    write_run(tmp_path / "run", curve=curve)
    write_run(
        tmp_path / "run" / "full_unseen",
        protocol_id="bbb",
        selection="val, by full",
        epochs=40,
        evaluated={},
    )
    assert [verdict(r).kind for r in collect([tmp_path])[0]] == ["rising", "rising"]


def test_ledger_counts_what_was_spent(tmp_path):
    for seed, epochs in enumerate((10, 20)):
        rows = [
            {
                "epoch": n,
                "step": 50 * (n + 1),
                "lr": 1,
                "train/seconds": 2.0,
                "train/examples_per_s": 150.0,
            }
            for n in range(epochs)
        ]
        table(
            write_run(
                tmp_path / f"a{seed}",
                model="sasrec",
                seed=seed,
                epochs=epochs,
                wall_time_s=30.0 + epochs,
            ),
            rows,
        )
    (row,) = ledger(collect([tmp_path])[0])
    assert (row.system, row.protocol_id, row.trials, row.seeds) == ("sasrec", "aaa", 2, 2)
    assert (row.epochs, row.steps, row.rows, row.seconds) == (15, 750, 4500, 45)
    assert set(row.share.values()) == {1.0} and row.flags == () and row.verdicts == {"unknown": 2}


def test_ledger_flags_who_got_less_than_half(tmp_path):
    long, short = [0.1] * 41, [0.1] * 20  # 100 steps an epoch
    write_run(tmp_path / "a", model="bert4rec", curve=long, wall_time_s=1000.0)
    write_run(tmp_path / "b", model="sasrec", curve=short)
    write_run(tmp_path / "c", model="gru4rec", curve=short, stop_reason=EARLY)
    write_run(tmp_path / "d", model="fpmc", curve=long[:21])
    write_run(tmp_path / "e", model="pop", curve=[0.1])
    write_run(tmp_path / "f", model="caser", curve=short, protocol_id="bbb")
    rows = {row.system: row for row in ledger(collect([tmp_path])[0])}
    assert (
        rows["bert4rec"].flags == rows["fpmc"].flags == ()
    )  # a difference in seconds, even by a factor of 1000, is not flagged
    assert rows["sasrec"].flags == (
        "epochs: 49% of what bert4rec got",
        "steps: 49% of what bert4rec got",
    )
    assert rows["gru4rec"].flags == tuple(f"{flag} (by patience)" for flag in rows["sasrec"].flags)
    assert rows["pop"].flags == ()  # needs no more than one pass
    assert (
        rows["caser"].flags == () and rows["caser"].share["epochs"] == 1.0
    )  # alone under its protocol id
    assert rows["bert4rec"].share["epochs"] == 1.0 and rows["sasrec"].share[
        "seconds"
    ] == pytest.approx(0.001)
    wider = {row.system: row for row in ledger(collect([tmp_path])[0], factor=3)}
    assert all(row.flags == () for row in wider.values())


def test_ledger_of_models_shows_unequal_tuning(tmp_path):
    for n in range(6):
        write_run(
            tmp_path / f"ours{n}",
            model="ite",
            overrides=(f"model.n_factors={n}",),
            curve=[0.1] * 4,
        )
    for n in range(2):
        write_run(tmp_path / f"theirs{n}", model="ncf", seed=n, curve=[0.1] * 4)
    write_run(tmp_path / "yardstick", model="pop", curve=[0.1])
    results, _ = collect([tmp_path])
    rows = {row.system: row for row in ledger(results, label=lambda r: r["model"])}
    assert (rows["ite"].trials, rows["ite"].seeds, rows["ncf"].trials, rows["ncf"].seeds) == (
        6,
        1,
        2,
        2,
    )
    assert rows["ncf"].flags == ("trials: 33% of what ite got",)
    assert rows["pop"].flags == ("trials: 17% of what ite got",)
    assert len(ledger(results)) == 8 and sum(row.trials for row in ledger(results)) == 9


def test_budgets_without_a_table_are_unknown_and_unflagged(tmp_path):
    write_run(tmp_path / "a", model="sasrec", curve=[0.1] * 40)
    write_run(tmp_path / "b", model="gru4rec", wall_time_s=None, epochs=40)
    row = next(row for row in ledger(collect([tmp_path])[0]) if row.system == "gru4rec")
    assert (row.steps, row.rows, row.seconds, row.epochs) == (None, None, None, 40)
    assert "steps" not in row.share and row.flags == ()
