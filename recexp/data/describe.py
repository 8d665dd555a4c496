"""``python -m recexp.data.describe`` runs ``recexp.report.describe``, as in earlier versions."""

from __future__ import annotations

from importlib import import_module

if __name__ == "__main__":
    # By name, because data must not import report.
    import_module("recexp.report.describe").main()
