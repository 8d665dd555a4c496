"""Data set tables by one command: counts on a hand-written world, and the papers' on real data."""

from __future__ import annotations

import csv
import io
import json
import os
import runpy
from pathlib import Path

import pytest

from recexp.config import CONF
from recexp.errors import RecexpError
from recexp.report.describe import Printed, describe, facts, main, printed
from tests.support.events import P1, P2_LATER, Event, random_events, store

DATA = Path(os.environ.get("RECEXP_DATA", ""))
EVENTS = [
    *(
        Event("u", i, b, t)
        for i, b, t in (("a", "view", 1), ("a", "view", 2), ("b", "view", 3), ("c", "cart", 4))
    ),
    *(Event("u", i, b, t) for i, b, t in (("b", "cart", 5), ("b", "buy", 6))),
    *(Event("v", i, b, t) for i, b, t in (("d", "buy", 1), ("a", "view", 2))),
    Event("w", "a", "view", 1),
]


def table(tables, title):
    found = next(t for t in tables if t.title.startswith(title))
    return {
        row[0].text: dict(zip(found.head[1:], (c.text for c in row[1:]), strict=True))
        for row in found.rows
    }


def test_counts_of_a_small_world(tmp_path):
    opened = store(tmp_path, EVENTS, P1)
    found = facts(opened)
    expected = {
        "users": 3,
        "items": 4,
        "events": 9,
        "pairs": 6,
        "explicit pairs": 3,
        "kinds of behavior": 3,
        "density": 0.5,
        "sparsity": 0.5,
        "mean length": 3,
        "median length": 2,
        "labels": 0,
    }
    assert {k: found[k] for k in expected} == expected
    tables = describe(opened, "p1_uniform999")
    kinds = table(tables, "Kinds of behavior")
    assert {k: (v["events"], v["pairs"], v["users"]) for k, v in kinds.items()} == {
        "view": ("5", "4", "3"),
        "cart": ("2", "2", "1"),
        "buy": ("2", "2", "2"),
        "any explicit": ("4", "3", "2"),
        "any": ("9", "6", "3"),
    }
    assert [kinds[k]["feedback"] for k in ("view", "cart", "buy")] == [
        "implicit",
        "explicit",
        "explicit",
    ]
    # u: b tests, c validates, a trains twice; v: d tests without a history, a trains; w trains only
    size = table(tables, "shop: size")
    assert size["training part"] == {
        "users": "3",
        "items": "1",
        "events": "4",
        "pairs": "3",
        "density": "25.000%",
        "mean length": "1.3",
        "median length": "1.0",
    }
    held = table(tables, "Held-out targets: p1_uniform999")
    assert held["users"] == {"validation": "1", "test": "2"}
    assert held["without a history"]["test"] == "50.0%"
    assert held["item without a training event"] == {"validation": "100.0%", "test": "100.0%"}
    assert held["seen before through a weaker behavior"]["test"] == "50.0%"
    left = table(tables, "Users left out")
    assert left["not tested: no event that can be a target"] == {"users": "1"}


def test_what_supportive_only_may_draw_is_shown(tmp_path):
    opened = store(tmp_path, random_events(5), P2_LATER)
    shown = table(describe(opened), "Held-out targets")[
        "pair in training through weaker behaviors only"
    ]
    assert shown["test"] == f"{opened.meta['audit']['test_targets_weaker_only']:.1%}" != "0.0%"


@pytest.mark.parametrize(
    ("text", "value", "agrees", "shown"),
    [
        ("1.0m", 999_611, True, "999,611"),
        ("1.0m", 1_100_000, False, "1,100,000"),
        ("4.79%", 0.04786, True, "4.786%"),
        ("4.79%", 0.04845, False, "4.845%"),
        ("163.5", 163.4985, True, "163.50"),
        ("6040", 6040, True, "6,040"),
        ("6040", 6041, False, "6,041"),
    ],
)
def test_figures_agree_where_they_round_to_what_is_printed(text, value, agrees, shown):
    row = Printed("paper", "data", "users", text, "")
    assert (row.agrees(value), row.shown(value)) == (agrees, shown)


def test_every_printed_figure_can_be_read_and_computed(tmp_path):
    found = facts(store(tmp_path, random_events(5), P1))
    rows = [
        r
        for name in (
            "ml_1m",
            "ml_20m",
            "amazon_beauty",
            "steam",
            "retailrocket",
            "recobell",
            "taobao",
        )
        for r in printed(name)
    ]
    assert (
        len(rows)
        == len(
            (CONF.parent / "recexp" / "report" / "papers" / "datasets.csv").read_text().splitlines()
        )
        - 1
    )
    for row in rows:
        row.agrees(found[row.quantity])
    assert printed("taobao_31882") == printed("taobao")
    with pytest.raises(RecexpError, match="about 5"):
        Printed("paper", "data", "users", "about 5", "").agrees(5)


def test_the_command(tmp_path, capsys):
    words = [
        "dataset=ml_1m",
        "scale=smoke",
        "protocol=p3_popular100",
        f"dataset.raw_dir={tmp_path}/raw",
        f"cache_dir={tmp_path}/cache",
    ]
    main([*words, "--format", "csv"])
    records = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    users = next(
        r
        for r in records
        if (r["table"], r["model"], r["column"]) == ("simulated_ml_1m: size", "all", "users")
    )
    folder = next((tmp_path / "cache").glob("*/meta.json")).parent
    assert float(users["value"]) == json.loads((folder / "meta.json").read_text())["users"]
    assert not any(r["table"].startswith("Beside") for r in records)
    main([str(folder)])
    markdown = capsys.readouterr().out
    assert "| --- |" in markdown and "SIMULATED" in markdown and "genres | multi_label" in markdown


def test_the_command_of_earlier_versions_does_the_same(tmp_path, capsys, monkeypatch):
    folder = store(tmp_path, EVENTS, P1).folder
    main([str(folder)])
    expected = capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["describe", str(folder)])
    runpy.run_module("recexp.data.describe", run_name="__main__")
    assert capsys.readouterr().out == expected


def test_what_cannot_be_described_is_one_line(tmp_path):
    for words in (["nosuch=3"], ["model=nosuch"], [str(tmp_path)]):
        with pytest.raises(SystemExit, match="error: "):
            main(words)
    opened = store(tmp_path, random_events(5), P1)
    del opened.meta["left_out"]
    with pytest.raises(RecexpError, match="earlier version"):
        describe(opened)


@pytest.mark.skipif("RECEXP_DATA" not in os.environ, reason="RECEXP_DATA is not set: no real data")
def test_movielens_1m_is_bert4recs(tmp_path, capsys):
    main(
        [
            "dataset=ml_1m",
            f"dataset.raw_dir={DATA}/ml-1m",
            "protocol=p3_popular100",
            f"cache_dir={tmp_path}",
        ]
    )
    lines = capsys.readouterr().out.splitlines()
    assert "| all | 6,040 | 3,416 | 999,611 | 999,611 | 4.845% | 165.5 | 96.0 |" in lines
    bert4rec = [line for line in lines if line.startswith("| bert4rec |")]
    assert len(bert4rec) == 5 and all("| yes |" in line for line in bert4rec)
    assert "| bert4rec | training density | 4.79% | 4.786% | yes |" in "\n".join(bert4rec)
