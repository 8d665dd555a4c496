"""Metrics of lists and of groups: every formula against plain counting on small data."""

from __future__ import annotations

import math
import random
from dataclasses import fields, replace
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch

from recexp.data.store import Targets
from recexp.errors import RecexpError
from recexp.evaluation import list_metrics
from recexp.evaluation.groups import GROUPINGS, by_activity, by_popularity, group_metrics, groups_of
from recexp.evaluation.kept import KeptLists, Scorer, TopLists
from recexp.evaluation.list_metrics import (
    CATALOG_METRICS,
    FEATURE_METRICS,
    LIST_METRICS,
    Recommended,
    cosine_distance,
    mean_of_known,
    values_of_catalog,
    values_per_user,
)
from recexp.evaluation.metrics import expected_hr, expected_ndcg
from recexp.evaluation.protocol import Candidates, Protocol
from recexp.types import Feature
from tests.support.events import P3, Event, store

N_ITEMS = 12
K = 6
ITEM_COLUMNS = {
    "brand": "categorical",
    "genres": "multi_label",
    "price": "numeric",
    "look": "vector",
}
FEATURES = {
    "items": {"file": "items.parquet", "item": "item", "columns": ITEM_COLUMNS},
    "users": {
        "file": "users.csv",
        "user": "user",
        "columns": {"country": "categorical", "age": "numeric"},
    },
}
GENRES = ("drama", "comedy", "war", "noir")


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """30 users, 12 items, some of which have no features; item i11 has no training event."""
    folder = tmp_path_factory.mktemp("lists")
    rng = random.Random(0)
    weights = [1 / (i + 1) for i in range(N_ITEMS - 1)]
    events = []
    for user in range(30):
        for time in range(rng.randrange(4, 9)):
            item = rng.choices(range(N_ITEMS - 1), weights)[0]
            events.append(Event(f"u{user:02}", f"i{item:02}", "view", 1000 * time))
    events.append(Event("u00", "i11", "view", 100_000))  # only a test target
    rows = []
    for item in range(N_ITEMS):
        brand = rng.choice(["a", "b", ""])
        genres = "|".join(rng.sample(GENRES, rng.randrange(0, 4)))
        price = rng.choice(["", f"{rng.random():.3f}", f"{rng.random():.3f}"])
        look = [rng.gauss(0, 1) for _ in range(3)] if rng.random() < 0.8 else None
        rows.append((f"i{item:02}", brand or None, genres or None, price or None, look))
    (folder / "raw").mkdir()
    names = ["item", *ITEM_COLUMNS]
    pl.DataFrame(rows, names, orient="row").write_parquet(folder / "raw" / "items.parquet")
    users = ["user,country,age"]
    users += [
        f"u{n:02},{rng.choice(['no', 'it', ''])},{rng.choice([18, 30, ''])}" for n in range(30)
    ]
    (folder / "raw" / "users.csv").write_text("\n".join(users) + "\n")
    return store(folder, events, P3, features=FEATURES)


def random_lists(shop, seed=0) -> TopLists:
    """Lists without order; some are short, and one is empty."""
    rng = random.Random(seed)
    n_users = shop.test.n_users
    item_QK = np.zeros((n_users, K), dtype=np.int32)
    for row in range(1, n_users):
        length = rng.choice([1, K - 1, K, K, K])
        item_QK[row, :length] = rng.sample(range(1, N_ITEMS + 1), length)
    scores = np.where(item_QK > 0, 0.0, -np.inf).astype(np.float32)
    return TopLists(np.arange(n_users), item_QK, scores)


def users_per_item(shop) -> dict[int, set[int]]:
    users = {item: set() for item in range(1, N_ITEMS + 1)}
    for user, item in zip(shop.train.user.tolist(), shop.train.item.tolist(), strict=True):
        users[item].add(user)
    return users


def measured(shop, lists, candidates=None, seen="ranked", targets=None):
    return Recommended.of(lists, shop, targets or shop.test, candidates, seen)


