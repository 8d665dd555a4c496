"""The version of recexp and of what it stands on, and the commit of a checkout."""

from __future__ import annotations

import argparse
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import recexp

LIBRARIES = ("torch", "pytorch-lightning")
SHOWN_DIGITS = 12  # of a commit


def version_text() -> str:
    """One line each: recexp with its commit, Python, torch, Lightning. Imports none of them."""
    lines = [f"recexp {recexp.__version__}{_commit_words()}", f"python {platform.python_version()}"]
    lines += [f"{library} {installed_version(library)}" for library in LIBRARIES]
    return "\n".join(lines)


def add_version(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--version``."""
    parser.add_argument(
        "--version", action=_ShowVersion, nargs=0, help="print versions and the commit, and exit"
    )


class _ShowVersion(argparse.Action):
    """As argparse's own action, which would wrap the lines and asks for the text beforehand."""

    def __call__(self, parser: argparse.ArgumentParser, *call: object) -> None:
        print(version_text())
        parser.exit()


def git_state() -> dict[str, Any]:
    """Commit and dirty flag of the checkout the code runs from; None outside a checkout."""
    try:
        # Installed below a checkout of something else, such as in its .venv, this file is not of
        # that checkout.
        commit = _git("rev-parse", "HEAD") if _git("ls-files", Path(__file__).name) else None
        dirty = bool(_git("status", "--porcelain")) if commit else None
    except FileNotFoundError:  # git is not installed
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": dirty}


def installed_version(package: str) -> str | None:
    """None where the package is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit_words() -> str:
    state = git_state()
    if state["commit"] is None:
        return ""
    changed = ", with local changes" if state["dirty"] else ""
    return f" (commit {state['commit'][:SHOWN_DIGITS]}{changed})"


def _git(*words: str) -> str | None:
    done = subprocess.run(
        ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else None
