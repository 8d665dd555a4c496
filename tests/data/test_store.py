"""Gathers of the store against plain loops over the events."""

import dataclasses

import pytest
import torch

from recexp.data.store import Events, Pairs, Store
from tests.support.events import (
    BEHAVIORS,
    GLOBAL,
    P1,
    P2,
    P2_LATER,
    P3,
    Event,
    held_out,
    listed,
    names,
    random_events,
    store,
)


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Store:
    events = [e._replace(value=1 + n % 3) for n, e in enumerate(random_events(7))]
    return store(tmp_path_factory.mktemp("shop"), events, P3, value="value")


def rows_of(opened, query):
    """A query as lists of (item, behavior, time) per row, padding left out; fails where padding is
    not all on the left.
    """
    items = names(opened, "item")
    out = []
    for row in range(len(query)):
        real = query.mask_BL[row]
        assert real.tolist() == sorted(real.tolist())
        for column in (query.behavior_BL, query.time_BL, query.value_BL):
            assert column is None or not column[row][~real].any()
        columns = (query.item_BL, query.behavior_BL, query.time_BL)
        out.append(
            [
                (items[i], BEHAVIORS[b - 1], t)
                for i, b, t in zip(*(c[row][real].tolist() for c in columns), strict=True)
            ]
        )
    return out


def plain(events):
    return [(e.item, e.behavior, e.time) for e in events]


@pytest.mark.parametrize("length", [0, 1, 3, 1000])
def test_query_is_the_past_strictly_before(shop, length):
    row = torch.randperm(len(shop.train), generator=torch.Generator().manual_seed(0))
    query = shop.query(row, length)
    flat = [(user, n) for user, own in listed(shop, shop.train).items() for n in range(len(own))]
    expected = [
        plain(listed(shop, shop.train)[flat[r][0]][: flat[r][1]])[-length:] if length else []
        for r in row.tolist()
    ]
    assert rows_of(shop, query) == expected
    assert query.user_B.tolist() == shop.train.user[row].tolist()
    assert query.item_BL.shape[1] == max(map(len, expected))  # cropped to the longest of the batch
    assert {
        t.dtype
        for t in (query.user_B, query.item_BL, query.behavior_BL, query.time_BL, query.value_BL)
    } == {torch.int64}


def test_query_reads_values(shop):
    query = shop.query(torch.arange(len(shop.train)), 2)
    at = [(n - 2, n - 1) for n in range(len(shop.train))]
    start = shop.train.ptr[shop.train.user].tolist()
    expected = [
        [int(shop.train.value[n]) if n >= start[row] else 0 for n in pair]
        for row, pair in enumerate(at)
    ]
    assert query.value_BL.tolist() == expected


@pytest.mark.parametrize("split", [P1, P2, P2_LATER, P3, GLOBAL])
@pytest.mark.parametrize("name", ["val", "test"])
def test_histories_of_held_out_targets(tmp_path, split, name):
    opened = store(tmp_path, random_events(8), split)
    targets, users = opened.targets(name), names(opened, "user")
    row = torch.arange(len(targets)).flip(0)
    expected = held_out(opened, name)
    for length in (4, 1000):
        before = rows_of(opened, opened.query_held_out(targets, row, length))
        assert before == [
            plain(expected[users[u]][1])[-length:] for u in targets.user[row].tolist()
        ]
        train = rows_of(opened, opened.query_held_out(targets, row, length, "all_train"))
        assert train == [
            plain(listed(opened, opened.train)[users[u]])[-length:]
            for u in targets.user[row].tolist()
        ]
    assert opened.query_held_out(targets, row[:0], 4).item_BL.shape[0] == 0


def test_items_between(shop):
    targets = shop.test
    row, item = shop.items_between(shop.past, targets.start, targets.end)
    assert row.tolist() == sorted(row.tolist())
    for user in range(len(targets)):
        assert (
            item[row == user].tolist()
            == shop.past.item[targets.start[user] : targets.end[user]].tolist()
        )
    no_rows = torch.zeros(0, dtype=torch.int64)
    assert [len(x) for x in shop.items_between(shop.past, no_rows, no_rows)] == [0, 0]


def test_find(shop):
    pairs = shop.all_pairs
    rows = {
        (u, i): n
        for n, (u, i) in enumerate(zip(pairs.user.tolist(), pairs.item.tolist(), strict=True))
    }
    user, item = torch.meshgrid(
        torch.arange(shop.schema.n_users), torch.arange(shop.schema.V), indexing="ij"
    )
    expected = [
        [rows.get((u, i), -1) for i in range(shop.schema.V)] for u in range(shop.schema.n_users)
    ]
    assert pairs.find(user, item).tolist() == expected
    assert pairs.find(user[3], item[3]).tolist() == expected[3]
    assert any(n == -1 for own in expected for n in own)
    owned = [[n >= 0 for n in own] for own in expected]
    assert pairs.bits is not None and pairs.contain(user, item).tolist() == owned
    assert not pairs.contain(user, item + 10**6).any()
    pairs = dataclasses.replace(pairs)
    pairs.bits = None  # as where they would take too much memory
    assert pairs.contain(user, item).tolist() == owned


def test_users_without_training_events(tmp_path):
    """A global split leaves users who only appear later: their row of the CSR arrays is empty,
    wherever it stands.
    """
    events = [
        Event(u, f"i{t % 4}", "view", t)
        for u, first in (("a", 90), ("b", 1), ("c", 40), ("d", 95))
        for t in range(first, 100, 3)
    ]
    opened = store(tmp_path, events, GLOBAL)
    train = listed(opened, opened.train)
    assert train["a"] == [] and train["d"] == [] and train["b"]
    assert [len(own) for own in train.values()] == (
        opened.train.ptr[1:] - opened.train.ptr[:-1]
    ).tolist()
    assert opened.train.user.tolist() == sorted(opened.train.user.tolist())
    assert not (
        opened.train_pairs.find(torch.zeros(4, dtype=torch.int64), torch.arange(1, 5)) >= 0
    ).any()


def test_arrays_are_mapped_not_copied(shop):
    mapped = open("/proc/self/maps").read()  # noqa: SIM115
    assert str(shop.folder / "past_item.npy") in mapped


def test_moving_to_another_device(shop):
    assert shop.to("cpu") is shop
    moved = shop.to("meta")
    assert (
        moved.device.type == "meta"
        and moved.test.item.device.type == "meta"
        and moved.item_count.device.type == "meta"
    )
    assert (
        isinstance(moved.train, Events)
        and isinstance(moved.all_pairs, Pairs)
        and moved.schema is shop.schema
    )
