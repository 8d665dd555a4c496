"""Run directories from other people: none of their code is run, nothing is written outside them,
and no secret is stored.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import tomllib
import zipfile
from importlib import metadata
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest
import torch
import yaml
from packaging.requirements import Requirement

from recexp.errors import RecexpError
from recexp.report.__main__ import main as report
from recexp.runs.evaluate import evaluate
from recexp.training.checkpoints import verify_checkpoint
from tests.support.finished_runs import write_run
from tests.support.running import command, run_here

ROOT = Path(__file__).parents[2]
MODEL = ["model=bpr_mf", "model.n_factors=4", "trainer.max_epochs=1", "protocol=full"]
SECRET = "0123456789abcdef0123456789abcdef01234567"


class Payload:
    """Pickled, it writes a file where it is read."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return os.mkdir, (str(self.proof),)


def infect(checkpoint: Path, proof: Path) -> None:
    """Add the payload to a checkpoint; the archive stays valid, with the right checksums."""
    content = torch.load(checkpoint, weights_only=True)
    torch.save(content | {"payload": Payload(proof)}, checkpoint)
    with pytest.raises(FileExistsError):  # it would work
        proof.mkdir()
        torch.load(checkpoint, weights_only=False)
    proof.rmdir()


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("trust")


@pytest.fixture(scope="module")
def trained(shop) -> Path:
    run_here(shop / "trained", *MODEL)
    return shop / "trained"


@pytest.fixture(autouse=True)
def working_directory(shop, monkeypatch):
    """The user's own: ``cache`` in it holds the data of the runs."""
    monkeypatch.chdir(shop)


@pytest.fixture
def foreign(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "foreign"))


def change(run: Path, **nodes) -> None:
    """Overwrite entries of the run's config, dotted keys with __ for the dot."""
    cfg = yaml.safe_load((run / "config.yaml").read_text())
    for key, value in nodes.items():
        *path, last = key.split("__")
        node = cfg
        for part in path:
            node = node[part]
        node[last] = value
    (run / "config.yaml").write_text(yaml.safe_dump(cfg))


