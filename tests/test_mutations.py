"""The list of mutations matches the code: every guard is found exactly once."""

from __future__ import annotations

import ast

import pytest

from tests.mutations import MUTATIONS, ROOT

IDS = [mutation.guard for mutation in MUTATIONS]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=IDS)
def test_the_guard_stands_once_in_its_file(mutation):
    text = (ROOT / mutation.file).read_text()
    assert text.count(mutation.old) == 1
    assert mutation.new != mutation.old


@pytest.mark.parametrize("mutation", MUTATIONS, ids=IDS)
def test_the_code_without_the_guard_still_compiles(mutation):
    text = (ROOT / mutation.file).read_text()
    ast.parse(text.replace(mutation.old, mutation.new))


@pytest.mark.parametrize("mutation", MUTATIONS, ids=IDS)
def test_the_tests_of_the_guard_are_there(mutation):
    paths = [word for word in mutation.tests.split() if word.startswith("tests")]
    assert paths and all((ROOT / path).exists() for path in paths)


def test_guards_have_distinct_names():
    assert len(set(IDS)) == len(IDS)


def test_the_documentation_lists_every_guard():
    text = (ROOT / "docs/faults.md").read_text()
    listed = {line.split(" | ")[0].removeprefix("| ") for line in text.splitlines()}
    assert set(IDS) <= listed
    assert f"All {len(IDS)} guards were tried" in text
