"""Commands of the documents compose, and tables of results are what the report prints today."""

from __future__ import annotations

import re
import shlex
import subprocess
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from recexp.cli.sweep_names import with_sweep_directory
from recexp.config import CONF
from recexp.config.check import check_config
from recexp.data.download.command import find
from recexp.data.download.command import parser as download_parser
from recexp.report.__main__ import _parser as report_parser
from recexp.report.__main__ import main as report
from recexp.report.collect import collect
from recexp.report.describe import _parser as describe_parser
from recexp.report.describe import overrides_per_dataset
from recexp.report.formats import as_markdown
from recexp.report.scorecard import scorecard
from recexp.report.statistics import comparisons
from recexp.report.tables import by_protocol, mean_cell, systems
from recexp.runs.evaluate import parser as evaluation_parser
from recexp.runs.export import parser as export_parser
from recexp.runs.recommend import parser as recommend_parser
from recexp.runs.serve import parser as serve_parser
from recexp.runs.split_files import parser as split_parser
from tests.support.running import composed

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHELLS = ("", "bash", "sh", "console")  # languages of blocks that hold commands
# First words of the lines of such blocks that are commands.
STARTS = ("python ", "make ", "srun ", "pip ", "curl ", "pytest ", ". ", ".venv/")
PARSERS = {
    "recexp.report": report_parser,
    "recexp.report.describe": describe_parser,
    "recexp.evaluate": evaluation_parser,
    "recexp.recommend": recommend_parser,
    "recexp.serve": serve_parser,
    "recexp.export": export_parser,
    "recexp.data.describe": describe_parser,
    "recexp.data.export": split_parser,
    "recexp.data.download": download_parser,
}
OF_THE_READER = ("=mine", "=my_model", "=history_mean")  # files that a guide tells them to write
# Of optional packages.
OF_PLUGINS = (
    "hydra/launcher=",
    "hydra/sweeper=",
    "hydra.launcher.",
    "+hydra.launcher.",
    "hydra.sweeper.",
)


@cache
def shell_lines() -> list[tuple[str, str]]:
    """Every command of the documents with the document's name, in blocks and in texts."""
    found = []
    for document in DOCUMENTS:
        name = str(document.relative_to(ROOT))
        text = document.read_text().replace("\\\n", " ")
        for language, block in re.findall(r"^ *```(\w*)\n(.*?)^ *```", text, re.M | re.S):
            if language in SHELLS:
                lines = [line.strip() for line in block.splitlines()]
                found += [(name, line) for line in lines if line.startswith(STARTS)]
        inline = re.findall(r"`([^`\n]+)`", re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S))
        found += [(name, line) for line in inline if line.startswith(("python -m ", "make "))]
    return list(dict.fromkeys(found))


def words_of(line: str) -> list[str]:
    return shlex.split(line, comments=True)


def commands(program: str) -> list[str]:
    """The arguments of every command of the documents that starts with this program."""
    found = []
    for _, line in shell_lines():
        words = words_of(line)
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
    words = with_sweep_directory(shlex.split(command))
    if "--version" in words or any(word.endswith(OF_THE_READER) for word in words):
        return
    composes(tmp_path / "run", [word for word in words if not word.startswith(OF_PLUGINS)])


def test_commands_are_found():
    assert len(commands("recexp")) > 12 and len(commands("recexp.report")) > 5


def test_a_shell_takes_every_command(tmp_path):
    """Such as: no parenthesis outside of quotes, every quote closed."""
    for n, (_, line) in enumerate(shell_lines()):
        (tmp_path / f"{n:03}.sh").write_text(line + "\n")
    loop = 'for file in *.sh; do bash -n "$file" || echo "$file"; done'
    done = subprocess.run(["bash", "-c", loop], cwd=tmp_path, capture_output=True, text=True)
    refused = [shell_lines()[int(name.removesuffix(".sh"))] for name in done.stdout.split()]
    assert not refused


def test_every_program_of_the_documents_is_one_whose_commands_are_tested():
    found = {word for _, line in shell_lines() for word in re.findall(r"python -m ([\w.]+)", line)}
    assert found - PARSERS.keys() - {"recexp", "tests.neutrality", "torch.distributed.run"} == set()


