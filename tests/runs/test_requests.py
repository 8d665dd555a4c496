"""Single requests give the lists of ``Trained.recommend``, and hostile ones a clear answer."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest

from recexp.errors import RecexpError
from recexp.runs.histories import _numbers
from recexp.runs.requests import Event, Lookup, Request
from recexp.runs.trained import load
from tests.support.running import run_here

SIZES = ("dataset.source.users=80", "dataset.source.items=90", "trainer.max_epochs=1")
HUGE = 10**60


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return tmp_path_factory.mktemp("shop")


def trained(shop, model, *overrides):
    folder = shop / "-".join([model, *overrides]).replace("=", "-")
    if not (folder / "result.json").exists():
        run_here(folder, f"model={model}", "protocol=full_unseen", *SIZES, *overrides)
    return load(folder, raw_dir=str(shop / "raw"), cache_dir=str(shop / "cache"))


@pytest.fixture(scope="module")
def sasrec(shop):
    return trained(shop, "sasrec")


@pytest.fixture(scope="module")
def bpr_mf(shop):
    return trained(shop, "bpr_mf")


@pytest.fixture(scope="module")
def rated(tmp_path_factory):
    """A model of ratings, which are behaviors by thresholds, on data whose pairs are merged."""
    folder = tmp_path_factory.mktemp("rated")
    rng = np.random.default_rng(0)
    events = {
        "user": [f"u{n}" for n in rng.integers(0, 60, 2500)],
        "item": [f"i{n}" for n in rng.integers(0, 50, 2500)],
        "value": rng.integers(1, 6, 2500).astype(float),
        "timestamp": np.arange(2500) + 10**9,
    }
    (folder / "raw").mkdir()
    pl.DataFrame(events).write_parquet(folder / "raw" / "events.parquet")
    columns = ["user", "item", "value", "timestamp"]
    words = [f"dataset.source.{name}={name}" for name in columns]
    words += ["dataset=table", "dataset.source.file=events.parquet", "dataset.filters=[]"]
    words += ["+dataset.value_behaviors={dislike: 1, like: 4}", "dataset.explicit=[like]"]
    words += ["dataset.merge=pairs", "model=sasrec", "protocol=full_unseen"]
    small = ("logger=csv", "trainer.max_epochs=1", "threads=1")
    run_here(folder / "run", *words, small=small)
    return load(folder / "run", raw_dir=str(folder / "raw"), cache_dir=str(folder / "cache"))


def events_of(one, items, **columns):
    """Events as requests have them. columns: of equal length."""
    behavior = one._store.schema.behaviors[0]
    events = [{"item": item, "behavior": behavior} for item in items]
    for name, values in columns.items():
        for event, value in zip(events, values, strict=True):
            event[name] = value
    return events


def frame_of(events, user="somebody new"):
    names = sorted({name for event in events for name in event})
    columns = {name: [event.get(name) for event in events] for name in names}
    return pl.DataFrame({"user": [user] * len(events)} | columns, strict=False)


def assert_equal(answer, lists):
    assert answer.error is None
    assert answer.items == lists["item"].to_list()
    np.testing.assert_allclose(answer.scores, lists["score"], rtol=1e-5)


# Equal to recommend


@pytest.mark.parametrize("model", ["sasrec", "bpr_mf", "item_knn", "bert_ite_si", "pop"])
def test_known_users_get_the_lists_of_recommend(shop, model):
    one = trained(shop, model)
    users = one.users.to_list()
    answers = one.answer([{"user": user, "k": 1 + n % 9} for n, user in enumerate(users)])
    for n, (user, answer) in enumerate(zip(users, answers, strict=True)):
        assert_equal(answer, one.recommend([user], k=1 + n % 9))
        assert answer.by == "model"


@pytest.mark.parametrize("model", ["sasrec", "item_knn", "nova_bert"])
def test_histories_give_the_lists_of_recommend(shop, model):
    one = trained(shop, model)
    rng = np.random.default_rng(1)
    items = one.items.to_list()
    names = one._store.schema.behaviors
    requests = []
    for size in (1, 2, 30, 90):
        chosen = rng.choice(items, size).tolist()
        times = (rng.permutation(size) + 1_600_000_000).tolist()
        behaviors = rng.choice(names, size).tolist()
        requests.append({"history": events_of(one, chosen, timestamp=times, behavior=behaviors)})
    for request, answer in zip(requests, one.answer(requests), strict=True):
        assert_equal(answer, one.recommend(histories=frame_of(request["history"])))


def test_values_stand_for_behaviors_and_pairs_are_merged_as_in_recommend(rated):
    items = [*rated.items[:6], *rated.items[:3]]
    values = [5.0, 1.0, None, 0.5, 4.0, 3.5, 2.0, 5.0, math.inf]
    for ones in (values[:8], [1.0] * 8):
        history = [
            {"item": item, "value": value} for item, value in zip(items[:8], ones, strict=True)
        ]
        (answer,) = rated.answer([{"history": history}])
        assert_equal(answer, rated.recommend(histories=frame_of(history)))


def test_later_events_of_a_known_user_give_the_list_of_recommend(sasrec, rated):
    for one in (sasrec, rated):
        history = events_of(one, one.items[:4])
        if one is rated:
            history = [{"item": event["item"], "value": 5} for event in history]
        user = one.users[7]
        (answer,) = one.answer([{"user": user, "history": history}])
        assert_equal(answer, one.recommend([user], histories=frame_of(history, user)))


def test_candidates_seen_items_and_fallback_are_those_of_recommend(bpr_mf):
    user = bpr_mf.users[3]
    chosen = bpr_mf.items[5:25].to_list()
    requests = [
        {"user": user, "candidates": chosen},
        {"user": user, "include_seen": True, "k": 1000},
        {"user": "nobody", "fallback": "popularity", "candidates": chosen},
        {"user": user},
    ]
    answers = bpr_mf.answer(requests)
    assert_equal(answers[0], bpr_mf.recommend([user], candidates=chosen))
    assert_equal(answers[1], bpr_mf.recommend([user], k=1000, include_seen=True))
    popular = bpr_mf.recommend(["nobody"], candidates=chosen, fallback="popularity")
    assert_equal(answers[2], popular)
    assert [answer.by for answer in answers] == ["model", "model", "popularity", "model"]
    assert_equal(answers[3], bpr_mf.recommend([user]))


def test_raw_ids_keep_their_type(sasrec, rated):
    assert {type(item) for item in sasrec.answer([{"user": sasrec.users[0]}])[0].items} == {int}
    assert {type(item) for item in rated.answer([{"user": "u1"}])[0].items} == {str}


@pytest.mark.parametrize("known", [pl.Series([3, 12, -4]), pl.Series(["3", "12", "x", "012"])])
def test_ids_of_requests_and_of_frames_are_found_alike(known):
    lookup = Lookup(known, first=1)
    for raw in [
        3,
        12,
        -4,
        "3",
        "12",
        "-4",
        "+12",
        "012",
        " 12",
        "x",
        "",
        "1e1",
        "१२",
        10**25,
        "9" * 30,
    ]:
        expected = int(_numbers(pl.Series([raw]), known, first=1, unknown=0)[0])
        assert (lookup.find(raw) or 0) == expected, raw


# Hostile histories


def test_numbers_with_fractions_truth_values_and_lists_are_no_ids(sasrec):
    first = sasrec.items[0]
    for wrong in ([first + 0.5], [math.nan], [math.inf], [True], [[first]], [HUGE], ["\ud800"]):
        with pytest.raises(RecexpError, match="None of the candidates"):
            sasrec.recommend(candidates=wrong)
    assert sasrec.recommend(candidates=[float(first)], include_seen=True)["item"][0] == first


def test_ids_are_found_whatever_type_they_have(sasrec, rated):
    items = sasrec.items[:5].to_list()
    expected = sasrec.recommend(histories=frame_of(events_of(sasrec, items)))
    for same in ([str(item) for item in items], [float(item) for item in items]):
        assert sasrec.recommend(histories=frame_of(events_of(sasrec, same))).equals(expected)
    assert_equal(sasrec.answer([{"history": events_of(sasrec, map(str, items))}])[0], expected)
    assert rated.answer([{"user": 5, "fallback": "popularity"}])[0].by == "popularity"


def test_duplicated_and_unordered_events(sasrec):
    items = sasrec.items[:6].to_list()
    times = [1_600_000_000 + n for n in range(6)]
    in_order = events_of(sasrec, items, timestamp=times)
    expected = sasrec.recommend(histories=frame_of(in_order))
    assert_equal(sasrec.answer([{"history": in_order[::-1]}])[0], expected)
    twice = in_order + in_order
    assert_equal(
        sasrec.answer([{"history": twice}])[0], sasrec.recommend(histories=frame_of(twice))
    )


def test_a_history_without_known_items_is_no_history(sasrec):
    unknown = events_of(sasrec, [HUGE, "no item"])
    answers = sasrec.answer([{"history": unknown}, {"history": []}])
    assert [answer.n_unknown_items for answer in answers] == [2, 0]
    assert all("no event of them" in answer.error for answer in answers)
    with pytest.raises(RecexpError, match="no event of them"):
        sasrec.recommend(histories=frame_of(events_of(sasrec, ["no item"])))
    user = sasrec.users[2]
    (answer,) = sasrec.answer([{"user": user, "history": unknown}])
    assert_equal(answer, sasrec.recommend([user]))


def test_an_empty_frame_of_histories_has_no_lists(sasrec):
    empty = pl.DataFrame({"user": [], "item": [], "behavior": []})
    assert sasrec.recommend(histories=empty).is_empty()


TIMES = [
    ([None, 5], r"history\[0\]\.timestamp: missing", "missing in 1 row"),
    ([math.nan, 5.0], r"history\[0\]\.timestamp: a time is a finite number", "nan lies outside"),
    ([5.0, math.inf], r"history\[1\]\.timestamp: a time is a finite number", "inf lies outside"),
    ([-1, 5], r"history\[0\]\.timestamp: .* from 1970 on", "-1 lies outside"),
    ([True, False], r"history\[0\]\.timestamp: a time", "of type Boolean"),
    (["2020-01-01", "soon"], "'soon', are no ISO times", "'soon', are no ISO times"),
    (["1960-01-01", "2020-01-01"], "1960-01-01.* lies outside", "1960-01-01.* lies outside"),
    ([1e19, 2**63 - 1], "a time is a finite number", None),
]


@pytest.mark.parametrize(("times", "in_answer", "in_recommend"), TIMES)
def test_faulty_times_are_one_sentence(sasrec, times, in_answer, in_recommend):
    history = events_of(sasrec, sasrec.items[:2], timestamp=times)
    with pytest.raises(RecexpError, match=in_answer) as caught:
        sasrec.answer([{"history": history}])
    assert "\n" not in str(caught.value)
    if in_recommend:
        with pytest.raises(RecexpError, match=in_recommend):
            sasrec.recommend(histories=frame_of(history))


def test_texts_and_numbers_as_times_of_one_history_are_refused(sasrec):
    history = events_of(sasrec, sasrec.items[:2], timestamp=["2020-01-01", 5])
    with pytest.raises(RecexpError, match="not both"):
        sasrec.answer([{"history": history}])


def test_iso_texts_and_numbers_are_the_same_times(sasrec):
    texts = ["2020-01-03", "2020-01-01", "2020-01-02"]
    numbers = [1578009600, 1577836800, 1577923200.0]
    answers = sasrec.answer(
        [{"history": events_of(sasrec, sasrec.items[:3], timestamp=t)} for t in (texts, numbers)]
    )
    assert answers[0] == answers[1]


FAULTS = [
    ({"history": [{"behavior": "view"}]}, r"history\[0\]\.item: field required"),
    ({"history": [{"item": None, "behavior": "view"}]}, r"history\[0\]\.item: an id is"),
    ({"history": [{"item": 1.5, "behavior": "view"}]}, r"history\[0\]\.item: an id is"),
    ({"history": [{"item": True, "behavior": "view"}]}, r"history\[0\]\.item: an id is"),
    ({"history": [{"item": "\ud800", "behavior": "view"}]}, r"history\[0\]\.item: the text"),
    ({"history": [{"item": 1, "behavior": "stare"}]}, r"history\[0\]\.behavior: 'stare' is unkn"),
    ({"history": [{"item": 1}]}, r"history\[0\]\.behavior: missing"),
    ({"history": [{"item": 1, "behavior": "view", "value": math.nan}]}, r"history\[0\]\.value: "),
    ({"history": [{"item": 1, "when": 5}]}, r"history\[0\]\.when: extra"),
    ({"history": "all"}, "history: input should be a valid list"),
    ({"user": 1, "k": 0}, "k: input should be greater than or equal to 1"),
    ({"user": 1, "k": 2.5}, "k: input should be a valid integer"),
    ({"user": 1, "k": True}, "k: input should be a valid integer"),
    ({"user": 1, "fallback": "luck"}, "fallback: input should be 'popularity'"),
    ({"user": [1]}, "user: an id is"),
    ({"user": 1, "candidates": [None]}, r"candidates\[0\]: an id is"),
    (5, "valid dictionary"),
]


@pytest.mark.parametrize(("request_", "text"), FAULTS)
def test_faulty_requests_name_their_field(sasrec, request_, text):
    with pytest.raises(RecexpError, match=text):
        sasrec.answer([request_])
    with pytest.raises(RecexpError, match=rf"requests\[1\]\.(The request is faulty: )?.*{text}"):
        sasrec.answer([{"user": sasrec.users[0]}, request_])


@pytest.mark.parametrize("k", [0, -1, 2.5, True, "3", None])
def test_lengths_that_are_no_number_of_items_are_refused(sasrec, k):
    with pytest.raises(RecexpError, match="k="):
        sasrec.recommend(sasrec.users[:1], k=k)


@pytest.mark.parametrize(
    ("column", "values", "text"),
    [
        ("behavior", [None, "view"], "unknown behavior None"),
        ("behavior", ["stare", "view"], "unknown behavior 'stare'"),
        ("value", ["good", "bad"], "values are no numbers"),
        ("item", [None, 1], "lack the item in 1 row"),
    ],
)
def test_faulty_columns_of_histories_are_one_sentence(sasrec, column, values, text):
    history = events_of(sasrec, sasrec.items[:2], **{column: values})
    with pytest.raises(RecexpError, match=text):
        sasrec.recommend(histories=frame_of(history))


def test_a_value_that_is_no_number_is_below_every_threshold(rated):
    frame = pl.DataFrame({"user": "new", "item": rated.items[:2], "value": [5.0, math.nan]})
    only_first = rated.recommend(histories=frame[:1])
    assert rated.recommend(histories=frame).equals(only_first)


def test_a_history_of_100_000_events(sasrec):
    n = 100_000
    items = np.resize(sasrec.items.to_numpy(), n)
    times = np.arange(n)[::-1] + 10**9
    behavior = sasrec._store.schema.behaviors[0]
    frame = pl.DataFrame({"user": "new", "item": items, "behavior": behavior, "timestamp": times})
    lists = sasrec.recommend(histories=frame, include_seen=True)
    pairs = zip(items.tolist(), times.tolist(), strict=True)
    history = [Event(item=item, behavior=behavior, timestamp=time) for item, time in pairs]
    (answer,) = sasrec.answer([Request(history=history, include_seen=True)])
    assert_equal(answer, lists)
    oldest_first = frame[::-1][-sasrec.model.history :]
    assert_equal(answer, sasrec.recommend(histories=oldest_first, include_seen=True))


def test_unknown_and_duplicated_candidates_and_users(sasrec, caplog):
    user = sasrec.users[1]
    some = sasrec.items[:8].to_list()
    candidates = [*some, *some, "no item", 10**12]
    (answer,) = sasrec.answer([{"user": user, "candidates": candidates, "k": 10**6}])
    assert answer.n_unknown_candidates == 2
    assert_equal(answer, sasrec.recommend([user], candidates=some, k=10**6))
    lists = sasrec.recommend([user, user], candidates=candidates, k=10**6)
    assert "2 candidate(s)" in caplog.text
    assert_equal(answer, lists)
    for none_known in (["no item"], []):
        (answer,) = sasrec.answer([{"user": user, "candidates": none_known}])
        assert answer.error == "None of the candidates is an item of the data."


def test_a_user_who_is_asked_for_twice_gets_each_list(sasrec):
    user = sasrec.users[4]
    history = events_of(sasrec, sasrec.items[:2])
    answers = sasrec.answer([{"user": user}, {"user": user, "history": history}, {"user": user}])
    assert answers[0] == answers[2]
    assert_equal(answers[0], sasrec.recommend([user]))
    assert_equal(answers[1], sasrec.recommend([user], histories=frame_of(history, user)))


def test_users_whom_the_model_cannot_score_do_not_disturb_others(bpr_mf):
    user = bpr_mf.users[0]
    answers = bpr_mf.answer([{"user": "nobody"}, {"user": user}])
    assert "MF cannot score 1 user(s), such as nobody" in answers[0].error
    assert answers[0].items == []
    assert_equal(answers[1], bpr_mf.recommend([user]))


def test_no_requests_have_no_answers(sasrec):
    assert sasrec.answer([]) == []
