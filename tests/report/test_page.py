"""The page is complete without network: all tables, alt text, and no text of a run becomes
markup.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser

import pytest

from recexp.report.__main__ import main
from recexp.report.collect import collect
from recexp.report.statistics import budgets, comparisons, convergence, spreads
from recexp.report.write import page_title
from tests.support.finished_runs import write_run

VOID = {"meta", "br", "img", "link", "input", "hr"}
REFERENCES = {"src", "href", "xlink:href", "srcset", "action", "data", "poster"}
NASTY = "<script>alert('x')</script>"


class Reader(HTMLParser):
    """Parses the page as a browser does: nesting of elements, references, tables, pictures, ids."""

    def __init__(self):
        super().__init__()
        self.open, self.references, self.ids, self.heads, self.figures, self.scripts, self.text = (
            [],
            [],
            [],
            [],
            [],
            0,
            "",
        )

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.references += [found[a] for a in REFERENCES & found.keys()]
        self.references += re.findall(r"url\(([^)]*)\)", " ".join(v for v in found.values() if v))
        self.ids += [found["id"]] if "id" in found else []
        self.scripts += tag == "script"
        if tag == "svg":
            self.figures.append(found.get("aria-label"))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.text += data
        if "h3" in self.open:
            self.heads.append(data)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    runs, out = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("out")
    for model, base in (("sasrec", 3), ("pop", 20)):
        for seed in (0, 1):
            better = [(base + 7 * u + 3 * seed) % 40 for u in range(60)]
            config = {"model.n_factors": 8 + 8 * seed, "model.note": NASTY}
            name, overrides = (
                f"{model}{seed}",
                (f"model.n_factors={8 + 8 * seed}", f"model.note={NASTY}"),
            )
            write_run(
                runs / name,
                0.3 - base / 100,
                model=model,
                config=config,
                overrides=overrides,
                better=better,
                curve=[0.1, 0.2, 0.25],
            )
    write_run(runs / "cut")
    (runs / "cut" / "result.json").unlink()
    main([str(runs), "--out", str(out)])
    reader = Reader()
    reader.feed((out / "index.html").read_text())
    reader.close()
    return runs, out, reader


def test_the_page_is_whole_and_refers_to_nothing_outside(written):
    _, out, reader = written
    assert not reader.open  # everything closed
    outside = [r for r in reader.references if not r.startswith(("#", "data:"))]
    assert reader.references and not outside
    assert {r[1:] for r in reader.references if r.startswith("#")} <= set(
        reader.ids
    )  # no dangling link
    assert len(set(reader.ids)) == len(reader.ids)
    assert not re.search(r"https?://", (out / "index.html").read_text())


def test_all_tables_and_all_figures_are_there_and_described(written):
    runs, out, reader = written
    heads = "".join(reader.heads)
    for kind in ("shop, full (id aaa)", "Pairs of systems", "Spread", "Convergence", "Budgets"):
        assert kind in heads
    assert (
        len(reader.figures)
        == len(list((out / "figures").glob("*.svg")))
        == len(list((out / "figures").glob("*.png")))
        >= 4
    )
    assert all(label and len(label) > 40 for label in reader.figures)
    assert f"{runs / 'cut'}: no result.json" in reader.text


def test_a_page_of_simulated_data_says_so_in_its_title(tmp_path):
    named = {"overrides": ("experiment=ite/fig5_factors",)}
    write_run(tmp_path / "a", dataset="simulated_shop", **named)
    assert page_title(collect([tmp_path])[0]) == "ite/fig5_factors (simulated data)"
    write_run(tmp_path / "b", **named)
    assert page_title(collect([tmp_path])[0]) == "ite/fig5_factors (partly simulated data)"
    assert page_title(collect([tmp_path / "b"])[0]) == "ite/fig5_factors"


def test_what_a_run_says_is_text(written):
    _, out, reader = written
    assert (
        reader.scripts == 1 and NASTY in reader.text
    )  # the page's own; the setting is shown, not run
    assert NASTY not in (out / "index.html").read_text()


def test_tables_are_written_in_every_format_and_no_ranks(written):
    _, out, _ = written
    assert {p.name for p in out.iterdir()} == {
        "index.html",
        "figures",
        "tables.csv",
        "tables.md",
        "tables.tex",
        "tables.txt",
    }
    assert (
        "Pairs of systems" in (out / "tables.md").read_text()
        and "Budgets" in (out / "tables.tex").read_text()
    )


def test_writing_twice_gives_the_same_bytes(written, tmp_path):
    runs, out, _ = written
    main([str(runs), "--out", str(tmp_path)])
    assert (tmp_path / "index.html").read_bytes() == (out / "index.html").read_bytes()


BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
PROBE = """<script>
var table = document.querySelector('table'), heads = Array.from(table.tHead.rows[0].cells);
var at = heads.findIndex(function (h) { return h.textContent === 'test/ndcg@10'; });
function column() {
  return Array.from(table.tBodies[0].rows).map(
    function (r) { return parseFloat(r.cells[at].dataset.value); });
}
heads[at].firstChild.click(); var down = column(); heads[at].firstChild.click(); var up = column();
document.title = JSON.stringify({down: down, up: up,
  wide: document.documentElement.scrollWidth - innerWidth,
  fetched: performance.getEntriesByType('resource').length,
  empty: Array.from(document.querySelectorAll('svg.plot')).filter(
    function (s) { return !s.getBBox().width; }).length});
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [500, 1200])
def test_in_a_browser(written, tmp_path, width):
    """Sorting works, nothing is fetched, no picture is empty, and the page is no wider than a
    narrow window.
    """
    _, out, _ = written
    (tmp_path / "page.html").write_text(
        (out / "index.html").read_text().replace("</body>", PROBE + "</body>")
    )
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--window-size={width},900",
        "--dump-dom",
    ]
    done = subprocess.run(
        [BROWSER, *options, f"file://{tmp_path / 'page.html'}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    seen = json.loads(unescape(re.search("<title>(.*?)</title>", done.stdout)[1]))
    assert (
        seen["down"] == sorted(seen["down"], reverse=True)
        and seen["up"] == sorted(seen["up"])
        and len(set(seen["up"])) > 1
    )
    assert seen["wide"] <= 0 and (seen["fetched"], seen["empty"]) == (0, 0)


def test_statistics_by_known_answers(tmp_path):
    """The better system has rank 1 for each user, the other rank 2: NDCG 1 and 0.63093."""
    for model, rank in (("a", 0), ("b", 1)):
        for seed in (0, 1):
            write_run(
                tmp_path / f"{model}{seed}",
                0.5,
                model=model,
                seed=seed,
                better=[rank] * 50,
                curve=[0.1, 0.2, 0.4],
            )
    write_run(tmp_path / "bare", 0.5, model="c")
    results, _ = collect([tmp_path])
    (pairs,) = comparisons(results)
    row = dict(zip(pairs.head, [c.text for c in pairs.rows[0]], strict=True))
    assert (row["better"], row["worse"], row["difference in ndcg@10"], row["real at 5 %"]) == (
        "a",
        "b",
        "0.3691",
        "yes",
    )
    assert len(pairs.rows) == 1 and "bare" in pairs.notes[0]
    (spread,) = spreads(results)
    assert [(r[0].text, r[1].text, r[2].text) for r in spread.rows] == [
        ("a", "1.0000", "0.0000"),
        ("b", "0.6309", "0.0000"),
    ]
    (rising,) = convergence(results)
    assert {r[0].text: r[2].text for r in rising.rows} == {
        "a": "STILL RISING",
        "b": "STILL RISING",
        "c": "unknown",
    }
    (ledger,) = budgets(results)
    assert {r[0].text: r[1].text for r in ledger.rows} == {"a": "2", "b": "2", "c": "1"}


def test_other_metrics_and_unknown_ones(tmp_path, capsys):
    write_run(tmp_path / "a")
    main([str(tmp_path), "--metric", "hr@5"])
    assert "test/hr@5" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="hr@10"):
        main([str(tmp_path), "--metric", "precision"])