@pytest.mark.parametrize("logger", ["csv", pytest.param("wandb_offline", marks=pytest.mark.slow)])
def test_no_secret_is_written_anywhere(shop, logger, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("WANDB_MODE", "offline")
    done = command(shop / logger, *MODEL, f"logger={logger}", f"hydra.run.dir={shop / logger}")
    assert done.returncode == 0, done.stderr
    files = [p for p in (shop / logger).rglob("*") if p.is_file()]
    assert (shop / logger / "result.json") in files and any(
        p.suffix == ".wandb" for p in files
    ) == (logger != "csv")
    assert [
        p for p in files if SECRET.encode() in p.read_bytes()
    ] == [] and SECRET not in done.stdout + done.stderr


def unname(run: Path) -> None:
    """Remove the checksum of the checkpoint, which a foreign result may lack or name rightly."""
    path = run / "result.json"
    result = json.loads(path.read_text())
    del result["checkpoint"]
    path.write_text(json.dumps(result))


def test_a_checkpoint_that_carries_code_is_refused_unread(foreign, shop, tmp_path):
    proof = tmp_path / "proof"
    unname(foreign)
    for name in ("best", "last"):
        infect(foreign / "checkpoints" / f"{name}.ckpt", proof)
    with pytest.raises(
        RecexpError, match=r"best\.ckpt is no checkpoint of recexp.*Nothing of it was run"
    ):
        evaluate(foreign, "full_unseen")
    with pytest.raises(
        RecexpError, match=r"last\.ckpt is no checkpoint of recexp.*Nothing of it was run"
    ):
        run_here(shop / "resumed", *MODEL, f"ckpt_path={foreign}/checkpoints/last.ckpt")
    assert not proof.exists()


def test_no_code_of_ours_loads_a_checkpoint_otherwise():
    calls = {
        p: re.findall(r"torch\.load\(.*|pickle\.load.*|load_from_checkpoint\(.*", p.read_text())
        for p in (ROOT / "recexp").rglob("*.py")
    }
    assert any(calls.values()), "no call was found"
    assert all("weights_only=True" in call for found in calls.values() for call in found), calls
    fits = re.findall(
        r"trainer\.(?:fit|test)\(.*ckpt_path.*", (ROOT / "recexp" / "runs" / "run.py").read_text()
    )
    assert fits and all("weights_only=True" in call for call in fits)


@pytest.mark.parametrize(
    ("key", "node"),
    [
        ("model", {"_target_": "os.system", "command": "true"}),
        (
            "model",
            {"_target_": "recexp.data.cache.write_json", "path": "x", "value": 1},
        ),  # a class of recexp, but not a model
        ("model", {"_target_": "recexp.models.neumf.interaction_widths"}),  # not a class
        ("protocol", {"_target_": "builtins.exec", "_args_": ["raise SystemExit"]}),
        ("objective__sampler", {"_target_": "hydra.utils.get_method", "path": "os.system"}),
        ("objective__sampler", {"_target_": "hydra.utils.get_object", "path": "os.environ"}),
        ("dataset__source", {"_target_": "subprocess.run", "args": ["true"]}),
        ("dataset__filters", [{"_target_": "recexp.cli.main.main"}]),
        (
            "callbacks__last",
            {
                "_target_": "pytorch_lightning.core.module.LightningModule.load_from_checkpoint",
                "checkpoint_path": "x",
            },
        ),
        ("callbacks__last", {"_target_": "pytorch_lightning.callbacks.model_checkpoint.os.system"}),
        ("optimizer", {"_target_": "torch.hub.load", "repo_or_dir": "x/y"}),
        (
            "scheduler",
            {
                "_target_": "torch.optim.lr_scheduler.LambdaLR",
                "lr_lambda": {"_target_": "builtins.eval", "_args_": ["1"]},
            },
        ),
        ("trainer__strategy", {"_target_": "shutil.rmtree", "path": "x"}),
    ],
)
def test_targets_that_are_not_ours_are_refused_by_name(foreign, key, node):
    change(foreign, **{key: node})
    target = node["_target_"] if isinstance(node, dict) else node[0]["_target_"]
    inner = node.get("lr_lambda", {}).get("_target_", target) if isinstance(node, dict) else target
    with pytest.raises(
        RecexpError,
        match=rf"{key.replace('__', '.')}.*_target_={re.escape(inner)} "
        r"(is not allowed|cannot be found)",
    ):
        evaluate(foreign, "full_unseen")


def test_positional_arguments_are_refused(foreign):
    cfg = yaml.safe_load((foreign / "config.yaml").read_text())
    change(foreign, model=cfg["model"] | {"_args_": [1]})
    with pytest.raises(RecexpError, match=r"Unknown key model\._args_"):
        evaluate(foreign, "full_unseen")


@pytest.mark.parametrize(
    "text",
    [
        "${oc.env:WANDB_API_KEY}",
        "${oc.decode:x}",
        "${hydra:runtime.cwd}",
        "a ${names.model}",
        "???",
    ],
)
def test_what_would_be_computed_is_refused(foreign, text, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    change(foreign, dataset__raw_dir=text)
    with pytest.raises(RecexpError, match=r"dataset\.raw_dir=.*is to be computed") as caught:
        evaluate(foreign, "full_unseen")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.mkdir [proof]",
        "a: !!python/name:os.system ''",
        "- 1",
        "",
        "a: [",
        "a: \x00",
        "a: &a [*a]",
        "model: 3",
    ],
)
def test_a_config_that_is_none_is_one_error(foreign, text):
    (foreign / "config.yaml").write_text(text)
    with pytest.raises(RecexpError):
        evaluate(foreign, "full_unseen")
    assert not (Path.cwd() / "proof").exists()


@pytest.mark.parametrize(
    "text",
    ["[]", "{}", "3", "{", '{"data": 3}', '{"data": {}, "metrics": []}', "\x00", "[" * 100_000],
)
def test_a_result_that_is_none_is_one_error(foreign, text):
    (foreign / "result.json").write_text(text)
    with pytest.raises(RecexpError, match=r"result\.json is (no run's result|damaged)"):
        evaluate(foreign, "full_unseen")


@pytest.mark.parametrize("name", ["result.json", "config.yaml", "checkpoints/best.ckpt"])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_a_pipe_or_device_in_place_of_a_file_is_one_error(foreign, name, make):
    (foreign / name).unlink()
    make(foreign / name)
    refusal = r"(is not a regular file|leads out of the run's directory)"
    with pytest.raises(RecexpError, match=rf"{Path(name).name}.* {refusal}"):
        evaluate(foreign, "full_unseen")


