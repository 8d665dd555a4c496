"""What pyproject.toml and constraints.txt say holds for the package."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_package_folder_is_installed():
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    folders = sorted(p.parent for p in (ROOT / "recexp").rglob("__init__.py"))
    names = {".".join(p.relative_to(ROOT).parts) for p in folders}
    plugins = {name for name in names if "hydra_plugins" in name}
    assert names - plugins - listed == set()


def test_every_declared_dependency_is_pinned():
    project = PROJECT["project"]
    declared = list(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        declared += extra
    names = {normal(re.match(r"[\w.-]+", requirement)[0]) for requirement in declared}
    lines = (ROOT / "constraints.txt").read_text().split()
    pinned = {normal(line.partition("==")[0]) for line in lines}
    assert names - pinned == set()


def test_the_citation_has_the_version_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["project"]["version"]


def test_continuous_integration_runs_the_local_script():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    steps = workflow["jobs"]["ci"]["steps"]
    assert {"run": ".ci/run"} in steps