def with_second_targets(shop) -> Targets:
    """The test targets, and for every other user one more of the same history."""
    test = shop.test
    row = torch.tensor([r for r in range(len(test)) for _ in range(1 + r % 2)])
    item = test.item[row].clone()
    for place in range(1, len(row)):
        if row[place] == row[place - 1]:
            item[place] = 1 + item[place] % N_ITEMS  # another one
    columns = {f.name: getattr(test, f.name) for f in fields(test)}
    several = {name: x[row] for name, x in columns.items() if isinstance(x, torch.Tensor)}
    return replace(test, **several | {"item": item})


def targets_by_user(targets: Targets) -> list[set[int]]:
    found: dict[int, set[int]] = {}
    for user, item in zip(targets.user.tolist(), targets.item.tolist(), strict=True):
        found.setdefault(user, set()).add(item)
    return list(found.values())


def cut(lists: TopLists, k: int) -> list[list[int]]:
    return [[int(item) for item in row[:k] if item] for row in lists.item_QK]


@pytest.mark.parametrize("k", [1, 3, K])
def test_coverage_and_gini_are_those_of_counting(shop, k):
    lists = random_lists(shop)
    values = values_of_catalog(measured(shop, lists), [k])
    counts = sorted(sum(item in row for row in cut(lists, k)) for item in range(1, N_ITEMS + 1))
    assert values[f"coverage@{k}"] == sum(n > 0 for n in counts) / N_ITEMS
    # The mean difference of all pairs, over twice the mean and in the units of n / (n - 1).
    difference = sum(abs(a - b) for a in counts for b in counts)
    gini = difference / (2 * N_ITEMS * sum(counts)) * N_ITEMS / (N_ITEMS - 1)
    assert values[f"gini@{k}"] == pytest.approx(gini, abs=1e-12)
    assert set(values) == {f"{name}@{k}" for name in CATALOG_METRICS}


def test_gini_is_0_for_equal_exposure_and_1_for_one_item(shop):
    n_users = shop.test.n_users
    everyone = np.arange(n_users)
    one = np.full((n_users, 1), 3, dtype=np.int32)
    all_items = np.tile(np.arange(1, N_ITEMS + 1, dtype=np.int32), (n_users, 1))
    for items, expected in ((one, 1.0), (all_items, 0.0)):
        lists = TopLists(everyone, items, np.zeros(items.shape, dtype=np.float32))
        k = items.shape[1]
        assert values_of_catalog(measured(shop, lists), [k])[f"gini@{k}"] == pytest.approx(expected)


@pytest.mark.parametrize("k", [1, 3, K])
def test_popularity_and_novelty_are_those_of_counting(shop, k):
    lists = random_lists(shop)
    values = values_per_user(measured(shop, lists), [k])
    users = users_per_item(shop)
    n_users = len(set().union(*users.values()))
    assert any(not found for found in users.values())  # a cold item
    for row, items in enumerate(cut(lists, k)):
        popularity = values[f"popularity@{k}"][row].item()
        novelty = values[f"novelty@{k}"][row].item()
        if not items:
            assert math.isnan(popularity) and math.isnan(novelty)
            continue
        assert popularity == pytest.approx(sum(len(users[i]) for i in items) / len(items))
        bits = [-math.log2(max(1, len(users[i])) / n_users) for i in items]
        assert novelty == pytest.approx(sum(bits) / len(items), abs=1e-12)
    names = {f"{name}@{k}" for name in LIST_METRICS}
    names |= {f"{n}.{f}@{k}" for n in FEATURE_METRICS for f in ITEM_COLUMNS}
    assert set(values) == names


def popular(shop, candidates: set[int], k: int) -> list[int]:
    users = users_per_item(shop)
    return sorted(candidates, key=lambda item: (-len(users[item]), item))[:k]


