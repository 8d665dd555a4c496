"""Keys of earlier versions: command lines, stored runs and fingerprints."""

from __future__ import annotations

import json

import pytest

from recexp.renamed import RENAMED, warn_of_renamed, with_first_keys, with_new_keys, with_new_words
from recexp.runs.loading import read_config
from tests.support.running import command


@pytest.mark.parametrize(
    ("earlier", "now"),
    [
        ("model.num_factors=8", "model.n_factors=8"),
        ("+model.num_inner=8", "+model.n_inner=8"),
        ("dataset.behaviours=[a,b]", "dataset.behaviors=[a,b]"),
        ("dataset.value_behaviours={low: 0}", "dataset.value_behaviors={low: 0}"),
        ("+preset.model={num_heads: 2, num_layers: 1}", "+preset.model={n_heads: 2, n_layers: 1}"),
        # values, and keys that only contain an earlier one, stay
        ("dataset.source.behavior=behaviours", "dataset.source.behavior=behaviours"),
        ("model.my_num_factors=8", "model.my_num_factors=8"),
        ("trainer.num_nodes=2", "trainer.num_nodes=2"),
        ("--help", "--help"),
    ],
)
def test_overrides_of_earlier_versions_are_translated(earlier, now):
    assert with_new_words([earlier]) == [now]


def test_keys_are_translated_at_any_depth_and_back():
    earlier = {"model": {"num_factors": 8}, "dataset": [{"behaviours": ["behaviours"]}]}
    now = {"model": {"n_factors": 8}, "dataset": [{"behaviors": ["behaviours"]}]}
    assert with_new_keys(earlier) == now
    assert with_first_keys(now) == earlier


def test_no_key_of_an_earlier_version_is_a_key_of_today():
    assert not set(RENAMED) & set(RENAMED.values())


def test_one_warning_names_the_renamed_keys(caplog):
    warn_of_renamed(["model.num_factors=8", "model.num_heads=2", "seed=1"])
    assert [record.getMessage() for record in caplog.records] == [
        "renamed settings: num_factors is now n_factors, num_heads is now n_heads"
    ]
    caplog.clear()
    warn_of_renamed(["model.n_factors=8", "--help"])
    assert not caplog.records


def test_a_command_of_an_earlier_version_runs(tmp_path):
    folder = tmp_path / "run"
    done = command(folder, "model=bpr_mf", "model.num_factors=4", f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    assert "num_factors is now n_factors" in done.stderr + done.stdout
    result = json.loads((folder / "result.json").read_text())
    assert result["config"]["model"]["n_factors"] == 4


def test_the_config_of_an_earlier_run_is_read_in_today_s_spelling(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("model: {num_factors: 8}\ndataset: {behaviours: [view]}\n")
    cfg = read_config(path)
    assert cfg.model.n_factors == 8
    assert list(cfg.dataset.behaviors) == ["view"]
