"""A finished run as material: its files choose no place, and name the tested checkpoint."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from recexp.errors import RecexpError
from recexp.report.attention import attention
from recexp.runs import finished
from recexp.runs.evaluate import evaluate, main
from tests.support.events import random_events, write
from tests.support.running import run_here

MODEL = ["model=bpr_mf", "model.n_factors=4", "trainer.max_epochs=1", "protocol=full"]
TABLE = (
    "dataset=table",
    "dataset.name=mine",
    "dataset.source.time_unit=ms",
    "logger=csv",
    "threads=1",
    "batch_size=256",
)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Holds ``raw`` and ``cache`` of the runs below it."""
    folder = tmp_path_factory.mktemp("home")
    write(folder / "raw", random_events(0, n_users=40, n_items=60, n_events=900))
    return folder


@pytest.fixture(scope="module")
def trained(home) -> Path:
    run_here(home / "trained", *MODEL, small=TABLE)
    return home / "trained"


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of the run, as from another person."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    """The user's working directory, without any data."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def change(run: Path, **values) -> None:
    """Overwrite values of config.yaml, dotted keys with __ for the dot."""
    cfg = yaml.safe_load((run / "config.yaml").read_text())
    for key, value in values.items():
        *path, last = key.split("__")
        node = cfg
        for part in path:
            node = node[part]
        node[last] = value
    (run / "config.yaml").write_text(yaml.safe_dump(cfg))


def change_result(run: Path, **values) -> None:
    path = run / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ------------------------------------------------------------ places of data


def test_the_plain_command_works_after_a_run_with_another_raw_dir(home, run, monkeypatch):
    monkeypatch.chdir(home)  # whose cache is the default one; raw is not
    shutil.move(home / "raw", home / "gone")
    try:
        assert evaluate(run, "full_unseen")["protocol"] == "full_unseen"
    finally:
        shutil.move(home / "gone", home / "raw")


def test_data_in_places_of_the_run_are_not_used_and_the_error_names_the_flags(home, run, elsewhere):
    before = contents(home / "raw"), sorted((home / "cache").rglob("*"))
    with pytest.raises(RecexpError) as caught:
        evaluate(run, "full_unseen")
    assert f"--raw-dir {home}/raw --cache-dir {home}/cache" in str(caught.value)
    assert before == (contents(home / "raw"), sorted((home / "cache").rglob("*")))


def test_either_flag_of_the_error_suffices(home, run, elsewhere):
    by_cache = evaluate(run, "full_unseen", cache_dir=str(home / "cache"))
    assert not (elsewhere / "cache").exists()
    by_raw = evaluate(run, "full_unseen", raw_dir=str(home / "raw"))
    assert (elsewhere / "cache").is_dir()
    assert by_cache["metrics"] == by_raw["metrics"]


def test_simulated_data_are_made_again_in_the_users_default_place(tmp_path, elsewhere):
    run_here(tmp_path / "run", *MODEL)
    before = sorted(tmp_path.glob("raw/**/*")), sorted(tmp_path.glob("cache/**/*"))
    evaluate(tmp_path / "run", "full_unseen")
    assert (elsewhere / "data" / "simulated_shop").is_dir() and (elsewhere / "cache").is_dir()
    assert before == (sorted(tmp_path.glob("raw/**/*")), sorted(tmp_path.glob("cache/**/*")))


def test_other_data_in_the_users_place_are_an_error_with_the_flags(home, run, elsewhere):
    write(elsewhere / "data" / "table", random_events(1, n_users=40, n_items=60, n_events=900))
    with pytest.raises(RecexpError, match=r"fingerprints differ\. .*--raw-dir"):
        evaluate(run, "full_unseen")


def test_damaged_prepared_data_are_prepared_again(home, run, elsewhere):
    (folder,) = [p for p in (home / "cache").iterdir() if p.is_dir() and "mine" in p.name]
    copy = shutil.copytree(folder, elsewhere / "cache" / folder.name)
    for content in ("", "{}"):
        (Path(copy) / "meta.json").write_text(content)
        result = evaluate(run, "full_unseen", raw_dir=str(home / "raw"))
        assert result["metrics"]["test/mrr"] > 0