@pytest.mark.parametrize("k", [1, 3, K])
@pytest.mark.parametrize("kind", ["ranked", "removed", "drawn"])
@pytest.mark.parametrize("several", [False, True])
def test_serendipity_is_that_of_counting(shop, kind, k, several):
    lists = random_lists(shop, seed=1)
    targets = with_second_targets(shop) if several else shop.test
    wanted = targets_by_user(targets)
    for row, items in enumerate(wanted):  # every other list begins with a target
        target = max(items)
        if row % 2 and target not in lists.item_QK[row]:
            lists.item_QK[row, 0] = target
    rng = random.Random(2)
    every = set(range(1, N_ITEMS + 1))
    drawn = [rng.sample(sorted(every - items), 7) for items in wanted]
    candidates = torch.tensor(drawn, dtype=torch.int32) if kind == "drawn" else None
    seen = "removed" if kind == "removed" else "ranked"
    lists_measured = measured(shop, lists, candidates, seen, targets)
    values = values_per_user(lists_measured, [k])[f"serendipity@{k}"]
    expected = []
    for row, items in enumerate(cut(lists, k)):
        own = every
        if kind == "removed":
            history = shop.past.item[shop.test.start[row] : shop.test.end[row]].tolist()
            own = (every - set(history)) | wanted[row]
        elif kind == "drawn":
            own = {*drawn[row], *wanted[row]}
        unexpected = [item for item in items if item not in popular(shop, own, k)]
        n_useful = sum(item in wanted[row] for item in unexpected)
        expected.append(n_useful / len(unexpected) if unexpected else 0.0)
    assert values.tolist() == expected
    assert any(expected) or k == K  # of which popularity lists half


@pytest.mark.parametrize("kind", ["ranked", "removed", "drawn"])
def test_lists_of_users_with_several_targets_hold_all_of_them(shop, kind):
    """Kept in batches of users in any order, from scores with ties."""
    targets = with_second_targets(shop)
    wanted = targets_by_user(targets)
    n_users = len(wanted)
    every = range(1, N_ITEMS + 1)
    rng = random.Random(3)
    scores = torch.tensor([[float(rng.randrange(4)) for _ in every] for _ in wanted])
    # Targets are padded by the last one.
    targets_B2 = targets.items_of_users(torch.arange(n_users)).tolist()
    others = [rng.sample(sorted(set(every) - items), 5) for items in wanted]
    drawn = [[*own, *more] for own, more in zip(targets_B2, others, strict=True)]
    seen = "removed" if kind == "removed" else "ranked"
    protocol = Protocol("p", split=P3, candidates=Candidates(kind="all", seen=seen))
    kept = KeptLists(K)
    numbers = rng.sample(range(n_users), n_users)
    for batch in torch.tensor(numbers).split(7):
        scorer = Scorer(SimpleNamespace(history=0))
        scorer.score_BC = scores[batch]
        if kind == "drawn":
            scorer.item_BC = torch.tensor(drawn)[batch]
            scorer.score_BC = scores[batch].gather(1, scorer.item_BC - 1)
        kept.add(protocol, shop, targets, batch, scorer)
    lists = kept.lists()
    assert lists.number_Q.tolist() == list(range(n_users))
    for row in range(n_users):
        own = set(every)
        if kind == "removed":
            history = shop.past.item[shop.test.start[row] : shop.test.end[row]].tolist()
            own = (own - set(history)) | wanted[row]
        elif kind == "drawn":
            own = set(drawn[row])
        best = sorted(own, key=lambda item: (-scores[row, item - 1].item(), item))[:K]
        padding = [0] * (K - len(best))
        assert lists.item_QK[row].tolist() == best + padding
        assert lists.score_QK[row, : len(best)].tolist() == [scores[row, i - 1] for i in best]
        assert (lists.score_QK[row, len(best) :] == -np.inf).all()


