"""Names of data sets, models, folders and settings are shown as text, whatever they hold."""

from __future__ import annotations

import csv
import io
import json
import logging
from pathlib import Path

import pytest

from recexp.cli.jobs import line
from recexp.config.check import check_config
from recexp.config.summary import summary
from recexp.logs import printable, printable_lines, show_logs
from recexp.report.__main__ import main as report
from recexp.report.describe import WRITERS
from recexp.report.formats import Cell, Table, as_csv, as_markdown, as_terminal
from recexp.report.latex import as_latex
from recexp.runs.outputs import show_table
from recexp.runs.result import RunResult
from tests.support.finished_runs import write_run
from tests.support.running import composed

HOSTILE = (
    "\x1b[31mred\x1b]0;title\x07",
    "\x9b2J",
    "=cmd()",
    "=HYPERLINK('x')",
    "+1+cmd|' /C calc'!A0",
    "@SUM(1)",
    "-2+3",
    "a|b",
    "<script>alert(1)</script>",
    "100%_&#{}$~^\\",
    "two\nlines\r\tand a tab",
    "[link](javascript:alert)",
    "![image](http://example.org/x.png)",
    "_emphasis_",
    "\u202eright to left",
    "not-\udcff-utf-8",
)


def shown(text: str) -> bool:
    """Whether all characters are safe on a terminal."""
    return all(line.isprintable() for line in text.splitlines())


def table(name: str) -> Table:
    row = (Cell(name), Cell(name, code=True), Cell("0.1000", 0.1, "best"))
    return Table(name, name, (name, "b", "c"), (row,), (name,))


@pytest.mark.parametrize("name", HOSTILE)
def test_printable_text_has_one_line_and_no_control_sequence(name):
    text = printable(name)
    assert text.isprintable() and text.encode()
    assert printable("bpr_mf · 95 % Δ 漢字") == "bpr_mf · 95 % Δ 漢字"


@pytest.mark.parametrize("name", HOSTILE)
def test_a_table_for_the_terminal_has_one_line_per_row(name):
    text = as_terminal(table(name))
    assert shown(text) and len(text.splitlines()) == 5


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_makes_no_markup_in_markdown(name):
    text = as_markdown(table(name))
    lines = text.splitlines()
    assert shown(text) and len(lines) == 9
    assert {line.replace("\\|", "").count("|") for line in lines if line[0:1] == "|"} == {4}
    outside_code = "\n".join(lines).replace(lines[6], "")
    assert "<" not in outside_code and "](" not in outside_code
    assert "_emphasis" not in outside_code.replace("\\_", "")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_makes_no_command_in_latex(name):
    text = as_latex([table(name)])
    cell = text.split(r"\midrule")[1].split(" & ")[0].strip()
    assert shown(text) and not cell.startswith(("[", "*"))
    for special in "%#&$_":
        assert special not in cell.replace(f"\\{special}", "")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_no_formula_in_csv(name):
    rows = list(csv.reader(io.StringIO(as_csv([table(name)]))))
    assert len(rows) == 4 and all(len(row) == 7 for row in rows)
    for cell in [cell for row in rows[1:] for cell in (row[0], row[2], row[3], row[5])]:
        assert cell.isprintable()
        assert cell[0] not in "=@+-"


def test_numbers_and_intervals_in_csv_stay_as_they_are():
    texts = ["-0.0140 to +0.0193", "+3.1", "-12.5 *", "1.0e-04", "–", ".4374", "-"]
    row = tuple(Cell(text) for text in texts)
    rows = list(csv.reader(io.StringIO(as_csv([Table("t", "", tuple("abcdefg"), (row,))]))))
    assert [line[5] for line in rows[1:]] == texts


@pytest.mark.parametrize("format", ["terminal", "markdown", "latex", "csv"])
def test_the_report_shows_hostile_names_as_text(tmp_path, capsys, format):
    for n, name in enumerate(HOSTILE):
        names = {"dataset": name, "protocol": name, "protocol_id": name, "model": name}
        write_run(tmp_path / str(n) / name.replace("/", "∕"), **names, stop_reason=name)
        write_run(tmp_path / str(n) / "good", seed=n, overrides=(f"model.x={name}",))
    (tmp_path / "\x1b[31mbroken").mkdir()
    (tmp_path / "\x1b[31mbroken" / "result.json").write_text("[")
    report([str(tmp_path), "--format", format, "--out", str(tmp_path / "out")])
    printed = capsys.readouterr()
    assert shown(printed.out) and shown(printed.err)
    for path in (tmp_path / "out").iterdir():
        if path.is_file():
            assert shown(path.read_text()), path


def test_an_error_of_the_report_shows_the_folder_as_text(tmp_path):
    with pytest.raises(SystemExit) as caught:
        report([str(tmp_path / "\x1b[31mnowhere\udcff")])
    assert r"\x1b[31mnowhere\udcff" in str(caught.value)


def test_the_table_of_a_run_shows_names_as_text(tmp_path, capsys):
    name = "\x1b[31mred"
    path = write_run(tmp_path / "run", model=name, dataset=name, protocol=name, stop_reason=name)
    content = json.loads((path / "result.json").read_text())
    content["metrics"] |= {"test/ndcg@5": 0.1}
    show_table(RunResult.parse(content), Path("\x1b[31mfolder\udcff"))
    text = capsys.readouterr().out
    assert shown(text) and text.count(r"\x1b[31m") == 5


def test_the_summary_of_a_run_shows_names_as_text(tmp_path):
    cfg = composed(tmp_path / "run", "model=pop", 'note="\x1b[31mred"')
    check_config(cfg)
    cfg.dataset.name = "\x1b[31mred"
    lines = summary(cfg)
    assert all(line.isprintable() for line in lines)
    assert any(r"\x1b[31mred" in line for line in lines)


def test_lines_of_a_sweep_show_names_as_text():
    assert line("job 0 started: group=\x1b[31mred\nFAILED") == (
        r"[sweep] job 0 started: group=\x1b[31mred\nFAILED"
    )


def test_log_messages_keep_their_lines_and_lose_control_sequences(capsys, monkeypatch):
    logger = logging.getLogger("recexp")
    for name, value in (("handlers", []), ("level", logger.level)):  # as before afterwards
        monkeypatch.setattr(logger, name, value)
    # pytest's own handler would keep the message as it is; its workers cannot send it.
    monkeypatch.setattr(logger, "propagate", False)
    show_logs()
    logging.getLogger("recexp.test").warning("first \x1b[31m\nsecond \udcff")
    assert "first \\x1b[31m\nsecond \\udcff\n" in capsys.readouterr().err
    assert printable_lines("a\nb\x1b") == "a\nb\\x1b"


def test_descriptions_of_data_show_names_as_text():
    for write in WRITERS.values():
        assert shown(write([table("\x1b[31mred\nline")]))