@pytest.mark.parametrize(
    ("program", "command"),
    [(program, command) for program in PARSERS for command in commands(program)],
)
def test_a_command_of_the_documents_has_options_that_exist(program, command):
    words = shlex.split(command)
    if words in ([], ["--predictions", "FILE"]) or "--help" in words:  # in a text
        return
    parser = PARSERS[program]()
    parse = parser.parse_intermixed_args if program == "recexp.evaluate" else parser.parse_args
    parse(words)


def test_files_and_targets_of_make_that_commands_name_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    for name, line in shell_lines():
        words = words_of(line)
        if words[0] == "make":
            named = [word for word in words[1:] if "=" not in word and word[:1] != "-"]
            assert set(named) <= targets, (name, line)
        for word in words:
            if word.startswith(("docs/", "tests/", "conf/")) or word.endswith(".py"):
                assert (ROOT / word).exists(), (name, line)


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


@pytest.mark.parametrize("command", commands("recexp.evaluate"))
def test_the_overrides_of_an_evaluation_of_the_documents_compose(tmp_path, command):
    words = shlex.split(command)
    if words in ([], ["--predictions", "FILE"]):  # in a text
        return
    options = evaluation_parser().parse_intermixed_args(words)
    if options.predictions is not None:
        composes(tmp_path / "run", options.words)


@pytest.mark.parametrize("program", ["recexp.data.export", "recexp.data.describe"])
def test_the_overrides_of_an_export_or_description_of_the_documents_compose(tmp_path, program):
    for command in commands(program):
        words = PARSERS[program]().parse_args(shlex.split(command)).words if command else []
        for overrides in overrides_per_dataset([word for word in words if "=" in word]):
            composes(tmp_path / "run", [word for word in overrides if not word.endswith("=...")])


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "options"), [("claims.md", ["--claims"]), ("scorecards.md", ["--scorecard", "all"])]
)
def test_a_stored_page_of_all_results_is_what_the_report_prints(page, options, capsys):
    report([str(RESULTS), *options, "--format", "markdown"])
    assert capsys.readouterr().out == (RESULTS / page).read_text()


def test_the_published_figures_in_the_readme_stand_beside_those_of_the_stored_runs():
    card = scorecard("bert4rec/table2_systems", collect([RESULTS / "ml_1m"])[0])[0]
    metric = card.head.index("metric")
    card = replace(card, rows=tuple(row for row in card.rows if row[metric].text == "ndcg@10"))
    columns = [card.head.index(name) for name in ("system", "published", "ours", "Δ %", "verdict")]
    assert as_markdown(card.part(columns)).split("\n\n")[2] in (ROOT / "README.md").read_text()


def test_the_claims_in_the_readme_are_those_of_the_stored_page():
    first = (RESULTS / "claims.md").read_text().split("### ")[1]
    assert first.split("\n\n")[1] in (ROOT / "README.md").read_text()


def test_the_comparison_in_the_readme_is_that_of_the_stored_runs():
    results, _ = collect([RESULTS / "ml_100k"])
    lines = [line for line in as_markdown(comparisons(results)[0]).splitlines() if line[:1] == "|"]
    assert "\n".join(lines) in (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    "folder",
    [
        "amazon_beauty_5core",
        "ijcai15",
        "ml_100k",
        "implicit_to_explicit",
        "multi_feedback",
        "ml_1m",
        "ml_1m_nova_512",
        "others",
        "retailrocket",
        "taobao_31882",
    ],
)
def test_metrics_in_the_tables_of_a_page_are_those_of_a_stored_run(folder):
    """Every HR@10 and NDCG@10 in the columns of these names; of several seeds mean ± deviation."""
    results, _ = collect([RESULTS / folder])
    stored = set()
    for result in results:
        metrics = result["metrics"]
        pair = (metrics["test/hr@10"], metrics["test/ndcg@10"])
        stored.add(tuple(f"{value:.4f}".removeprefix("0") for value in pair))
    for group in by_protocol(results).values():
        for system in systems(group):
            cells = [mean_cell(system.values(f"test/{name}"), "") for name in ("hr@10", "ndcg@10")]
            stored.add(tuple(re.sub(r"\b0(?=\.)", "", cell.text) for cell in cells))
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
    assert n_checked >= 2


def test_popularity_of_another_program_has_the_metrics_of_ours():
    """As far as its lists show them."""
    results = {result["model"]: result for result in collect([RESULTS / "others"])[0]}
    theirs = results["rectools_popular"]["metrics"]
    ours = results["pop"]["metrics"]
    assert {"test/hr@20", "test/ndcg@20"} <= theirs.keys()
    assert theirs == {name: ours[name] for name in theirs}