def raw_features(shop) -> dict[int, dict]:
    table = pl.read_parquet(shop.folder.parent.parent / "raw" / "items.parquet")
    numbers = dict(pl.read_parquet(shop.folder / "items.parquet").select("item", "index").rows())
    return {numbers[row["item"]]: row for row in table.rows(named=True) if row["item"] in numbers}


def distance(name: str, a, b, width: float) -> float:
    if name == "price":
        return abs(float(a) - float(b)) / width
    if name == "look":
        return 1 - np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)
    left, right = set(a.split("|")), set(b.split("|"))
    return 1 - len(left & right) / len(left | right)


@pytest.mark.parametrize("name", ITEM_COLUMNS)
@pytest.mark.parametrize("k", [1, 3, K])
def test_diversity_is_the_mean_distance_of_pairs(shop, name, k, monkeypatch):
    monkeypatch.setattr(list_metrics, "ELEMENTS_AT_ONCE", 100)  # several blocks
    lists = random_lists(shop)
    values = values_per_user(measured(shop, lists), [k])[f"diversity.{name}@{k}"]
    features = raw_features(shop)
    prices = [float(row["price"]) for row in features.values() if row["price"]]
    width = max(prices) - min(prices)
    n_known = 0
    for row, items in enumerate(cut(lists, k)):
        found = [features[item][name] for item in items]
        pairs = list(combinations([value for value in found if value is not None], 2))
        if not pairs:
            assert math.isnan(values[row])
            continue
        n_known += 1
        mean = sum(distance(name, a, b, width) for a, b in pairs) / len(pairs)
        assert values[row].item() == pytest.approx(mean, abs=1e-5)  # numbers are kept in float32
    assert (n_known == 0) == (k == 1)
    known = [x for x in values.tolist() if not math.isnan(x)]
    assert mean_of_known(values) == pytest.approx(sum(known) / len(known)) if known else True


def test_vectors_differ_by_their_cosine():
    vector_VM = torch.randn(5, 3)
    vector_VM[4] = 0
    feature = Feature("vector", 4, torch.ones(5, 1, dtype=torch.int64), vector_VM)
    item_Bk = torch.tensor([[1, 2, 3], [3, 4, 1]])
    distance_Bkk = cosine_distance(feature, item_Bk)
    a, b = vector_VM[1].double(), vector_VM[2].double()
    assert distance_Bkk[0, 0, 1].item() == pytest.approx(1 - float(a @ b / (a.norm() * b.norm())))
    assert distance_Bkk[1, 0, 1] == 1  # no direction


def test_popularity_groups_split_the_training_pairs(shop):
    users = users_per_item(shop)
    total = sum(len(found) for found in users.values())
    ordered = sorted(users, key=lambda item: (-len(users[item]), item))
    expected = {}
    for place, item in enumerate(ordered):
        before = sum(len(users[i]) for i in ordered[:place])
        behind = sum(len(users[i]) for i in ordered[place:])
        group = "popular" if before < 0.2 * total else "tail" if behind <= 0.2 * total else "middle"
        expected[item] = group if users[item] else None
    # Every item as a target.
    everything = replace(shop.test, item=torch.arange(1, N_ITEMS + 1))
    flags = by_popularity(shop, everything)
    for item in range(1, N_ITEMS + 1):
        assert [g for g, is_in in flags.items() if is_in[item - 1]] == (
            [expected[item]] if expected[item] else []
        )
    assert len(set(expected.values())) == 4


