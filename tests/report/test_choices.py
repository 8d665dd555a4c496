"""What of the tables a reader chooses: models, metrics, columns; and the terminal's own tables."""

from __future__ import annotations

import re

import pytest

from recexp.report.__main__ import EXAMPLES, _parser, main
from tests.support.finished_runs import ML, write_run
from tests.support.terminal import terminal


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two settings of ITE, popularity, and item_knn, which is the best."""
    folder = tmp_path_factory.mktemp("runs")
    for lr, ndcg in ((0.1, 0.2), (0.01, 0.3)):
        word = f"optimizer.lr={lr}"
        write_run(
            folder / f"ite{lr}", ndcg, model="ite", overrides=(word,), config={"optimizer.lr": lr}
        )
    write_run(folder / "pop", 0.1)
    write_run(folder / "knn", 0.4, model="item_knn")
    return folder


def table(capsys, *words) -> list[list[str]]:
    """The cells of the one table that the command prints."""
    main([*map(str, words)])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    return [[cell.strip(" *`<u>/") for cell in line.strip("|").split("|")] for line in lines]


def column(rows, n=0):
    return [row[n] for row in rows if row[0] not in ("model", "---")]


def test_models_are_shown_in_the_order_given_and_settings_of_one_best_first(runs, capsys):
    rows = table(capsys, runs, "--models", "pop,ite")
    assert column(rows) == ["pop", "ite optimizer.lr=0.01", "ite optimizer.lr=0.1"]


def test_metrics_are_shown_in_the_order_given_and_the_first_orders_the_rows(runs, capsys):
    rows = table(capsys, runs, "--metrics", "val/ndcg@10,mrr,hr@5")
    assert rows[0][:5] == ["model", "val/ndcg@10", "test/mrr", "test/hr@5", "best epoch"]
    assert column(rows) == ["item_knn", "ite optimizer.lr=0.01", "ite optimizer.lr=0.1", "pop"]


def test_columns_are_shown_in_the_order_given(runs, capsys):
    words = ("--columns", "model,seed,ndcg@10,optimizer.lr,parameters,best-epoch,hr@5")
    rows = table(capsys, runs, *words)
    head = ["model", "seed", "test/ndcg@10", "optimizer.lr", "parameters", "best epoch"]
    assert rows[0] == [*head, "test/hr@5"]
    assert rows[2] == ["item_knn", "0", "0.4000", "–", "7", "1/4", "0.4000"]
    assert rows[3] == ["ite optimizer.lr=0.01", "0", "0.3000", "0.01", "7", "1/4", "0.3000"]


def test_columns_without_a_metric_stand_behind_the_metrics(runs, capsys):
    rows = table(capsys, runs, "--columns", "commit", "--metrics", "hr@10")
    assert rows[0] == ["model", "test/hr@10", "commit"]


def test_published_figures_stand_beside_chosen_metrics_where_they_are_asked_for(tmp_path, capsys):
    write_run(tmp_path / "a", 0.4, model="sasrec", **ML)
    without = table(capsys, tmp_path, "--columns", "ndcg@10")
    assert without[0] == ["model", "test/ndcg@10"]
    with_them = table(capsys, tmp_path, "--columns", "published,ndcg@10")
    assert with_them[0] == ["model", "test/ndcg@10", "published", "Δ %"]
    assert with_them[2][2] == "0.4368"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--models pop,bert", "--models bert: no run is of this model; they are of"),
        ("--metrics recall@3", "--metrics recall@3: no run has this metric; they have hr@10, "),
        ("--metric recall@3", "--metric recall@3: no run has this metric; they have hr@10, "),
        ("--columns time", "--columns time: there is no such column; choose from model, metrics, "),
    ],
)
def test_an_unknown_name_is_one_sentence_with_the_known_ones(runs, words, sentence):
    with pytest.raises(SystemExit) as stopped:
        main([str(runs), *words.split()])
    text = str(stopped.value.code)
    assert text.startswith(f"error: {sentence}")
    assert text.count(". ") == 0 and text.endswith(".")
    for known in {"--models": ["pop", "ite"], "--columns": ["best-epoch", "mrr"]}.get(
        words.split()[0], ["mrr"]
    ):
        assert known in text


def test_figures_are_of_the_chosen_metrics_and_models(runs, tmp_path, capsys):
    words = ["--metrics", "mrr", "--models", "ite", "--out", str(tmp_path / "page")]
    main([str(runs), *words])
    names = [path.name for path in (tmp_path / "page" / "figures").glob("*.svg")]
    assert names == ["mrr_against_optimizer_lr_shop_full_aaa.svg"]
    lines = (tmp_path / "page" / "tables.txt").read_text().splitlines()
    assert any(line.startswith("ite ") for line in lines)
    assert not any(line.startswith("pop ") for line in lines)


def test_markdown_shows_the_figures_that_lie_beside_it(runs, tmp_path, capsys):
    main([str(runs), "--out", str(tmp_path)])
    links = re.findall(r"^!\[.*\]\((.*)\)$", (tmp_path / "tables.md").read_text(), re.M)
    assert len(links) == 2
    for link in links:
        svg = (tmp_path / link).read_text()
        assert svg.index("white") < svg.index("<g"), "it can be read on a dark page"


def test_a_terminal_gets_drawn_tables_without_the_columns_it_has_no_room_for(runs, monkeypatch):
    with terminal(monkeypatch, columns=250) as wide:
        main([str(runs)])
    with terminal(monkeypatch, columns=80) as narrow:
        main([str(runs)])
    assert re.search(r"\x1b\[1m *0\.4000", wide.raw) and re.search(r"\x1b\[4m *0\.3000", wide.raw)
    assert any("commit" in line and "settings" in line for line in wide.lines())
    heads = [line.split() for line in narrow.lines() if line.startswith("model")]
    assert heads == [["model", "test/hr@10", "test/ndcg@10", "test/mrr", "val/ndcg@10", "seed"]]
    assert "not shown: best epoch, stopped by, rows/s, s, commit, settings" in " ".join(
        narrow.lines()
    )
    assert max(map(len, narrow.lines())) <= 80


def test_elsewhere_the_format_of_the_terminal_is_plain_text(runs, capsys):
    main([str(runs), "--format", "terminal"])
    assert "\x1b" not in capsys.readouterr().out


def test_the_help_names_every_column_and_shows_commands(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for word in ("best-epoch", "parameters", "optimizer.lr", "--metrics hr@10,ndcg@10 --models"):
        assert word in text
    for line in EXAMPLES.splitlines()[1:]:
        command = re.split(r"  +", line.strip())[0]
        _parser().parse_args(command.split()[3:])
