"""Features on disk, through training, tests, recommendations, exports and later runs."""

from __future__ import annotations

import json
import shutil

import numpy as np
import polars as pl
import pytest
import torch

import recexp
from recexp.errors import RecexpError
from recexp.runs.finished import open_run
from recexp.runs.requests import Request
from recexp.training.checkpoints import read_checkpoint
from tests.support import features
from tests.support.running import run_here

SMALL = "model.n_factors=8"
EVENT_SIDE = "model.event_side=[value,behavior,device,dwell,gap]"
SEQUENCE = ["model.item_side=all", EVENT_SIDE]
# A model, and the settings under which it reads every feature that it takes.
MODELS = {
    "ite": ["model.item_side=all", "model.user_side=all"],
    "bert_ite": ["model.item_side=all", "model.user_side=all", EVENT_SIDE],
    "fpmc": [*SEQUENCE, "model.user_side=all"],
    "sasrec": SEQUENCE,
    "sasrec_softmax": SEQUENCE,
    "bert4rec": [*SEQUENCE, "model.n_layers=1"],
    "bert4rec_vae": SEQUENCE,
    "gru4rec": SEQUENCE,
    "gru4rec_plus": [*SEQUENCE, "objective.n_negatives=8"],
    "nova_bert": ["model.side=[brand,tags,price,text,image,value,device,dwell,time,gap]"],
    "invasive_bert": ["model.side=all"],
}
FAST = ("gru4rec",)  # whose objective hands events to the model; the others are slow tests


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("features")
    features.write(place / "raw")
    return place


def trained(place, name, *words):
    """A run of a model on the small table; the words may name the model."""
    overrides = [f"model={name}", SMALL, *MODELS[name], *words]
    folder = place / f"run {name} {len(list(place.iterdir()))}"
    result = run_here(folder, *overrides, small=features.TABLE)
    return folder, result


def loaded(place, folder):
    return recexp.load(folder, raw_dir=str(place / "raw"), cache_dir=str(place / "cache"))


@pytest.fixture(scope="module")
def sasrec(place):
    return trained(place, "sasrec")


@pytest.fixture(scope="module")
def fpmc(place):
    """Reads features of items, users and events; its vectors are trained."""
    return trained(place, "fpmc", "model.side_vectors=trained")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in FAST else pytest.mark.slow) for n in MODELS],
)
@pytest.mark.parametrize("vectors", ["frozen", pytest.param("trained", marks=pytest.mark.slow)])
def test_a_model_trains_with_all_the_features_it_takes(place, name, vectors):
    """Its metrics are those of a second test, and it recommends."""
    folder, result = trained(place, name, f"model.side_vectors={vectors}")
    assert 0 <= result["metrics"]["test/ndcg@10"] <= 1
    model = loaded(place, folder)
    again = model.evaluate("full_unseen")
    assert again["metrics"]["test/mrr"] == result["metrics"]["test/mrr"]
    assert result["data"]["feature_coverage"]["brand"] == 19 / 24
    lists = model.recommend(["u3"], k=5)
    assert len(lists) == 5


def test_coverage_of_every_feature_stands_in_the_result(place, sasrec):
    folder, _ = sasrec
    data = json.loads((folder / "result.json").read_text())["data"]
    events = features.events()
    known = {name: 1 - events[name].null_count() / len(events) for name in ("device", "dwell")}
    assert data["event_feature_coverage"] == pytest.approx(known)
    assert data["user_feature_coverage"]["city"] == pytest.approx(22 / 30)
    assert data["user_feature_coverage"]["hobbies"] == pytest.approx(2 / 3)
    assert data["feature_coverage"]["text"] == 1