def test_light_users_have_at_most_the_median_history(shop):
    flags = by_activity(shop, shop.test)
    lengths = (shop.test.end - shop.test.start).tolist()
    median = sorted(lengths)[len(lengths) // 2]
    if len(lengths) % 2 == 0:
        median = (median + sorted(lengths)[len(lengths) // 2 - 1]) / 2
    assert flags["light"].tolist() == [n <= median for n in lengths]
    assert flags["heavy"].tolist() == [n > median for n in lengths]
    assert flags["heavy"].any()


def test_features_of_the_target_are_groups(shop):
    flags = groups_of(["brand", "genres", "price"], shop, shop.test)
    features = raw_features(shop)
    rows = [features[item] for item in shop.test.item.tolist()]
    for brand in ("a", "b"):
        assert flags[f"brand={brand}"].tolist() == [row["brand"] == brand for row in rows]
    assert flags["brand unknown"].tolist() == [row["brand"] is None for row in rows]
    labels = [set((row["genres"] or "").split("|")) - {""} for row in rows]
    for genre in set().union(*labels):
        expected = [genre in own for own in labels]
        assert flags[f"genres={genre}"].tolist() == expected
    quarters = [name for name in flags if name.startswith("price=")]
    n_in = sum(flags[name].astype(int) for name in quarters) + flags["price unknown"]
    assert len(quarters) > 1 and (n_in == 1).all()
    with pytest.raises(
        RecexpError, match=r"'color' is unknown; choose from .*brand.*country, age\."
    ):
        groups_of(["color"], shop, shop.test)
    with pytest.raises(RecexpError, match="look is a vector"):
        groups_of(["look"], shop, shop.test)


def test_attributes_of_the_user_are_groups(shop):
    flags = groups_of(["country", "age"], shop, shop.test)
    table = pl.read_csv(shop.folder.parent.parent / "raw" / "users.csv", infer_schema=False)
    users = {row["user"]: row for row in table.rows(named=True)}
    raw = pl.read_parquet(shop.folder / "users.parquet")["user"].to_list()
    rows = [users[raw[user]] for user in shop.test.user.tolist()]
    for country in ("no", "it"):
        assert flags[f"country={country}"].tolist() == [row["country"] == country for row in rows]
    assert flags["country unknown"].tolist() == [row["country"] is None for row in rows]
    assert flags["age unknown"].tolist() == [row["age"] is None for row in rows]
    # Equal numbers are in one group.
    of_age = {age: [row["age"] == age for row in rows] for age in ("18", "30")}
    quarters = [flags[name].tolist() for name in flags if name.startswith("age=")]
    assert sorted(quarters) == sorted(of_age.values())


def test_metrics_of_a_group_are_the_means_over_its_targets(shop):
    n = len(shop.test)
    rng = np.random.default_rng(0)
    ranks = {
        "user": shop.test.user.numpy(),
        "better": rng.integers(0, 8, n),
        "tied": rng.integers(0, 3, n),
        "candidates": np.full(n, N_ITEMS),
    }
    flags = groups_of(["popularity", "activity"], shop, shop.test)
    protocol = Protocol("p", split=P3, ks=(1, 5, 10))
    values = group_metrics(protocol, ranks, flags)
    for group, is_in in flags.items():
        better = torch.from_numpy(ranks["better"][is_in])
        tied = torch.from_numpy(ranks["tied"][is_in])
        for k in (1, 5):
            hr = expected_hr(better, tied, k).mean().item()
            assert values[f"hr@{k}/{group}"] == pytest.approx(hr, abs=1e-15)
            ndcg = expected_ndcg(better, tied, k).mean().item()
            assert values[f"ndcg@{k}/{group}"] == pytest.approx(ndcg, abs=1e-15)
        assert values[f"users/{group}"] == is_in.sum()


def test_a_metric_of_lists_and_a_grouping_are_one_function_each(shop, monkeypatch):
    monkeypatch.setitem(LIST_METRICS, "length", lambda lists, k: (lists.item_QK > 0).sum(1) * 1.0)
    monkeypatch.setitem(GROUPINGS, "parity", lambda store, targets: {"odd": targets.item % 2 == 1})
    lists = random_lists(shop)
    values = values_per_user(measured(shop, lists), [K])
    assert values[f"length@{K}"].tolist() == [len(row) for row in cut(lists, K)]
    flags = groups_of(["parity"], shop, shop.test)
    assert flags["odd"].tolist() == [item % 2 == 1 for item in shop.test.item.tolist()]
