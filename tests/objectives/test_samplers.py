"""Negative samplers: their distribution, and no training item of the user where that is
documented.
"""

from types import SimpleNamespace

import pytest
import torch
from scipy import stats

from recexp.data.store import Events, Pairs
from recexp.errors import RecexpError
from recexp.objectives import samplers as sampling
from recexp.objectives.samplers import (
    InBatch,
    Mixed,
    NoSampler,
    Popularity,
    SupportiveOnly,
    Uniform,
    unseen,
)
from recexp.types import Query, Schema

DRAWS = 20_000


def world(owned: list[dict[int, int]], n_items: int, counts: dict[int, int] | None = None):
    """A store of users' items with masks (1 view, 2 buy, 3 both); every pair is one event unless
    ``counts`` says more of an item.
    """
    ptr = torch.tensor([0, *torch.tensor([len(own) for own in owned]).cumsum(0).tolist()])
    item = torch.tensor([i for own in owned for i in sorted(own)], dtype=torch.int32)
    mask = torch.tensor([own[i] for own in owned for i in sorted(own)], dtype=torch.int32)
    events = (
        item
        if counts is None
        else torch.tensor([i for i, n in counts.items() for _ in range(n)], dtype=torch.int32)
    )
    train = Events(
        torch.tensor([0, len(events)]), events, *(torch.ones(len(events)) for _ in range(3))
    )
    schema = Schema(len(owned), n_items, ("view", "buy"), (False, True))
    return SimpleNamespace(
        train_pairs=Pairs(ptr, item, mask, torch.ones_like(mask)), train=train, schema=schema
    )


def query(user: list[int]) -> Query:
    empty = torch.zeros(len(user), 0, dtype=torch.int64)
    return Query(torch.tensor(user), empty, empty, empty)


def draw(sampler, store, user, n=DRAWS, seed=0, pool=None):
    return sampler(store, query(user), n, torch.Generator().manual_seed(seed), pool)


def shares(items, n_items):
    return torch.bincount(items, minlength=n_items + 1).double() / len(items)


def close(found, expected, draws=DRAWS):
    """Whether a chi-square test accepts the distribution. No item of probability zero may be
    drawn.
    """
    some = expected > 0
    assert not found[~some].any()
    chi = (draws * (found - expected)[some] ** 2 / expected[some]).sum()
    freedom = int(some.sum()) - 1
    if freedom == 0:
        return bool(chi < 1e-9)
    return bool(stats.chi2.sf(chi.item(), freedom) > 1e-5)


OWNED = [
    {1: 1, 2: 3, 7: 1},
    {},
    {i: 1 for i in range(1, 10) if i != 6},
    {9: 2},
    {1: 1, 9: 1},
    {4: 1, 5: 1, 6: 1},
]


def test_unseen_is_a_bijection():
    """Every unseen item has one rank, in ascending order, for every set of items."""
    pairs = world(OWNED, 9).train_pairs
    for user, own in enumerate(OWNED):
        free = [i for i in range(1, 10) if i not in own]
        rank = torch.arange(len(free))
        assert unseen(pairs, 9, torch.full_like(rank, user), rank).tolist() == free


def test_unseen_of_random_users():
    generator = torch.Generator().manual_seed(1)
    owned = [
        {int(i) + 1: 1 for i in torch.randperm(50, generator=generator)[: int(n)]}
        for n in torch.randint(50, (40,), generator=generator)
    ]
    pairs = world(owned, 50).train_pairs
    for user, own in enumerate(owned):
        rank = torch.arange(50 - len(own)).view(1, -1)
        assert unseen(pairs, 50, torch.full_like(rank, user), rank)[0].tolist() == sorted(
            set(range(1, 51)) - own.keys()
        )


@pytest.mark.parametrize("bits", [True, False])
def test_uniform_is_uniform_over_what_the_user_has_not(bits):
    """By bits, and by search where bits would take too much memory."""
    store = world(OWNED, 9)
    if not bits:
        store.train_pairs.bits = None
    assert (store.train_pairs.bits is not None) == bits
    items = draw(Uniform(), store, list(range(len(OWNED))))
    assert items.shape == (len(OWNED), DRAWS) and items.dtype == torch.int64
    for own, found in zip(OWNED, items, strict=True):
        free = torch.tensor([float(i > 0 and i not in own) for i in range(10)], dtype=torch.float64)
        assert close(shares(found, 9), free / free.sum())