def test_the_attention_of_a_run_takes_the_users_places_too(home, tmp_path, elsewhere):
    run_here(
        home / "sasrec",
        "model=sasrec",
        "model.max_len=8",
        "trainer.max_epochs=1",
        "protocol=full",
        small=TABLE,
    )
    with pytest.raises(RecexpError, match="--cache-dir"):
        attention(home / "sasrec")
    assert attention(home / "sasrec", cache_dir=str(home / "cache"), last=2).ndim == 4


# ------------------------------------------------------------ what a foreign run may not do


@pytest.mark.parametrize("file", ["../raw/events.csv", "/etc/passwd", "a/../../x"])
def test_no_file_outside_the_raw_folder_is_read(home, run, elsewhere, file):
    change(run, dataset__source__file=file)
    with pytest.raises(RecexpError, match=r"dataset\.source\.file=.* leads out of the folder"):
        evaluate(run, "full_unseen", raw_dir=str(home / "raw"))


def test_a_separator_is_no_place(home, run, elsewhere):
    change(run, dataset__source__separator="/")
    with pytest.raises(RecexpError) as caught:  # the file has other columns then
        evaluate(run, "full_unseen", raw_dir=str(home / "raw"))
    assert "leads out" not in str(caught.value)


@pytest.mark.parametrize("file", ["config.yaml", "result.json", "checkpoints/best.ckpt"])
def test_no_link_leads_out_of_the_run(home, run, trained, elsewhere, file):
    (run / file).unlink()
    (run / file).symlink_to(trained / file)
    with pytest.raises(RecexpError, match=f"{re.escape(file)} leads out of the run's directory"):
        evaluate(run, "full_unseen", cache_dir=str(home / "cache"))


def test_no_link_leads_out_of_the_folder_of_results(home, run, tmp_path, elsewhere):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (run / "full_unseen").mkdir()
    (run / "full_unseen" / "ranks.parquet").symlink_to(precious)
    with pytest.raises(RecexpError, match=r"ranks\.parquet is a link"):
        evaluate(run, "full_unseen", cache_dir=str(home / "cache"))
    assert precious.read_text() == "mine"


def test_the_fingerprint_names_no_other_folder(home, run, elsewhere):
    change_result(run, data={"fingerprint": "x/../../raw"})
    with pytest.raises(RecexpError, match="no run writes the fingerprint"):
        evaluate(run, "full_unseen", cache_dir=str(home / "cache"))


def test_a_config_of_another_split_does_not_fit_the_data(home, run, elsewhere):
    change(run, protocol__split__purge="pair", protocol__split__target="explicit")
    with pytest.raises(RecexpError, match="fingerprints differ"):
        evaluate(
            run,
            "full_unseen",
            own_split=True,
            raw_dir=str(home / "raw"),
            cache_dir=str(home / "cache"),
        )


@pytest.mark.parametrize(
    "size",
    [
        {"users": 2**31},
        {"users": 10**6, "sessions": 200.0},
        {"items": 2**31},
        {"categories": 2**30},
    ],
    ids=str,
)
def test_no_huge_shop_is_simulated_for_a_foreign_run(tmp_path, elsewhere, size):
    run_here(tmp_path / "run", *MODEL)
    change(tmp_path / "run", **{f"dataset__source__{key}": value for key, value in size.items()})
    with pytest.raises(RecexpError, match="too large to be made"):
        evaluate(tmp_path / "run", "full_unseen")
    assert not (elsewhere / "data").exists()


def test_a_model_larger_than_its_checkpoint_takes_no_memory(home, run, elsewhere, monkeypatch):
    change(run, model__n_factors=65_536)
    monkeypatch.setattr("recexp.runs.evaluate.assemble", None)  # would build it
    with pytest.raises(RecexpError, match=r"holds [\d,]+ numbers, and the model"):
        evaluate(run, "full_unseen", cache_dir=str(home / "cache"))


def test_batches_of_a_foreign_run_are_bounded(home, run, elsewhere):
    change(run, eval_batch_size=2**31)
    opened = finished.open_run(run, cache_dir=str(home / "cache"))
    assert opened.cfg.eval_batch_size <= 4096
    evaluate(run, "full_unseen", cache_dir=str(home / "cache"))


