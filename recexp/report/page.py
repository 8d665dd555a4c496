"""One HTML file with everything in it: no network, no other file, sortable tables, readable on a phone, light and dark."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from recexp.report.figures import INK, Picture
from recexp.report.formats import BEST, SECOND, Cell, Table, printable

LONG = 30  # rows from which a table starts folded


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
    """The whole document. Everything that comes from a run is escaped."""
    shown = [s for s in sections if s.tables or s.pictures or s.lines]
    links = "".join(f'<a href="#{s.anchor}">{_text(s.title)}</a>' for s in shown)
    body = "\n".join(_section(s) for s in shown)
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{_text(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header><h1>{_text(title)}</h1><p>{_text(about)}</p><nav aria-label="Sections">{links}</nav></header>
<main>
{body}
</main>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def _section(s: Section) -> str:
    parts = [f'<section id="{s.anchor}"><h2>{_text(s.title)}</h2>']
    parts += [f"<p>{_text(s.text)}</p>"] if s.text else []
    parts += [_table(t) for t in s.tables]
    if s.pictures:
        parts += [
            '<div class="figures">',
            *(_picture(p, f"{s.anchor}-{n}") for n, p in enumerate(s.pictures)),
            "</div>",
        ]
    if s.lines:
        parts += ["<ul>", *(f"<li>{_text(line)}</li>" for line in s.lines), "</ul>"]
    return "\n".join([*parts, "</section>"])


def _table(table: Table) -> str:
    numeric = [any(row[i].value is not None for row in table.rows) for i in range(len(table.head))]
    head = "".join(
        f'<th scope="col"{_class(n)}><button type="button">{_text(name)}</button></th>'
        for name, n in zip(table.head, numeric, strict=True)
    )
    rows = []
    for row in table.rows:
        first, *others = (_cell(c, n) for c, n in zip(row, numeric, strict=True))
        rows.append(f'<tr><th scope="row"{first[3:-5]}</th>{"".join(others)}</tr>')
    notes = "".join(f"<li>{_text(note)}</li>" for note in table.notes)
    grid = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    if len(table.rows) > LONG:
        grid = f"<details><summary>{len(table.rows)} rows</summary>{grid}</details>"
    caption = f'<p class="caption">{_text(table.caption)}</p>' if table.caption else ""
    return f"<h3>{_text(table.title)}</h3>{caption}{grid}" + (
        f'<ul class="notes">{notes}</ul>' if notes else ""
    )


def _class(numeric: bool) -> str:
    return ' class="n"' if numeric else ""


def _cell(cell: Cell, numeric: bool) -> str:
    text = _text(cell.text)
    text = f"<code>{text}</code>" if cell.code and text else text
    text = {BEST: f"<strong>{text}</strong>", SECOND: f"<u>{text}</u>"}.get(cell.mark, text)
    value = "" if cell.value is None else f' data-value="{cell.value!r}"'
    return f"<td{_class(numeric)}{value}>{text}</td>"


def _picture(picture: Picture, start: str) -> str:
    return f"<figure>{inline_svg(picture.svg, start, picture.alt)}<figcaption>{_text(picture.title)}</figcaption></figure>"


def inline_svg(svg: str, start: str, alt: str) -> str:
    """An SVG document as an element of a page: named for those who do not see it, ids of its own, ink in the page's colour."""
    svg = svg[svg.index("<svg") :]
    opening, rest = svg.split(">", 1)
    box = re.search(r'viewBox="([^"]*)"', opening)
    rest = re.sub(r"<metadata>.*?</metadata>", "", rest, flags=re.DOTALL)
    rest = re.sub(r'\bid="', f'id="{start}-', rest)
    rest = re.sub(r'(?:xlink:)?href="#', f'href="#{start}-', rest)
    rest = rest.replace("url(#", f"url(#{start}-").replace(INK, "currentColor")
    rest = re.sub(r'xlink:href="(?=data:)', 'href="', rest)
    rest = re.sub(
        r"<style[^>]*>.*?</style>", "", rest, flags=re.DOTALL
    )  # holds for the whole page once it stands inline
    label = escape(printable(alt), quote=True)
    view = box[1] if box else "0 0 400 300"
    width = float(view.split()[2]) * 1.5  # points: small figures stay small
    return f'<svg role="img" aria-label="{label}" viewBox="{view}" class="plot" style="max-width:{width:.0f}px">{rest.strip()}'


