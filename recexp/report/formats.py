"""A table in Markdown, for the terminal, in LaTeX and as csv. HTML is made in ``page``."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from recexp.logs import printable

BEST = "best"
SECOND = "second"
DASH = "–"  # stands where there is no value


@dataclass(frozen=True)
class Cell:
    """text: as shown; value: to sort by; mark: BEST, SECOND or ""; code: in a monospaced font."""

    text: str
    value: float | None = None
    mark: str = ""
    code: bool = False


@dataclass(frozen=True)
class Table:
    """notes stand beneath the table, one line each."""

    title: str
    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()

    @property
    def numeric(self) -> list[bool]:
        """Per column whether any cell has a value."""
        n_columns = len(self.head)
        return [any(row[i].value is not None for row in self.rows) for i in range(n_columns)]


def join_tables(tables: Sequence[Table], as_text: Callable[[Table], str]) -> str:
    """Several tables in one text, an empty line between them."""
    return "\n\n".join(map(as_text, tables)) + "\n"


# Markdown -----------------------------------------------------------------------------------------


_EDGE_UNDERSCORE = re.compile(r"(?<![A-Za-z0-9_])_|_(?![A-Za-z0-9_])")


def as_markdown(table: Table, level: int = 3) -> str:
    lines = [f"{'#' * level} {_markdown(table.title)}", ""]
    if table.caption:
        lines += [_markdown(table.caption), ""]
    lines.append("| " + " | ".join(map(_markdown_in_table, table.head)) + " |")
    lines.append("|" + " --- |" * len(table.head))
    for row in table.rows:
        lines.append("| " + " | ".join(map(_markdown_cell, row)) + " |")
    if table.notes:
        lines.append("")
        lines += [f"- {_markdown(note)}" for note in table.notes]
    return "\n".join(lines)


def _markdown(text: str) -> str:
    """As text: no HTML, no link, no emphasis by underscores at the edge of a word."""
    text = printable(text).replace("<", "&lt;").replace("](", "]\\(")
    return _EDGE_UNDERSCORE.sub(r"\\_", text)


def _markdown_in_table(text: str) -> str:
    return _markdown(text).replace("|", "\\|")


def _markdown_cell(cell: Cell) -> str:
    if cell.code:
        text = printable(cell.text).replace("|", "\\|").replace("`", "'")
        return f"`{text}`" if text else ""
    text = _markdown_in_table(cell.text)
    if cell.mark == BEST:
        return f"**{text}**"
    if cell.mark == SECOND:
        return f"<u>{text}</u>"
    return text


# Terminal -----------------------------------------------------------------------------------------

_STYLED = {BEST: ("\x1b[1m", "\x1b[0m"), SECOND: ("\x1b[4m", "\x1b[0m")}
_PREFIXED = {BEST: "*", SECOND: "_"}


def as_terminal(table: Table, color: bool = False) -> str:
    """Aligned columns. With color the best value is bold and the second best underlined; without,
    ``*`` and ``_`` stand before them."""
    texts = [[_terminal_text(cell, color) for cell in row] for row in table.rows]
    names = [printable(name) for name in table.head]
    columns = zip(names, *texts, strict=True)
    widths = [max(map(len, column)) for column in columns]
    head = [name.ljust(width) for name, width in zip(names, widths, strict=True)]
    lines = [printable(table.title), printable(table.caption), "  ".join(head).rstrip()]
    for row, row_texts in zip(table.rows, texts, strict=True):
        padded = []
        for cell, text, width in zip(row, row_texts, widths, strict=True):
            field = text.ljust(width) if cell.value is None else text.rjust(width)
            if color and cell.mark:
                field = field.replace(text, text.join(_STYLED[cell.mark]))
            padded.append(field)
        lines.append("  ".join(padded).rstrip())
    notes = [f"- {printable(note)}" for note in table.notes]
    return "\n".join([line for line in lines if line] + notes)


def _terminal_text(cell: Cell, color: bool) -> str:
    prefix = "" if color else _PREFIXED.get(cell.mark, "")
    return prefix + printable(cell.text)


# LaTeX --------------------------------------------------------------------------------------------

_TEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "Δ": r"$\Delta$",
    "–": "--",
    "×": r"$\times$",
    # After the end of a row a bracket would begin an optional argument.
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
}
_TEX_SPECIAL = re.compile("|".join(map(re.escape, _TEX)))


def as_latex(table: Table) -> str:
    """A tabular with the rules of the package booktabs."""
    alignment = "".join("r" if numeric else "l" for numeric in table.numeric)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_tex(table.title)}. {_tex(table.caption)}}}",
        rf"\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        " & ".join(map(_tex, table.head)) + r" \\",
        r"\midrule",
    ]
    lines += [" & ".join(map(_latex_cell, row)) + r" \\" for row in table.rows]
    lines += [r"\bottomrule", r"\end{tabular}"]
    if table.notes:
        items = [rf"\item {_tex(note)}" for note in table.notes]
        lines += [r"\begin{itemize}", *items, r"\end{itemize}"]
    return "\n".join([*lines, r"\end{table}"])


def _latex_cell(cell: Cell) -> str:
    text = _tex(cell.text)
    if cell.code and text:
        text = rf"\texttt{{{text}}}"
    if cell.mark == BEST:
        return rf"\textbf{{{text}}}"
    if cell.mark == SECOND:
        return rf"\underline{{{text}}}"
    return text


def _tex(text: str) -> str:
    return _TEX_SPECIAL.sub(lambda match: _TEX[match.group()], printable(text))


# csv ----------------------------------------------------------------------------------------------


def as_csv(tables: Sequence[Table]) -> str:
    """One record per cell of all tables: table, row, model, column, value, text, mark."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["table", "row", "model", "column", "value", "text", "mark"])
    for table in tables:
        names = _column_names(table.head)
        for n, row in enumerate(table.rows):
            for column, cell in zip(names, row, strict=True):
                value = "" if cell.value is None else repr(cell.value)
                texts = map(_csv_text, (row[0].text, column, cell.text))
                model, name, text = texts
                title = _csv_text(table.title)
                writer.writerow([title, n, model, name, value, text, cell.mark])
    return out.getvalue()


# What a spreadsheet would compute, and the texts of this kind that are numbers or intervals.
_FORMULA = re.compile(r"\s*[=+\-@]")
_SIGNED = re.compile(r"-|[+-][\d.,]+( to [+-][\d.,]+)?( ?[%*])?")


def _csv_text(text: str) -> str:
    """The text, with an apostrophe before what a spreadsheet would compute as a formula."""
    text = printable(text)
    return f"'{text}" if _FORMULA.match(text) and not _SIGNED.fullmatch(text) else text


def _column_names(head: Sequence[str]) -> list[str]:
    """Column heads; those that repeat get the metric they stand beside as a prefix."""
    names: list[str] = []
    for name in head:
        if name in ("published", "Δ %"):
            name = f"{names[-1].split(' ')[0]} {name}"
        names.append(name)
    return names