def test_the_start_of_a_pretrained_model_is_not_read(home, elsewhere):
    words = ["model=neumf", "model.n_factors=4", "trainer.max_epochs=1", "protocol=full"]
    run_here(home / "neumf", *words, small=TABLE)
    before = evaluate(home / "neumf", "full_unseen", cache_dir=str(home / "cache"))
    change(home / "neumf", model__pretrained={"gmf": "/etc/passwd", "mlp": "/dev/zero"})
    after = evaluate(home / "neumf", "full_unseen", cache_dir=str(home / "cache"))
    assert after["metrics"] == before["metrics"]


def test_places_of_the_run_are_shown_as_text(run, elsewhere, monkeypatch, capsys):
    change(run, cache_dir="a b\x1b[31m; rm -rf $HOME", dataset__raw_dir="x" * 5000)
    monkeypatch.setattr("sys.argv", ["evaluate", str(run), "full_unseen"])
    with pytest.raises(SystemExit) as stopped:
        main()
    said = str(stopped.value)
    assert "\x1b" not in said and "x" * 201 not in said
    assert r"--cache-dir ''" in said and r"\x1b[31m; rm -rf $HOME" in said


# ------------------------------------------------------------ the tested checkpoint


def named(run: Path, file: str) -> dict:
    """As ``result.json`` names it."""
    digest = hashlib.sha256((run / file).read_bytes()).hexdigest()
    return {"file": file, "sha256": digest}


def other_weights(run: Path, name: str) -> Path:
    """A checkpoint of the same model whose weights are noise."""
    content = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    state = content["state_dict"]
    generator = torch.Generator().manual_seed(0)
    for key, value in state.items():
        if value.is_floating_point():
            state[key] = torch.randn(value.shape, generator=generator)
    torch.save(content, run / "checkpoints" / name)
    return run / "checkpoints" / name


@pytest.fixture
def expected(run, home, elsewhere) -> dict:
    return evaluate(run, "full_unseen", cache_dir=str(home / "cache"))["metrics"]


def measured(run: Path, home: Path) -> dict:
    return evaluate(run, "full_unseen", cache_dir=str(home / "cache"))["metrics"]


def test_the_named_checkpoint_is_used_and_no_other(run, home, expected):
    change_result(run, checkpoint=named(run, "checkpoints/best.ckpt"))
    other_weights(run, "refit.ckpt")
    assert measured(run, home) == expected
    change_result(run, checkpoint=named(run, "checkpoints/refit.ckpt"), selection="refit")
    assert measured(run, home) != expected


@pytest.mark.parametrize("is_named", [True, False])
def test_a_changed_checkpoint_is_an_error(run, home, expected, is_named):
    if is_named:
        change_result(run, checkpoint=named(run, "checkpoints/best.ckpt"))
        other_weights(run, "best.ckpt")
        with pytest.raises(RecexpError, match=r"best\.ckpt .*its checksum differs"):
            measured(run, home)
    else:  # a run of an earlier version cannot know
        change_result(run, checkpoint=None)
        other_weights(run, "best.ckpt")
        assert measured(run, home) != expected


def test_a_missing_checkpoint_is_an_error(run, home, expected):
    change_result(run, checkpoint=named(run, "checkpoints/best.ckpt"))
    (run / "checkpoints" / "best.ckpt").unlink()
    other_weights_of = run / "checkpoints" / "last.ckpt"
    assert other_weights_of.is_file()
    with pytest.raises(RecexpError, match=r"best\.ckpt is missing"):
        measured(run, home)


@pytest.mark.parametrize("file", ["../trained/checkpoints/best.ckpt", "/etc/passwd", "", "a\x00b"])
def test_the_named_checkpoint_lies_in_the_run(run, home, expected, file):
    change_result(run, checkpoint={"file": file, "sha256": "0" * 64})
    with pytest.raises(
        RecexpError, match=r"leads out of|is missing|cannot be read|not a regular file"
    ):
        measured(run, home)


def test_results_without_a_name_are_of_the_best_epoch_unless_refitted(run, home, expected):
    change_result(run, checkpoint=None)
    other_weights(run, "refit.ckpt")
    assert measured(run, home) == expected
    change_result(run, selection="refit")
    assert measured(run, home) != expected
