"""Rules on imports between packages, and rules of style that ruff does not have."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CODE = sorted((ROOT / "recexp").rglob("*.py"))
TRACKERS = {"wandb", "tensorboard", "mlflow", "comet_ml"}

# Prefix of a file -> what it may import of recexp. The longest prefix that fits a file counts.
MAY_IMPORT = {
    "recexp/errors.py": (),
    "recexp/types.py": (),
    "recexp/io.py": ("recexp.errors",),
    "recexp/distributed.py": (),
    "recexp/rng.py": (),
    "recexp/contracts.py": ("recexp.types", "recexp.errors"),
    "recexp/nn": ("recexp.nn", "recexp.types", "recexp.errors"),
    "recexp/models": (
        "recexp.models",
        "recexp.nn",
        "recexp.contracts",
        "recexp.types",
        "recexp.errors",
    ),
    "recexp/objectives": (
        "recexp.objectives",
        "recexp.nn.cpu",
        "recexp.contracts",
        "recexp.types",
        "recexp.errors",
        "recexp.distributed",
        "recexp.data.store",
        "recexp.rng",
    ),
    "recexp/objectives/losses.py": (
        "recexp.contracts",
        "recexp.nn.cpu",
        "recexp.types",
        "recexp.errors",
    ),
    "recexp/evaluation": (
        "recexp.evaluation",
        "recexp.contracts",
        "recexp.types",
        "recexp.errors",
        "recexp.io",
        "recexp.rng",
        "recexp.data.split",
        "recexp.data.cache",
    ),
}


def imported(path: Path, *, top_level: bool = False, typing: bool = True) -> set[str]:
    """Names that a file imports, as module.name.

    top_level: only what importing the file loads. typing: also what only type checkers read.
    """
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level else list(ast.walk(tree))
    if not typing:
        for_types = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
            for inner in ast.walk(node)
        }
        nodes = [node for node in nodes if id(node) not in for_types]
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def place(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def wall(path: Path) -> str | None:
    fitting = [prefix for prefix in MAY_IMPORT if place(path).startswith(prefix)]
    return max(fitting, key=len, default=None)


@pytest.mark.parametrize("path", [p for p in CODE if wall(p)], ids=place)
def test_imports_stay_within_the_walls(path):
    allowed = MAY_IMPORT[wall(path)]
    ours = {name for name in imported(path, typing=False) if name.split(".")[0] == "recexp"}
    outside = {name for name in ours if not any(f"{name}.".startswith(f"{a}.") for a in allowed)}
    assert not outside, f"{place(path)} imports {sorted(outside)}"


def test_walls_name_files_that_are_there():
    gone = {prefix for prefix in MAY_IMPORT if not (ROOT / prefix).exists()}
    assert gone <= {"recexp/rng.py"}


def package(name: str) -> str:
    """The folder, or the module of the root, that holds recexp.<name>."""
    return name.split(".")[1] if "." in name else ""


def edges() -> dict[tuple[str, str], list[str]]:
    """(importing, imported) package -> the files that import, type checking left out."""
    found: dict[tuple[str, str], list[str]] = {}
    for path in CODE:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for name in imported(path, typing=False):
            pair = package(module), package(name)
            if name.startswith("recexp.") and "" not in pair and pair[0] != pair[1]:
                found.setdefault(pair, []).append(place(path))
    return found


def cycles(pairs: set[tuple[str, str]]) -> list[set[str]]:
    """Sets of packages that import each other, directly or through others."""
    reach = {a: {b for x, b in pairs if x == a} for pair in pairs for a in pair}
    for middle in reach:
        for start in reach:
            if middle in reach[start]:
                reach[start] |= reach[middle]
    found: list[set[str]] = []
    for name in reach:
        together = {other for other in reach[name] if name in reach[other]}
        if together and together not in found:
            found.append(together)
    return found


def test_cycles_are_found():
    assert cycles({("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")}) == [{"a", "b", "c"}]
    assert cycles({("a", "b"), ("a", "c"), ("b", "c")}) == []


def in_a_circle(found: dict[tuple[str, str], list[str]]) -> str:
    return "\n".join(
        f"{a} -> {b}: {', '.join(sorted(set(files)))}"
        for group in cycles(set(found))
        for (a, b), files in sorted(found.items())
        if a in group and b in group
    )


def test_packages_import_each_other_in_no_circle():
    assert not in_a_circle(edges()), in_a_circle(edges())


def loaded(statement: str) -> set[str]:
    """Top-level names of the modules that a statement loads in a fresh process."""
    code = f"{statement}; import sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {name.split(".")[0] for name in done.stdout.split()}


def test_importing_the_package_loads_no_library():
    heavy = {"torch", "polars", "hydra", "omegaconf", "numpy", "pytorch_lightning", "pydantic"}
    assert not loaded("import recexp") & heavy


def test_the_command_line_and_the_launcher_need_no_torch():
    """So that --help answers at once, and a sweep imports torch once, in its warm parent."""
    found = loaded("import recexp.cli.main, recexp.cli.launcher, recexp.cli.sweeper")
    assert not found & {"torch", "pytorch_lightning", "polars"}


@pytest.mark.parametrize("module", ["collect", "tables", "papers.published", "formats"])
def test_reading_results_needs_no_torch(module):
    found = loaded(f"import recexp.report.{module}")
    assert not found & {"torch", "pytorch_lightning", "hydra_plugins"}


def test_importing_the_test_kit_needs_no_test_runner():
    assert not loaded("import recexp.testing") & {"pytest", "_pytest"}


@pytest.mark.parametrize(
    "module",
    [
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
        "training/loggers/tracker",
        "training/loggers/with_wandb",
        "training/loggers/with_tensorboard",
        "training/loggers/with_mlflow",
        "training/loggers/with_comet",
    ],
)
def test_a_run_on_prepared_data_loads_no_library_before_it_is_needed(module):
    """polars is needed at the end of a run, W&B and matplotlib only where they are chosen."""
    names = imported(ROOT / f"recexp/{module}.py", top_level=True)
    assert not {name.split(".")[0] for name in names} & {"polars", "matplotlib", *TRACKERS}


# Text

REFERENCES = re.compile(r"models\.md|architecture\.md|\bspec(ification)? ?§? ?\d|\bS00\d\b|§")
SUFFIXES = {".py", ".yaml", ".md", ".csv", ".j2"}


def texts(*folders: str) -> list[Path]:
    found = []
    for folder in folders:
        paths = [path for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
        assert paths, f"{folder} has no text"
        found += paths
    return sorted(path for path in found if "results" not in path.relative_to(ROOT).parts)


def lines_with(pattern: re.Pattern[str], paths: list[Path]) -> list[str]:
    return [
        f"{place(path)}:{n}: {line.strip()[:80]}"
        for path in paths
        for n, line in enumerate(path.read_text().splitlines(), start=1)
        if pattern.search(line)
    ]


def test_text_refers_to_nothing_outside_the_repository():
    """Sources are papers by name; see docs/references.md."""
    paths = texts("recexp", "conf", "docs", "tests")
    paths.remove(Path(__file__).resolve())  # whose pattern matches itself
    assert lines_with(REFERENCES, paths) == []


def test_no_code_is_kept_from_the_formatter():
    marker = re.compile(r"#\s*fmt:\s*(skip|off)")
    assert lines_with(marker, texts("recexp", "tests")) == []