@pytest.mark.parametrize("bits", [True, False])
def test_one_unseen_item_is_always_drawn(bits):
    store = world(OWNED, 9)
    if not bits:
        store.train_pairs.bits = None
    for sampler in (Uniform(), Popularity()):
        assert (draw(sampler, store, [2], 50) == 6).all()


COUNTS = {1: 10, 2: 40, 3: 5, 4: 20, 5: 1, 7: 30, 8: 2, 9: 8}  # item 6 has no training event


@pytest.mark.parametrize("rounds", [0, 1, 20])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_popularity(alpha, rounds):
    store = world(OWNED, 9, COUNTS)
    weight = torch.tensor(
        [COUNTS.get(i, 0) ** alpha if i in COUNTS else 0.0 for i in range(10)], dtype=torch.float64
    )
    log_prob = Popularity(alpha).log_prob(store, torch.arange(10))
    assert torch.allclose(log_prob.double().exp(), weight / weight.sum(), atol=1e-7)
    assert log_prob.exp().sum() == pytest.approx(1, abs=1e-6)
    for user, found in enumerate(draw(Popularity(alpha, rounds), store, [0, 1, 3])):
        own = OWNED[[0, 1, 3][user]]
        free = torch.tensor(
            [0.0 if i in own else float(w) for i, w in enumerate(weight)], dtype=torch.float64
        )
        assert close(shares(found, 9), free / free.sum())


def test_popularity_ends_where_only_unpopular_items_are_left():
    """A user who has every item that occurs in training gets the rest uniformly."""
    store = world([{i: 1 for i in COUNTS}, {}], 12, COUNTS)
    rest = torch.tensor([float(i in (6, 10, 11, 12)) / 4 for i in range(13)], dtype=torch.float64)
    assert close(shares(draw(Popularity(), store, [0])[0], 12), rest)


@pytest.mark.parametrize("chunk", [1, 2**22])
def test_what_rejection_leaves_is_drawn_by_every_users_own_law(chunk, monkeypatch):
    """All users at once, in tables of one user or of all; of no weight: uniform."""
    monkeypatch.setattr(sampling, "_CHUNK_SIZE", chunk)
    owned = [*OWNED, {i: 1 for i in COUNTS}]
    store = world(owned, 12, COUNTS)
    drawn = draw(Popularity(rounds=0), store, list(range(len(owned))))
    for own, found in zip(owned, drawn, strict=True):
        weight = [0 if i in own else COUNTS.get(i, 0) for i in range(13)]
        if not any(weight):
            weight = [float(i > 0 and i not in own) for i in range(13)]
        expected = torch.tensor(weight, dtype=torch.float64)
        assert close(shares(found, 12), expected / expected.sum())


