"""A table in Markdown, as plain text and as csv. Others: ``latex``, ``terminal``, ``page``."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

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
    """notes stand beneath the table, one line each.

    details: numbers of columns that are left out where there is no room for them.
    """

    title: str
    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    details: tuple[int, ...] = ()

    def without_details(self) -> Table:
        """The table without the columns that are details."""
        kept = [n for n in range(len(self.head)) if n not in self.details]
        return self.part(kept)

    def part(self, columns: Sequence[int]) -> Table:
        """The table with these of its columns."""
        rows = tuple(tuple(row[n] for n in columns) for row in self.rows)
        return replace(self, head=tuple(self.head[n] for n in columns), rows=rows, details=())

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
    lines = [f"{'#' * level} {markdown_text(table.title)}", ""]
    if table.caption:
        lines += [markdown_text(table.caption), ""]
    lines.append("| " + " | ".join(map(_markdown_in_table, table.head)) + " |")
    lines.append("|" + " --- |" * len(table.head))
    for row in table.rows:
        lines.append("| " + " | ".join(map(_markdown_cell, row)) + " |")
    if table.notes:
        lines.append("")
        lines += [f"- {markdown_text(note)}" for note in table.notes]
    return "\n".join(lines)


def markdown_text(text: str) -> str:
    """As text in Markdown: no HTML, no link, no emphasis by underscores at the edge of a word."""
    text = printable(text).replace("<", "&lt;").replace("](", "]\\(")
    return _EDGE_UNDERSCORE.sub(r"\\_", text)


def _markdown_in_table(text: str) -> str:
    return markdown_text(text).replace("|", "\\|")


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


# Plain text ---------------------------------------------------------------------------------------

_PREFIXED = {BEST: "*", SECOND: "_"}


def as_terminal(table: Table) -> str:
    """Aligned columns; ``*`` stands before the best value and ``_`` before the second best."""
    texts = [[_terminal_text(cell) for cell in row] for row in table.rows]
    names = [printable(name) for name in table.head]
    columns = zip(names, *texts, strict=True)
    widths = [max(map(len, column)) for column in columns]
    head = [name.ljust(width) for name, width in zip(names, widths, strict=True)]
    lines = [printable(table.title), printable(table.caption), "  ".join(head).rstrip()]
    for row, row_texts in zip(table.rows, texts, strict=True):
        padded = []
        for cell, text, width in zip(row, row_texts, widths, strict=True):
            padded.append(text.ljust(width) if cell.value is None else text.rjust(width))
        lines.append("  ".join(padded).rstrip())
    notes = [f"- {printable(note)}" for note in table.notes]
    return "\n".join([line for line in lines if line] + notes)


def _terminal_text(cell: Cell) -> str:
    return _PREFIXED.get(cell.mark, "") + printable(cell.text)


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
