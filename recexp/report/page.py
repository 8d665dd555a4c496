"""One HTML file with everything in it: no network, no other file, sortable tables, light and dark.

The document is the template ``page.html.j2``, which escapes every value that comes from a run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from recexp.logs import printable
from recexp.report.figures import INK, Picture
from recexp.report.formats import Table

TEMPLATE = "page.html.j2"
MAX_OPEN_ROWS = 30  # longer tables start folded
DEFAULT_VIEW_BOX = "0 0 400 300"
PIXELS_PER_POINT = 1.5  # keeps small figures small


@dataclass(frozen=True)
class Section:
    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    lines: Sequence[str] = ()

    @property
    def anchor(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def page(title: str, about: str, sections: Sequence[Section]) -> str:
    """The document; sections without content are left out."""
    shown = [section for section in sections if section.tables or section.pictures or section.lines]
    return (
        _environment()
        .get_template(TEMPLATE)
        .render(title=title, about=about, sections=shown, max_open_rows=MAX_OPEN_ROWS)
    )


def inline_svg(svg: str, prefix: str, alt: str) -> str:
    """An SVG document as an element of a page.

    It gets alt as its accessible name, a prefix to its ids, and the page's text color for ink.
    """
    opening, content = svg[svg.index("<svg") :].split(">", 1)
    content = re.sub(r"<metadata>.*?</metadata>", "", content, flags=re.DOTALL)
    content = re.sub(r'\bid="', f'id="{prefix}-', content)
    content = re.sub(r'(?:xlink:)?href="#', f'href="#{prefix}-', content)
    content = content.replace("url(#", f"url(#{prefix}-").replace(INK, "currentColor")
    content = re.sub(r'xlink:href="(?=data:)', 'href="', content)
    # An inline style element would hold for the whole page.
    content = re.sub(r"<style[^>]*>.*?</style>", "", content, flags=re.DOTALL)
    label = escape(printable(alt), quote=True)
    match = re.search(r'viewBox="([^"]*)"', opening)
    view_box = match[1] if match else DEFAULT_VIEW_BOX
    width = float(view_box.split()[2]) * PIXELS_PER_POINT
    return (
        f'<svg role="img" aria-label="{label}" viewBox="{view_box}" class="plot" '
        f'style="max-width:{width:.0f}px">{content.strip()}'
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_without_control_sequences,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["repr"] = repr
    environment.filters["inline_svg"] = _inline_picture
    return environment


def _without_control_sequences(value: Any) -> Any:
    is_text = isinstance(value, str) and not isinstance(value, Markup)
    return printable(value) if is_text else value


def _inline_picture(picture: Picture, anchor: str, n: int) -> Markup:
    # The figures module made the SVG; its texts are escaped there.
    return Markup(inline_svg(picture.svg, f"{anchor}-{n}", picture.alt))
