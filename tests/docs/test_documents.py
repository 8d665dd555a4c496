"""Documents name files that exist, and the notebooks run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    ROOT / "README.md",
    *(p for p in sorted((ROOT / "docs").rglob("*.md")) if "site" not in p.parts),
]
# Pages that docs/site/hooks.py generates.
GENERATED = {
    ROOT / "docs/reference/configuration.md",
    *(path.with_suffix(".md") for path in (ROOT / "docs/examples").glob("*.ipynb")),
}
NOTEBOOKS = sorted(path.stem for path in (ROOT / "docs/examples").glob("*.ipynb"))


def targets_of(document: Path) -> list[Path]:
    """The files that a document's relative links name."""
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text())
    return [(document.parent / link).resolve() for link in links if "://" not in link]


def test_links_are_found():
    assert ROOT / "docs" / "CONTRIBUTING.md" in DOCUMENTS
    assert targets_of(ROOT / "README.md")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_lead_to_files(document):
    missing = [t for t in targets_of(document) if not t.exists() and t not in GENERATED]
    assert missing == []


def test_folders_that_the_readme_maps_exist():
    table = (ROOT / "README.md").read_text().split("## Where things are")[1]
    folders = re.findall(r"^\| `([\w/]+/)` \|", table, re.M)
    assert len(folders) > 10
    assert [folder for folder in folders if not (ROOT / folder).is_dir()] == []


def test_folders_of_the_package_are_mapped_by_the_readme():
    table = (ROOT / "README.md").read_text().split("## Where things are")[1]
    folders = {p.parent.name for p in (ROOT / "recexp").glob("*/__init__.py")}
    assert {name for name in folders if f"recexp/{name}/" not in table} == set()


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_run(name):
    pytest.importorskip("nbclient")
    line = [sys.executable, ROOT / "docs/examples/execute.py", name]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_site_lists_every_notebook():
    nav = (ROOT / "docs/site/mkdocs.yml").read_text()
    assert len(NOTEBOOKS) > 3
    assert [name for name in NOTEBOOKS if f"- examples/{name}.md" not in nav] == []