def test_a_config_whose_aliases_unfold_is_refused(foreign):
    names = "abcdefghij"
    lines = ["a: &a [x,x,x,x,x,x,x,x,x]"]
    for old, new in pairwise(names):
        lines.append(f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]")
    (foreign / "config.yaml").write_text("\n".join(lines))
    with pytest.raises(RecexpError, match="aliases are not allowed"):
        evaluate(foreign, "full_unseen")


def test_files_far_larger_than_a_run_writes_are_refused_unread(foreign):
    for name in ("config.yaml", "result.json"):
        with (foreign / name).open("wb") as file:
            file.truncate(20 << 30)
        with pytest.raises(RecexpError, match=rf"{name} is larger than"):
            evaluate(foreign, "full_unseen")


def test_a_checkpoint_that_unfolds_is_refused_before_it_is_unpacked(foreign, monkeypatch):
    best = foreign / "checkpoints" / "best.ckpt"
    with zipfile.ZipFile(best) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(best, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
        archive.writestr("archive/data/zeros", bytes(100 << 20))
    assert best.stat().st_size < 1 << 20
    unname(foreign)
    opened = []
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *args, **kwargs: opened.append(args))
    with pytest.raises(RecexpError, match=r"is compressed\. Nothing of it was unpacked"):
        evaluate(foreign, "full_unseen")
    assert not opened


def test_entries_that_share_their_bytes_are_refused(tmp_path):
    """Many names for the same bytes unfold a small archive although nothing is compressed."""
    path = tmp_path / "best.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", bytes(1 << 20))
        for n in range(50):
            again = zipfile.ZipInfo(f"a{n}")
            again.file_size = again.compress_size = 1 << 20
            again.CRC = archive.getinfo("a").CRC
            again.header_offset = 0
            archive.filelist.append(again)
            archive.NameToInfo[again.filename] = again
    with pytest.raises(RecexpError, match=r"Nothing of it was unpacked"):
        verify_checkpoint(path)


