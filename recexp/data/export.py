"""``python -m recexp.data.export``: a protocol's split and candidates as files for others."""

from __future__ import annotations

from importlib import import_module

if __name__ == "__main__":
    # By name, because data must not import runs.
    import_module("recexp.runs.split_files").main()
