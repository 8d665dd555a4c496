"""One table in the formats people paste: Markdown, terminal, LaTeX, csv. HTML stands in ``page``."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

BEST, SECOND = "best", "second"


@dataclass(frozen=True)
class Cell:
    """text as shown; value to sort by; mark: BEST, SECOND or nothing; code: shown in a fixed-width face."""

    text: str
    value: float | None = None
    mark: str = ""
    code: bool = False


@dataclass(frozen=True)
class Table:
    """notes stand beneath, one line each."""

    title: str
    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()


def as_markdown(table: Table, level: int = 3) -> str:
    def shown(cell: Cell) -> str:
        text = printable(cell.text).replace("|", "\\|")
        if cell.code:
            text = text.replace("`", "'")
            return f"`{text}`" if text else ""
        text = text.replace("<", "&lt;")
        return {BEST: f"**{text}**", SECOND: f"<u>{text}</u>"}.get(cell.mark, text)

    lines = (
        [f"{'#' * level} {table.title}", "", table.caption, ""]
        if table.caption
        else [f"{'#' * level} {table.title}", ""]
    )
    lines += ["| " + " | ".join(table.head) + " |", "|" + " --- |" * len(table.head)]
    lines += ["| " + " | ".join(shown(c) for c in row) + " |" for row in table.rows]
    if table.notes:
        lines += ["", *(f"- {note}".replace("<", "&lt;") for note in table.notes)]
    return "\n".join(lines)


def as_terminal(table: Table, colour: bool = False) -> str:
    """Columns aligned; the best figure is bold, the second best underlined, where colour is False a ``*`` and a ``_`` before the figure."""
    marks = (
        {BEST: ("\x1b[1m", "\x1b[0m"), SECOND: ("\x1b[4m", "\x1b[0m")}
        if colour
        else {BEST: ("*", ""), SECOND: ("_", "")}
    )
    plain = [
        [
            printable(c.text) if colour else marks.get(c.mark, ("", ""))[0] + printable(c.text)
            for c in row
        ]
        for row in table.rows
    ]
    widths = [max(len(x) for x in column) for column in zip(table.head, *plain, strict=True)]
    lines = [
        table.title,
        table.caption,
        "  ".join(h.ljust(w) for h, w in zip(table.head, widths, strict=True)).rstrip(),
    ]
    for row, texts in zip(table.rows, plain, strict=True):
        padded = [
            t.rjust(w) if c.value is not None else t.ljust(w)
            for c, t, w in zip(row, texts, widths, strict=True)
        ]
        if colour:
            padded = [
                p.replace(t, t.join(marks[c.mark])) if c.mark else p
                for c, t, p in zip(row, texts, padded, strict=True)
            ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(
        [line for line in lines if line] + [f"- {printable(note)}" for note in table.notes]
    )


def as_latex(table: Table) -> str:
    """A booktabs tabular."""

    def shown(cell: Cell) -> str:
        text = _tex(cell.text)
        text = rf"\texttt{{{text}}}" if cell.code and text else text
        return {BEST: rf"\textbf{{{text}}}", SECOND: rf"\underline{{{text}}}"}.get(cell.mark, text)

    numeric = [any(row[i].value is not None for row in table.rows) for i in range(len(table.head))]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_tex(table.title)}. {_tex(table.caption)}}}",
    ]
    lines += [rf"\begin{{tabular}}{{{''.join('r' if n else 'l' for n in numeric)}}}", r"\toprule"]
    lines += [" & ".join(map(_tex, table.head)) + r" \\", r"\midrule"]
    lines += [" & ".join(shown(c) for c in row) + r" \\" for row in table.rows]
    lines += [r"\bottomrule", r"\end{tabular}"]
    if table.notes:
        lines += [
            r"\begin{itemize}",
            *(rf"\item {_tex(note)}" for note in table.notes),
            r"\end{itemize}",
        ]
    return "\n".join([*lines, r"\end{table}"])


def as_csv(tables: Sequence[Table]) -> str:
    """All tables below one another as records: table, row, column, value, text, mark."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["table", "row", "model", "column", "value", "text", "mark"])
    for table in tables:
        for n, row in enumerate(table.rows):
            column = ""
            for head, cell in zip(table.head, row, strict=True):
                column = (
                    head if head not in ("published", "Δ %") else f"{column.split(' ')[0]} {head}"
                )
                writer.writerow(
                    [
                        table.title,
                        n,
                        row[0].text,
                        column,
                        "" if cell.value is None else repr(cell.value),
                        cell.text,
                        cell.mark,
                    ]
                )
    return out.getvalue()


def printable(text: str) -> str:
    """Without control sequences that a result file may hold."""
    return "".join(c if c.isprintable() else " " for c in text)


_TEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}
_TEX |= {
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "Δ": r"$\Delta$",
    "–": "--",
    "×": r"$\times$",
}


def _tex(text: str) -> str:
    return re.sub("|".join(map(re.escape, _TEX)), lambda m: _TEX[m.group()], printable(text))