def test_a_foreign_config_names_no_place_to_write_to(foreign, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    settings = yaml.safe_load((foreign / "config.yaml").read_text())
    raw = settings["dataset"]["raw_dir"]
    own_place = settings["callbacks"]["checkpoint"]["dirpath"]
    elsewhere.mkdir()
    (elsewhere / "precious.txt").write_text("mine")
    change(
        foreign,
        cache_dir=str(elsewhere),
        run_dir=str(elsewhere),
        callbacks__checkpoint__dirpath=str(elsewhere),
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecexpError, match=r"callbacks\.checkpoint\.dirpath=.* is not possible"):
        evaluate(foreign, "full_unseen", raw_dir=raw)
    own = {"callbacks__checkpoint__dirpath": own_place, "run_dir": settings["run_dir"]}
    change(foreign, **own)
    evaluate(foreign, "full_unseen", raw_dir=raw)
    assert [p.name for p in elsewhere.iterdir()] == ["precious.txt"] and (
        tmp_path / "cache"
    ).is_dir()
    (foreign / "full").symlink_to(elsewhere)
    with pytest.raises(RecexpError, match="is a link"):
        evaluate(foreign, "full", raw_dir=raw)
    assert [p.name for p in elsewhere.iterdir()] == ["precious.txt"]


def test_a_checkpoint_that_does_not_fit_is_refused_before_training(trained, shop, tmp_path):
    last = trained / "checkpoints" / "last.ckpt"
    with pytest.raises(
        RecexpError,
        match=r"does not fit this model and data: "
        r"model\.item\.weight is \(\d+, 4\) in .* and is \(\d+, 8\) here",
    ):
        run_here(shop / "wider", *MODEL, "model.n_factors=8", f"ckpt_path={last}")
    with pytest.raises(RecexpError, match="was trained on other data"):
        run_here(shop / "other", *MODEL, "protocol.split.purge=pair", f"ckpt_path={last}")
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    (tmp_path / "pickle.ckpt").write_bytes(pickle.dumps({"state_dict": {}}))
    with zipfile.ZipFile(tmp_path / "zip.ckpt", "w") as archive:
        archive.writestr("data.pkl", "x")
    torch.save({"other": 1}, tmp_path / "torch.ckpt")
    for name in ("absent", "text", "pickle", "zip", "torch"):
        with pytest.raises(RecexpError, match=rf"{name}\.ckpt"):
            run_here(
                tmp_path / f"from-{name}",
                *MODEL,
                f"cache_dir={tmp_path}/never",
                f"ckpt_path={tmp_path}/{name}.ckpt",
            )
    assert not (tmp_path / "never").exists()  # refused before data preparation


HOSTILE = '<img src=x onerror="alert(1)"></script><script>alert(2)</script>'


def test_the_report_shows_hostile_names_as_text(tmp_path, monkeypatch, capsys):
    names = {"dataset": HOSTILE, "protocol": HOSTILE, "protocol_id": HOSTILE}
    write_run(
        tmp_path / "a",
        model=HOSTILE,
        overrides=(f"experiment={HOSTILE}",),
        better=[0, 1, 2],
        **names,
    )
    write_run(tmp_path / "b", model="pop", better=[0, 2, 2], **names)
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path), "--out", str(tmp_path / "out")])
    report()
    text = (tmp_path / "out" / "index.html").read_text()
    assert (
        "&lt;img src=x" in text
        and "<img src=x" not in text
        and "<script>alert" not in text
        and text.count("</script>") == 1
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"metrics": []},
        {"metrics": {"test/ndcg@10": "NaN<b>"}},
        {"metrics": {"test/ndcg@10": float("nan")}},
        {"metrics": {"test/ndcg@10": 1e308}},
        {"metrics": None},
        {"seed": []},
        {"seed": "x"},
        {"model": {"a": 1}},
        {"model": 3},
        {"model": "../../x"},
        {"data": 3},
        {"epochs": "many"},
        {"overrides": 3},
        {"overrides": [3]},
        {"overrides": ["model.x=${oc.env:HOME}"]},
        {"wall_time_s": "long"},
        {"git": 3},
        {"protocol_id": None},
        {"best_epoch": 1e400},
        {"stop_reason": 5},
        {"gflops": "x"},
        {"versions": []},
        {"peak_memory_mb": {}},
    ],
    ids=str,
)
def test_the_report_survives_a_hostile_result(tmp_path, monkeypatch, capsys, wrong):
    """The page shows the run or the reason why it is left out, and in any case the other run."""
    write_run(tmp_path / "good", model="item_knn", better=[0, 1, 2])
    write_run(tmp_path / "bad", model="pop", better=[0, 1, 2])
    path = tmp_path / "bad" / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong))
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path), "--out", str(tmp_path / "out")])
    report()
    said = capsys.readouterr()
    assert re.search(r"\bitem_knn\b", (tmp_path / "out" / "index.html").read_text())
    assert os.environ["HOME"] not in said.out


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"user": [1]},
        {"user": ["a"], "better": ["b"], "tied": [None], "candidates": [1.5], "split": [3]},
    ],
    ids=str,
)
def test_the_report_survives_hostile_ranks(tmp_path, monkeypatch, capsys, columns):
    for name in ("a", "b"):
        write_run(tmp_path / name, model=name, better=[0, 1, 2])
        pl.DataFrame(columns).write_parquet(tmp_path / name / "ranks.parquet")
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path), "--out", str(tmp_path / "out")])
    report()
    assert (tmp_path / "out" / "index.html").is_file()


def test_every_requirement_is_pinned():
    """constraints.txt names the requirements of pyproject.toml, their own requirements, and nothing
    else.
    """

    def plain(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    pinned = {plain(name): version for name, version in pinned.items()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())[
        "project"
    ]  # the installed metadata may be older
    extras = project["optional-dependencies"]
    first = [*project["dependencies"], *extras["dev"]]
    # The tests are installed without the other extras. An extra that is present is checked too, and
    # a pin without a requirement can be found only where all are present.
    present = {plain(found.name) for found in metadata.distributions()}
    complete = True
    for requirements in extras.values():
        if {plain(Requirement(text).name) for text in requirements} <= present:
            first += requirements
        else:
            complete = False
    needed, waiting = set(), [("recexp", frozenset())]
    while waiting:
        name, extras = waiting.pop()
        for text in first if name == "recexp" else metadata.requires(name) or []:
            wanted = Requirement(text)
            if wanted.marker and not any(
                wanted.marker.evaluate({"extra": extra}) for extra in extras | {""}
            ):
                continue
            entry = plain(wanted.name), frozenset(wanted.extras)
            if entry not in needed:
                needed.add(entry)
                waiting.append(entry)
    names = {
        name for name, _ in needed if not name.startswith(("nvidia-", "cuda-", "triton"))
    }  # torch's own, on machines with a GPU
    installed = {name: metadata.version(name).split("+")[0] for name in names}
    assert installed.items() <= pinned.items()
    if complete:
        assert names == set(pinned)
