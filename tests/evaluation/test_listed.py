"""Ranks from lists are those of the scores behind them, as far as the lists show them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from recexp.data.store import Store
from recexp.evaluation import listed
from recexp.evaluation.listed import Lists, listed_ranks
from recexp.evaluation.ranks import candidate_ranks, full_ranks

N_QUERIES, N_ITEMS, N_DRAWN, LENGTH = 25, 30, 9, 12


class World:
    """Targets with histories, drawn candidates, and scores with many ties."""

    def __init__(self, seed):
        generator = torch.Generator().manual_seed(seed)
        self.score = torch.randint(0, 12, (N_QUERIES, N_ITEMS), generator=generator).float()
        self.target = torch.randint(1, N_ITEMS + 1, (N_QUERIES,), generator=generator)
        size = torch.randint(0, 15, (N_QUERIES,), generator=generator)
        self.end = size.cumsum(0)
        self.start = self.end - size
        n_events = int(self.end[-1])
        self.past = torch.randint(1, N_ITEMS + 1, (n_events,), generator=generator).int()
        others = torch.rand(N_QUERIES, N_ITEMS, generator=generator)
        others[torch.arange(N_QUERIES), self.target - 1] = -1
        self.drawn = (others.topk(N_DRAWN).indices + 1).int()

    def ranks(self, is_listed, drawn=False, seen="ranked"):
        """``listed_ranks`` of the scores where is_listed, bool [Q, items]."""
        query, column = is_listed.nonzero(as_tuple=True)
        value = self.score[query, column].double().numpy()
        lists = Lists(query.numpy(), column.numpy() + 1, value)
        schema = SimpleNamespace(V=N_ITEMS + 1, n_items=N_ITEMS)
        store = SimpleNamespace(schema=schema, past=SimpleNamespace(item=self.past))
        store.items_between = lambda *arguments: Store.items_between(store, *arguments)
        targets = Targets(self.target, self.start, self.end)
        return listed_ranks(lists, store, targets, self.drawn if drawn else None, seen)

    def expected(self, drawn=False, seen="ranked"):
        """better, tied and candidates of the whole scores."""
        if drawn:
            item = torch.cat([self.target[:, None], self.drawn.long()], 1)
            better, tied = candidate_ranks(self.score.gather(1, item - 1))
            return better, tied, torch.full_like(better, 1 + N_DRAWN)
        removed = None
        if seen == "removed":
            row = torch.repeat_interleave(torch.arange(N_QUERIES), self.end - self.start)
            removed = row, self.past.long()
        return full_ranks(self.score, self.target, removed)


class Targets(SimpleNamespace):
    """As ``store.Targets``, with ``n`` targets of each user."""

    def __init__(self, item, start, end, n=1):
        ptr = torch.arange(0, len(item) + 1, n)
        super().__init__(item=item, start=start, end=end, ptr=ptr, n_users=len(item) // n)

    def __len__(self):
        return len(self.item)


CASES = [{}, {"seen": "removed"}, {"drawn": True}]


@pytest.fixture(params=[1 << 24, 40], ids=["one block", "blocks"])
def block(request, monkeypatch):
    monkeypatch.setattr(listed, "KEYS_AT_ONCE", request.param)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_complete_lists_rank_as_their_scores(block, case, seed):
    world = World(seed)
    found = world.ranks(torch.ones(N_QUERIES, N_ITEMS, dtype=torch.bool), **case)
    better, tied, candidates = world.expected(**case)
    assert found.better_Q.tolist() == better.tolist()
    assert found.tied_Q.tolist() == tied.tolist()
    assert found.candidates_Q.tolist() == candidates.tolist()
    assert found.listed_Q.tolist() == candidates.tolist()
    assert found.has_target_Q.all()
    assert not found.ends_tied_Q.any()
    n_left_out = N_QUERIES * N_ITEMS - int(candidates.sum())
    assert found.n_seen + found.n_others == n_left_out
    assert (found.n_others if case.get("drawn") else found.n_seen) == n_left_out


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_what_cut_lists_show_is_true_of_their_scores(block, case, seed):
    """A known rank is exact; of an unknown one the least possible is given."""
    world = World(seed)
    best = world.score.topk(LENGTH).indices
    is_listed = torch.zeros(N_QUERIES, N_ITEMS, dtype=torch.bool).scatter_(1, best, True)
    found = world.ranks(is_listed, **case)
    better, tied, _ = (column.numpy() for column in world.expected(**case))
    is_known = found.has_target_Q & ~found.ends_tied_Q
    # A single item at the end is taken for better than those that are not listed.
    last = world.score.gather(1, best).min(1).values
    is_last = (world.score.gather(1, world.target[:, None] - 1)[:, 0] == last).numpy()
    is_sure = is_known & ~is_last
    assert is_sure.any()
    assert (found.better_Q[is_known] == better[is_known]).all()
    assert (found.tied_Q[is_sure] == tied[is_sure]).all()
    unknown = ~is_known
    assert unknown.any()
    assert (found.better_Q[unknown] <= (better + tied)[unknown]).all()
    assert (found.tied_Q[~found.has_target_Q] == 0).all()


def test_a_tie_at_the_end_is_told_from_one_above_it():
    world = World(0)
    world.score[:] = torch.arange(N_ITEMS, 0, -1)
    world.score[:, :4] = N_ITEMS  # four items share the first place
    world.target[:] = 2
    first = torch.arange(N_ITEMS) < 4
    found = world.ranks(first.expand(N_QUERIES, -1))
    assert found.ends_tied_Q.all()
    assert (found.tied_Q == 3).all()
    five = torch.arange(N_ITEMS) < 5
    assert not world.ranks(five.expand(N_QUERIES, -1)).ends_tied_Q.any()


def test_targets_without_a_list_have_no_rank():
    world = World(1)
    found = world.ranks(torch.zeros(N_QUERIES, N_ITEMS, dtype=torch.bool), seen="removed")
    assert not found.has_target_Q.any()
    assert np.array_equal(found.listed_Q, np.zeros(N_QUERIES))
    assert (found.better_Q == 0).all()
