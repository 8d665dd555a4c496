"""``sweep=NAME`` on a command line."""

import pytest

from recexp.cli.sweep_names import with_sweep_directory
from recexp.errors import RecexpError


def test_a_named_sweep_has_the_same_directory_at_every_start():
    words = ["-m", "sweep=lr_study", "model=sasrec,bert4rec"]
    changed = with_sweep_directory(words)
    assert changed == [
        "-m",
        "model=sasrec,bert4rec",
        'hydra.sweep.dir="multirun_outputs/lr_study"',
        "hydra.mode=MULTIRUN",
    ]
    assert with_sweep_directory(["model=pop"]) == ["model=pop"]


@pytest.mark.parametrize("name", ["", "../there", "/tmp", "a,b", "a b", "a/../b", ".", "${x}"])
def test_a_name_that_is_no_name_of_a_directory_is_refused(name):
    with pytest.raises(RecexpError, match="must be a name"):
        with_sweep_directory([f"sweep={name}"])


def test_a_name_and_a_directory_are_one_too_many():
    with pytest.raises(RecexpError, match="two directories"):
        with_sweep_directory(["sweep=a", "hydra.sweep.dir=b"])
