"""A few hundred generated inputs; ``make fuzz`` runs many more.

A failure names its seed: ``python -m tests.fuzz --seed N`` runs it alone.
"""

import random

import pytest

from tests.fuzz.layouts import LAYOUTS
from tests.fuzz.mutations import MUTATIONS
from tests.fuzz.trial import Wrong, check, trial
from tests.fuzz.world import World

INPUTS, EACH = 300, 25


@pytest.mark.parametrize("first", range(0, INPUTS, EACH))
def test_generated_inputs_are_read_right_or_refused(tmp_path, first):
    for seed in range(first, first + EACH):
        trial(seed, tmp_path / "input")


@pytest.mark.parametrize("name", LAYOUTS)
def test_untouched_files_are_read(tmp_path, name):
    """Well-formed files of every layout are read without an error."""
    rng = random.Random(name)
    files = LAYOUTS[name].write(
        rng, World(3, 4, [(n % 3, n % 4, n % 2, 978_300_760 + n) for n in range(20)])
    )
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
    assert check(rng, LAYOUTS[name], files, "error", tmp_path) == "read"


def test_the_same_seed_makes_the_same_files(tmp_path):
    made = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        trial(7, folder)
        made.append({path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})
    assert made[0] == made[1] and made[0]


def test_a_wrong_number_is_found(tmp_path):
    """Tests the comparison: it fails where the files hold other values than those read."""
    rng, layout = random.Random(0), LAYOUTS["taobao"]
    files = layout.write(rng, World(2, 2, [(0, 0, 0, 5), (0, 1, 0, 6), (1, 1, 0, 7)]))
    (tmp_path / "UserBehavior.csv").write_bytes(files["UserBehavior.csv"].replace(b",6\n", b",8\n"))
    with pytest.raises(Wrong, match="events: 3 found, 3 expected; at 1"):
        check(rng, layout, files, "error", tmp_path)


def test_every_mutation_runs_on_any_content():
    rng = random.Random(1)
    for mutation in MUTATIONS:
        for content in (b"", b"\n", b"1,2,3,pv,5\n1,4,3,buy,6\n", b'{"a": 1, "b": ["x"]}\n'):
            assert isinstance(mutation(rng, content), bytes)