def test_a_new_user_is_recommended_to_by_events_with_features(place, sasrec):
    model = loaded(place, sasrec[0])
    columns = {
        "user": ["new"] * 2,
        "item": ["i1", "i2"],
        "timestamp": [1_700_000_000, 1_700_000_030],
        "behavior": ["view", "buy"],
        "rating": [3, 4],
    }
    plain = pl.DataFrame(columns)

    def scores(frame):
        return model.recommend(["new"], histories=frame, k=5)["score"].to_list()

    phone = scores(plain.with_columns(device=pl.lit("phone"), dwell=2.0))
    web = scores(plain.with_columns(device=pl.lit("web"), dwell=2.0))
    assert phone != web
    unknown = scores(plain.with_columns(device=pl.lit("watch"), dwell=None))
    assert scores(plain) == unknown  # a column that is not there, and values never seen


def test_a_request_has_features_too(place, sasrec):
    model = loaded(place, sasrec[0])
    event = {"item": "i1", "behavior": "buy", "value": 3.0, "timestamp": 1_700_000_000}
    known = {"device": "phone", "dwell": 2}
    request = {"user": "new", "history": [event | {"features": known}], "k": 5}
    (answer,) = model.answer([Request.model_validate(request)])
    frame = pl.DataFrame([{"user": "new", **event, **known}])
    listed = model.recommend(["new"], histories=frame, k=5)
    assert answer.items == listed["item"].to_list()
    assert answer.scores == pytest.approx(listed["score"].to_list())
    event["features"] = {"colour": "red"}
    with pytest.raises(RecexpError, match="'colour' is unknown; the data set has device, dwell"):
        model.answer([{"user": "new", "history": [event]}])


def test_a_user_whom_the_data_lack_is_refused_by_models_of_users(place, fpmc):
    with pytest.raises(RecexpError, match="it has vectors of the users it was trained on only"):
        loaded(place, fpmc[0]).recommend(["new"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sasrec", "gru4rec", "fpmc", "bert4rec"])
@pytest.mark.parametrize("format", ["pt2", "onnx"])
def test_a_graph_reads_features_from_histories(place, name, format, tmp_path):
    folder, _ = trained(place, name)
    model = loaded(place, folder)
    assert model.export(tmp_path / "out", format) < 1e-4
    exported = recexp.load_exported(tmp_path / "out")
    users = [f"u{n}" for n in range(5)]
    frame = features.events().filter(pl.col("user").is_in(users))
    found = exported.recommend(users, histories=frame)
    expected = model.recommend(users)
    assert found["score"].to_list() == pytest.approx(expected["score"].to_list(), abs=1e-4)
    other = frame.with_columns(device=pl.lit("web"))
    changed = exported.recommend(users, histories=other)
    assert changed["score"].to_list() != pytest.approx(found["score"].to_list(), abs=1e-4)


def test_a_later_run_takes_over_values_it_knows(place, fpmc, tmp_path):
    """Rows of tables by value, and trained vectors by item, on data with more of both."""
    old, _ = fpmc
    later = tmp_path / "later"
    shutil.copytree(place / "raw", later / "raw")
    frame = pl.read_csv(later / "raw" / "events.csv")
    added = frame.head(6).with_columns(user=pl.lit("a new one"), device=pl.lit("car"))
    pl.concat([frame, added]).write_csv(later / "raw" / "events.csv")
    words = ["model=fpmc", SMALL, *MODELS["fpmc"], "model.side_vectors=trained", f"init_from={old}"]
    shutil.copytree(place / "cache", later / "cache")
    result = run_here(later / "new", *words, "optimizer.lr=0", small=features.TABLE)
    before, after = _weights(old), _weights(later / "new")
    names = [
        sorted(d for d in set(f["device"]) if d is not None)
        for f in (frame, pl.concat([frame, added]))
    ]
    assert names == [["phone", "web"], ["car", "phone", "web"]]
    key = "event_sides.sides.2.table.weight"
    for value, device in enumerate(names[0], 1):
        assert torch.equal(before[key][value], after[key][names[1].index(device) + 1])
    bags = [key for key in before if key.endswith("weight_VM")]
    assert len(bags) == 7  # text and image in three tables, and the users' profile
    for key in bags:
        assert torch.equal(before[key], after[key]) or "users" in key
    assert result["init_from"]["ids"]["values of events' device"]["new"] == 1


def _weights(folder):
    state = read_checkpoint(open_run(folder).checkpoint)["state_dict"]
    return {name.removeprefix("model."): x for name, x in state.items()}


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("sasrec", ["model.item_side=[colour]"], "item_side names ['colour']"),
        ("ite", ["model.user_side=[device]"], "user_side names ['device']"),
        ("ite", ["+model.event_side=[device]"], "Unknown key model.event_side: ITE knows"),
        ("sasrec", ["+model.user_side=[city]"], "Unknown key model.user_side: SASRec knows"),
    ],
)
def test_what_a_model_does_not_take_is_refused(place, name, words, message):
    with pytest.raises(RecexpError) as error:
        trained(place, name, *words)
    assert message in str(error.value)


