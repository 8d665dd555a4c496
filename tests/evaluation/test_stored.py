"""Candidates drawn once and stored beside the data."""

import numpy as np
import pytest
import torch

from recexp.data.store import Store
from recexp.errors import RecexpError
from recexp.evaluation import candidate_store as stored
from recexp.evaluation.candidate_store import stored_candidates
from recexp.evaluation.protocol import Candidates, Protocol
from tests.support.events import P1, P3, random_events, store


@pytest.fixture
def shop(tmp_path):
    return store(tmp_path, random_events(0, n_items=40), P1)


def protocol(**candidates):
    return Protocol("p", P1, Candidates(**({"n": 6} | candidates)))


@pytest.mark.parametrize("kind", ["uniform", "popularity"])
@pytest.mark.parametrize("split", ["val", "test"])
def test_distinct_items_outside_everything_the_user_touched(shop, kind, split):
    targets = shop.targets(split)
    drawn = stored_candidates(shop, protocol(kind=kind), split)
    assert drawn.shape == (len(targets), 6) and drawn.dtype == torch.int32
    for user, target, items in zip(
        targets.user.tolist(), targets.item.tolist(), drawn.tolist(), strict=True
    ):
        touched = set(shop.all_pairs.item[shop.all_pairs.user == user].tolist())
        assert len(set(items)) == 6 and target in touched and not set(items) & touched
        assert all(1 <= i <= shop.schema.n_items for i in items)


@pytest.mark.parametrize("split", ["val", "test"])
def test_explicit_only_allows_what_was_merely_viewed(shop, split):
    targets, pairs = shop.targets(split), shop.all_pairs
    drawn = stored_candidates(shop, protocol(exclude="explicit_only", n=20), split)
    viewed = 0
    for user, target, items in zip(
        targets.user.tolist(), targets.item.tolist(), drawn.tolist(), strict=True
    ):
        own = pairs.user == user
        explicit = set(pairs.item[own & (pairs.mask & 0b110 != 0)].tolist())
        assert not set(items) & (explicit | {target})
        viewed += len(set(items) & (set(pairs.item[own].tolist()) - explicit))
    assert viewed > 0


def test_popularity_may_be_that_of_training_alone(shop):
    """Items that occur in held-out events only are drawn by one rule and never by the other."""
    shop.item_count = shop.item_count.clone()
    absent = torch.bincount(shop.train.item, minlength=shop.schema.V) == 0
    absent[shop.train_pairs.item[-3:].long()] = True
    shop.item_count[absent] = shop.item_count.max() * 50
    shop.train.item = shop.train.item[~absent[shop.train.item.long()]]
    drawn = {
        c: stored_candidates(shop, protocol(kind="popularity", counts=c), "test").long()
        for c in ("all", "train")
    }
    assert absent[drawn["all"]].any() and not absent[drawn["train"]].any()


def test_a_viewed_target_is_never_among_its_candidates(tmp_path):
    """Where the last event is a view, explicit_only excludes its item only because it is the
    target.
    """
    opened = store(tmp_path, random_events(0), P3)
    drawn = stored_candidates(
        opened, Protocol("p", P3, Candidates(n=4, exclude="explicit_only")), "test"
    )
    assert (opened.test.behavior == 1).any() and not (drawn == opened.test.item[:, None]).any()


def test_drawn_once_and_shared(shop, monkeypatch):
    first = stored_candidates(shop, protocol(), "test")
    monkeypatch.setattr(stored, "draw", lambda *args: pytest.fail("drawn again"))
    assert torch.equal(stored_candidates(Store.open(shop.folder), protocol(), "test"), first)
    assert not list(shop.folder.glob(".candidates*"))


@pytest.mark.parametrize("name", ["*.npy", "*.json"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-3],
        lambda data: data[:-2] + bytes([data[-2] ^ 1]) + data[-1:],
        lambda data: b"",
    ],
)
def test_damage_is_mended(shop, name, damage):
    first = stored_candidates(shop, protocol(), "test")
    (path,) = shop.folder.glob(f"candidates-test-{name}")
    data = path.read_bytes()
    path.write_bytes(damage(data))
    assert (
        torch.equal(stored_candidates(shop, protocol(), "test"), first)
        and path.read_bytes() == data
    )


def test_a_folder_that_cannot_be_written_is_one_clear_error(shop, monkeypatch):
    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(stored.np, "save", refuse)
    with pytest.raises(
        RecexpError, match=r"candidates-test-.* cannot be written: Permission denied"
    ):
        stored_candidates(shop, protocol(), "test")


def test_the_same_wherever_they_are_drawn(tmp_path):
    drawn = [
        stored_candidates(
            store(tmp_path / place, random_events(0, n_items=40), P1), protocol(), "val"
        )
        for place in ("a", "b")
    ]
    assert torch.equal(*drawn)


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"kind": "popularity"}, {"exclude": "explicit_only"}]
)
def test_other_settings_are_other_candidates(shop, change):
    base, other = (stored_candidates(shop, p, "test") for p in (protocol(), protocol(**change)))
    assert base.shape == other.shape and not torch.equal(base, other)
    assert torch.equal(stored_candidates(shop, protocol(), "test"), base)


def test_validation_and_test_differ(shop):
    val, test = (stored_candidates(shop, protocol(), split) for split in ("val", "test"))
    same = [
        (a, b)
        for a, u in zip(val.tolist(), shop.val.user.tolist(), strict=True)
        for b, v in zip(test.tolist(), shop.test.user.tolist(), strict=True)
        if u == v
    ]
    assert same and sum(set(a) == set(b) for a, b in same) < len(same) / 2


def test_popular_items_are_drawn_more_often(tmp_path):
    """Proportional to counts over all splits: over seeds, the frequent half comes first."""
    opened = store(tmp_path, random_events(2, n_items=40, n_events=900), P3)
    rare = opened.item_count[1:] < opened.item_count[1:].median()
    shares = {}
    for kind in ("uniform", "popularity"):
        drawn = torch.cat(
            [
                stored_candidates(
                    opened, Protocol("p", P3, Candidates(kind, n=5, seed=s)), "test"
                ).flatten()
                for s in range(20)
            ]
        )
        shares[kind] = float(rare[drawn.long() - 1].double().mean())
    assert shares["popularity"] < shares["uniform"] - 0.03


def test_the_whole_catalogue_needs_none(shop):
    assert stored_candidates(shop, protocol(kind="all"), "test") is None
    assert not list(shop.folder.glob("candidates*"))


def test_too_many_candidates_is_an_error_that_names_the_setting(shop):
    with pytest.raises(RecexpError, match=r"lower protocol\.candidates\.n"):
        stored_candidates(shop, protocol(n=39), "test")
    assert not list(shop.folder.glob("*candidates*"))


def test_a_large_table_is_mapped(shop, monkeypatch):
    stored_candidates(shop, protocol(), "test")
    loaded = []
    real = np.load
    monkeypatch.setattr(
        stored.np, "load", lambda *args, **kwargs: loaded.append(kwargs) or real(*args, **kwargs)
    )
    stored_candidates(shop, protocol(), "test")
    assert loaded == [{"mmap_mode": "r"}]
