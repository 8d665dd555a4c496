"""Lines of a search for people."""

from __future__ import annotations

from recexp.logs import printable


def message(text: str) -> str:
    return printable(f"[search] {text}")