def _text(text: str) -> str:
    return escape(printable(text), quote=True)


_STYLE = """
:root{--bg:#fff;--ink:#1a1a1a;--soft:#5c5c5c;--line:#d8d8d8;--shade:#f4f5f7;--link:#005a9c}
@media (prefers-color-scheme:dark){:root{--bg:#15171a;--ink:#e8e8e8;--soft:#a5a9b0;--line:#3a3e45;--shade:#1f2227;--link:#7cc4ff}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:84rem;padding:1rem;background:var(--bg);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.5rem;margin:.2rem 0}h2{font-size:1.25rem;margin:2rem 0 .5rem;border-bottom:1px solid var(--line)}
h3{font-size:1rem;margin:1.4rem 0 .3rem}
h1,h3,li,p,figcaption{overflow-wrap:anywhere}
a{color:var(--link)}nav{display:flex;flex-wrap:wrap;gap:.3rem 1rem}
.caption,.notes,figcaption{color:var(--soft);font-size:.875rem;margin:.2rem 0}
.scroll{overflow-x:auto;border:1px solid var(--line);border-radius:6px}
table{border-collapse:collapse;font-size:.875rem;width:100%;font-variant-numeric:tabular-nums}
td,th{padding:.3rem .6rem;text-align:left;white-space:nowrap;font-weight:400;border-top:1px solid var(--line)}
thead th{background:var(--shade);border-top:0;padding:0}
thead button{all:unset;display:block;box-sizing:border-box;width:100%;padding:.4rem .6rem;cursor:pointer;font-weight:600}
thead button:focus-visible{outline:2px solid var(--link);outline-offset:-2px}
th[aria-sort=ascending] button::after{content:" \\25B2"}th[aria-sort=descending] button::after{content:" \\25BC"}
tbody th{position:sticky;left:0;background:var(--bg);min-width:7rem;max-width:16rem;white-space:normal;overflow-wrap:break-word}
.n{text-align:right}thead .n button{text-align:right}strong{font-weight:700}
td code{display:block;min-width:18rem;max-width:28rem;white-space:normal;overflow-wrap:break-word}
@media (max-width:40rem){tbody th{min-width:5rem;max-width:9rem}}
summary{cursor:pointer;padding:.3rem 0}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,22rem),1fr));gap:1rem}
figure{margin:0}.plot{width:100%;height:auto;max-height:36rem}
@media print{details>*{display:block}.scroll{overflow:visible}}
"""

_SCRIPT = """
document.querySelectorAll('table').forEach(function (table) {
  var heads = Array.from(table.tHead.rows[0].cells), body = table.tBodies[0];
  heads.forEach(function (head, at) {
    head.firstChild.addEventListener('click', function () {
      var numeric = head.classList.contains('n');
      var was = head.getAttribute('aria-sort');
      var down = was ? was === 'ascending' : numeric;
      heads.forEach(function (other) { other.removeAttribute('aria-sort'); });
      head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
      var rows = Array.from(body.rows);
      rows.sort(function (a, b) {
        var x = a.cells[at], y = b.cells[at], order;
        if (numeric) {
          var u = parseFloat(x.dataset.value), v = parseFloat(y.dataset.value);
          if (isNaN(u) || isNaN(v)) return isNaN(u) - isNaN(v);
          order = u - v;
        } else {
          order = x.textContent.localeCompare(y.textContent, undefined, {numeric: true});
        }
        return down ? -order : order;
      });
      rows.forEach(function (row) { body.appendChild(row); });
    });
  });
});
"""
