"""Rules of the house that imports can break: models know nothing of data, protocols or training."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "recexp/models": ("recexp.models", "recexp.nn", "recexp.types", "recexp.errors"),
    "recexp/nn": ("recexp.nn", "recexp.types", "recexp.errors"),
    "recexp/objectives/losses.py": ("recexp.types", "recexp.errors"),
    "recexp/types.py": (),
    "recexp/evaluation": (
        "recexp.evaluation",
        "recexp.types",
        "recexp.errors",
        "recexp.io",
        "recexp.contracts",
        "recexp.data.split",
        "recexp.data.store",  # for types only
        "recexp.data.cache",
    ),
    "recexp/objectives": (
        "recexp.objectives",
        "recexp.objectives.losses",
        "recexp.nn.cpu.linear_cross_entropy",
        "recexp.nn.cpu.lookup",
        "recexp.objectives.samplers",
        "recexp.types",
        "recexp.errors",
        "recexp.distributed",
    ),
}


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] == "recexp"}


@pytest.mark.parametrize("place", MAY_IMPORT)
def test_imports_stay_within_the_walls(place):
    path = ROOT / place
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    assert files
    for file in files:
        outside = {name for name in imports(file) if not name.startswith(MAY_IMPORT[place] or "-")}
        assert not outside, f"{file} imports {sorted(outside)}"


def test_a_run_on_prepared_data_needs_polars_only_at_its_end():
    """The start of a run must not pay for what it does not use (architecture, costs of imports)."""
    for file in (
        "runs/run",
        "runs/result",
        "runs/outputs",
        "runs/costs",
        "config/check",
        "objectives/samplers",
        "data/cache",
        "data/store",
        "data/datamodule",
        "training/module",
        "training/loggers",
    ):
        top = [
            n
            for n in ast.parse((ROOT / f"recexp/{file}.py").read_text()).body
            if isinstance(n, ast.Import | ast.ImportFrom)
        ]
        modules = {
            m
            for n in top
            for m in (
                [alias.name for alias in n.names] if isinstance(n, ast.Import) else [n.module]
            )
        }
        assert not {m.split(".")[0] for m in modules} & {"polars", "wandb", "matplotlib"}, file
