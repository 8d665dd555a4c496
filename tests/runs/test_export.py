"""``python -m recexp.export`` as users call it, and the exported models in use."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import polars as pl
import pytest
import torch

import recexp
from recexp.errors import RecexpError
from recexp.runs import exported
from recexp.runs.export import export, main
from recexp.runs.trained import load
from tests.support.running import run_here

SMALL = ("protocol=full_unseen", "trainer.max_epochs=1", "protocol.candidates.n=20")
SMALL += ("dataset.source.users=80", "dataset.source.items=90")


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return tmp_path_factory.mktemp("shop")


def trained(shop, model):
    folder = shop / model
    if not folder.exists():
        run_here(folder, f"model={model}", *SMALL)
    return load(folder, raw_dir=str(shop / "raw"), cache_dir=str(shop / "cache"))


def exported_as(shop, model, format):
    """The folder of the exported model."""
    folder = shop / f"{model}-{format}"
    if not folder.exists():
        export(trained(shop, model), folder, format, k=7)
    return folder


@pytest.fixture
def command(shop, monkeypatch):
    """The command with its words, in this process."""

    def call(*words):
        places = ["--raw-dir", shop / "raw", "--cache-dir", shop / "cache"]
        monkeypatch.setattr("sys.argv", ["export", *map(str, [*words, *places])])
        main()

    return call


def events_of(one, users):
    """All that the data hold of these users, in the order of time, as a frame of raw ids."""
    past = one._store.past
    at = pl.Series(past.user.numpy())
    frame = pl.DataFrame(
        {
            "user": one.users.gather(at),
            "item": one.items.gather(past.item.numpy() - 1),
            "behavior": [one.dataset.behaviors[code - 1] for code in past.behavior.tolist()],
            "timestamp": past.time.numpy(),
        }
    )
    return frame.filter(pl.col("user").is_in(users.implode()))


def same_lists(found, expected):
    assert found.select("user", "rank").equals(expected.select("user", "rank"))
    gap = (found["score"] - expected["score"]).abs()
    assert gap.max() <= 1e-5
    # Items may change places where their scores are equal but for rounding.
    assert (found["item"] == expected["item"]).mean() > 0.97


@pytest.mark.parametrize(
    ("model", "format"),
    [
        pytest.param("bert_ite_si", "onnx", marks=pytest.mark.slow),  # trains and exports it
        ("sasrec", "onnx"),
        ("bpr_mf", "pt2"),
        pytest.param("bpr_mf", "onnx", marks=pytest.mark.slow),
        pytest.param("bert_ite_si", "pt2", marks=pytest.mark.slow),
        pytest.param("sasrec", "pt2", marks=pytest.mark.slow),
    ],
)
def test_an_exported_model_recommends_what_the_trained_one_does(shop, model, format):
    one = trained(shop, model)
    users = one.users[10:60:3]
    graph = recexp.load_exported(exported_as(shop, model, format))
    events = events_of(one, users)
    same_lists(graph.recommend(users, histories=events), one.recommend(users, k=7))
    same_lists(graph.recommend(users, histories=events, k=3), one.recommend(users, k=3))


def test_new_users_get_lists_from_their_histories(shop):
    one = trained(shop, "sasrec")
    graph = recexp.load_exported(exported_as(shop, "sasrec", "onnx"))
    items = one.items[:9].to_list()
    events = pl.DataFrame({"user": ["new"] * 6 + ["other"] * 3, "item": items})
    events = events.with_columns(behavior=pl.lit("view"))
    found = graph.recommend(histories=events)
    assert found["user"].unique(maintain_order=True).to_list() == ["new", "other"]
    assert not set(found.filter(user="new")["item"]) & set(items[:6])
    assert set(graph.items) == set(one.items)


@pytest.mark.parametrize(
    ("model", "format"),
    [
        ("sasrec", "onnx"),
        ("bpr_mf", "pt2"),
        pytest.param("bert_ite_si", "onnx", marks=pytest.mark.slow),  # trains and exports it
        pytest.param("nova_bert", "onnx", marks=pytest.mark.slow),
    ],
)
def test_the_code_in_the_readme_runs_beside_the_files(shop, tmp_path, model, format):
    folder = exported_as(shop, model, format)
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    items = json.loads(done.stdout)
    assert len(items) == 7
    assert set(items) <= set(trained(shop, model).items)


def test_the_command_writes_a_folder(shop, tmp_path, command, capsys):
    trained(shop, "pop")
    command(shop / "pop", "--format", "onnx", "--out", tmp_path / "new" / "pop", "-k", 4)
    printed = capsys.readouterr().out
    assert "largest difference of scores to the model's own: 0.0e+00" in printed
    names = {path.name for path in (tmp_path / "new" / "pop").iterdir()}
    assert names == {"model.onnx", "items.json", "signature.json", "README.md"}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["pop"]
    lists = recexp.load_exported(tmp_path / "new" / "pop").recommend(["anybody"])
    assert lists.columns == ["user", "item", "rank", "score"]
    assert lists["rank"].to_list() == [1, 2, 3, 4]


def test_weights_go_back_into_the_model(shop, tmp_path):
    one = trained(shop, "bert_ite_si")
    export(one, tmp_path / "weights", "safetensors")
    expected = one.recommend(k=3)
    for parameter in one.model.parameters():
        torch.nn.init.zeros_(parameter)
    assert not one.recommend(k=3).equals(expected)
    one.load_weights(tmp_path / "weights" / "model.safetensors")
    assert one.recommend(k=3).equals(expected)


def test_weights_of_another_model_or_of_other_data_are_refused(shop, tmp_path):
    one = trained(shop, "bpr_mf")
    export(one, tmp_path / "weights", "safetensors")
    file = tmp_path / "weights" / "model.safetensors"
    with pytest.raises(RecexpError, match=r"does not fit this SASRec: .* weights differ"):
        trained(shop, "sasrec").load_weights(file)
    one.result.data.fingerprint = "another"
    with pytest.raises(RecexpError, match="trained on other data, whose rows are of other items"):
        one.load_weights(file)
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(RecexpError, match="cannot be read as safetensors"):
        one.load_weights(file)
    with pytest.raises(RecexpError, match="holds weights and no graph"):
        recexp.load_exported(tmp_path / "weights")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "tflite"], "format='tflite' is unknown; choose one of onnx, pt2, safeten"),
        (["--format", "pt2", "-k", "0"], r"k=0: lists have 1 to \d+ items"),
        (["--format", "pt2", "-k", "91"], r"k=91: lists have 1 to \d+ items"),
        (["--format", "pt2", "--out", "."], "exists already: remove it, or choose another --out"),
    ],
)
def test_wrong_words_end_in_one_sentence(shop, command, words, message):
    trained(shop, "bpr_mf")
    with pytest.raises(SystemExit, match=message):
        command(shop / "bpr_mf", *words)


def test_a_folder_without_a_checkpoint_ends_in_one_sentence(shop, tmp_path, command):
    with pytest.raises(SystemExit, match=r"result\.json is missing"):
        command(tmp_path, "--format", "pt2")
    trained(shop, "bpr_mf")
    shutil.copytree(shop / "bpr_mf", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(SystemExit, match=r"checkpoints.*ckpt"):
        command(tmp_path / "run", "--format", "pt2")


def test_a_missing_package_is_named_with_the_command_that_installs_it(shop, command, monkeypatch):
    monkeypatch.setattr(exported, "find_spec", lambda name: None if "onnx" in name else name)
    with pytest.raises(SystemExit, match="pip install onnx onnxscript onnxruntime"):
        command(shop / "bpr_mf", "--format", "onnx")


def test_a_graph_whose_lists_differ_from_the_models_is_not_kept(shop, tmp_path, monkeypatch):
    one = trained(shop, "bpr_mf")
    score = one.model.score
    monkeypatch.setattr(
        one.model,
        "score",
        lambda query, item_BC=None: score(query, item_BC) + float(torch.compiler.is_exporting()),
    )
    with pytest.raises(RecexpError, match="cannot be exported: the graph's lists differ"):
        export(one, tmp_path / "graph", "pt2")
    assert list(tmp_path.iterdir()) == []


def test_users_that_a_graph_cannot_score_are_named(shop):
    graph = recexp.load_exported(exported_as(shop, "bpr_mf", "pt2"))
    with pytest.raises(RecexpError, match=r"bpr_mf cannot score 1 user\(s\), such as nobody"):
        graph.recommend(["nobody"])
    with pytest.raises(RecexpError, match="exported for lists of 1 to 7 items"):
        graph.recommend(k=8)
    assert len(graph.recommend()) == 7 * len(graph.users)
    graph = recexp.load_exported(exported_as(shop, "sasrec", "onnx"))
    with pytest.raises(RecexpError, match="recommends from histories, which the export does not"):
        graph.recommend()
    with pytest.raises(RecexpError, match="the histories have no event of them"):
        graph.recommend(["nobody"])


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("signature.json", None, "is missing: .* holds no exported model"),
        ("signature.json", "{}", "is damaged: "),
        ("items.json", "[]", "its checksum is not the export's"),
        ("model.pt2", "", "its checksum is not the export's"),
        ("users.json", None, "cannot be read: No such file"),
    ],
)
def test_damaged_files_are_named(shop, tmp_path, file, content, message):
    folder = tmp_path / "graph"
    shutil.copytree(exported_as(shop, "bpr_mf", "pt2"), folder)
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(RecexpError, match=message):
        recexp.load_exported(folder)


def test_a_signature_cannot_name_files_elsewhere(shop, tmp_path):
    folder = tmp_path / "graph"
    shutil.copytree(exported_as(shop, "bpr_mf", "pt2"), folder)
    signature = json.loads((folder / "signature.json").read_text())
    signature["sha256"]["../secret"] = "0"
    (folder / "signature.json").write_text(json.dumps(signature))
    with pytest.raises(RecexpError, match="is no file's name"):
        recexp.load_exported(folder)
