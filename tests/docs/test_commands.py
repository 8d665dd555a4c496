"""Commands of the documents compose, and tables of results are what the report prints today."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from recexp.config import CONF
from recexp.config.check import check_config
from recexp.data.download.command import find
from recexp.data.download.command import parser as download_parser
from recexp.report.__main__ import _parser
from recexp.report.__main__ import main as report
from recexp.report.collect import collect
from recexp.report.formats import as_markdown
from recexp.report.statistics import comparisons
from recexp.runs.evaluate import parser as evaluation_parser
from recexp.runs.split_files import parser as export_parser
from tests.support.running import composed

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "docs" / "quickstart.md",
    ROOT / "docs" / "experiments.md",
    *sorted((ROOT / "docs" / "guides").glob("*.md")),
    *sorted(RESULTS.glob("*/README.md")),
]
OF_THE_READER = ("=mine", "=my_model", "=history_mean")  # files that a guide tells them to write
# Of optional packages.
OF_PLUGINS = (
    "hydra/launcher=",
    "hydra/sweeper=",
    "hydra.launcher.",
    "+hydra.launcher.",
    "hydra.sweeper.",
)


def commands(program: str) -> list[str]:
    """Every command of the documents that starts with this program, in blocks and in texts."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text().replace("\\\n", " ")
        blocks = re.findall(r"^```\n(.*?)^```", text, re.M | re.S)
        lines = [line for block in blocks for line in block.splitlines()]
        lines += re.findall(r"`([^`\n]+)`", text)
        for line in lines:
            words = shlex.split(line.split(" # ")[0]) if "python -m" in line else []
            if "python" in words:
                words = words[words.index("python") :]
            if words[:3] == ["python", "-m", program]:
                found.append(" ".join(shlex.quote(word) for word in words[3:]))
    return list(dict.fromkeys(found))


def first_values(word: str) -> str:
    """Of a sweep, "model=a,b", the first job's override."""
    key, equals, value = word.partition("=")
    if "interval(" in value:  # of a search
        return f"{key}={value.rpartition('(')[2].split(',')[0]}"
    is_list = value.startswith(("[", "{")) or "(" in value
    return word if is_list else f"{key}{equals}{value.split(',')[0]}"


def composes(folder: Path, words: list[str]) -> None:
    kept = [w for w in words if w not in ("-m", "...", "--help") and "RUN_DIR" not in w]
    # A simulated shop of the tests stands below the settings; its keys are for that data set alone.
    cfg = composed(folder, *map(first_values, kept), small=())
    check_config(cfg)


@pytest.mark.parametrize("command", commands("recexp"))
def test_a_command_of_the_documents_composes(tmp_path, command):
    words = shlex.split(command)
    if any(word.endswith(OF_THE_READER) for word in words):
        return
    composes(tmp_path / "run", [word for word in words if not word.startswith(OF_PLUGINS)])


def test_commands_are_found():
    assert len(commands("recexp")) > 12 and len(commands("recexp.report")) > 5


@pytest.mark.parametrize(
    "words",
    [
        "+optimizer.eps=1e-6",
        "scheduler=linear_warmup scheduler.warmup=200",
        "model.n_factors=32 optimizer.lr=0.01",
    ],
)
def test_the_ways_to_set_a_value_in_the_quickstart_compose(tmp_path, words):
    text = (ROOT / "docs" / "quickstart.md").read_text()
    assert f"`{words}`" in text
    composes(tmp_path / "run", ["model=sasrec_softmax", *words.split()])


@pytest.mark.parametrize("command", commands("recexp.report"))
def test_a_report_command_of_the_documents_has_options_that_exist(command):
    _parser().parse_args(shlex.split(command))


@pytest.mark.parametrize("command", commands("recexp.evaluate"))
def test_an_evaluation_of_the_documents_has_options_that_exist(tmp_path, command):
    words = shlex.split(command)
    if words == ["--predictions", "FILE"]:  # in a text
        return
    options = evaluation_parser().parse_intermixed_args(words)
    if options.predictions is not None:
        composes(tmp_path / "run", options.words)


@pytest.mark.parametrize("command", commands("recexp.data.export"))
def test_an_export_of_the_documents_has_options_that_exist(tmp_path, command):
    composes(tmp_path / "run", export_parser().parse_args(shlex.split(command)).words)


@pytest.mark.parametrize("command", commands("recexp.data.download"))
def test_a_download_of_the_documents_has_options_and_data_that_exist(command):
    options = download_parser().parse_args(shlex.split(command))
    names = [word for word in options.words if "=" not in word and not word.endswith(".yaml")]
    overrides = [word for word in options.words if "=" in word]
    for name in names:
        if name != "NAME":
            find(CONF / "dataset", name, overrides)


def test_the_guide_names_every_data_set():
    text = (ROOT / "docs" / "guides" / "data_sets.md").read_text()
    names = {path.stem for path in (CONF / "dataset").glob("*.yaml")}
    assert not {name for name in names if f"`{name}`" not in text}


@pytest.mark.parametrize("folder", sorted(p.parent.name for p in RESULTS.glob("*/table.md")))
def test_a_stored_table_is_what_the_report_prints(folder, capsys):
    report([str(RESULTS / folder), "--format", "markdown"])
    assert capsys.readouterr().out == (RESULTS / folder / "table.md").read_text()


def test_the_comparison_in_the_readme_is_that_of_the_stored_runs():
    results, _ = collect([RESULTS / "ml_100k"])
    lines = [line for line in as_markdown(comparisons(results)[0]).splitlines() if line[:1] == "|"]
    assert "\n".join(lines) in (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    "folder", ["ml_100k", "implicit_to_explicit", "multi_feedback", "ml_1m", "others"]
)
def test_metrics_in_the_tables_of_a_page_are_those_of_a_stored_run(folder):
    """Every HR@10 and NDCG@10 in the columns of these names."""
    results, _ = collect([RESULTS / folder])
    stored = set()
    for result in results:
        metrics = result["metrics"]
        pair = (metrics["test/hr@10"], metrics["test/ndcg@10"])
        stored.add(tuple(f"{value:.4f}".removeprefix("0") for value in pair))
    n_checked = 0
    at = None
    for line in (RESULTS / folder / "README.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if "HR@10" in cells:
            at = cells.index("HR@10")
        elif at and line.startswith("|") and not line.startswith("|---"):
            assert (cells[at], cells[at + 1]) in stored, line
            n_checked += 1
        elif not line.startswith("|"):
            at = None
    assert n_checked >= 3


def test_popularity_of_another_program_has_the_metrics_of_ours():
    """As far as its lists show them."""
    results = {result["model"]: result for result in collect([RESULTS / "others"])[0]}
    theirs = results["rectools_popular"]["metrics"]
    ours = results["pop"]["metrics"]
    assert {"test/hr@20", "test/ndcg@20"} <= theirs.keys()
    assert theirs == {name: ours[name] for name in theirs}
