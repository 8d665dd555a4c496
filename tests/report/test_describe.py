"""Data set tables by one command: counts on a hand-written world, and the papers' on real data."""

from __future__ import annotations

import csv
import io
import json
import os
import runpy
from collections import Counter
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from recexp.config import CONF
from recexp.errors import RecexpError
from recexp.report.dataset_picture import events_over_time, lengths, popularity
from recexp.report.dataset_table import dataset_table
from recexp.report.describe import (
    WRITERS,
    Printed,
    describe,
    facts,
    main,
    overrides_per_dataset,
    printed,
)
from tests.support.events import BEHAVIORS, P1, P2_LATER, P3, Event, random_events, store

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


def summary(*stores, protocols=()):
    shown = dataset_table(stores, [facts(one) for one in stores], protocols)
    columns = zip(*(row[1:] for row in shown.rows), strict=True)
    titles = [row[0].text for row in shown.rows]
    cells = [dict(zip(titles, column, strict=True)) for column in columns]
    return shown, [{title: cell.text for title, cell in column.items()} for column in cells]


def test_the_table_of_papers_is_that_of_counting(tmp_path):
    """Every quantity from the events themselves; ties, repeats and merged pairs among them."""
    day = 86_400_000
    start = 1_000_000_000_000  # 2001-09-09
    events = [e._replace(time=start + e.time * day) for e in random_events(7, n_times=9)]
    events = [e._replace(time=start + (e.time - start) // 1000) for e in events]
    for split, merge in ((P3, "none"), (P1, "pairs")):
        opened = store(tmp_path / merge, events, split, merge=merge)
        _, (shown,) = summary(opened)
        users = {e.user for e in events}
        items = {e.item for e in events}
        pairs = {(e.user, e.item) for e in events}
        moments = Counter((e.user, e.time) for e in events)
        lengths = sorted(Counter(e.user for e in events).values())
        expected = {
            "users": f"{len(users)}",
            "items": f"{len(items)}",
            "events": f"{len(events)}",
            "pairs": f"{len(pairs)}",
            "density": f"{len(pairs) / len(users) / len(items):.3%}",
            "mean length": f"{len(events) / len(users):.1f}",
            "median length": f"{median(lengths):.1f}",
            "repeated events": f"{1 - len(pairs) / len(events):.1%}",
            "first event (UTC)": "2001-09-09",
            "last event (UTC)": "2001-09-17",
            "days": f"{(max(e.time for e in events) - min(e.time for e in events)) / day:.1f}",
            "events at a shared time": (
                f"{sum(n for n in moments.values() if n > 1) / len(events):.1%}"
            ),
            "test targets": f"{len(opened.test)}",
            "cold test targets": f"{opened.test.cold.double().mean():.1%}",
        }
        for behavior, n in Counter(e.behavior for e in events).items():
            expected[f"events: {behavior}"] = f"{n}"
        assert {title: shown[title] for title in expected} == expected
    # An earlier version kept no facts of times, so those of the prepared events stand in.
    del opened.meta["times"]
    table_of_earlier, (shown,) = summary(opened)
    assert "an earlier version" in table_of_earlier.notes[-1]
    assert shown["events at a shared time"] != expected["events at a shared time"]


def test_several_data_sets_share_the_table(tmp_path):
    (tmp_path / "b" / "raw").mkdir(parents=True)
    (tmp_path / "b" / "raw" / "items.csv").write_text("item,brand\na,x\nb,\n")
    (tmp_path / "b" / "raw" / "users.csv").write_text("user,age\nu,30\nv,\nw,40\n")
    features = {
        "items": {"file": "items.csv", "item": "item", "columns": {"brand": "categorical"}},
        "users": {"file": "users.csv", "user": "user", "columns": {"age": "numeric"}},
    }
    one = store(tmp_path / "a", EVENTS, P1)
    other = store(tmp_path / "b", EVENTS, P3, features=features, name="brands")
    shown, (left, right) = summary(one, other)
    assert shown.head[1:] == ("shop", "brands")
    assert left["items with brand"] == "–" and right["items with brand"] == "25.0%"
    assert right["users with age"] == "66.7%"
    assert "days" not in left  # times are numbers of events
    titles = list(left)
    assert titles[:6] == ["users", "items", "events", *(f"events: {b}" for b in BEHAVIORS)]
    again, _ = summary(one, store(tmp_path / "a", EVENTS, P3), protocols=("p1", "p3"))
    assert again.head[1:] == ("shop, p1", "shop, p3")
    latex = WRITERS["latex"]([shown])
    assert r"\toprule" in latex and r"density & 50.000\% & 50.000\% \\" in latex


def test_words_behind_a_data_set_belong_to_it():
    words = ["protocol=full", "dataset=a", "dataset.raw_dir=x", "dataset=b"]
    assert overrides_per_dataset(words) == [
        ["protocol=full", "dataset=a", "dataset.raw_dir=x"],
        ["protocol=full", "dataset=b"],
    ]
    assert overrides_per_dataset(["protocol=full"]) == [["protocol=full"]]
    assert overrides_per_dataset([]) == []


def test_the_picture_shows_what_was_counted(tmp_path, capsys):
    day = 86_400_000
    events = [e._replace(time=e.time * day) for e in random_events(7, n_times=900)]
    opened = store(tmp_path, events, P3)
    per_user = list(Counter(e.user for e in events).values())
    length, share = lengths(opened)
    assert length.tolist() == sorted(set(per_user))
    assert share.tolist() == [sum(n >= m for n in per_user) / len(per_user) for m in length]
    per_item = Counter(e.item for e in events)
    assert popularity(opened).tolist() == sorted(per_item.values(), reverse=True)
    middle, per_day = events_over_time(opened)
    assert (per_day * np.diff(middle).mean() / day).sum() == pytest.approx(len(events), rel=1e-3)
    main([str(opened.folder), "--summary", "--figure", str(tmp_path / "data.svg")])
    assert capsys.readouterr().out.count("### ") == 1
    svg = (tmp_path / "data.svg").read_text()
    assert "events per day" in svg and "share of users" in svg and "mathdefault" not in svg
    with pytest.raises(SystemExit, match=r"must end in \.svg or \.png"):
        main([str(opened.folder), "--figure", "data.pdf"])


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


@pytest.mark.skipif("RECEXP_DATA" not in os.environ, reason="RECEXP_DATA is not set: no real data")
def test_movielens_is_what_its_publisher_says(tmp_path, capsys):
    """README of MovieLens-100K: 100 000 ratings by 943 users on 1 682 items, from September 19th,
    1997 (the afternoon in Minnesota) through April 22nd, 1998."""
    words = ["dataset=ml_100k", f"dataset.raw_dir={DATA}/ml-100k", "dataset.filters=[]"]
    main([*words, "protocol=full", f"cache_dir={tmp_path}", "--summary"])
    lines = capsys.readouterr().out.splitlines()
    for line in (
        "| users | 943 |",
        "| items | 1,682 |",
        "| events | 100,000 |",
        "| density | 6.305% |",
        "| first event (UTC) | 1997-09-20 |",
        "| last event (UTC) | 1998-04-22 |",
    ):
        assert line in lines