@pytest.mark.parametrize("sampler", [Uniform(), Popularity(0.5), Mixed(Uniform(), Popularity())])
def test_shared_draws_follow_log_prob(sampler):
    """No item is excluded; the generator decides."""
    store = world(OWNED, 9, COUNTS)
    one, again = (
        sampler.draw_shared(store, DRAWS, torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert one.shape == (DRAWS,) and one.dtype == torch.int64 and torch.equal(one, again)
    expected = sampler.log_prob(store, torch.arange(10)).double().exp()
    expected[0] = 0
    assert expected.sum().item() == pytest.approx(1, abs=1e-6)
    assert close(shares(one, 9), expected)


def test_an_item_without_events_has_probability_zero():
    log_prob = Popularity().log_prob(world(OWNED, 9, COUNTS), torch.tensor([6, 2]))
    assert log_prob[0] == -torch.inf and log_prob[1].isfinite()


def test_in_batch_without_targets_is_uniform():
    store, pool = world(OWNED, 9, COUNTS), torch.zeros(2, 3, dtype=torch.int64)
    drawn = InBatch().draw_shared(store, DRAWS, torch.Generator().manual_seed(0), pool)
    expected = torch.tensor([0.0] + [1 / 9] * 9, dtype=torch.float64)
    assert close(shares(drawn, 9), expected)
    assert not set(draw(InBatch(), store, [0], 50, pool=pool)[0].tolist()) & OWNED[0].keys()


def test_popularity_follows_the_store():
    sampler = Popularity()
    first, second = world([{}, {3: 1}], 3, {1: 1, 2: 1}), world([{}, {1: 1}], 3, {3: 1})
    assert set(draw(sampler, first, [0], 100)[0].tolist()) == {1, 2}
    assert set(draw(sampler, second, [0], 100)[0].tolist()) == {3}


def test_in_batch_draws_what_the_batch_predicts():
    store = world(OWNED, 9, COUNTS)
    pool = torch.tensor([[0, 3, 3], [2, 0, 3], [7, 0, 0]])
    expected = torch.tensor([0, 0, 0.2, 0.6, 0, 0, 0, 0.2, 0, 0], dtype=torch.float64)
    shared = InBatch().draw_shared(store, DRAWS, torch.Generator().manual_seed(0), pool)
    assert close(shares(shared, 9), expected)
    items = draw(InBatch(), store, [1, 0], pool=pool)
    assert close(shares(items[0], 9), expected)
    assert (items[1] == 3).all()  # user 0 has items 2 and 7 of the batch's targets
    assert (
        not set(draw(InBatch(), store, [0], 50, pool=torch.tensor([2, 7]))[0].tolist())
        & OWNED[0].keys()
    )
    assert torch.equal(
        InBatch().log_prob(store, torch.arange(10)), Popularity().log_prob(store, torch.arange(10))
    )


def test_supportive_only():
    """Uniform over the items that the user has through weaker behaviors only; without such an item,
    uniform over the unseen items.
    """
    owned = [{1: 1, 2: 3, 7: 1}, {}, {9: 2}, {4: 1, 5: 1, 6: 2}]
    store = world(owned, 9)
    expected = [{1, 7}, set(range(1, 10)), set(range(1, 9)), {4, 5}]
    for wanted, found in zip(expected, draw(SupportiveOnly(), store, [0, 1, 2, 3]), strict=True):
        share = torch.tensor(
            [float(i in wanted) / len(wanted) for i in range(10)], dtype=torch.float64
        )
        assert close(shares(found, 9), share)
    with pytest.raises(RecexpError, match="sampler=supportive_only has no proposal probability"):
        SupportiveOnly().log_prob(store, torch.arange(3))
    with pytest.raises(RecexpError, match="sampler=supportive_only draws from a user's own items"):
        SupportiveOnly().draw_shared(store, 3, torch.Generator())


def test_supportive_only_without_any_weaker_item():
    store = world([{2: 2}, {}], 4)
    assert set(draw(SupportiveOnly(), store, [0], 200)[0].tolist()) == {1, 3, 4}


def test_mixed():
    store = world(OWNED, 9, COUNTS)
    sampler = Mixed(Popularity(), Uniform(), share=0.3)
    weight = torch.tensor([float(COUNTS.get(i, 0)) for i in range(10)], dtype=torch.float64)
    uniform = torch.tensor([0.0] + [1 / 9] * 9, dtype=torch.float64)
    expected = 0.3 * weight / weight.sum() + 0.7 * uniform
    assert close(shares(draw(sampler, store, [1])[0], 9), expected)
    assert torch.allclose(
        sampler.log_prob(store, torch.arange(1, 10)).exp().double(), expected[1:], atol=1e-6
    )
    pool = torch.tensor([8])
    assert (draw(Mixed(InBatch(), InBatch()), store, [1], 20, pool=pool) == 8).all()


@pytest.mark.parametrize(
    "sampler",
    [Uniform(), Popularity(), InBatch(), SupportiveOnly(), Mixed(Uniform(), Popularity())],
)
def test_the_generator_decides(sampler):
    store = world(OWNED, 9, COUNTS)
    users, pool = [0, 1, 3, 4, 5], torch.arange(10)
    one, again, other = (draw(sampler, store, users, 40, seed, pool) for seed in (3, 3, 4))
    assert torch.equal(one, again) and not torch.equal(one, other)
    for user, items in zip(users, one.tolist(), strict=True):
        assert all(1 <= i <= 9 for i in items)
        assert isinstance(sampler, SupportiveOnly) or not set(items) & OWNED[user].keys()


def test_uniform_log_prob():
    store = world(OWNED, 9)
    log_prob = Uniform().log_prob(store, torch.ones(2, 3, dtype=torch.int64))
    assert log_prob.shape == (2, 3) and torch.allclose(log_prob.exp(), torch.full((2, 3), 1 / 9))


def test_no_sampler_says_which_setting_is_wrong():
    with pytest.raises(RecexpError, match="sampler=none"):
        draw(NoSampler(), world(OWNED, 9), [0], 1)
    with pytest.raises(RecexpError, match="sampler=none"):
        NoSampler().log_prob(world(OWNED, 9), torch.arange(3))
    with pytest.raises(RecexpError, match="sampler=none"):
        NoSampler().draw_shared(world(OWNED, 9), 3, torch.Generator())
