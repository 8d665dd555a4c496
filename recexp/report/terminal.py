"""Tables on a terminal: drawn with rich where one reads them, plain text everywhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TextIO

from recexp.logs import printable
from recexp.report.formats import BEST, SECOND, Table, as_terminal, join_tables

if TYPE_CHECKING:
    from rich.console import Console

STYLES = {BEST: "bold", SECOND: "underline"}
BETWEEN = 2  # columns of the terminal between two of the table


def terminal_text(tables: Sequence[Table], stream: TextIO) -> str:
    """The tables for this stream; without control characters where it is no terminal."""
    if not stream.isatty():
        return join_tables(tables, as_terminal)
    from rich.console import Console

    console = Console(file=stream, highlight=False, markup=False, emoji=False)
    with console.capture() as capture:
        for table in tables:
            _draw(console, fitting(table, console.width))
    return capture.get()


def fitting(table: Table, width: int) -> Table:
    """The table without its details, where it is wider than the terminal with them."""
    if not table.details or natural_width(table) <= width:
        return table
    names = ", ".join(table.head[n] for n in table.details)
    note = f"too wide for this terminal, not shown: {names}"
    return replace(table.without_details(), notes=(*table.notes, note))


def natural_width(table: Table) -> int:
    """Columns of a terminal that the table takes if no text is broken."""
    texts = [[cell.text for cell in row] for row in table.rows]
    columns = zip(table.head, *texts, strict=True)
    return sum(max(len(printable(text)) for text in column) + BETWEEN for column in columns)


def _draw(console: Console, table: Table) -> None:
    from rich import box
    from rich.table import Table as Drawn
    from rich.text import Text

    # The box itself stands for one column between two of the table.
    drawn = Drawn(
        box=box.SIMPLE_HEAD, padding=(0, BETWEEN - 1, 0, 0), pad_edge=False, show_edge=False
    )
    for name, is_numeric in zip(table.head, table.numeric, strict=True):
        drawn.add_column(
            Text(printable(name), style="bold"),
            justify="right" if is_numeric else "left",
            no_wrap=is_numeric,
            overflow="fold",
        )
    for row in table.rows:
        drawn.add_row(*(Text(printable(c.text), style=STYLES.get(c.mark, "")) for c in row))
    console.print(Text(printable(table.title), style="bold"))
    if table.caption:
        console.print(Text(printable(table.caption), style="dim"))
    console.print(drawn)
    for note in table.notes:
        console.print(Text(f"- {printable(note)}", style="dim"))
    console.print()
