"""A trained model in use: equal to evaluation, for known and new users, with raw ids."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

import recexp.runs.trained as module_under_test
from recexp.errors import RecexpError
from recexp.runs.accelerators import device_of
from recexp.runs.evaluate import main as evaluate_main
from recexp.runs.recommend import main as recommend_main
from recexp.runs.serve import main as serve_main
from recexp.runs.trained import load
from tests.support.pretend import DEVICE, pretend
from tests.support.running import run_here

MODELS = ("pop", "item_knn", "bpr_mf", "wmf", "neumf", "mfpr", "ite", "fpmc", "caser")
MODELS += ("sasrec", "bert4rec", "gru4rec", "nova_bert", "bert_ite_si", "nmtr", "replay")
MODELS += ("ease", "slim", "stan", "lightgcn", "multvae", "recvae", "dif_sr")
FULL = ("protocol=full_unseen",)
SIZES = ("dataset.source.users=80", "dataset.source.items=90", "trainer.max_epochs=1")
SIZES += ("protocol.candidates.n=20",)
# Every model under one protocol; the other protocols with a model that reads histories, one with
# user vectors and one whose scores tie. Every case trains a model: those that share most of their
# code with another one are slow tests.
SLOW = {"wmf", "mfpr", "fpmc", "bert4rec", "nmtr", "replay", "bert_ite_si", "ease", "slim", "stan"}
SLOW |= {"lightgcn", "multvae", "recvae", "dif_sr"}
CASES = [
    pytest.param(model, "full_unseen", marks=[pytest.mark.slow] if model in SLOW else [])
    for model in MODELS
]
CASES += [(model, name) for name in ("full", "p1_uniform999") for model in ("sasrec", "ite", "pop")]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return tmp_path_factory.mktemp("shop")


def trained(shop, model, *overrides):
    folder = shop / "-".join([model, *overrides]).replace("=", "-")
    if not (folder / "result.json").exists():
        run_here(folder, f"model={model}", *SIZES, *overrides)
    return load(folder, raw_dir=str(shop / "raw"), cache_dir=str(shop / "cache"))


@pytest.fixture(scope="module")
def sasrec(shop):
    return trained(shop, "sasrec", *FULL)


@pytest.fixture(scope="module")
def bpr_mf(shop):
    return trained(shop, "bpr_mf", *FULL)


@pytest.mark.parametrize(("model", "protocol"), CASES)
def test_targets_stand_where_evaluation_ranked_them(shop, model, protocol):
    one = trained(shop, model, f"protocol={protocol}")
    ranks = pl.read_parquet(one.run_dir / "ranks.parquet").filter(pl.col("split") == "test")
    lists = one.tested_lists(k=len(one.items))
    raw = one.users.gather(ranks["user"].to_numpy())
    target = one._store.test.item.numpy()
    wanted = pl.DataFrame({"user": raw, "item": one.items.gather(target - 1)})
    place = wanted.join(lists, on=["user", "item"], how="left", maintain_order="left")["rank"]
    assert len(place) > 50
    assert place.null_count() == 0
    best = ranks["better"] + 1
    assert (place >= best).all()
    assert (place <= best + ranks["tied"]).all()
    size = lists.group_by("user", maintain_order=True).len()["len"]
    assert size.to_list() == ranks["candidates"].to_list()


@pytest.mark.parametrize("model", ["bpr_mf", "sasrec", "item_knn", "bert_ite_si"])
def test_lists_are_the_best_unseen_items(shop, model):
    one = trained(shop, model, *FULL)
    lists = one.recommend(k=7)
    assert lists.columns == ["user", "item", "rank", "score"]
    assert lists["user"].unique(maintain_order=True).equals(one.users)
    store = one._store
    for number, (user,) in enumerate(lists.group_by("user", maintain_order=True).agg([]).rows()):
        own = lists.filter(pl.col("user") == user)
        past = slice(int(store.past.ptr[number]), int(store.past.ptr[number + 1]))
        seen = set(store.past.item[past].tolist())
        row = torch.tensor([number])
        query = store.window(
            store.past, row, store.past.ptr[row], store.past.ptr[row + 1], one.model.history
        )
        with torch.inference_mode():
            scores = one.model.score(query)[0].tolist()
        unseen = [n for n in range(1, store.schema.V) if n not in seen]
        best = sorted(unseen, key=lambda n: (-scores[n - 1], n))[:7]
        assert own["item"].to_list() == [one.items[n - 1] for n in best]
        np.testing.assert_allclose(own["score"], [scores[n - 1] for n in best], rtol=1e-5)


def test_seen_items_are_included_on_demand(sasrec):
    some = sasrec.users[:20]
    lists = sasrec.recommend(some, k=len(sasrec.items), include_seen=True)
    assert len(lists) == 20 * len(sasrec.items)
    without = sasrec.recommend(some, k=len(sasrec.items))
    assert len(without) < len(lists)
    in_order = without.join(lists, on=["user", "item"], suffix="_of_all", maintain_order="left")
    ranks = in_order.group_by("user", maintain_order=True).agg("rank_of_all")["rank_of_all"]
    assert all(list(r) == sorted(r) for r in ranks)


def test_candidates_limit_the_lists(sasrec):
    chosen = sasrec.items[10:30]
    lists = sasrec.recommend(k=5, candidates=chosen)
    assert set(lists["item"]) <= set(chosen)
    every = sasrec.recommend(k=len(sasrec.items)).filter(pl.col("item").is_in(chosen.implode()))
    best = every.group_by("user", maintain_order=True).head(5)
    assert lists["item"].to_list() == best["item"].to_list()


def test_the_history_that_the_data_hold_gives_the_same_list_when_given(sasrec):
    """A new user with the events of a known one."""
    store = sasrec._store
    past = slice(int(store.past.ptr[3]), int(store.past.ptr[4]))
    events = pl.DataFrame(
        {
            "user": "somebody new",
            "item": sasrec.items.gather(store.past.item[past].numpy() - 1),
            "behavior": [store.schema.behaviors[b - 1] for b in store.past.behavior[past].tolist()],
            "timestamp": store.past.time[past].numpy(),
        }
    )
    known = sasrec.recommend([sasrec.users[3]], k=10)
    for frame in (events, events.lazy(), events.to_dict(as_series=False)):
        new = sasrec.recommend(k=10, histories=frame)
        assert new["user"].unique().to_list() == ["somebody new"]
        assert new["item"].to_list() == known["item"].to_list()
    shuffled = sasrec.recommend(k=10, histories=events.sample(fraction=1, shuffle=True, seed=0))
    assert shuffled["item"].to_list() == known["item"].to_list()


def test_pandas_frames_are_taken(sasrec):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    events = events_of(sasrec, "new", sasrec.items[:3])
    frame = pandas.DataFrame(events.to_dict(as_series=False))
    assert sasrec.recommend(histories=frame).equals(sasrec.recommend(histories=events))


def events_of(trained, user, items, **columns):
    behavior = trained._store.schema.behaviors[0]
    frame = {"user": [user] * len(items), "item": list(items), "behavior": behavior}
    return pl.DataFrame(frame | columns)


def test_later_events_follow_those_of_the_data(sasrec):
    user = sasrec.users[5]
    new_items = sasrec.recommend([user], k=2)["item"]
    later = events_of(sasrec, user, new_items)
    lists = sasrec.recommend([user], k=10, histories=later)
    assert not set(lists["item"]) & set(new_items)
    before = sasrec.recommend([user], k=12).filter(~pl.col("item").is_in(new_items.implode()))
    assert lists["score"].to_list() != before["score"].to_list()[:10]


def test_events_that_the_data_hold_already_count_once(sasrec):
    store = sasrec._store
    past = slice(int(store.past.ptr[8]), int(store.past.ptr[9]))
    again = pl.DataFrame(
        {
            "user": [sasrec.users[8]] * (past.stop - past.start),
            "item": sasrec.items.gather(store.past.item[past].numpy() - 1),
            "behavior": [store.schema.behaviors[b - 1] for b in store.past.behavior[past].tolist()],
            "timestamp": store.past.time[past].numpy(),
        }
    )
    with_them = sasrec.recommend([sasrec.users[8]], histories=again)
    assert with_them.equals(sasrec.recommend([sasrec.users[8]]))


def test_unknown_items_are_left_out_and_counted(sasrec, caplog):
    items = [sasrec.items[0], 10**9, sasrec.items[4], 10**9 + 1]
    lists = sasrec.recommend(k=5, histories=events_of(sasrec, "new", items))
    assert "2 event(s) of 2 item(s) that the model does not know were left out" in caplog.text
    known = sasrec.recommend(k=5, histories=events_of(sasrec, "new", [items[0], items[2]]))
    assert lists.equals(known)


def test_users_whom_the_model_cannot_score_are_an_error_or_get_popular_items(bpr_mf):
    users = [bpr_mf.users[0], "nobody"]
    with pytest.raises(RecexpError, match=r"cannot score 1 user.*such as nobody.*popularity"):
        bpr_mf.recommend(users)
    lists = bpr_mf.recommend(users, k=3, fallback="popularity")
    assert lists["by"].to_list() == ["model"] * 3 + ["popularity"] * 3
    assert lists["item"][:3].to_list() == bpr_mf.recommend(users[:1], k=3)["item"].to_list()
    count = bpr_mf._store.item_count[1:]
    popular = sorted(range(len(count)), key=lambda n: (-int(count[n]), n))[:3]
    assert lists["item"][3:].to_list() == [bpr_mf.items[n] for n in popular]


def test_a_history_does_not_help_a_model_of_user_vectors(bpr_mf):
    events = events_of(bpr_mf, "new", bpr_mf.items[:2])
    with pytest.raises(RecexpError, match=r"MF cannot score.*vectors of the users"):
        bpr_mf.recommend(histories=events)


def test_a_new_user_without_events_needs_a_fallback(sasrec):
    with pytest.raises(RecexpError, match="no event of them"):
        sasrec.recommend(["new"])
    assert sasrec.recommend(["new"], k=2, fallback="popularity")["by"].to_list() == [
        "popularity",
        "popularity",
    ]


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        ({"item": [1]}, "no column 'user'"),
        ({"user": ["a"], "item": [None], "behavior": ["view"]}, "lack the item in 1 row"),
        ({"user": ["a"], "item": [1]}, "no column 'behavior'"),
        ({"user": ["a"], "item": [1], "behavior": ["stare"]}, "unknown behavior 'stare'"),
        (
            {"user": ["a"], "item": [1], "behavior": ["view"], "timestamp": ["yesterday"]},
            "'yesterday'",
        ),
        (
            {"user": ["a"], "item": [1], "behavior": ["view"], "timestamp": [None]},
            "timestamp is missing in 1 row",
        ),
    ],
)
def test_faulty_histories_are_one_clear_error(sasrec, frame, text):
    with pytest.raises(RecexpError, match=text):
        sasrec.recommend(histories=pl.DataFrame(frame))


def test_wrong_choices_are_errors(sasrec):
    with pytest.raises(RecexpError, match="k=0"):
        sasrec.recommend(k=0)
    with pytest.raises(RecexpError, match="None of the candidates"):
        sasrec.recommend(candidates=[10**9])
    with pytest.raises(RecexpError, match="fallback='luck'"):
        sasrec.recommend(fallback="luck")


def test_longer_lists_than_items_and_no_users(sasrec):
    lists = sasrec.recommend(sasrec.users[:1], k=10**6, include_seen=True)
    assert len(lists) == len(sasrec.items)
    assert sasrec.recommend([]).columns == ["user", "item", "rank", "score"]


def test_scores_of_pairs_are_those_of_the_lists(sasrec):
    lists = sasrec.recommend(k=4)
    scored = sasrec.score(lists.select("user", "item").sample(fraction=1, shuffle=True, seed=1))
    joined = scored.join(lists, on=["user", "item"], suffix="_listed")
    np.testing.assert_allclose(joined["score"], joined["score_listed"], rtol=1e-5)
    unknown = sasrec.score(pl.DataFrame({"user": [sasrec.users[0]], "item": [10**9]}))
    assert unknown["score"].to_list() == [None]


@pytest.mark.parametrize("model", ["bpr_mf", "sasrec", "neumf", "bert_ite_si", "wmf"])
def test_similar_items_have_the_largest_cosine(shop, model):
    one = trained(shop, model, *FULL)
    ids, vectors = one.item_vectors()
    assert ids.equals(one.items) and len(vectors) == len(ids)
    similar = one.similar_items(ids[:3], k=4)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
    for number in range(3):
        cosine = unit @ unit[number]
        cosine[number] = -np.inf
        own = similar.filter(pl.col("item") == ids[number])
        np.testing.assert_allclose(own["cosine"], np.sort(cosine)[::-1][:4], atol=1e-5)
        assert own["rank"].to_list() == [1, 2, 3, 4]


def test_a_model_without_vectors_says_so(shop):
    with pytest.raises(RecexpError, match="Pop has no vectors of items"):
        trained(shop, "pop", *FULL).similar_items([1])


def test_unknown_items_have_no_similar_ones(sasrec):
    with pytest.raises(RecexpError, match="do not have the item"):
        sasrec.similar_items([10**9])


def use_the_device(monkeypatch):
    """Whatever accelerator is asked for, it is the simulated device."""
    monkeypatch.setattr(module_under_test, "device_of", lambda accelerator: DEVICE)
    # Its tensors are of a subclass, which inference mode does not support.
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)


@pytest.mark.parametrize("model", ["sasrec", pytest.param("bpr_mf", marks=[pytest.mark.slow])])
def test_a_model_on_a_device_gives_the_lists_and_scores_of_the_cpu(shop, monkeypatch, model):
    here = trained(shop, model, *FULL)
    use_the_device(monkeypatch)
    places = {"raw_dir": str(shop / "raw"), "cache_dir": str(shop / "cache")}
    with pretend():
        there = load(here.run_dir, accelerator="gpu", **places)
        assert {p.device for p in there.model.parameters()} == {DEVICE}
        calls = [
            lambda one: one.recommend(here.users[:9], k=5),
            lambda one: one.recommend(k=5, candidates=here.items[5:30], include_seen=True),
            lambda one: one.recommend(
                k=4,
                histories=events_of(here, "new", here.items[:3]),
                candidates=here.items[5:30],
                fallback="popularity",
            ),
            lambda one: one.tested_lists(k=6),
            lambda one: one.similar_items(here.items[:3], k=2),
            lambda one: one.score(pl.DataFrame({"user": here.users[:5], "item": here.items[:5]})),
            lambda one: pl.DataFrame(one.item_vectors()[1]),
            lambda one: one.answer(
                [{"user": here.users[1], "k": 3, "candidates": [here.items[1]]}]
            ),
        ]
        for call in calls:
            found = call(there)
            expected = call(here)
            if isinstance(found, pl.DataFrame):
                assert_frame_equal(found, expected, rel_tol=1e-5)
            else:
                assert found[0].items == expected[0].items and found[0].error is None


def test_lists_of_drawn_candidates_come_from_the_device_too(shop, monkeypatch):
    here = trained(shop, "ite", "protocol=p1_uniform999")
    use_the_device(monkeypatch)
    with pretend():
        there = load(
            here.run_dir,
            accelerator="gpu",
            raw_dir=str(shop / "raw"),
            cache_dir=str(shop / "cache"),
        )
        found = there.tested_lists(k=6)
    assert_frame_equal(found, here.tested_lists(k=6), rel_tol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_an_error_before_any_work(tmp_path, capsys):
    with pytest.raises(RecexpError, match="finds no GPU here"):
        load(tmp_path, accelerator="gpu")
    for main in (evaluate_main, recommend_main, serve_main):
        words = [
            str(tmp_path),
            *(["full"] if main is evaluate_main else []),
            "--accelerator",
            "gpu",
        ]
        words += ["--port", "0"] if main is serve_main else []
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert "finds no GPU here" in str(stopped.value.code)
    assert device_of("auto").type == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("trainer", ["gpu", "ddp trainer.accelerator=gpu"])
def test_a_run_on_a_gpu_that_is_not_there_says_what_to_do(tmp_path, trainer):
    with pytest.raises(RecexpError, match=r"finds no GPU here\. Use trainer=cpu"):
        run_here(tmp_path / "run", *f"model=bpr_mf trainer={trainer}".split())
