"""The best values become a preset that Hydra finds by name."""

from __future__ import annotations

import pytest
import yaml

from recexp.errors import RecexpError
from recexp.search.best import check_preset_path, preset_values, write_preset


def test_only_what_differs_and_concerns_training_is_kept():
    plain = {"model": {"_target_": "M", "n": 1, "m": 2}, "loss": {"_target_": "A", "t": 1}}
    plain |= {"seed": 0, "threads": None, "dataset": {"name": "a"}, "batch_size": 1}
    best = {"model": {"_target_": "M", "n": 5, "m": 2}, "loss": {"_target_": "B"}}
    best |= {"seed": 1, "threads": 4, "dataset": {"name": "b"}, "batch_size": 1}
    assert preset_values(plain, best) == {"model": {"n": 5}, "loss": {"_target_": "B"}}


def test_entries_of_other_pairs_stay(tmp_path):
    path = check_preset_path(str(tmp_path / "preset" / "mine.yaml"))
    write_preset(path, "ml_1m", "sasrec", {"batch_size": 1})
    write_preset(path, "ml_1m", "pop", {"batch_size": 2})
    write_preset(path, "ml_1m", "sasrec", {"batch_size": 3})
    content = yaml.safe_load(path.read_text())
    assert content["name"] == "mine"
    assert content["entries"] == {"ml_1m": {"sasrec": {"batch_size": 3}, "pop": {"batch_size": 2}}}


def test_a_file_that_is_no_preset_is_kept_and_named(tmp_path):
    path = tmp_path / "preset" / "mine.yaml"
    path.parent.mkdir()
    for text in ("entries: [1]", "just text", "a: [", "entries: {a: 1}"):
        path.write_text(text)
        with pytest.raises(RecexpError, match="is no preset"):
            write_preset(path, "ml_1m", "sasrec", {})
        assert path.read_text() == text


@pytest.mark.parametrize("place", ["best.yaml", "preset/best.yml", "preset/a b.yaml"])
def test_a_place_where_hydra_would_not_find_it_is_refused(place):
    with pytest.raises(RecexpError, match=r"must be FOLDER/preset/NAME.yaml"):
        check_preset_path(place)
