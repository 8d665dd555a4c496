"""Every model of conf/model scores users without a history before the target, as P1 tests them."""

from __future__ import annotations

import pytest
import torch

from recexp.contracts import ClosedForm
from recexp.evaluation.candidate_store import stored_candidates
from recexp.evaluation.protocol import Candidates, Protocol
from recexp.testing import toy
from tests.contracts.harness import EACH_MODEL, contestant
from tests.support.events import BEHAVIORS, P1, Event, names, store

N_ITEMS = 15


def world() -> list[Event]:
    """Users with histories; and "first" and "second", whose purchase no other pair precedes."""
    users = [
        Event(f"u{u}", f"i{(3 * u + n) % N_ITEMS}", BEHAVIORS[n % 3], 1000 * n, 1 + n % 5)
        for u in range(6)
        for n in range(4 + u)
    ]
    own = [
        ("first", "i1", "buy", 0),
        ("first", "i2", "view", 1),
        ("second", "i3", "view", 0),
        ("second", "i3", "buy", 1),
        ("second", "i4", "view", 2),
        ("second", "i5", "view", 3),
    ]
    return users + [Event(u, i, b, 1000 * t, 2) for u, i, b, t in own]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Item features of all kinds by the pipeline: models with side information name theirs."""
    folder = tmp_path_factory.mktemp("empty")
    (folder / "raw").mkdir()
    lines = [f"i{n},c{n % 4},g{n % 3}|g{n % 2},{n / 10}" for n in range(N_ITEMS)]
    (folder / "raw" / "items.csv").write_text(
        "item,category,genres,price\n" + "\n".join(lines) + "\n"
    )
    kinds = {"category": "categorical", "genres": "multi_label", "price": "numeric"}
    features = {"file": "items.csv", "item": "item", "columns": kinds}
    return store(folder, world(), P1, value="value", features=features)


def test_they_are_tested(opened):
    users = [names(opened, "user")[u] for u in opened.test.user]
    empty = (opened.test.start == opened.test.end).tolist()
    assert [u for u, e in zip(users, empty, strict=True) if e] == ["first", "second"]
    assert opened.meta["left_out"].keys() == {
        "not validated: no target before the test target leaves a training event before it"
    }


@pytest.mark.parametrize("kind", ["uniform", "all"])
@pytest.mark.parametrize("name", EACH_MODEL)
def test_scores_are_finite_alone_and_among_others(opened, name, kind):
    model = contestant(name, opened).model
    if isinstance(model, ClosedForm):
        model.fit_pass(opened)
        model.eval()
    else:
        toy.randomise(model)
    protocol = Protocol("p", P1, Candidates(kind=kind, n=4, seen="removed"), ks=(10,))
    candidates = stored_candidates(opened, protocol, "test")
    everybody = torch.arange(len(opened.test))
    alone = (opened.test.start == opened.test.end).nonzero()[:, 0]

    def ranks(rows):
        own = None if candidates is None else candidates[rows]
        return torch.stack(protocol.ranks(opened, opened.test, rows, own, model))

    with torch.no_grad():
        together = ranks(everybody)
        assert torch.equal(ranks(alone), together[:, alone])
        assert torch.equal(ranks(alone[:1]), together[:, alone[:1]])
        query = opened.query_held_out(opened.test, alone, model.history)
        assert not query.mask_BL.any()
        assert torch.isfinite(model.score(query)).all()
