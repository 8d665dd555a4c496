"""LaTeX: tables fit a page, whatever their texts, and have no command but ours."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from recexp.report.__main__ import main
from recexp.report.formats import BEST, Cell, Table
from recexp.report.latex import MAX_LINES, PREAMBLE, TEXT_WIDTH, as_latex
from tests.support.finished_runs import ML, write_run

NUMBER = Cell("0.1234 ± 0.0012", 0.1234, BEST)
SETTING = Cell('model.name=[a|b] "x" --y `z` <\\frac{1}> ~^#$%&_*', code=True)
HOSTILE = Table(
    "a_b & c--d", "50 % – déjà ß ł 中 Ω", ("x", "[y]"), ((SETTING, SETTING),), ("a_b-1" * 30,)
)
WIDE = Table("wide", "", ("model", *"abcdefghij"), ((Cell("sasrec " * 4), *[NUMBER] * 10),) * 3)
LONG = Table("long", "", ("model", "test/ndcg@10"), ((Cell("pop"), NUMBER),) * (2 * MAX_LINES + 1))


def rows_of(latex: str) -> list[list[str]]:
    """Cells of the rows of numbers and texts of every tabular."""
    bodies = re.findall(r"\\midrule\n(.*?)\\bottomrule", latex, re.S)
    lines = [line for body in bodies for line in body.splitlines()]
    return [re.sub(r" \\(\\|tabularnewline)$", "", line).split(" & ") for line in lines]


def test_a_table_of_results_has_short_heads_and_no_commit(tmp_path, capsys):
    write_run(tmp_path / "a", 0.4, model="sasrec", **ML)
    main([str(tmp_path), "--format", "latex"])
    latex = capsys.readouterr().out
    heads = re.findall(r"\\toprule\n(.*) \\\\\n\\midrule", latex)
    assert [name for head in heads for name in head.split(" & ")] == [
        "model",
        "HR@10",
        "paper",
        r"$\Delta$ \%",
        "NDCG@10",
        "paper",
        r"$\Delta$ \%",
        "MRR",
        "paper",
        r"$\Delta$ \%",
        "model",
        "val. NDCG@10",
        "seed",
    ]
    assert latex.startswith(PREAMBLE) and "0123456" not in latex
    main([str(tmp_path), "--format", "latex", "--columns", "ndcg@10,commit"])
    assert "0123456" in capsys.readouterr().out


def test_a_wide_table_is_continued_below_with_the_first_column_again():
    latex = as_latex([WIDE])
    assert r"\footnotesize" in latex and latex.count(r"\begin{tabular}") > 1
    assert latex.count(r"\begin{table}") == 1
    rows = rows_of(latex)
    assert all(row[0] == rows[0][0] for row in rows)
    assert sum(len(row) - 1 for row in rows) == 3 * 10, "no cell is lost"


def test_a_long_table_is_continued_in_the_next_float():
    latex = as_latex([LONG])
    assert latex.count(r"\begin{table}") == 3 and latex.count("(continued)") == 2
    assert len(rows_of(latex)) == len(LONG.rows)


def test_a_small_table_has_the_font_of_the_text():
    latex = as_latex([Table("t", "", ("model", "test/hr@10"), ((Cell("pop"), NUMBER),))])
    assert r"\small" not in latex and r"\footnotesize" not in latex
    assert r"pop & \textbf{0.1234 $\pm$ 0.0012} \\" in latex


def test_texts_are_no_commands():
    latex = as_latex([HOSTILE])
    for text in (r"50 \%", r"a\_b \& c", r"d\'{e}j\`{a}", r"\ss{}", r"\l{}", "U+4E2D", "U+03A9"):
        assert text in latex
    for text in (r"\textbar{}", r"-{}-", r"\textasciigrave{}", r"\textless{}", r"\{1\}"):
        assert text in latex
    assert latex.isascii()


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_takes_the_tables_and_nothing_is_too_wide(tmp_path):
    """The text of ``article`` at 10 pt is as wide as TEXT_WIDTH."""
    begin = "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n"
    width = f"\\ifdim\\textwidth={TEXT_WIDTH}pt\\else\\errmessage{{width}}\\fi\n"
    tables = as_latex([HOSTILE, WIDE, LONG])
    (tmp_path / "t.tex").write_text(f"{begin}{width}{tables}\\end{{document}}\n")
    done = subprocess.run(
        ["pdflatex", "-draftmode", "-interaction=nonstopmode", "t.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "Overfull" not in done.stdout and "Float too large" not in done.stdout
