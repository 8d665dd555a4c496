"""The table of a sweep's best jobs: order, settings that vary, terminal and file."""

from __future__ import annotations

import re

import pytest

from recexp.cli.sweep_table import MAX_ROWS, BestJobs, show
from recexp.logs import show_logs
from tests.support.terminal import terminal

JOBS = [
    ["model=sasrec", f"optimizer.lr={lr}", f"seed={seed}"] for lr in (0.1, 0.01) for seed in (0, 1)
]


def result(value: float, monitor: str | None = None, **metrics: float) -> dict:
    config = {"callbacks": {"checkpoint": {"monitor": monitor}}} if monitor else {}
    return {"metrics": {"val/ndcg@10": value, **metrics}, "config": config}


def finished(*values: float) -> BestJobs:
    best = BestJobs()
    best.expect(JOBS)
    for number, value in enumerate(values):
        best.add(number, JOBS[number % len(JOBS)], result(value))
    return best


def texts(best: BestJobs) -> list[tuple[str, ...]]:
    return [tuple(cell.text for cell in row) for row in best.table().rows]


def test_jobs_are_ranked_by_validation_with_the_settings_that_vary():
    best = finished(0.1, 0.3, 0.2)
    assert best.table().head == ("rank", "val/ndcg@10", "job", "optimizer.lr", "seed")
    assert texts(best) == [
        ("1", "0.3000", "1", "0.1", "1"),
        ("2", "0.2000", "2", "0.01", "0"),
        ("3", "0.1000", "0", "0.1", "0"),
    ]


def test_the_metric_is_the_one_that_chose_the_epoch():
    best = BestJobs()
    best.expect(JOBS)
    best.add(0, JOBS[0], result(0.9, "val/mrr", **{"val/mrr": 0.1}))
    best.add(1, JOBS[1], result(0.1, "val/mrr", **{"val/mrr": 0.2}))
    assert best.table().head[1] == "val/mrr"
    assert [row[2] for row in texts(best)] == ["1", "0"]


def test_a_job_below_the_best_changes_nothing_that_is_shown():
    best = finished(*[0.5] * MAX_ROWS)
    assert not best.add(90, JOBS[0], result(0.4))
    assert best.add(91, JOBS[0], result(0.6))
    assert len(texts(best)) == MAX_ROWS


def test_a_job_without_the_metric_is_no_row():
    best = finished(0.1)
    assert not best.add(1, JOBS[1], {"metrics": {"test/hr@10": 0.9}})
    assert len(texts(best)) == 1


def test_on_a_terminal_the_table_is_drawn(monkeypatch):
    with terminal(monkeypatch) as screen:
        show(finished(0.1, 0.3))
    assert re.search(r"\x1b\[1m *0\.3000", screen.raw)
    assert any(line.split() == ["2", "0.1000", "0", "0.1", "0"] for line in screen.lines())


def test_elsewhere_its_lines_are_plain(capsys):
    show_logs()
    show(finished(0.1, 0.3))
    said = capsys.readouterr().err
    assert "\x1b" not in said and "*0.3000" in said
    assert len(said.splitlines()) == 4


@pytest.mark.parametrize("hostile", ["a\x1b[31mb", "a\nb"])
def test_settings_cannot_write_to_the_terminal(capsys, monkeypatch, hostile):
    best = BestJobs()
    best.expect([[f"note={hostile}"], ["note=plain"]])
    best.add(0, [f"note={hostile}"], result(0.1))
    show_logs()
    show(best)
    plain = capsys.readouterr().err
    with terminal(monkeypatch) as screen:
        show(best)
    for text in (plain, screen.raw):
        assert hostile not in text
