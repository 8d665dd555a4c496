"""A protocol's id and its ranks."""

import dataclasses

import pytest
import torch

from recexp.data.split import Split
from recexp.errors import RecexpError
from recexp.evaluation.candidate_store import stored_candidates
from recexp.evaluation.protocol import Candidates, Protocol
from tests.support.events import P2, P3, random_events, store

BASE = Protocol("base", P3, Candidates(n=3))
META = {"fingerprint": "abc"}


@pytest.mark.parametrize(
    "change",
    [
        {"split": P2},
        {"split": Split(merge_val=True)},
        {"split": Split(test_without_history=True)},
        {"split": Split(kind="global_time")},
        {"split": Split(kind="global_time", test_share=0.2)},
        {"candidates": Candidates(n=4)},
        {"candidates": Candidates(n=3, kind="popularity")},
        {"candidates": Candidates(n=3, exclude="explicit_only")},
        {"candidates": Candidates(n=3, seed=1)},
        {"candidates": Candidates(n=3, counts="train")},
        {"candidates": Candidates(kind="all")},
        {"candidates": Candidates(kind="all", seen="removed")},
        {"history": "all_train"},
        {"ties": "optimistic"},
    ],
)
def test_the_id_changes_with_what_a_number_means(change):
    assert dataclasses.replace(BASE, **change).id(META) != BASE.id(META)


def test_ids_from_before_later_options_stay():
    """Runs from before ``candidates.counts`` and ``split.test_without_history`` are compared with
    new ones.
    """
    assert BASE.id(META) == "b1a040dd4a48"


def test_the_id_changes_with_the_data():
    assert BASE.id({"fingerprint": "abd"}) != BASE.id(META)


@pytest.mark.parametrize("change", [{"ks": (1, 10, 100)}, {"name": "other"}])
def test_the_id_stays_where_the_meaning_does(change):
    assert dataclasses.replace(BASE, **change).id(META) == BASE.id(META)


def test_the_id_does_not_depend_on_where_the_data_lie(tmp_path):
    ids = {BASE.id(store(tmp_path / place, random_events(0)).meta) for place in ("here", "there")}
    assert len(ids) == 1


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (Candidates, {"kind": "some"}, "protocol.candidates.kind='some'"),
        (Candidates, {"exclude": "none"}, "protocol.candidates.exclude='none'"),
        (Candidates, {"seen": "yes"}, "protocol.candidates.seen='yes'"),
        (Candidates, {"counts": "some"}, "protocol.candidates.counts='some'"),
        (Candidates, {"n": 0}, "protocol.candidates.n=0"),
        (Protocol, {"name": "x", "history": "all"}, "protocol.history='all'"),
        (Protocol, {"name": "x", "ks": (5, 20)}, "must contain 10"),
        (Protocol, {"name": "x", "ties": "random"}, "protocol.ties='random'"),
    ],
)
def test_wrong_settings_are_errors(kind, settings, message):
    with pytest.raises(RecexpError, match=message):
        kind(**settings)


class Model:
    """Fixed scores per (user, item), and a note of the histories it was shown."""

    history = 5

    def __init__(self, n_users, V):
        self.score_UV = torch.randint(
            0, 6, (n_users, V), generator=torch.Generator().manual_seed(0)
        ).float()

    def score(self, query, item_BC=None):
        self.query = query
        score_BV = self.score_UV[query.user_B]
        return score_BV[:, 1:] if item_BC is None else score_BV.gather(1, item_BC)


@pytest.mark.parametrize("history", ["before_target", "all_train"])
@pytest.mark.parametrize(
    "candidates", [Candidates(n=3), Candidates(kind="all"), Candidates(kind="all", seen="removed")]
)
def test_ranks(tmp_path, candidates, history):
    opened = store(tmp_path, random_events(1, n_items=20), P3)
    protocol = Protocol("p", P3, candidates, history=history)
    model, targets = Model(opened.schema.n_users, opened.schema.V), opened.test
    drawn = stored_candidates(opened, protocol, "test")
    row = torch.arange(len(targets)).flip(0)
    found = protocol.ranks(opened, targets, row, None if drawn is None else drawn[row], model)
    assert torch.equal(model.query.item_BL, opened.query_held_out(targets, row, 5, history).item_BL)
    for n, q in enumerate(row.tolist()):
        user, target = int(targets.user[q]), int(targets.item[q])
        items = list(range(1, opened.schema.V)) if drawn is None else drawn[q].tolist()
        if candidates.seen == "removed":
            past = opened.past.item[targets.start[q] : targets.end[q]].tolist()
            items = [i for i in items if i not in past]
        scores = [float(model.score_UV[user, i]) for i in set(items) - {target}]
        own = float(model.score_UV[user, target])
        expected = sum(s > own for s in scores), sum(s == own for s in scores), len(scores) + 1
        assert tuple(int(x[n]) for x in found) == expected