def groups(n_groups=12, n_items=240, n_users=80):
    """Events of users who stay within a group of items, and the items' groups as noisy vectors.

    An item has about two events, so that ids alone say nothing about it.
    """
    draw = np.random.default_rng(0)
    group_of = np.arange(n_items) % n_groups
    rows = []
    for user in range(n_users):
        own = np.flatnonzero(group_of == user % n_groups)
        items = draw.choice(own, 6, replace=False)
        rows += [(f"u{user}", f"i{item}", 100 * at) for at, item in enumerate(items)]
    events = pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")
    vector = np.eye(n_groups)[group_of] + 0.1 * draw.normal(size=(n_items, n_groups))
    return events, [f"i{item}" for item in range(n_items)], vector


def test_a_model_learns_what_only_a_feature_tells(tmp_path):
    events, ids, vector = groups()
    tables = {"items": {"file": vector, "item": ids, "columns": {"group": "vector"}}}
    settings = {
        "model.n_factors": 16,
        "model.n_layers": 1,
        "model.max_len": 8,
        "trainer.max_epochs": 8,
        "batch_size": 16,
        "threads": 1,
    }

    def ndcg(**how):
        model = recexp.fit(
            "sasrec_softmax",
            events,
            cache_dir=tmp_path / "cache",
            progress=False,
            overrides=["optimizer.lr=0.01"],
            **how,
        )
        return model.metrics["test/ndcg@10"]

    plain = ndcg(settings=settings, run_dir=tmp_path / "plain")
    featured = ndcg(
        settings={**settings, "model.item_side": ["group"]},
        features=tables,
        run_dir=tmp_path / "featured",
    )
    assert featured > 0.2
    assert featured > 3 * plain


def test_fit_takes_features_of_all_as_frames(tmp_path):
    events = features.events()
    folder = features.write(tmp_path / "raw")
    tables = {
        "items": [
            {
                "file": pl.read_csv(folder / "items.csv"),
                "item": "item",
                "columns": {"brand": "categorical"},
            },
            {
                "file": folder / "images.npy",
                "item": [f"i{i}" for i in range(24)],
                "columns": {"image": "vector"},
            },
        ],
        "users": {"file": folder / "users.parquet", "user": "user", "columns": {"age": "numeric"}},
        "events": {"device": "categorical"},
    }
    how = {"behaviors": ["view", "buy"], "cache_dir": tmp_path / "cache", "progress": False}
    settings = {
        "model.item_side": "all",
        "model.user_side": ["age"],
        "model.event_side": ["device"],
        "trainer.max_epochs": 1,
    }
    model = recexp.fit(
        "fpmc", events, features=tables, settings=settings, run_dir=tmp_path / "a", **how
    )
    data = model.result.data
    assert data.feature_coverage == {"brand": 19 / 24, "image": 1.0}
    assert data.user_feature_coverage == {"age": 1.0}
    assert set(data.event_feature_coverage) == {"device"}
    with pytest.raises(RecexpError, match=r"no column 'colour', which features\.events names"):
        recexp.fit("fpmc", events, features={"events": {"colour": "categorical"}}, **how)
    with pytest.raises(RecexpError, match="fit takes features with data"):
        recexp.fit("fpmc", dataset="ml_1m", features=tables)
