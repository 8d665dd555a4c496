r"""Tables in LaTeX, with the rules of the package booktabs, that fit the text of a page.

A table that is too wide gets a smaller font, then lines within its longest texts, and at last its
columns in several parts below each other. A table that is too long is continued in another float.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from recexp.logs import printable
from recexp.report.formats import BEST, SECOND, Cell, Table

PREAMBLE = r"% needs \usepackage{booktabs}"
TEXT_WIDTH = 345.0  # points: of article at 10 pt, the narrowest text of the common classes
SIZES = {"": 10.0, r"\small": 9.0, r"\footnotesize": 8.0}  # points
GAP = 8.0  # points between two columns
MAX_LINES = 40  # of the tabulars of one float
NARROW = 90.0  # points to which the columns of texts are narrowed
# Widths in Computer Modern, in units of the font's size, rounded up.
WIDE = frozenset("mwMWQO@%=+±Δ×<>&")
WIDTHS = {"narrow": 0.4, "normal": 0.53, "capital": 0.76, "wide": 1.03}
BOLD = 1.15
MONOSPACED = 0.53

_TEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    "±": r"$\pm$",
    "Δ": r"$\Delta$",
    "–": r"\textendash{}",
    "—": r"\textemdash{}",
    "…": r"\dots{}",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "≥": r"$\ge$",
    "≤": r"$\le$",
    "→": r"$\rightarrow$",
    "ß": r"\ss{}",
    "æ": r"\ae{}",
    "ø": r"\o{}",
    "ł": r"\l{}",
    # After the end of a row a bracket would begin an optional argument.
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
}
# Accents as Unicode combines them, and as TeX writes them.
_ACCENTS = dict(
    zip(
        "\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030c\u0327",
        "`'^~=u.\"rvc",
        strict=True,
    )
)
_BREAKS = frozenset("=./,_-@")  # after them a line may end
_METRIC = re.compile(r"(test|val)/(hr|ndcg|mrr|map)(.*)")
_HEADS = {"published": "paper", "best epoch": "epoch", "stopped by": "end"}


def as_latex(tables: Sequence[Table]) -> str:
    """The tables as floats; what a page has no room for (``Table.details``) is left out."""
    return "\n\n".join([PREAMBLE, *map(_floats, tables)]) + "\n"


@dataclass(frozen=True)
class _Fit:
    """size: a command of the font. widths: of a column, where its texts are broken, else None.

    parts: numbers of the columns that stand beside each other.
    """

    size: str
    widths: list[float | None]
    parts: list[list[int]]


def _floats(table: Table) -> str:
    table = table.without_details()
    table = replace(table, head=tuple(map(_short_head, table.head)))
    fit = _fit(table)
    chunks = list(_chunks(table, fit))
    texts = []
    for n, chunk in enumerate(chunks):
        continued = " (continued)" if n else ""
        caption = f"{table.title}. {table.caption}" if table.caption else table.title
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{_tex(caption)}{continued}}}"]
        lines += [fit.size] if fit.size else []
        lines.append(rf"\setlength{{\tabcolsep}}{{{GAP / 2:g}pt}}")
        lines.append("\n\\par\\medskip\n".join(_tabular(chunk, fit, part) for part in fit.parts))
        texts.append("\n".join([*lines, r"\end{table}"]))
    if table.notes:
        # Outside of the float, so that many notes may go on to the next page.
        items = [rf"\item {_tex(note, may_break=True)}" for note in table.notes]
        texts.append("\n".join([r"\begin{itemize}\raggedright", *items, r"\end{itemize}"]))
    return "\n".join(texts)


def _short_head(name: str) -> str:
    """``test/ndcg@10`` as NDCG@10; the metrics of validation are called so."""
    match = _METRIC.fullmatch(name)
    if match is None:
        return _HEADS.get(name, name.removeprefix("test/"))
    split, metric, cutoff = match.groups()
    return f"{metric.upper()}{cutoff}" if split == "test" else f"val. {metric.upper()}{cutoff}"


# Widths -------------------------------------------------------------------------------------------


def _fit(table: Table) -> _Fit:
    """The largest font at which the table fits; several parts at the smallest, where none does."""
    columns = range(len(table.head))
    ems = [_column_ems(table, n) for n in columns]
    for is_narrow in (False, True):
        for size, points in SIZES.items():
            natural = [em * points for em in ems]
            widths: list[float | None] = [None] * len(ems)
            if is_narrow:
                widths = [_narrowed(table, n, natural[n]) for n in columns]
            taken = [natural[n] if widths[n] is None else NARROW for n in columns]
            if sum(taken) + GAP * (len(taken) - 1) <= TEXT_WIDTH:
                return _Fit(size, widths, [list(columns)])
    return _Fit(size, widths, _parts(taken))


def _narrowed(table: Table, n: int, natural: float) -> float | None:
    """The width of a column of texts that is wider; None for others."""
    return NARROW if natural > NARROW and not table.numeric[n] else None


def _parts(widths: Sequence[float]) -> list[list[int]]:
    """The columns in groups that fit the page, each with the first column."""
    parts = [[0]]
    room = TEXT_WIDTH - widths[0]
    for n, width in enumerate(widths[1:], 1):
        if width + GAP > room and len(parts[-1]) > 1:
            parts.append([0])
            room = TEXT_WIDTH - widths[0]
        parts[-1].append(n)
        room -= width + GAP
    return parts


def _column_ems(table: Table, n: int) -> float:
    cells = [_cell_ems(row[n]) for row in table.rows]
    return max([_ems(table.head[n]), *cells])


def _cell_ems(cell: Cell) -> float:
    if cell.code:
        return len(printable(cell.text)) * MONOSPACED
    return _ems(cell.text) * (BOLD if cell.mark == BEST else 1.0)


def _ems(text: str) -> float:
    return sum(WIDTHS[_kind(c)] for c in printable(text))


def _kind(c: str) -> str:
    if c in WIDE:
        return "wide"
    if c in "ijltf.,:;'|!()[]- ":
        return "narrow"
    return "capital" if c.isupper() or not c.isascii() else "normal"


def _chunks(table: Table, fit: _Fit) -> Iterator[Table]:
    """The table in pieces of as many rows as fit one float."""
    room = MAX_LINES // len(fit.parts)
    points = SIZES[fit.size]
    start = 0
    n_lines = 0
    for n, row in enumerate(table.rows):
        height = 1
        for cell, width in zip(row, fit.widths, strict=True):
            if width is not None:
                height = max(height, math.ceil(1.2 * _cell_ems(cell) * points / width))
        if n > start and n_lines + height > room:
            yield replace(table, rows=table.rows[start:n])
            start = n
            n_lines = 0
        n_lines += height
    yield replace(table, rows=table.rows[start:])


# Text ---------------------------------------------------------------------------------------------


def _tabular(table: Table, fit: _Fit, columns: Sequence[int]) -> str:
    kinds = []
    for n in columns:
        width = fit.widths[n]
        kinds.append(("r" if table.numeric[n] else "l") if width is None else f"p{{{width:g}pt}}")
    heads = [_tex(table.head[n]) for n in columns]
    # In a column of broken texts, raggedright has changed the meaning of two backslashes.
    is_ragged = any(fit.widths[n] is not None for n in columns)
    end = r" \tabularnewline" if is_ragged else r" \\"
    lines = [
        rf"\begin{{tabular}}{{@{{}}{''.join(kinds)}@{{}}}}",
        r"\toprule",
        " & ".join(heads) + r" \\",
        r"\midrule",
    ]
    for row in table.rows:
        cells = [_cell(row[n], is_broken=fit.widths[n] is not None) for n in columns]
        lines.append(" & ".join(cells) + end)
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _cell(cell: Cell, is_broken: bool) -> str:
    text = _tex(cell.text, may_break=is_broken)
    if cell.code and text:
        text = rf"\texttt{{{text}}}"
    if cell.mark == BEST:
        text = rf"\textbf{{{text}}}"
    elif cell.mark == SECOND:
        text = rf"\underline{{{text}}}"
    return rf"\raggedright {text}" if is_broken else text


def _tex(text: str, may_break: bool = False) -> str:
    """The text with everything escaped that TeX would read as a command, or cannot print."""
    written = []
    text = printable(text)
    for c, after in zip(text, text[1:] + " ", strict=bool(text)):
        written.append(_TEX[c] if c in _TEX else _letter(c))
        if may_break and c in _BREAKS and after != " ":
            written.append(r"\allowbreak{}")
    return re.sub(r"-(?=-)", "-{}", "".join(written))  # two in a row would be a dash


def _letter(c: str) -> str:
    """A letter in ASCII and commands of accents; its number where these do not suffice."""
    decomposed = unicodedata.normalize("NFD", c)
    base = decomposed[0]
    marks = decomposed[1:]
    if not base.isascii() or any(mark not in _ACCENTS for mark in marks):
        return f"U+{ord(c):04X}"
    for mark in marks:
        base = rf"\{_ACCENTS[mark]}{{{base}}}"
    return base
